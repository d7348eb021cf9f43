//! Every kernel this machine can run, and the portable path, against the naive product.

use super::{Accuracy, Kernel};
use crate::kernels::matmul::{
    MatMut, MatRef, matmul_panels_portable, matmul_panels_t_portable, matmul_portable,
};
use crate::kernels::panels::Panels;
use proptest::prelude::*;

/// The slow, obvious twin of [`matmul`](crate::kernels::matmul::matmul).
fn matmul_naive(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    assert!(
        a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
        "matrix shapes do not agree"
    );
    let at = |m: &MatRef<'_>, i, j| m.data[i * m.row_stride + j * m.col_stride];
    for i in 0..c.rows {
        for j in 0..c.cols {
            let sum: f32 = (0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum();
            let out = &mut c.data[i * c.row_stride + j];
            *out = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *out };
        }
    }
}

/// A product over matrices inside wider storage, either factor possibly transposed.
#[derive(Debug, Clone)]
struct Product {
    m: usize,
    k: usize,
    n: usize,
    /// Floats between a row's end and the next row's start, in A, B and C.
    gaps: [usize; 3],
    transposed: [bool; 2],
    alpha: f32,
    beta: f32,
}

/// Values in (-1, 1) without a pattern that could hide a swapped index.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Exactly as many floats as a strided matrix needs, so that a read past its end leaves the slice.
fn storage(rows: usize, cols: usize, gap: usize) -> usize {
    rows.saturating_sub(1) * (cols + gap) + cols
}

impl Product {
    fn plain(m: usize, k: usize, n: usize) -> Self {
        Self {
            m,
            k,
            n,
            gaps: [0; 3],
            transposed: [false; 2],
            alpha: 1.0,
            beta: 0.0,
        }
    }

    fn factors(&self) -> [Vec<f32>; 2] {
        let sides = [(self.m, self.k), (self.k, self.n)];
        std::array::from_fn(|i| {
            let (rows, cols) = self.stored(i, sides[i]);
            values(storage(rows, cols, self.gaps[i]), i as u32 + 1)
        })
    }

    fn stored(&self, i: usize, (rows, cols): (usize, usize)) -> (usize, usize) {
        if self.transposed[i] {
            (cols, rows)
        } else {
            (rows, cols)
        }
    }

    fn view<'a>(&self, i: usize, data: &'a [f32]) -> MatRef<'a> {
        let sides = [(self.m, self.k), (self.k, self.n)];
        let (rows, cols) = self.stored(i, sides[i]);
        let stored = MatRef::strided(data, rows, cols, cols + self.gaps[i]);
        if self.transposed[i] {
            stored.t()
        } else {
            stored
        }
    }

    /// C's whole storage, gaps included, after the product.
    fn run(&self, multiply: impl Fn(f32, MatRef<'_>, MatRef<'_>, f32, MatMut<'_>)) -> Vec<f32> {
        let [a, b] = self.factors();
        let mut c = values(storage(self.m, self.n, self.gaps[2]), 3);
        let out = MatMut::strided(&mut c, self.m, self.n, self.n + self.gaps[2]);
        multiply(
            self.alpha,
            self.view(0, &a),
            self.view(1, &b),
            self.beta,
            out,
        );
        c
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let want = self.run(matmul_naive);
        let tolerance = 1e-6 * (self.k as f32 + 4.0);
        let close = |got: &[f32]| {
            got.iter()
                .zip(&want)
                .all(|(got, want)| (got - want).abs() <= tolerance)
        };
        for kernel in Kernel::available() {
            let got = self.run(|alpha, a, b, beta, c| kernel.multiply(alpha, a, b, beta, c));
            prop_assert!(close(&got), "{}: {:?}", kernel.name(), self);
        }
        prop_assert!(close(&self.run(matmul_portable)), "portable: {:?}", self);
        Ok(())
    }

    /// The same product with B in panels, or with the transpose of what is in panels.
    fn check_panels(&self) -> Result<(), TestCaseError> {
        let product = Self {
            alpha: 1.0,
            gaps: [self.gaps[0], 0, self.gaps[2]],
            ..self.clone()
        };
        let want = product.run(matmul_naive);
        let tolerance = |accuracy| {
            let depth = self.k as f32;
            match accuracy {
                Accuracy::Full => 1e-6 * (depth + 4.0),
                Accuracy::Training => 1e-6 * (depth + 4.0) + 2e-5 * depth.sqrt(),
            }
        };
        let close = |got: &[f32], want: &[f32], accuracy| {
            got.iter()
                .zip(want)
                .all(|(got, want)| (got - want).abs() <= tolerance(accuracy))
        };
        let (rows, cols) = product.stored(1, (self.k, self.n));
        let packed = Panels::pack(&product.factors()[1][..rows * cols], rows, cols);
        let panels = Panels::new(&packed, rows, cols);
        for (kernel, accuracy) in kernels_in_both_ways() {
            let got = product.run(|_, a, _, beta, c| match product.transposed[1] {
                false => kernel.multiply_panels(accuracy, a, panels, beta, c),
                true => kernel.multiply_panels_t(accuracy, a, panels.t(), beta, c),
            });
            let close = close(&got, &want, accuracy);
            prop_assert!(close, "{} {accuracy:?}: {:?}", kernel.name(), product);
        }
        if !product.transposed[1] {
            let bias = values(self.n, 4);
            let biased = |gap: usize, c: &mut [f32]| {
                for row in c.chunks_mut((self.n + gap).max(1)).take(self.m) {
                    let cols = self.n.min(row.len());
                    row[..cols].copy_from_slice(&bias[..cols]);
                }
            };
            let want = product.run(|_, a, b, _, c| {
                biased(product.gaps[2], c.data);
                matmul_naive(1.0, a, b, 1.0, c);
            });
            for (kernel, accuracy) in kernels_in_both_ways() {
                let got = product.run(|_, a, _, _, c| {
                    kernel.multiply_panels_biased(accuracy, a, panels, &bias, c);
                });
                let close = close(&got, &want, accuracy);
                prop_assert!(
                    close,
                    "{} {accuracy:?} with bias: {product:?}",
                    kernel.name()
                );
            }
        }
        let got = product.run(|_, a, _, beta, c| match product.transposed[1] {
            false => matmul_panels_portable(a, panels, beta, c),
            true => matmul_panels_t_portable(a, panels.t(), beta, c),
        });
        let close = close(&got, &want, Accuracy::Full);
        prop_assert!(close, "portable: {:?}", product);
        Ok(())
    }
}

