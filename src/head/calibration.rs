//! Temperature scaling: scores into probabilities that mean what they say.
//!
//! `p = softmax(scores / T)` (Guo et al., arXiv 1706.04599). The head adds the scores of parts
//! that look at the same image, which counts the same evidence several times, so T is above 1.

use serde::{Deserialize, Serialize};

use super::HeadError;

const LEAST: f64 = 1e-2;
const MOST: f64 = 1e4;
/// Golden-section steps: the bracket of log T shrinks below 1e-6.
const STEPS: usize = 35;

/// A fitted temperature and how many held-out images it rests on: none where there is one class, whose
/// probability is 1 at any temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// Between 0.01 and 10,000.
    pub value: f32,
    pub images: u32,
}

impl Temperature {
    /// Minimises the negative log-likelihood of held-out images over log T.
    /// `scores` is `[labels.len(), classes]`, a label the column of the true class.
    ///
    /// The targets are smoothed as in Platt scaling, `(n + 1) / (n + 2)` on the true class and
    /// the rest shared by the others, so that a few images, all correct, do not make the
    /// probabilities 0 and 1. The objective is convex in 1/T, hence has one minimum in log T.
    ///
    /// # Errors
    /// [`HeadError::Empty`] without an image, [`HeadError::Shape`] when lengths or a label do
    /// not fit, [`HeadError::NotFinite`] for a score that is no number.
    pub fn fit(scores: &[f32], classes: usize, labels: &[usize]) -> Result<Self, HeadError> {
        if labels.is_empty() || classes == 0 {
            return Err(HeadError::Empty);
        }
        if scores.len() != labels.len() * classes {
            return Err(HeadError::Shape {
                what: "held-out scores",
                expected: labels.len() * classes,
                found: scores.len(),
            });
        }
        if let Some(&label) = labels.iter().find(|&&label| label >= classes) {
            return Err(HeadError::Shape {
                what: "classes for a label",
                expected: classes,
                found: label,
            });
        }
        if let Some(at) = scores.iter().position(|s| !s.is_finite()) {
            return Err(HeadError::NotFinite {
                image: at / classes,
                position: at % classes,
            });
        }
        if classes == 1 {
            let (value, images) = (1.0, 0);
            return Ok(Self { value, images });
        }
        let objective = |log_t: f64| smoothed_loss(scores, classes, labels, (-log_t).exp());
        let golden = (5.0f64.sqrt() - 1.0) / 2.0;
        let (mut low, mut high) = (LEAST.ln(), MOST.ln());
        let mut inner = [high - golden * (high - low), low + golden * (high - low)];
        let mut loss = inner.map(objective);
        for _ in 0..STEPS {
            if loss[0] <= loss[1] {
                high = inner[1];
                inner = [high - golden * (high - low), inner[0]];
                loss = [objective(inner[0]), loss[0]];
            } else {
                low = inner[0];
                inner = [inner[1], low + golden * (high - low)];
                loss = [loss[1], objective(inner[1])];
            }
        }
        Ok(Self {
            value: (0.5 * (low + high)).exp() as f32,
            images: u32::try_from(labels.len()).unwrap_or(u32::MAX),
        })
    }
}

/// Cross-entropy of two classes or more against smoothed targets, summed over images, at inverse temperature
/// `beta`.
fn smoothed_loss(scores: &[f32], classes: usize, labels: &[usize], beta: f64) -> f64 {
    let n = labels.len() as f64;
    let others = 1.0 / ((n + 2.0) * (classes - 1) as f64);
    let truth = 1.0 - others * (classes - 1) as f64;
    let images = scores.chunks_exact(classes).zip(labels);
    images
        .map(|(scores, &label)| {
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scaled = |s: f32| beta * (f64::from(s) - f64::from(top));
            let normaliser = scores.iter().map(|&s| scaled(s).exp()).sum::<f64>().ln();
            let sum: f64 = scores.iter().map(|&s| scaled(s)).sum();
            let own = scaled(scores[label]);
            normaliser - truth * own - others * (sum - own)
        })
        .sum()
}

/// The temperature over tasks: the mean of log T, each task's fit weighted by its images.
///
/// Every fit is made against all classes known at that time, so no held-out image of an earlier
/// task is needed and none is outvoted by a small later task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    weighted_log: f64,
    images: u64,
}

impl Calibration {
    /// Takes a task's fit into account.
    pub fn add(&mut self, fit: Temperature) {
        self.weighted_log += f64::from(fit.images) * f64::from(fit.value).ln();
        self.images += u64::from(fit.images);
    }

    /// The temperature for `parts` summed parts. Before any fit it is `parts`, as if all parts
    /// carried the same evidence; T is never outside 0.01..=10,000, whatever was read from a file.
    pub fn temperature(&self, parts: usize) -> f32 {
        let mean = self.weighted_log / self.images as f64;
        let log = if self.images > 0 && mean.is_finite() {
            mean
        } else {
            (parts.max(1) as f64).ln()
        };
        log.exp().clamp(LEAST, MOST) as f32
    }
}

