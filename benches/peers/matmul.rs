//! Products of a vision transformer's shapes against the matrixmultiply and gemm crates, one
//! thread, in one run: `cargo bench -p fledge-peers`.
//!
//! The contenders take turns, each on weights that other calls have pushed out of the nearer
//! caches, and the best time of each counts; fledge has its weights in panels, as a model has, the
//! others row by row. Peak is what a loop of multiply-adds on registers reaches at the same moments,
//! so on a busy machine all columns sink together.

use fledge::kernels::gemm::{Accuracy, Kernel};
use fledge::kernels::matmul::{
    MatMut, MatRef, matmul, matmul_panels, matmul_panels_t, matmul_portable,
};
use fledge::kernels::panels::Panels;
use std::hint::black_box;
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
struct Shape {
    what: &'static str,
    m: usize,
    k: usize,
    n: usize,
    transposed: [bool; 2],
    /// Whether B is a weight matrix of the model.
    frozen: bool,
}

/// The products of one image or batch of `m` tokens.
fn shapes(m: usize) -> Vec<Shape> {
    let shape = |what, m, k, n, transposed, frozen| Shape {
        what,
        m,
        k,
        n,
        transposed,
        frozen,
    };
    let weights = |what, k, n| shape(what, m, k, n, [false, false], true);
    let transposed = |what, k, n| shape(what, m, k, n, [false, true], true);
    vec![
        weights("x Wqkv", 384, 1152),
        weights("x Wo", 384, 384),
        weights("x Wfc1", 384, 1536),
        weights("x Wfc2", 1536, 384),
        transposed("dy Wqkv^T", 1152, 384),
        transposed("dy Wo^T", 384, 384),
        transposed("dy Wfc1^T", 1536, 384),
        transposed("dy Wfc2^T", 384, 1536),
        shape("x A", m, 384, 16, [false, false], false),
        shape("z B", m, 16, 384, [false, false], false),
        shape("x^T dz", 384, m, 16, [true, false], false),
    ]
}

/// One head's scores and its mix of values.
fn attention(tokens: usize) -> [Shape; 2] {
    [
        Shape {
            what: "q k^T",
            m: tokens,
            k: 64,
            n: tokens,
            transposed: [false, true],
            frozen: false,
        },
        Shape {
            what: "p v",
            m: tokens,
            k: tokens,
            n: 64,
            transposed: [false, false],
            frozen: false,
        },
    ]
}

fn view(data: &[f32], rows: usize, cols: usize, transposed: bool) -> MatRef<'_> {
    if transposed {
        MatRef::new(data, cols, rows).t()
    } else {
        MatRef::new(data, rows, cols)
    }
}

/// Floats of weights that take turns: several times a common second-level cache.
const COLD: usize = 4 << 20;

fn main() {
    let name = Kernel::chosen().map_or("matrixmultiply", Kernel::name);
    println!("GFLOP/s and share of the peak; kernel {name}");
    println!(
        "{:<10} {:>5} {:>5} {:>5} {:>7}  fledge      matrixmultiply  gemm",
        "", "m", "k", "n", "peak"
    );
    for shape in [33, 65, 257, 520]
        .into_iter()
        .flat_map(shapes)
        .chain([33, 65, 257].into_iter().flat_map(attention))
    {
        race(shape);
    }
}

fn race(s: Shape) {
    let Shape { m, k, n, .. } = s;
    let a = vec![0.5_f32; m * k];
    let copies = if k * n < 1 << 15 {
        1
    } else {
        COLD / (k * n) + 2
    };
    let weights = vec![vec![0.25_f32; k * n]; copies];
    let mut c = vec![0.0_f32; m * n];
    let mut turn = 0;
    let mut best = [Duration::MAX; 3];
    let mut peak = 0.0_f64;
    let flop = 2.0 * (m * k * n) as f64;
    for _ in 0..(8e9 / flop).clamp(20.0, 2000.0) as usize {
        peak = peak.max(register_peak());
        for (contender, best) in CONTENDERS.into_iter().zip(&mut best) {
            let b = &weights[turn % copies];
            turn += 1;
            let start = Instant::now();
            contender(s, &a, b, &mut c);
            *best = (*best).min(start.elapsed());
            black_box(&c);
        }
    }
    let rates = best.map(|time| flop / time.as_secs_f64() / 1e9);
    print!("{:<10} {m:>5} {k:>5} {n:>5} {peak:>7.1}", s.what);
    for rate in rates {
        print!("  {rate:>6.1} {:>3.0} %", 100.0 * rate / peak);
    }
    println!("  x{:.2} x{:.2}", rates[0] / rates[1], rates[0] / rates[2]);
}

