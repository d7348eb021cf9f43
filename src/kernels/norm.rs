//! LayerNorm over the last axis (Ba et al., arXiv 1607.06450). Gain and bias are frozen, so the
//! backward pass only carries the gradient to the input.

use super::simd::{Kernel, Level, mul_add, sum_terms};

/// `out = (x - mean) rstd gain + bias`, row by row, with `rstd = 1 / sqrt(variance + eps)`.
///
/// x, out `[rows, D]`; gain, bias `[D]`; mean, rstd `[rows]`, kept for [`layer_norm_backward`].
///
/// # Panics
/// When the lengths do not agree.
pub fn layer_norm_forward(
    x: &[f32],
    gain: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    assert!(
        out.len() == x.len()
            && bias.len() == gain.len()
            && mean.len() * gain.len() == x.len()
            && rstd.len() == mean.len(),
        "LayerNorm shapes do not agree"
    );
    Level::detected().run(Forward {
        x,
        gain,
        bias,
        eps,
        out,
        mean,
        rstd,
    });
}

/// `d_x += rstd (g - mean(g) - n mean(g n))` with `g = d_out gain` and `n = (x - mean) rstd`.
///
/// d_out, x, d_x `[rows, D]`; gain `[D]`; mean, rstd `[rows]` as the forward pass left them.
/// The sum goes on top of what `d_x` holds: the gradient of the branch around the norm.
///
/// # Panics
/// When the lengths do not agree.
pub fn layer_norm_backward(
    d_out: &[f32],
    x: &[f32],
    gain: &[f32],
    mean: &[f32],
    rstd: &[f32],
    d_x: &mut [f32],
) {
    assert!(
        d_out.len() == x.len()
            && d_x.len() == x.len()
            && mean.len() * gain.len() == x.len()
            && rstd.len() == mean.len(),
        "LayerNorm shapes do not agree"
    );
    Level::detected().run(Backward {
        d_out,
        x,
        gain,
        mean,
        rstd,
        d_x,
    });
}

struct Forward<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let dim = self.gain.len();
        let rows = self.x.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim));
        for ((x, out), (mean, rstd)) in rows.zip(self.mean.iter_mut().zip(self.rstd.iter_mut())) {
            let m = sum_terms(x, x, x, |x, _, _| x) / dim as f32;
            // A second pass instead of E[x^2] - E[x]^2, which cancels when the mean is large.
            let variance = sum_terms(x, x, x, |x, _, _| (x - m) * (x - m)) / dim as f32;
            let r = 1.0 / (variance + self.eps).sqrt();
            (*mean, *rstd) = (m, r);
            let affine = self.gain.iter().zip(self.bias);
            for ((out, &x), (&gain, &bias)) in out.iter_mut().zip(x).zip(affine) {
                *out = mul_add::<FUSED>((x - m) * r, gain, bias);
            }
        }
    }
}

