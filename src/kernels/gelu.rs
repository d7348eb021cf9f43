//! GELU, `x Phi(x)` (Hendrycks and Gimpel, arXiv 1606.08415), exact and in its tanh form.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::exp::exp;
use super::simd::{Kernel, Level, map_lanes, map_lanes_with, mul_add};
use super::threads;

/// `x = x Phi(x)` with the exact normal distribution function; absolute error below 1e-6.
pub fn gelu_forward(x: &mut [f32]) {
    forward(x, Exact);
}

/// `d = d (Phi(x) + x phi(x))`: x is the input of [`gelu_forward`], d its output's gradient and
/// then its input's; equal lengths.
///
/// # Panics
/// When the lengths differ.
pub fn gelu_backward(x: &[f32], d: &mut [f32]) {
    assert_eq!(x.len(), d.len(), "GELU input and gradient differ in length");
    backward(x, d, Exact);
}

/// `x = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
pub fn gelu_tanh_forward(x: &mut [f32]) {
    forward(x, Tanh);
}

/// The backward pass of [`gelu_tanh_forward`], with the arguments of [`gelu_backward`].
///
/// # Panics
/// When the lengths differ.
pub fn gelu_tanh_backward(x: &[f32], d: &mut [f32]) {
    assert_eq!(x.len(), d.len(), "GELU input and gradient differ in length");
    backward(x, d, Tanh);
}

/// Fewest elements that are worth another thread.
const SHARED: usize = 16 << 10;

fn forward<F: Form>(x: &mut [f32], form: F) {
    threads::share(x, SHARED, &|_, x| {
        Level::detected().run(Forward { x, form })
    });
}

fn backward<F: Form>(x: &[f32], d: &mut [f32], form: F) {
    threads::share(d, SHARED, &|first, d| {
        let x = &x[first..first + d.len()];
        Level::detected().run(Backward { x, d, form });
    });
}

/// A form of GELU, `x s(x)`: the factor `s` and the derivative `s + x s'`.
trait Form: Copy + Sync {
    fn factor<const FUSED: bool>(&self, x: f32) -> f32;
    fn derivative<const FUSED: bool>(&self, x: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Exact;

impl Exact {
    /// `(Phi(-|x|), e^(-x^2 / 2))`.
    ///
    /// `erfc(z) = t q(t) e^(-z^2)` with `t = 1 / (1 + 0.39 z)`: the form of Abramowitz and Stegun
    /// 7.1.26 with one term more and coefficients of our own minimax fit, absolute error 8e-9.
    /// Its exponential is the one the derivative needs.
    #[inline(always)]
    fn tail<const FUSED: bool>(x: f32) -> (f32, f32) {
        let z = x.abs() * FRAC_1_SQRT_2;
        let t = 1.0 / mul_add::<FUSED>(0.39, z, 1.0);
        let mut q = -0.227_536_92;
        for coefficient in [
            0.886_663_56,
            -0.635_398_9,
            0.649_558_3,
            9.138_885e-2,
            0.235_325_14,
        ] {
            q = mul_add::<FUSED>(q, t, coefficient);
        }
        let gauss = exp::<FUSED>(-0.5 * x * x);
        (0.5 * t * q * gauss, gauss)
    }
}

impl Form for Exact {
    #[inline(always)]
    fn factor<const FUSED: bool>(&self, x: f32) -> f32 {
        let (tail, _) = Self::tail::<FUSED>(x);
        if x < 0.0 { tail } else { 1.0 - tail }
    }

    #[inline(always)]
    fn derivative<const FUSED: bool>(&self, x: f32) -> f32 {
        let (tail, gauss) = Self::tail::<FUSED>(x);
        let phi = if x < 0.0 { tail } else { 1.0 - tail };
        // phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
        mul_add::<FUSED>(x * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2), gauss, phi)
    }
}

#[derive(Clone, Copy)]
struct Tanh;

impl Tanh {
    const CUBIC: f32 = 0.044_715;
    /// `2 sqrt(2 / pi)`
    const SLOPE: f32 = 2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

    /// `s = (1 + tanh(u / 2)) / 2`, the logistic function of `u(x)`, and `s (1 - s)`.
    #[inline(always)]
    fn logistic<const FUSED: bool>(x: f32) -> (f32, f32) {
        let u = Self::SLOPE * x * mul_add::<FUSED>(Self::CUBIC * x, x, 1.0);
        let e = exp::<FUSED>(-u.abs());
        let larger = 1.0 / (1.0 + e);
        // `1 - s` by subtraction would keep no digit of a small tail.
        let smaller = e * larger;
        (if u < 0.0 { smaller } else { larger }, smaller * larger)
    }
}

impl Form for Tanh {
    #[inline(always)]
    fn factor<const FUSED: bool>(&self, x: f32) -> f32 {
        Self::logistic::<FUSED>(x).0
    }