fn kernels_in_both_ways() -> impl Iterator<Item = (&'static Kernel, Accuracy)> {
    Kernel::available()
        .flat_map(|kernel| [Accuracy::Full, Accuracy::Training].map(|accuracy| (kernel, accuracy)))
}

/// Sides around the tile sizes, and past the cache blocks now and then.
fn side(blocks: std::ops::Range<usize>) -> impl Strategy<Value = usize> {
    prop_oneof![2 => 0..3_usize, 8 => 1..40_usize, 2 => 40..130_usize, 1 => blocks]
}

fn factor() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0), Just(1.0), Just(-1.0), -2.0..2.0_f32]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_kernel_agrees_with_the_naive_product(
        m in side(500..560),
        k in side(370..1100),
        n in side(130..200),
        gaps in prop::array::uniform3(0..5_usize),
        transposed in any::<[bool; 2]>(),
        alpha in factor(),
        beta in factor(),
    ) {
        let product = Product { m, k, n, gaps, transposed, alpha, beta };
        product.check()?;
        product.check_panels()?;
    }
}

/// What the tests above hold to the naive product is then what runs.
#[cfg(target_arch = "aarch64")]
#[test]
fn on_aarch64_products_run_on_neon() {
    let names: Vec<&str> = Kernel::available().map(Kernel::name).collect();
    assert_eq!(names, ["neon"]);
    assert_eq!(Kernel::chosen().map(Kernel::name), Some("neon"));
}

/// The same, told by the system instead of by the processor.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn products_run_on_what_the_processor_has() {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = told.lines().find(|line| line.starts_with("flags")).unwrap();
    let has = |flag| flags.split_whitespace().any(|f| f == flag);
    let names: Vec<&str> = Kernel::available().map(Kernel::name).collect();
    assert_eq!(
        names.contains(&"avx2"),
        has("avx2") && has("fma"),
        "{names:?}"
    );
    assert_eq!(names.contains(&"avx512"), has("avx512f"), "{names:?}");
    // That may need a permission, too.
    assert!(!names.contains(&"amx") || has("amx_tile"), "{names:?}");
    assert_eq!(Kernel::chosen().map(Kernel::name), names.first().copied());
}

#[test]
fn the_shapes_of_a_vision_transformer_agree_with_the_naive_product() {
    for (m, k, n) in [
        (65, 384, 1152),
        (73, 1536, 384),
        (257, 64, 257),
        (73, 384, 16),
    ] {
        for transposed in [[false, false], [false, true], [true, false]] {
            Product {
                transposed,
                ..Product::plain(m, k, n)
            }
            .check()
            .unwrap();
        }
    }
}