struct Backward<'a> {
    d_out: &'a [f32],
    x: &'a [f32],
    gain: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    d_x: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let dim = self.gain.len();
        let rows = self.x.chunks_exact(dim).zip(self.d_out.chunks_exact(dim));
        let rows = rows.zip(self.d_x.chunks_exact_mut(dim));
        for (((x, d_out), d_x), (&mean, &rstd)) in rows.zip(self.mean.iter().zip(self.rstd)) {
            let mean_g = sum_terms(d_out, self.gain, x, |d, gain, _| d * gain) / dim as f32;
            let mean_gn = sum_terms(d_out, self.gain, x, |d, gain, x| {
                d * gain * ((x - mean) * rstd)
            }) / dim as f32;
            let inputs = x.iter().zip(d_out).zip(self.gain);
            for (d_x, ((&x, &d), &gain)) in d_x.iter_mut().zip(inputs) {
                let n = (x - mean) * rstd;
                let inner = mul_add::<FUSED>(-n, mean_gn, mul_add::<FUSED>(d, gain, -mean_g));
                *d_x = mul_add::<FUSED>(rstd, inner, *d_x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPS: f32 = 1e-5;

    /// One row of LayerNorm in f64.
    fn twin(x: &[f64], gain: &[f32], bias: &[f32]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
        let affine = gain.iter().zip(bias);
        x.iter()
            .zip(affine)
            .map(|(v, (&g, &b))| (v - mean) * rstd * f64::from(g) + f64::from(b))
            .collect()
    }

    fn widen(x: &[f32]) -> Vec<f64> {
        x.iter().copied().map(f64::from).collect()
    }

    /// Rows, then x, d_out `[rows, dim]` and gain, bias `[dim]`.
    type Case = (usize, Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>);

    fn case() -> impl Strategy<Value = Case> {
        let values = |n| prop::collection::vec(-2f32..2.0, n);
        (1usize..5, 2usize..70).prop_flat_map(move |(rows, dim)| {
            (
                Just(rows),
                values(rows * dim),
                values(rows * dim),
                values(dim),
                values(dim),
            )
        })
    }

    proptest! {
        #[test]
        fn layer_norm_follows_its_twin_at_every_level((rows, x, _, gain, bias) in case()) {
            for level in Level::available() {
                let mut out = vec![0.0; x.len()];
                let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
                level.run(Forward {
                    x: &x, gain: &gain, bias: &bias, eps: EPS,
                    out: &mut out, mean: &mut mean, rstd: &mut rstd,
                });
                let dim = gain.len();
                for (x, out) in x.chunks(dim).zip(out.chunks(dim)) {
                    for (expected, &got) in twin(&widen(x), &gain, &bias).iter().zip(out) {
                        let error = (expected - f64::from(got)).abs();
                        prop_assert!(error < 1e-4, "{level:?}: {got}, not {expected}");
                    }
                }
            }
        }

        #[test]
        fn the_gradient_follows_central_differences((rows, x, d_out, gain, bias) in case()) {
            let dim = gain.len();
            let mut out = vec![0.0; x.len()];
            let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
            layer_norm_forward(&x, &gain, &bias, EPS, &mut out, &mut mean, &mut rstd);
            // Two nearly equal elements make the true gradient explode, and f32 lose digits.
            prop_assume!(rstd.iter().all(|&r| r < 20.0));
            let loss = |x: &[f64], d: &[f32]| -> f64 {
                twin(x, &gain, &bias).iter().zip(d).map(|(y, &d)| y * f64::from(d)).sum()
            };
            for level in Level::available() {
                let mut d_x = vec![0.5; x.len()];
                level.run(Backward {
                    d_out: &d_out, x: &x, gain: &gain, mean: &mean, rstd: &rstd, d_x: &mut d_x,
                });
                for i in 0..x.len() {
                    let row = i / dim * dim..(i / dim + 1) * dim;
                    let mut nudged = widen(&x[row.clone()]);
                    nudged[i % dim] += 1e-5;
                    let above = loss(&nudged, &d_out[row.clone()]);
                    nudged[i % dim] -= 2e-5;
                    let slope = (above - loss(&nudged, &d_out[row])) / 2e-5;
                    let got = f64::from(d_x[i]) - 0.5;
                    let bound = 1e-3 * slope.abs().max(1.0);
                    prop_assert!((got - slope).abs() < bound, "{level:?}: {got}, not {slope}");
                }
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_hide_the_variance() {
        let x: Vec<f32> = (0..48).map(|i| 4096.0 + (i % 2) as f32).collect();
        let (mut out, mut mean, mut rstd) = ([0.0; 48], [0.0], [0.0]);
        layer_norm_forward(
            &x, &[1.0; 48], &[0.0; 48], 1e-6, &mut out, &mut mean, &mut rstd,
        );
        assert!(
            (rstd[0] - 2.0).abs() < 1e-3,
            "1 / std is {}, not 2",
            rstd[0]
        );
    }
}