/// `out = softmax(scores / temperature)`, both `[classes]`; the probabilities add up to 1. A
/// temperature below 0.01 counts as 0.01.
///
/// # Errors
/// [`HeadError::Shape`] when the lengths differ, [`HeadError::NotFinite`] for a score that is
/// no number.
pub fn probabilities(scores: &[f32], temperature: f32, out: &mut [f32]) -> Result<(), HeadError> {
    if scores.len() != out.len() {
        return Err(HeadError::Shape {
            what: "probabilities",
            expected: scores.len(),
            found: out.len(),
        });
    }
    if let Some(position) = scores.iter().position(|s| !s.is_finite()) {
        return Err(HeadError::NotFinite { image: 0, position });
    }
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let temperature = temperature.max(LEAST as f32);
    let mut sum = 0.0;
    for (p, s) in out.iter_mut().zip(scores) {
        *p = ((s - top) / temperature).exp();
        sum += *p;
    }
    out.iter_mut().for_each(|p| *p /= sum);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Labels drawn in the proportions that the scores over `t` predict.
    fn calibrated(t: f64) -> (Vec<f32>, Vec<usize>) {
        let (mut scores, mut labels) = (Vec::new(), Vec::new());
        for step in 1..40 {
            let margin = 0.1 * f64::from(step);
            let right = (1000.0 / (1.0 + (-margin).exp())).round() as usize;
            for i in 0..1000 {
                scores.extend([0.0, (t * margin) as f32]);
                labels.push(usize::from(i < right));
            }
        }
        (scores, labels)
    }

    #[test]
    fn the_temperature_that_made_the_labels_is_found() {
        for t in [0.5, 1.0, 8.0, 300.0] {
            let (scores, labels) = calibrated(t);
            let fit = Temperature::fit(&scores, 2, &labels).unwrap();
            assert!((f64::from(fit.value) / t - 1.0).abs() < 0.02, "{t} {fit:?}");
        }
    }

    #[test]
    fn few_images_all_correct_stay_less_than_certain() {
        let scores = [9.0, 0.0, 1.0, 0.0, 12.0, 2.0];
        let fit = Temperature::fit(&scores, 3, &[0, 1]).unwrap();
        let mut p = [0.0; 3];
        probabilities(&scores[..3], fit.value, &mut p).unwrap();
        assert!(p[0] > 0.6 && p[0] < 0.95, "{p:?}");
    }

    #[test]
    fn a_task_of_one_class_says_nothing_about_the_temperature() {
        let mut calibration = Calibration::default();
        calibration.add(Temperature::fit(&[3.0, -8.0, 40.0], 1, &[0, 0, 0]).unwrap());
        assert_eq!(calibration, Calibration::default());
        let fit = Temperature::fit(&[9.0, 0.0, 1.0, 0.0, 12.0, 2.0], 3, &[0, 1]).unwrap();
        calibration.add(fit);
        assert!((calibration.temperature(8) / fit.value - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_small_later_task_hardly_moves_the_temperature() {
        let mut calibration = Calibration::default();
        assert!((calibration.temperature(8) - 8.0).abs() < 1e-5);
        calibration.add(Temperature {
            value: 4.0,
            images: 90,
        });
        calibration.add(Temperature {
            value: 400.0,
            images: 10,
        });
        assert!((calibration.temperature(8) - 4.0 * 100.0f32.powf(0.1)).abs() < 1e-3);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_scores_give_a_bounded_temperature_and_probabilities(
            classes in 1usize..6, rows in prop::collection::vec((prop::collection::vec(-1e30f32..1e30, 6), 0usize..6), 1..6),
        ) {
            let scores: Vec<f32> = rows.iter().flat_map(|r| r.0[..classes].to_vec()).collect();
            let labels: Vec<usize> = rows.iter().map(|r| r.1 % classes).collect();
            let fit = Temperature::fit(&scores, classes, &labels).unwrap();
            prop_assert!((0.0099..=10001.0).contains(&fit.value));
            let mut p = vec![0.0; classes];
            probabilities(&scores[..classes], fit.value, &mut p).unwrap();
            prop_assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn bad_input_is_refused() {
        assert_eq!(Temperature::fit(&[], 2, &[]), Err(HeadError::Empty));
        assert!(matches!(
            Temperature::fit(&[0.0; 4], 2, &[0, 2]),
            Err(HeadError::Shape { .. })
        ));
        let refused = Temperature::fit(&[0.0, f32::NAN], 2, &[0]);
        assert_eq!(
            refused,
            Err(HeadError::NotFinite {
                image: 0,
                position: 1
            })
        );
        assert!(probabilities(&[f32::INFINITY], 1.0, &mut [0.0]).is_err());
    }
}
