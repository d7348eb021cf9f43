//! The slow, obvious LDA in f64 that the head is held to, and the sets both are given.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::head::{ClassId, Classifier, Layout, Statistics, TaskId};

/// A labelled set of feature vectors, `[n][parts * dim]`.
pub(super) struct Set {
    pub(super) layout: Layout,
    pub(super) labels: Vec<(ClassId, TaskId)>,
    pub(super) features: Vec<Vec<f32>>,
}

pub(super) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}

impl Set {
    /// Correlated Gaussian classes around means of their own, away from the origin.
    pub(super) fn draw(seed: u64, layout: Layout, classes: u32, tasks: u32, images: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let width = layout.width();
        let mut set = Self {
            layout,
            labels: Vec::new(),
            features: Vec::new(),
        };
        for class in 0..classes {
            for task in 0..tasks {
                let mean: Vec<f32> = (0..width).map(|_| 3.0 + normal(&mut rng)).collect();
                for _ in 0..images {
                    let common = normal(&mut rng);
                    let draw = |m: &f32| m + 0.7 * common + 0.5 * normal(&mut rng);
                    set.features.push(mean.iter().map(draw).collect());
                    set.labels.push((class, task));
                }
            }
        }
        set
    }

    pub(super) fn learn_into(
        &self,
        statistics: &mut Statistics,
        images: impl Iterator<Item = usize>,
    ) {
        for i in images {
            let (class, task) = self.labels[i];
            statistics.learn(class, task, &self.features[i]).unwrap();
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::new(self.layout);
        for (class, task) in self.components() {
            let own: Vec<f32> = self.of((class, task)).flatten().copied().collect();
            statistics.learn(class, task, &own).unwrap();
        }
        statistics
    }

    /// For what f16 factors would blur.
    pub(super) fn without_factors(&self) -> Statistics {
        let mut statistics = Statistics::transient(self.layout, 0..self.layout.parts);
        self.learn_into(&mut statistics, 0..self.features.len());
        statistics
    }

    pub(super) fn components(&self) -> Vec<(ClassId, TaskId)> {
        let mut components = self.labels.clone();
        components.sort_unstable();
        components.dedup();
        components
    }

    pub(super) fn mean(&self, component: (ClassId, TaskId), part: usize) -> Vec<f64> {
        let own: Vec<_> = self.of(component).collect();
        let sum = |d: usize| own.iter().map(|x| f64::from(x[d])).sum::<f64>();
        self.layout
            .part(part)
            .map(|d| sum(d) / own.len() as f64)
            .collect()
    }

    pub(super) fn of(&self, component: (ClassId, TaskId)) -> impl Iterator<Item = &Vec<f32>> {
        let labelled = self.labels.iter().zip(&self.features);
        labelled
            .filter(move |(l, _)| **l == component)
            .map(|(_, x)| x)
    }

    /// The within-component scatter of one part, straight from its definition.
    pub(super) fn scatter(&self, part: usize) -> Vec<f64> {
        let dim = self.layout.dim;
        let start = self.layout.part(part).start;
        let mut scatter = vec![0.0; dim * dim];
        for component in self.components() {
            let mean = self.mean(component, part);
            for x in self.of(component) {
                let deviation = |i: usize| f64::from(x[start + i]) - mean[i];
                for (at, s) in scatter.iter_mut().enumerate() {
                    *s += deviation(at / dim) * deviation(at % dim);
                }
            }
        }
        scatter
    }

    /// The shrunk covariance of one part, inverted.
    fn precision(&self, shrinkage: f64, part: usize) -> Vec<f64> {
        let dim = self.layout.dim;
        let components = self.components();
        let freedom = self.features.len().saturating_sub(components.len()).max(1) as f64;
        let scatter = self.scatter(part);
        let trace: f64 = (0..dim).map(|i| scatter[i * dim + i]).sum();
        let covariance = (0..dim * dim).map(|at| {
            let diagonal = if at / dim == at % dim {
                trace / dim as f64
            } else {
                0.0
            };
            ((1.0 - shrinkage) * scatter[at] + shrinkage * diagonal) / freedom
        });
        invert(covariance.collect(), dim)
    }

    /// `sum_parts a(x, mean)^T S^-1 b(x, mean)` for every component.
    fn forms(
        &self,
        shrinkage: f64,
        x: &[f32],
        a: impl Fn(f64, f64) -> f64,
        b: impl Fn(f64, f64) -> f64,
    ) -> Vec<f64> {
        let dim = self.layout.dim;
        let components = self.components();
        let mut forms = vec![0.0; components.len()];
        for part in 0..self.layout.parts {
            let precision = self.precision(shrinkage, part);
            let x = &x[self.layout.part(part)];
            for (form, &component) in forms.iter_mut().zip(&components) {
                let mean = self.mean(component, part);
                for i in 0..dim {
                    let left = a(f64::from(x[i]), mean[i]);
                    for j in 0..dim {
                        *form += left * precision[i * dim + j] * b(f64::from(x[j]), mean[j]);
                    }
                }
            }
        }
        forms
    }

    /// Squared Mahalanobis distances to the components, summed over parts.
    fn distances(&self, shrinkage: f64, x: &[f32]) -> Vec<f64> {
        let deviation = |x: f64, mean: f64| x - mean;
        self.forms(shrinkage, x, deviation, deviation)
    }

    /// Component scores as Gaussian log-likelihoods, less what all components share.
    pub(super) fn scores(&self, shrinkage: f64, x: &[f32]) -> Vec<f64> {
        let distances = self.distances(shrinkage, x);
        distances.iter().map(|distance| -0.5 * distance).collect()
    }

    /// Squared Mahalanobis distance to the nearest component, summed over parts.
    pub(super) fn distance(&self, shrinkage: f64, x: &[f32]) -> f64 {
        let distances = self.distances(shrinkage, x);
        distances.into_iter().fold(f64::INFINITY, f64::min)
    }
}

impl Set {
    /// Squared distance to the average mean under the covariance of everything, summed over parts.
    pub(super) fn background(&self, shrinkage: f64, x: &[f32]) -> f64 {
        let dim = self.layout.dim;
        let components = self.components();
        let count = components.len() as f64;
        let mut distance = 0.0;
        for part in 0..self.layout.parts {
            let means: Vec<_> = components.iter().map(|&c| self.mean(c, part)).collect();
            let center: Vec<f64> = (0..dim)
                .map(|d| means.iter().map(|m| m[d]).sum::<f64>() / count)
                .collect();
            let mut total = invert(self.precision(shrinkage, part), dim);
            for (at, t) in total.iter_mut().enumerate() {
                let deviation = |m: &Vec<f64>, d: usize| m[d] - center[d];
                let product = |m| deviation(m, at / dim) * deviation(m, at % dim);
                *t += means.iter().map(product).sum::<f64>() / count;
            }
            let inverse = invert(total, dim);
            let x = &x[self.layout.part(part)];
            let deviation = |d: usize| f64::from(x[d]) - center[d];
            for (at, v) in inverse.iter().enumerate() {
                distance += deviation(at / dim) * v * deviation(at % dim);
            }
        }
        distance
    }
}

/// Gauss-Jordan with partial pivoting.
pub(super) fn invert(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let mut inverse: Vec<f64> = (0..n * n)
        .map(|at| f64::from(u8::from(at / n == at % n)))
        .collect();
    for k in 0..n {
        let pivot = (k..n)
            .max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs()))
            .unwrap();
        for j in 0..n {
            a.swap(k * n + j, pivot * n + j);
            inverse.swap(k * n + j, pivot * n + j);
        }
        let scale = a[k * n + k];
        for j in 0..n {
            a[k * n + j] /= scale;
            inverse[k * n + j] /= scale;
        }
        for i in (0..n).filter(|&i| i != k) {
            let factor = a[i * n + k];
            for j in 0..n {
                a[i * n + j] -= factor * a[k * n + j];
                inverse[i * n + j] -= factor * inverse[k * n + j];
            }
        }
    }
    inverse
}

