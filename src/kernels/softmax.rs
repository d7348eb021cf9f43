//! Softmax over the rows of a score matrix.

use super::exp::exp;
use super::simd::{Kernel, LANES, Level, horizontal, map_lanes, mul_add, sum_terms};

/// `scores = softmax(scores)`, row by row: scores `[rows, cols]`.
///
/// Each row's largest score is taken off first, so that no score is too large.
///
/// # Panics
/// When `scores` is no whole number of rows.
pub fn softmax_forward(scores: &mut [f32], cols: usize) {
    assert!(
        scores.len().is_multiple_of(cols),
        "softmax shape does not fit its slice"
    );
    Level::detected().run(Forward { scores, cols });
}

/// `d = p (d - sum(p d))`, row by row: p, d `[rows, cols]`, p the probabilities, d their gradient
/// and then the scores'.
///
/// # Panics
/// When the lengths differ or are no whole number of rows.
pub fn softmax_backward(p: &[f32], d: &mut [f32], cols: usize) {
    assert!(
        p.len() == d.len() && p.len().is_multiple_of(cols),
        "softmax shapes do not agree"
    );
    Level::detected().run(Backward { p, d, cols });
}

struct Forward<'a> {
    scores: &'a mut [f32],
    cols: usize,
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        for row in self.scores.chunks_exact_mut(self.cols) {
            let largest = largest(row);
            let mut sums = [0.0; LANES];
            map_lanes(row, f32::NEG_INFINITY, |group| {
                for (v, sum) in group.iter_mut().zip(&mut sums) {
                    *v = exp::<FUSED>(*v - largest);
                    *sum += *v;
                }
            });
            let scale = 1.0 / horizontal(sums, |a, b| a + b);
            for v in row {
                *v *= scale;
            }
        }
    }
}

#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (groups, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for group in groups {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], group[lane]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, v);
    }
    horizontal(lanes, larger)
}

struct Backward<'a> {
    p: &'a [f32],
    d: &'a mut [f32],
    cols: usize,
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let rows = self.p.chunks_exact(self.cols);
        for (p, d) in rows.zip(self.d.chunks_exact_mut(self.cols)) {
            let dot = sum_terms(p, d, p, |p, d, _| p * d);
            for (d, &p) in d.iter_mut().zip(p) {
                *d = mul_add::<FUSED>(p, *d, -p * dot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn twin(x: &[f64]) -> Vec<f64> {
        let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = x.iter().map(|v| (v - largest).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect()
    }

    fn rows() -> impl Strategy<Value = (usize, Vec<f32>, Vec<f32>)> {
        (1usize..4, 1usize..70).prop_flat_map(|(rows, cols)| {
            let values = move || prop::collection::vec(-20f32..20.0, rows * cols);
            (Just(cols), values(), values())
        })
    }

    proptest! {
        #[test]
        fn softmax_and_its_gradient_follow_their_twins((cols, x, d_out) in rows()) {
            for level in Level::available() {
                let (mut p, mut d) = (x.clone(), d_out.clone());
                level.run(Forward { scores: &mut p, cols });
                level.run(Backward { p: &p, d: &mut d, cols });
                for start in (0..x.len()).step_by(cols) {
                    let wide = |x: &[f32]| -> Vec<f64> {
                        x[start..start + cols].iter().copied().map(f64::from).collect()
                    };
                    let (expected, g) = (twin(&wide(&x)), wide(&d_out));
                    for i in 0..cols {
                        prop_assert!((expected[i] - f64::from(p[start + i])).abs() < 1e-6);
                        let slope: f64 = (0..cols)
                            .map(|j| g[j] * expected[j] * (f64::from(u8::from(i == j)) - expected[i]))
                            .sum();
                        prop_assert!((slope - f64::from(d[start + i])).abs() < 2e-5, "{level:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn huge_scores_do_not_overflow() {
        let mut x = [1e30, 1e30, -1e30, 3e4, 3e4 + 1.0, -3e4];
        softmax_forward(&mut x, 3);
        assert_eq!(x[..3], [0.5, 0.5, 0.0]);
        assert!((x[3] - 0.268_941_4).abs() < 1e-6 && x[5] == 0.0);
    }
}
