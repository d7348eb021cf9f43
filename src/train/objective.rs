//! Cross-entropy over scaled scores.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_matches_central_differences() {
        let scores = [2.0f32, -1.0, 0.5, 3.0];
        let loss = |scores: &[f32]| cross_entropy(&mut scores.to_vec(), 2, 1.7);
        let mut gradient = scores.to_vec();
        cross_entropy(&mut gradient, 2, 1.7);
        for i in 0..scores.len() {
            let (mut up, mut down) = (scores, scores);
            up[i] += 1e-2;
            down[i] -= 1e-2;
            let expected = (loss(&up) - loss(&down)) / 2e-2;
            assert!((f64::from(gradient[i]) - expected).abs() < 1e-3);
        }
    }

    #[test]
    fn huge_scores_stay_finite() {
        let mut scores = [1e30f32, -1e30, 0.0];
        assert!(cross_entropy(&mut scores, 0, 1.0).is_finite());
        assert!(scores.iter().all(|s| s.is_finite()));
    }
}
