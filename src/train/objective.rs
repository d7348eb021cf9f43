//! What a training step lowers: cross-entropy over scaled scores, and how far they drift.

/// Cross-entropy of `softmax(scores / temperature)` at `class`, in nats; `scores` becomes its
/// gradient with respect to the scores, `(p - onehot) / temperature`.
///
/// # Panics
/// When `class` is out of range.
pub fn cross_entropy(scores: &mut [f32], class: usize, temperature: f32) -> f64 {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let target = (scores[class] - highest) / temperature;
    let mut sum = 0.0f32;
    for score in scores.iter_mut() {
        *score = ((*score - highest) / temperature).exp();
        sum += *score;
    }
    let scale = 1.0 / (sum * temperature);
    scores.iter_mut().for_each(|score| *score *= scale);
    scores[class] -= 1.0 / temperature;
    f64::from(sum.ln() - target)
}

/// How far scores of one image moved: the mean of `(change / temperature)^2`, less what all changes
/// share, times `weight`. `changes` becomes its gradient with respect to the scores.
///
/// The old classes' scores are where their statistics are felt, so this holds the features in the
/// directions that old classes are told apart by, and in no others (distillation, Li and Hoiem, arXiv
/// 1606.09282, with a squared distance as in Buzzega et al., DER, arXiv 2004.07211).
pub fn score_drift(changes: &mut [f32], temperature: f32, weight: f32) -> f64 {
    let count = changes.len().max(1) as f32;
    let mut shared = 0.0f32;
    for change in changes.iter_mut() {
        *change /= temperature;
        shared += *change / count;
    }
    let mut sum = 0.0f32;
    let scale = 2.0 * weight / (count * temperature);
    for change in changes.iter_mut() {
        *change -= shared;
        sum += *change * *change;
        *change *= scale;
    }
    f64::from(weight * sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_is_gradient(gradient: &[f32], at: &[f32], loss: impl Fn(&[f32]) -> f64) {
        for i in 0..at.len() {
            let (mut up, mut down) = (at.to_vec(), at.to_vec());
            up[i] += 1e-2;
            down[i] -= 1e-2;
            let expected = (loss(&up) - loss(&down)) / 2e-2;
            assert!((f64::from(gradient[i]) - expected).abs() < 1e-3);
        }
    }

    #[test]
    fn the_gradient_matches_central_differences() {
        let scores = [2.0f32, -1.0, 0.5, 3.0];
        let loss = |scores: &[f32]| cross_entropy(&mut scores.to_vec(), 2, 1.7);
        let mut gradient = scores.to_vec();
        cross_entropy(&mut gradient, 2, 1.7);
        assert_is_gradient(&gradient, &scores, loss);
    }

    #[test]
    fn the_gradient_of_drift_matches_central_differences() {
        let changes = [1.0f32, -1.5, 2.5, -0.5];
        let loss = |changes: &[f32]| score_drift(&mut changes.to_vec(), 1.7, 0.8);
        let mut gradient = changes;
        score_drift(&mut gradient, 1.7, 0.8);
        assert_is_gradient(&gradient, &changes, loss);
        // What all classes share decides nothing.
        assert!((loss(&changes.map(|c| c + 5.0)) - loss(&changes)).abs() < 1e-5);
        assert_eq!(loss(&[3.0; 4]), 0.0);
    }

    #[test]
    fn huge_scores_stay_finite() {
        let mut scores = [1e30f32, -1e30, 0.0];
        assert!(cross_entropy(&mut scores, 0, 1.0).is_finite());
        assert!(scores.iter().all(|s| s.is_finite()));
    }
}
