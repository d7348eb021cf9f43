//! The exponential as a polynomial that LLVM can vectorise; the standard library's is a scalar
//! call into libm, and softmax and GELU would spend most of their time in it.

use super::simd::mul_add;

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, and leaves that integer in
/// the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has few enough bits that its product with the exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below, the result would be subnormal and is taken as zero.
const LOWEST: f32 = -87.336_54;
/// Above, the result is that of this argument: 2^127 is the largest power of two there is.
const HIGHEST: f32 = 88.0;

/// `e^x` of one element, to 2 units in the last place between -87.3 and 88; 0 below, `e^88` above.
///
/// `e^x = 2^n e^r` with `n` the nearest integer to `x / ln 2`, and `e^r = 1 + r + r^2 p(r)`; the
/// coefficients of `p` are our minimax fit (Lawson's iteration) of the relative error on
/// `|r| <= ln 2 / 2`, 3e-9.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Comparisons instead of `f32::clamp` and `max`: a NaN must come through.
    let clamped = if x > HIGHEST { HIGHEST } else { x };
    let shifted = mul_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FUSED>(n, -LN2_LOW, mul_add::<FUSED>(n, -LN2_HIGH, clamped));
    let mut p = 1.381_446_7e-3;
    for coefficient in [8.368_781e-3, 4.166_839_3e-2, 1.666_652e-1, 4.999_999_4e-1] {
        p = mul_add::<FUSED>(p, r, coefficient);
    }
    let e_r = mul_add::<FUSED>(r * r, p, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { e_r * power }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::{Kernel, Level, map_lanes};

    struct ExpInPlace<'a> {
        x: &'a mut [f32],
    }

    impl Kernel for ExpInPlace<'_> {
        #[inline(always)]
        fn run<const FUSED: bool>(self) {
            map_lanes(self.x, 0.0, |group| {
                for v in group {
                    *v = exp::<FUSED>(*v);
                }
            });
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place_at_every_level() {
        let x: Vec<f32> = (0..400_000).map(|i| -87.3 + i as f32 * 4.38e-4).collect();
        for level in Level::available() {
            let mut y = x.clone();
            level.run(ExpInPlace { x: &mut y });
            for (&x, &y) in x.iter().zip(&y) {
                let exact = f64::from(x).exp();
                let unit = f64::from(f32::EPSILON) * 2f64.powf(exact.log2().floor());
                let error = (f64::from(y) - exact).abs() / unit;
                assert!(
                    error < 2.0,
                    "{level:?}: exp({x}) = {y} is off by {error} units"
                );
            }
        }
    }

    #[test]
    fn exp_saturates_and_lets_nan_through() {
        for level in Level::available() {
            let mut x = [
                f32::NEG_INFINITY,
                -1e30,
                -88.0,
                0.0,
                200.0,
                f32::INFINITY,
                f32::NAN,
            ];
            level.run(ExpInPlace { x: &mut x });
            assert_eq!(x[..4], [0.0, 0.0, 0.0, 1.0]);
            assert!(x[4] > 1.6e38 && x[4] == x[5] && x[4].is_finite());
            assert!(x[6].is_nan());
        }
    }
}