type Contender = fn(Shape, &[f32], &[f32], &mut [f32]);
const CONTENDERS: [Contender; 3] = [
    |s, a, b, c| {
        let c = MatMut::new(c, s.m, s.n);
        match (s.frozen, s.transposed[1]) {
            (true, false) => {
                let b = Panels::new(b, s.k, s.n);
                matmul_panels(Accuracy::Full, MatRef::new(a, s.m, s.k), b, 0.0, c);
            }
            (true, true) => {
                let b = Panels::new(b, s.n, s.k).t();
                matmul_panels_t(Accuracy::Training, MatRef::new(a, s.m, s.k), b, 0.0, c);
            }
            (false, _) => {
                let (a, b) = s.factors(a, b);
                matmul(1.0, a, b, 0.0, c);
            }
        }
    },
    |s, a, b, c| {
        let (a, b) = s.factors(a, b);
        matmul_portable(1.0, a, b, 0.0, MatMut::new(c, s.m, s.n));
    },
    gemm_crate,
];

impl Shape {
    fn factors<'a>(&self, a: &'a [f32], b: &'a [f32]) -> (MatRef<'a>, MatRef<'a>) {
        (
            view(a, self.m, self.k, self.transposed[0]),
            view(b, self.k, self.n, self.transposed[1]),
        )
    }
}

fn gemm_crate(s: Shape, a: &[f32], b: &[f32], c: &mut [f32]) {
    let strides = |rows: usize, cols: usize, transposed: bool| {
        if transposed {
            (rows as isize, 1)
        } else {
            (1, cols as isize)
        }
    };
    let (a_col, a_row) = strides(s.m, s.k, s.transposed[0]);
    let (b_col, b_row) = strides(s.k, s.n, s.transposed[1]);
    // SAFETY: the slices hold dense matrices of the shape's sizes.
    unsafe {
        gemm::gemm(
            s.m,
            s.n,
            s.k,
            c.as_mut_ptr(),
            1,
            s.n as isize,
            false,
            a.as_ptr(),
            a_col,
            a_row,
            b.as_ptr(),
            b_col,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// GFLOP/s of multiply-adds that never leave the registers; NaN where none were written for this
/// machine.
fn register_peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F was detected.
            return unsafe { avx512_peak() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: AVX2 and FMA were detected.
            return unsafe { avx2_peak() };
        }
    }
    f64::NAN
}

/// Sums that do not wait for each other, and multiply-adds to each.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;
#[cfg(target_arch = "x86_64")]
const STEPS: usize = 2000;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512_peak() -> f64 {
    use std::arch::x86_64::*;
    let (by, plus) = (black_box(0.999), black_box(0.001));
    let (by, plus) = (_mm512_set1_ps(by), _mm512_set1_ps(plus));
    let mut chains = [plus; CHAINS];
    let start = Instant::now();
    for _ in 0..STEPS {
        for x in &mut chains {
            *x = _mm512_fmadd_ps(*x, by, plus);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    black_box(chains.map(|x| _mm512_reduce_add_ps(x)));
    (CHAINS * STEPS * 32) as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2_peak() -> f64 {
    use std::arch::x86_64::*;
    let (by, plus) = (black_box(0.999), black_box(0.001));
    let (by, plus) = (_mm256_set1_ps(by), _mm256_set1_ps(plus));
    let mut chains = [plus; CHAINS];
    let start = Instant::now();
    for _ in 0..STEPS {
        for x in &mut chains {
            *x = _mm256_fmadd_ps(*x, by, plus);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    black_box(chains.map(|x| _mm256_cvtss_f32(x)));
    (CHAINS * STEPS * 16) as f64 / seconds / 1e9
}
