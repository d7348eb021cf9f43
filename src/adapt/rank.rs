//! The dynamic rank selector of FM-LoRA (arXiv 2504.08823, section 3.3): how many columns a task's
//! M and N get.
//!
//! While the selector is warm, column k of M and N is multiplied by the probability that the rank
//! is above k, so the loss says through the columns which rank it needs. A cost on the expected
//! rank pushes a task that needs little to a small one. What the weights learn stays for later
//! tasks.

use heapless::Vec as Few;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Ranks to choose from unless asked otherwise.
pub const CANDIDATES: [usize; 4] = [2, 4, 8, 16];

/// Most candidates there can be.
const MOST: usize = CANDIDATES.len();

/// Weight of the expected rank, as a share of the largest candidate, in the loss.
const COST: f32 = 0.02;
/// Temperature of the selection, first and last while warm.
const TEMPERATURES: [f32; 2] = [1.0, 0.5];

/// Candidates and what was learned about them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankSelector {
    /// Ascending, at least one.
    candidates: Few<usize, MOST>,
    /// w_r of each candidate.
    weights: Few<f32, MOST>,
}

/// What was chosen for a task, and on what grounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RankChoice {
    pub rank: usize,
    /// H(T): validation loss in nats after a brief pretraining.
    pub difficulty: f64,
    /// Each candidate with p(r | T), ascending by rank.
    pub probabilities: Few<(usize, f64), MOST>,
}

/// One draw of the selection: probabilities with Gumbel noise, and the gates that follow.
#[derive(Debug, Clone, Default)]
pub struct Draw {
    probabilities: Few<f32, MOST>,
    temperature: f32,
}

impl RankSelector {
    /// A selector without preference among [`CANDIDATES`] up to `most`, the rank of the bases. Where
    /// all of them are larger, `most` is the only candidate.
    pub fn new(most: usize) -> Self {
        let smallest = CANDIDATES[0].min(most);
        let others = CANDIDATES.into_iter().skip(1).filter(|&r| r <= most);
        let candidates: Few<usize, MOST> = std::iter::once(smallest).chain(others).collect();
        Self {
            weights: candidates.iter().map(|_| 0.0).collect(),
            candidates,
        }
    }

    /// Whether a selector that was read from a file can be used with bases of rank `most`.
    pub fn fits(&self, most: usize) -> bool {
        !self.candidates.is_empty()
            && self.candidates.len() == self.weights.len()
            && self.candidates.iter().all(|&r| (1..=most).contains(&r))
            && self.candidates.is_sorted_by(|a, b| a < b)
            && self.weights.iter().all(|w| w.is_finite())
    }

    /// The largest candidate: how many columns M and N start with.
    pub fn most(&self) -> usize {
        self.candidates.last().copied().unwrap_or(1)
    }

    /// `softmax_r((w_r H + g_r) / tau)`, g_r being Gumbel noise or zero.
    fn probabilities(
        &self,
        difficulty: f32,
        temperature: f32,
        noise: impl Fn(usize) -> f32,
    ) -> Few<f32, MOST> {
        let weights = self.weights.iter().enumerate();
        let mut p: Few<f32, MOST> = weights
            .map(|(i, w)| (w * difficulty + noise(i)) / temperature)
            .collect();
        let top = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.iter_mut().for_each(|p| *p = (*p - top).exp());
        let sum: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
        p
    }

    /// Draws with Gumbel noise (Jang, Gu and Poole, arXiv 1611.01144, eq. 2). `progress` runs from
    /// 0 to 1 while the selector is warm and lowers the temperature.
    pub fn draw(&self, difficulty: f32, progress: f32, rng: &mut impl Rng) -> Draw {
        let [first, last] = TEMPERATURES;
        let temperature = first + (last - first) * progress.clamp(0.0, 1.0);
        let noise: Few<f32, MOST> = self
            .weights
            .iter()
            .map(|_| {
                let u: f32 = rng.random_range(1e-6..1.0 - 1e-6);
                -(-u.ln()).ln()
            })
            .collect();
        Draw {
            probabilities: self.probabilities(difficulty, temperature, |i| noise[i]),
            temperature,
        }
    }

    /// Gate of each column: the probability that the rank is above it. `gates` is `[most]`.
    pub fn gates(&self, draw: &Draw, gates: &mut [f32]) {
        for (column, gate) in gates.iter_mut().enumerate() {
            let above = self.candidates.iter().zip(&draw.probabilities);
            *gate = above.filter(|&(&r, _)| r > column).map(|(_, p)| p).sum();
        }
    }

