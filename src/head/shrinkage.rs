//! How far a covariance is drawn towards a multiple of the identity with the same trace.
//!
//! The fewer images there are for the number of directions, the more of what sets the covariance's small
//! eigenvalues apart is noise. One share for all does not do: 0.05 is near best up to some 1000 images of 384
//! numbers, and costs accuracy with 5000 (`docs/method.md`).

use super::HeadError;

/// The share s of `(1 - s) S + s tr(S) / D I`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Shrinkage {
    /// For each part four times the share that brings S nearest to the true covariance on average, were the
    /// deviations Gaussian, which is estimated from S itself (Chen et al. 2010, arXiv 0907.4698, eq. 23), and
    /// at most 0.05. More than that share, as the errors of means weigh on small eigenvalues too.
    #[default]
    Estimated,
    /// This share, 0 to 1.
    Share(f32),
}

/// How often the share that suits the covariance best suits a head best; chosen on development splits.
const TIMES: f32 = 4.0;
/// The most that is estimated.
const MOST: f32 = 0.05;

impl Shrinkage {
    /// The share for a covariance of so many degrees of freedom, of which `scatter` `[dim, dim]` holds the
    /// lower triangle of a multiple.
    pub(super) fn share(self, scatter: &[f32], dim: usize, freedom: f64) -> f32 {
        match self {
            Self::Estimated => (TIMES * oracle_approximating(scatter, dim, freedom)).min(MOST),
            Self::Share(share) => share,
        }
    }

    pub(super) fn check(self) -> Result<(), HeadError> {
        match self {
            Self::Share(share) if !(0.0..=1.0).contains(&share) => Err(HeadError::Shrinkage),
            Self::Share(_) | Self::Estimated => Ok(()),
        }
    }
}

impl From<f32> for Shrinkage {
    fn from(share: f32) -> Self {
        Self::Share(share)
    }
}

