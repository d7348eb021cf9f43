//! The figures of continual learning, from the accuracy on every task after every task.

/// What a run came to, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Accuracy over the test images of all tasks at the end.
    pub acc: f64,
    /// Average anytime accuracy: the mean over the sequence of the accuracy over everything seen
    /// so far. `None` for a method that learns all tasks at once.
    pub aaa: Option<f64>,
    /// Mean over all tasks but the last of the best accuracy it ever had minus the one at the end
    /// (Chaudhry et al., arXiv 1801.10112, eq. 3).
    pub forgetting: f64,
}

impl Figures {
    /// From `matrix[t][k]`, percent of task k's test images right after learning task t (k <= t),
    /// and `images[k]`, how many those are. A matrix of one row is that of a method that learned
    /// everything at once.
    pub fn of(matrix: &[Vec<f64>], images: &[usize]) -> Self {
        let overall = |row: &Vec<f64>| {
            let seen = &images[..row.len()];
            let right: f64 = row.iter().zip(seen).map(|(a, &n)| a * n as f64).sum();
            right / seen.iter().sum::<usize>().max(1) as f64
        };
        let sequence: Vec<f64> = matrix.iter().map(overall).collect();
        let Some(last) = matrix.last() else {
            return Self {
                acc: 0.0,
                aaa: None,
                forgetting: 0.0,
            };
        };
        let earlier = &matrix[..matrix.len() - 1];
        let lost: Vec<f64> = last
            .iter()
            .enumerate()
            .take(earlier.len())
            .map(|(task, now)| {
                let best = earlier.iter().filter_map(|row| row.get(task));
                best.fold(f64::NEG_INFINITY, |best, &a| best.max(a)) - now
            })
            .collect();
        Self {
            acc: sequence[sequence.len() - 1],
            aaa: (matrix.len() == images.len()).then(|| mean(&sequence)),
            forgetting: if lost.is_empty() { 0.0 } else { mean(&lost) },
        }
    }
}

/// 0 without values.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Sample standard deviation; 0 for fewer than two values.
pub(super) fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_small_matrix_are_those_worked_out_by_hand() {
        let matrix = [vec![90.0], vec![80.0, 70.0], vec![85.0, 60.0, 50.0]];
        let figures = Figures::of(&matrix, &[10, 10, 20]);
        assert!((figures.acc - (850.0 + 600.0 + 1000.0) / 40.0).abs() < 1e-9);
        let aaa = (90.0 + 75.0 + 61.25) / 3.0;
        assert!((figures.aaa.unwrap() - aaa).abs() < 1e-9);
        // Task 0 lost 90 - 85, task 1 lost 70 - 60.
        assert!((figures.forgetting - 7.5).abs() < 1e-9);
    }

    #[test]
    fn a_method_that_learns_everything_at_once_has_no_sequence() {
        let figures = Figures::of(&[vec![80.0, 60.0]], &[5, 5]);
        assert_eq!((figures.acc, figures.aaa), (70.0, None));
        assert_eq!(figures.forgetting, 0.0);
    }

    #[test]
    fn a_task_that_got_better_counts_against_forgetting() {
        let figures = Figures::of(&[vec![50.0], vec![70.0, 90.0]], &[4, 4]);
        assert_eq!(figures.forgetting, -20.0);
    }

    #[test]
    fn deviation_is_that_of_a_sample() {
        assert!((deviation(&[1.0, 2.0, 3.0]) - 1.0).abs() < 1e-12);
        assert_eq!(deviation(&[5.0]), 0.0);
    }
}