    /// Gradient of the weights from that of the gates `[most]`, the cost of the expected rank
    /// included.
    pub fn backward(&self, draw: &Draw, difficulty: f32, d_gates: &[f32], d_weights: &mut [f32]) {
        let most = self.most() as f32;
        let d_p: Few<f32, MOST> = self
            .candidates
            .iter()
            .map(|&r| d_gates[..r].iter().sum::<f32>() + COST * r as f32 / most)
            .collect();
        let mean: f32 = d_p
            .iter()
            .zip(&draw.probabilities)
            .map(|(d, p)| d * p)
            .sum();
        for ((d_w, d), p) in d_weights.iter_mut().zip(&d_p).zip(&draw.probabilities) {
            *d_w = p * (d - mean) * difficulty / draw.temperature;
        }
    }

    pub fn weights_mut(&mut self) -> &mut [f32] {
        &mut self.weights
    }

    /// The most probable rank for a task, the smaller one of equals.
    pub fn choose(&self, difficulty: f64) -> RankChoice {
        let p = self.probabilities(difficulty as f32, TEMPERATURES[1], |_| 0.0);
        let mut best = 0;
        for i in 1..p.len() {
            if p[i] > p[best] {
                best = i;
            }
        }
        RankChoice {
            rank: self.candidates[best],
            difficulty,
            probabilities: self
                .candidates
                .iter()
                .zip(&p)
                .map(|(&r, &p)| (r, f64::from(p)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn candidates_never_exceed_the_bases() {
        assert_eq!(RankSelector::new(16).candidates, [2, 4, 8, 16]);
        assert_eq!(RankSelector::new(7).candidates, [2, 4]);
        assert_eq!(RankSelector::new(1).candidates, [1]);
        assert!(RankSelector::new(7).fits(7) && !RankSelector::new(16).fits(8));
    }

    #[test]
    fn gates_fall_from_one_as_columns_go_beyond_the_candidates() {
        let selector = RankSelector::new(16);
        let draw = selector.draw(0.5, 0.0, &mut ChaCha8Rng::seed_from_u64(1));
        let mut gates = [0.0; 16];
        selector.gates(&draw, &mut gates);
        assert!((gates[0] - 1.0).abs() < 1e-6 && (gates[1] - 1.0).abs() < 1e-6);
        assert!((gates[15] - draw.probabilities[3]).abs() < 1e-6);
        assert!(gates.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn the_gradient_of_the_weights_matches_central_differences() {
        let mut selector = RankSelector::new(16);
        selector.weights = [0.3, -0.2, 0.5, 0.1].into();
        let pull: Vec<f32> = (0..16).map(|k| (k as f32 * 0.7).sin()).collect();
        let loss = |selector: &RankSelector| -> f32 {
            let draw = selector.draw(0.8, 0.3, &mut ChaCha8Rng::seed_from_u64(9));
            let mut gates = [0.0; 16];
            selector.gates(&draw, &mut gates);
            let expected: f32 = selector
                .candidates
                .iter()
                .zip(&draw.probabilities)
                .map(|(&r, p)| r as f32 * p)
                .sum();
            gates.iter().zip(&pull).map(|(g, d)| g * d).sum::<f32>() + COST * expected / 16.0
        };
        let draw = selector.draw(0.8, 0.3, &mut ChaCha8Rng::seed_from_u64(9));
        let mut analytic = [0.0; 4];
        selector.backward(&draw, 0.8, &pull, &mut analytic);
        for (i, analytic) in analytic.into_iter().enumerate() {
            let (mut up, mut down) = (selector.clone(), selector.clone());
            up.weights[i] += 1e-2;
            down.weights[i] -= 1e-2;
            let numeric = (loss(&up) - loss(&down)) / 2e-2;
            assert!(
                (analytic - numeric).abs() < 2e-3,
                "{i}: {} {numeric}",
                analytic
            );
        }
    }

    #[test]
    fn without_evidence_the_smallest_rank_is_chosen() {
        let choice = RankSelector::new(16).choose(1.0);
        assert_eq!(choice.rank, 2);
        let sum: f64 = choice.probabilities.iter().map(|(_, p)| p).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_harder_task_follows_the_learned_weights_further() {
        let mut selector = RankSelector::new(16);
        selector.weights = [0.0, 0.0, 1.0, 0.0].into();
        let p = |difficulty| selector.choose(difficulty).probabilities[2].1;
        assert_eq!(selector.choose(0.5).rank, 8);
        assert!(p(2.0) > p(0.5));
    }
}