/// `((1 - 2 / D) tr(S^2) + tr(S)^2) / ((n + 1 - 2 / D) (tr(S^2) - tr(S)^2 / D))`, at most 1, S being
/// the covariance and n its degrees of freedom.
fn oracle_approximating(scatter: &[f32], dim: usize, freedom: f64) -> f32 {
    let (mut trace, mut square) = (0.0f64, 0.0f64);
    for (i, row) in scatter.chunks_exact(dim).enumerate() {
        let diagonal = f64::from(row[i]);
        let below: f64 = row[..i].iter().map(|&v| f64::from(v).powi(2)).sum();
        trace += diagonal;
        square += diagonal * diagonal + 2.0 * below;
    }
    let size = dim as f64;
    let loss = (1.0 - 2.0 / size) * square + trace * trace;
    let unevenness = (freedom + 1.0 - 2.0 / size) * (square - trace * trace / size);
    // All directions alike: there is nothing to lose.
    if loss >= unevenness {
        return 1.0;
    }
    (loss / unevenness) as f32
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Scatter of `n` Gaussian vectors whose direction i has the standard deviation `spread(i)`, `[dim, dim]`.
    fn scatter(n: usize, dim: usize, spread: impl Fn(usize) -> f64, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sum = vec![0.0; dim * dim];
        for _ in 0..n {
            let x: Vec<f64> = (0..dim)
                .map(|i| {
                    let (u, v): (f64, f64) = (rng.random(), rng.random());
                    spread(i) * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
                })
                .collect();
            for i in 0..dim {
                for j in 0..dim {
                    sum[i * dim + j] += x[i] * x[j];
                }
            }
        }
        sum
    }

    /// Squared distance of the shrunk covariance from the true one.
    fn error(
        scatter: &[f64],
        n: usize,
        dim: usize,
        share: f64,
        spread: impl Fn(usize) -> f64,
    ) -> f64 {
        let trace: f64 = (0..dim).map(|i| scatter[i * dim + i] / n as f64).sum();
        let mut error = 0.0;
        for i in 0..dim {
            for j in 0..dim {
                let (level, truth) = match i == j {
                    true => (trace / dim as f64, spread(i).powi(2)),
                    false => (0.0, 0.0),
                };
                let shrunk = (1.0 - share) * scatter[i * dim + j] / n as f64 + share * level;
                error += (shrunk - truth).powi(2);
            }
        }
        error
    }

    #[test]
    fn the_estimate_is_near_the_share_that_errs_least() {
        let dim = 24;
        let spread = |i: usize| 1.0 / (1.0 + i as f64 / 3.0);
        let mut last = 1.0;
        for n in [12, 40, 200, 2000] {
            let (mut estimated, mut least) = (0.0, vec![0.0; 101]);
            for seed in 0..20 {
                let found = scatter(n, dim, spread, seed);
                let narrow: Vec<f32> = found.iter().map(|&v| v as f32).collect();
                let share = f64::from(oracle_approximating(&narrow, dim, n as f64));
                assert!(share > 0.0 && share < 1.0);
                last = if seed == 0 { share.min(last) } else { last };
                estimated += error(&found, n, dim, share, spread);
                for (k, sum) in least.iter_mut().enumerate() {
                    *sum += error(&found, n, dim, k as f64 / 100.0, spread);
                }
            }
            let least = least.into_iter().fold(f64::INFINITY, f64::min);
            assert!(
                estimated < 1.2 * least,
                "{n} vectors: {estimated} against {least}"
            );
        }
        assert!(last < 0.01, "{last} of 2000 vectors");
    }

    #[test]
    fn the_scale_and_the_upper_triangle_do_not_matter() {
        let (dim, n) = (8, 30);
        let found = scatter(n, dim, |i| 1.0 + i as f64, 3);
        let lower = |scale: f64, above: f32| -> Vec<f32> {
            let at = |k: usize| match k % dim > k / dim {
                true => above,
                false => (scale * found[k]) as f32,
            };
            (0..dim * dim).map(at).collect()
        };
        let share = oracle_approximating(&lower(1.0, 0.0), dim, n as f64);
        assert_eq!(
            oracle_approximating(&lower(1024.0, f32::NAN), dim, n as f64),
            share
        );
    }

    #[test]
    fn where_all_directions_are_alike_or_one_image_speaks_everything_is_shrunk() {
        assert_eq!(oracle_approximating(&[2.0, 0.0, 0.0, 2.0], 2, 100.0), 1.0);
        assert_eq!(oracle_approximating(&[5.0], 1, 100.0), 1.0);
        // One deviation: tr(S^2) = tr(S)^2.
        assert_eq!(oracle_approximating(&[4.0, 0.0, 2.0, 1.0], 2, 1.0), 1.0);
        assert_eq!(oracle_approximating(&[0.0; 4], 2, 1.0), 1.0);
    }

    #[test]
    fn few_images_are_shrunk_by_a_twentieth_and_many_by_less() {
        let dim = 24;
        let share = |n: usize| {
            let found = scatter(n, dim, |i| 1.0 / (1.0 + i as f64), 1);
            let narrow: Vec<f32> = found.iter().map(|&v| v as f32).collect();
            let share = Shrinkage::Estimated.share(&narrow, dim, n as f64);
            assert_eq!(Shrinkage::from(0.3).share(&narrow, dim, n as f64), 0.3);
            (share, oracle_approximating(&narrow, dim, n as f64))
        };
        assert_eq!(share(10).0, MOST);
        let (few, many) = (share(1000), share(10_000));
        assert_eq!(few.0, TIMES * few.1);
        assert!(many.0 < few.0 && few.0 < MOST, "{few:?}, {many:?}");
    }

    #[test]
    fn only_a_share_can_be_wrong() {
        for share in [-0.1, 1.1, f32::NAN] {
            assert_eq!(Shrinkage::from(share).check(), Err(HeadError::Shrinkage));
        }
        assert_eq!(Shrinkage::from(1.0).check(), Ok(()));
        assert_eq!(Shrinkage::default().check(), Ok(()));
    }
}