pub(super) fn scores(classifier: &Classifier, x: &[f32]) -> Vec<f64> {
    let mut out = vec![0.0; classifier.classes().len()];
    classifier.scores(x, &mut out).unwrap();
    out.into_iter().map(f64::from).collect()
}

/// Scores agree up to the constant that all classes share, relative to the largest of the truth:
/// rounding is a share of the scores, of which two may differ by next to nothing.
pub(super) fn assert_same_scores(ours: &[f64], truth: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), truth.len());
    let scale = truth.iter().fold(1.0f64, |top, v| top.max(v.abs()));
    for (a, b) in ours.iter().zip(truth) {
        let gap = ((a - ours[0]) - (b - truth[0])).abs() / scale;
        assert!(
            gap < tolerance,
            "scores differ by {gap:e} of their size: {ours:?} {truth:?}"
        );
    }
}

pub(super) fn assert_same_statistics(ours: &Statistics, truth: &Statistics, tolerance: f64) {
    assert_eq!(ours.components().len(), truth.components().len());
    for (a, b) in ours.components().iter().zip(truth.components()) {
        assert_eq!((a.class, a.task, a.count), (b.class, b.task, b.count));
        for (x, y) in a.mean.iter().zip(&b.mean) {
            assert!(
                (x - y).abs() <= 1e-5 * y.abs().max(1.0),
                "means {x} and {y}"
            );
        }
    }
    for part in 0..truth.layout().parts {
        assert_close(
            &ours.scatter(part).unwrap(),
            &truth.scatter(part).unwrap(),
            tolerance,
        );
    }
}

/// Numbers agree outright, relative to the largest of the truth.
pub(super) fn assert_close<T: Copy + Into<f64>>(ours: &[T], truth: &[T], tolerance: f64) {
    assert_eq!(ours.len(), truth.len());
    let scale = truth.iter().fold(1.0f64, |top, &v| top.max(v.into().abs()));
    for (&x, &y) in ours.iter().zip(truth) {
        let (x, y) = (x.into(), y.into());
        assert!(
            (x - y).abs() <= tolerance * scale,
            "{x} and {y} of {scale} at most"
        );
    }
}

/// A shuffled order and a batch size.
pub(super) fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}