#[test]
fn with_beta_zero_c_is_not_read() {
    for kernel in Kernel::available() {
        for (m, k, n) in [(1, 1, 1), (7, 600, 19), (30, 16, 70), (5, 0, 9)] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let mut c = vec![f32::NAN; m * n];
            kernel.multiply(
                1.0,
                MatRef::new(&a, m, k),
                MatRef::new(&b, k, n),
                0.0,
                MatMut::new(&mut c, m, n),
            );
            assert!(
                c.iter().all(|x| x.is_finite()),
                "{} {m} {k} {n}",
                kernel.name()
            );
        }
    }
}

#[test]
fn storage_between_the_rows_of_c_is_left_alone() {
    let product = Product {
        gaps: [0, 0, 3],
        ..Product::plain(9, 20, 37)
    };
    let before = values(storage(9, 37, 3), 3);
    for kernel in Kernel::available() {
        let after = product.run(|alpha, a, b, beta, c| kernel.multiply(alpha, a, b, beta, c));
        for (row_after, row_before) in after.chunks(40).zip(before.chunks(40)) {
            assert_eq!(row_after[37..], row_before[37..], "{}", kernel.name());
        }
    }
}

#[test]
fn a_row_of_the_result_does_not_depend_on_the_rows_beside_it() {
    let (k, n) = (700, 150);
    let (a, b) = (values(170 * k, 1), values(k * n, 2));
    let panels = Panels::pack(&b, k, n);
    for kernel in Kernel::available() {
        let product = |rows: usize| {
            let mut c = vec![0.0; rows * n];
            kernel.multiply(
                1.0,
                MatRef::new(&a[..rows * k], rows, k),
                MatRef::new(&b, k, n),
                0.0,
                MatMut::new(&mut c, rows, n),
            );
            c
        };
        let frozen = |rows: usize| {
            let mut c = vec![0.0; rows * n];
            let (a, b) = (
                MatRef::new(&a[..rows * k], rows, k),
                Panels::new(&panels, k, n),
            );
            kernel.multiply_panels(Accuracy::Full, a, b, 0.0, MatMut::new(&mut c, rows, n));
            c
        };
        let (all, all_frozen) = (product(170), frozen(170));
        for rows in [1, 5, 14, 29, 65] {
            assert_eq!(product(rows), all[..rows * n], "{}", kernel.name());
            assert_eq!(frozen(rows), all_frozen[..rows * n], "{}", kernel.name());
        }
    }
}

#[test]
fn threads_that_share_a_product_change_no_bit() {
    // Enough to be shared, with a last panel that is not whole.
    let (m, k, n) = (65, 400, 399);
    let (a, b, bias) = (values(m * k, 1), values(k * n, 2), values(n, 3));
    let (panels, panels_t) = (Panels::pack(&b, k, n), Panels::pack(&b, n, k));
    let (panels, panels_t) = (Panels::new(&panels, k, n), Panels::new(&panels_t, n, k).t());
    let (a, b, b_t) = (
        MatRef::new(&a, m, k),
        MatRef::new(&b, k, n),
        MatRef::new(&b, n, k).t(),
    );
    for (kernel, accuracy) in kernels_in_both_ways() {
        let all = || {
            let mut c: [Vec<f32>; 5] = std::array::from_fn(|_| values(m * n, 4));
            let [c0, c1, c2, c3, c4] = c.each_mut().map(|c| MatMut::new(c, m, n));
            kernel.multiply(0.7, a, b, 0.3, c0);
            kernel.multiply(1.0, a, b_t, 1.0, c1);
            kernel.multiply_panels(accuracy, a, panels, 1.0, c2);
            kernel.multiply_panels_t(accuracy, a, panels_t, 0.0, c3);
            kernel.multiply_panels_biased(accuracy, a, panels, &bias, c4);
            c
        };
        let alone = all();
        for threads in [2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            assert!(
                pool.unwrap().install(all) == alone,
                "{}, {threads} threads",
                kernel.name()
            );
        }
    }
}

#[test]
#[should_panic(expected = "matrix shapes do not agree")]
fn shapes_that_do_not_agree_are_refused() {
    let data = [0.0; 6];
    let mut c = [0.0; 4];
    crate::kernels::matmul::matmul(
        1.0,
        MatRef::new(&data, 2, 3),
        MatRef::new(&data, 2, 3),
        0.0,
        MatMut::new(&mut c, 2, 2),
    );
}