    #[inline(always)]
    fn derivative<const FUSED: bool>(&self, x: f32) -> f32 {
        let (s, slope) = Self::logistic::<FUSED>(x);
        // Beyond |x| = 10 the slope is zero in f32, while du would overflow for the largest x.
        let x = if x.abs() > 10.0 { 10f32.copysign(x) } else { x };
        let du = Self::SLOPE * mul_add::<FUSED>(3.0 * Self::CUBIC * x, x, 1.0);
        mul_add::<FUSED>(x * slope, du, s)
    }
}

struct Forward<'a, F> {
    x: &'a mut [f32],
    form: F,
}

impl<F: Form> Kernel for Forward<'_, F> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        map_lanes(self.x, 0.0, |group| {
            for v in group {
                *v *= self.form.factor::<FUSED>(*v);
            }
        });
    }
}

struct Backward<'a, F> {
    x: &'a [f32],
    d: &'a mut [f32],
    form: F,
}

impl<F: Form> Kernel for Backward<'_, F> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        map_lanes_with(self.d, self.x, |d, x| {
            for (d, &x) in d.iter_mut().zip(x) {
                *d *= self.form.derivative::<FUSED>(x);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The error function by its all-positive series, in f64.
    fn erf(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }

    fn exact_twin(x: f64) -> f64 {
        0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
    }

    fn tanh_twin(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    }

    fn check(form: impl Fn() -> (Box<dyn Fn(Level, &mut [f32], &mut [f32])>, fn(f64) -> f64)) {
        let x: Vec<f32> = (0..60_001).map(|i| -15.0 + i as f32 * 5e-4).collect();
        let (run, twin) = form();
        for level in Level::available() {
            let (mut y, mut d) = (x.clone(), vec![1.0; x.len()]);
            run(level, &mut y, &mut d);
            for ((&x, &y), &d) in x.iter().zip(&y).zip(&d) {
                let x = f64::from(x);
                let scale = x.abs().max(1.0);
                let error = (f64::from(y) - twin(x)).abs();
                assert!(
                    error < 3e-7 * scale,
                    "{level:?}: gelu({x}) is off by {error}"
                );
                let slope = (twin(x + 1e-5) - twin(x - 1e-5)) / 2e-5;
                let error = (f64::from(d) - slope).abs();
                assert!(error < 1e-6, "{level:?}: gelu'({x}) is off by {error}");
            }
        }
    }

    #[test]
    fn the_exact_form_and_its_derivative_follow_the_series() {
        check(|| {
            let run = |level: Level, y: &mut [f32], d: &mut [f32]| {
                level.run(Backward {
                    x: y,
                    d,
                    form: Exact,
                });
                level.run(Forward { x: y, form: Exact });
            };
            (Box::new(run), exact_twin)
        });
    }

    #[test]
    fn the_tanh_form_and_its_derivative_follow_the_formula() {
        check(|| {
            let run = |level: Level, y: &mut [f32], d: &mut [f32]| {
                level.run(Backward {
                    x: y,
                    d,
                    form: Tanh,
                });
                level.run(Forward { x: y, form: Tanh });
            };
            (Box::new(run), tanh_twin)
        });
    }

    #[test]
    fn far_from_zero_gelu_is_the_identity_or_zero() {
        let mut x = [-1e30, -50.0, 50.0, 1e18, f32::NAN];
        let mut d = [1.0; 5];
        gelu_backward(&x, &mut d);
        gelu_forward(&mut x);
        assert_eq!((x[1], x[2], x[3]), (0.0, 50.0, 1e18));
        assert_eq!((x[0], d[0], d[1], d[2]), (0.0, 0.0, 0.0, 1.0));
        assert!(x[4].is_nan() && d[4].is_nan());
        let mut x = [-1e30, -50.0, 50.0, 1e10, f32::NAN];
        let mut d = [1.0; 5];
        gelu_tanh_backward(&x, &mut d);
        gelu_tanh_forward(&mut x);
        assert_eq!((x[0], x[1], x[2], x[3]), (0.0, 0.0, 50.0, 1e10));
        assert_eq!(d[..4], [0.0, 0.0, 1.0, 1.0]);
        assert!(x[4].is_nan() && d[4].is_nan());
    }

    proptest! {
        #[test]
        fn any_length_equals_one_element_at_a_time(x in prop::collection::vec(-6f32..6.0, 0..70)) {
            let (mut whole, mut d) = (x.clone(), vec![2.0; x.len()]);
            gelu_forward(&mut whole);
            gelu_backward(&x, &mut d);
            for i in 0..x.len() {
                let (mut one, mut d_one) = ([x[i]], [2.0]);
                gelu_forward(&mut one);
                gelu_backward(&x[i..=i], &mut d_one);
                prop_assert_eq!((whole[i], d[i]), (one[0], d_one[0]));
            }
        }
    }
}
