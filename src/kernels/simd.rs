//! Which vector instructions a loop is compiled for, decided at run time.
//!
//! Element-wise kernels are written once, as plain loops that LLVM vectorises. The default x86-64
//! target only promises SSE2, so the same body is also compiled with AVX2 and with AVX-512, and
//! the widest one the processor has is run. On aarch64, NEON is part of the baseline.

/// Elements a loop handles at a time: one AVX-512 register, two of AVX2, four of NEON or SSE2.
pub(crate) const LANES: usize = 16;

/// A loop to be compiled once for each [`Level`].
///
/// `run` must be `#[inline(always)]`: only inlined code gets the level's instructions.
pub(crate) trait Kernel {
    /// With `FUSED`, products and sums go through [`mul_add`] as one instruction.
    fn run<const FUSED: bool>(self);
}

/// A set of vector instructions that this processor has. Only detection makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Without hardware support `f32::mul_add` is a library call, many times slower than two roundings.
const BASELINE_FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Level {
    /// What every processor of this architecture has.
    #[cfg(test)]
    pub(crate) const BASELINE: Self = Self(Instructions::Baseline);

    /// The widest level of this processor; detection is cached by the standard library.
    pub(crate) fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            if is_x86_feature_detected!("avx512f") {
                return Self(Instructions::Avx512);
            }
            return Self(Instructions::Avx2);
        }
        Self(Instructions::Baseline)
    }

    /// Every level this processor can run, the baseline first.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Self::BASELINE];
        let detected = Self::detected();
        #[cfg(target_arch = "x86_64")]
        if detected.0 == Instructions::Avx512 {
            levels.push(Self(Instructions::Avx2));
        }
        if detected != Self::BASELINE {
            levels.push(detected);
        }
        levels
    }

    /// Runs the instance of `kernel` compiled for this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self.0 {
            Instructions::Baseline => kernel.run::<BASELINE_FUSED>(),
            // SAFETY: a `Level` with AVX2 is only made after AVX2 and FMA were detected.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: a `Level` with AVX-512 is only made after AVX2, FMA and AVX-512F were
            // detected.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<true>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f")]
fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<true>();
}

/// `a * b + c`, rounded once where the instruction exists.
#[inline(always)]
pub(crate) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Applies `f` to `x` in groups of [`LANES`]; the last group is padded with `padding`, so that a
/// short rest is not done one element at a time.
#[inline(always)]
pub(crate) fn map_lanes(x: &mut [f32], padding: f32, mut f: impl FnMut(&mut [f32; LANES])) {
    let (groups, rest) = x.as_chunks_mut::<LANES>();
    for group in groups {
        f(group);
    }
    if !rest.is_empty() {
        let mut group = [padding; LANES];
        group[..rest.len()].copy_from_slice(rest);
        f(&mut group);
        rest.copy_from_slice(&group[..rest.len()]);
    }
}

/// Like [`map_lanes`] for `y` with the matching elements of `x`; `x` and `y` have equal lengths
/// and are both padded with zeros.
#[inline(always)]
pub(crate) fn map_lanes_with(
    y: &mut [f32],
    x: &[f32],
    mut f: impl FnMut(&mut [f32; LANES], &[f32; LANES]),
) {
    let (ys, y_rest) = y.as_chunks_mut::<LANES>();
    let (xs, x_rest) = x.as_chunks::<LANES>();
    for (y, x) in ys.iter_mut().zip(xs) {
        f(y, x);
    }
    if !y_rest.is_empty() {
        let (mut y, mut x) = ([0.0; LANES], [0.0; LANES]);
        y[..y_rest.len()].copy_from_slice(y_rest);
        x[..x_rest.len()].copy_from_slice(x_rest);
        f(&mut y, &x);
        y_rest.copy_from_slice(&y[..y_rest.len()]);
    }
}

/// Sum of `term(a, b, c)` over three slices of equal length, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum_terms(
    a: &[f32],
    b: &[f32],
    c: &[f32],
    term: impl Fn(f32, f32, f32) -> f32,
) -> f32 {
    let (a_groups, a_rest) = a.as_chunks::<LANES>();
    let (b_groups, b_rest) = b.as_chunks::<LANES>();
    let (c_groups, c_rest) = c.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for ((a, b), c) in a_groups.iter().zip(b_groups).zip(c_groups) {
        for lane in 0..LANES {
            sums[lane] += term(a[lane], b[lane], c[lane]);
        }
    }
    for (((sum, &a), &b), &c) in sums.iter_mut().zip(a_rest).zip(b_rest).zip(c_rest) {
        *sum += term(a, b, c);
    }
    horizontal(sums, |a, b| a + b)
}

/// Folds the lanes pairwise: halves the error and the latency of a running sum.
#[inline(always)]
pub(crate) fn horizontal(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = f(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Affine<'a>(&'a mut [f32]);

    impl Kernel for Affine<'_> {
        #[inline(always)]
        fn run<const FUSED: bool>(self) {
            map_lanes(self.0, 0.0, |group| {
                for v in group {
                    *v = mul_add::<FUSED>(*v, 3.0, 1.0);
                }
            });
        }
    }

    #[test]
    fn every_level_visits_every_element_once() {
        for level in Level::available() {
            for len in 0..70 {
                let mut x: Vec<f32> = (0..len).map(|i| i as f32).collect();
                level.run(Affine(&mut x));
                let expected: Vec<f32> = (0..len).map(|i| 3.0 * i as f32 + 1.0).collect();
                assert_eq!(x, expected, "{level:?}, length {len}");
            }
        }
    }

    #[test]
    fn sums_cover_the_rest_of_a_row() {
        for len in 0..70 {
            let x = vec![1.0; len];
            assert_eq!(sum_terms(&x, &x, &x, |a, b, c| a * b * c), len as f32);
        }
    }
}
