//! What makes up for the error of a mean over few images.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::twin::{invert, normal, scores};
use super::*;

/// Deviations from a class's mean, of unequal variances and correlated.
fn deviation(rng: &mut ChaCha8Rng, dim: usize) -> Vec<f32> {
    let common = normal(rng);
    (0..dim)
        .map(|d| 0.5 * common + (0.3 + d as f32 / dim as f32) * normal(rng))
        .collect()
}

/// Classes with so many images each; their means differ little.
struct World {
    layout: Layout,
    means: Vec<Vec<f32>>,
    rng: ChaCha8Rng,
}

impl World {
    fn draw(seed: u64, dim: usize, classes: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mean = |_| (0..dim).map(|_| 0.2 * normal(&mut rng)).collect();
        Self {
            layout: Layout { parts: 1, dim },
            means: (0..classes).map(mean).collect(),
            rng,
        }
    }

    fn image(&mut self, class: usize) -> Vec<f32> {
        let deviation = deviation(&mut self.rng, self.layout.dim);
        let pairs = self.means[class].iter().zip(deviation);
        pairs.map(|(m, d)| m + d).collect()
    }

    fn learned(&mut self, counts: &[usize]) -> (Statistics, Vec<Vec<f32>>) {
        let mut statistics = Statistics::new(self.layout);
        let mut images = Vec::new();
        for (class, &count) in counts.iter().enumerate() {
            let own: Vec<Vec<f32>> = (0..count).map(|_| self.image(class)).collect();
            statistics.learn(class as u32, 0, &own.concat()).unwrap();
            images.extend(own);
        }
        (statistics, images)
    }
}

/// The covariance as the head has it, inverted.
fn precision(statistics: &Statistics, shrinkage: f64) -> Vec<f64> {
    let dim = statistics.layout().dim;
    let scatter = statistics.scatter(0).unwrap();
    let at = |i: usize, j: usize| f64::from(scatter[i.max(j) * (i.max(j) + 1) / 2 + i.min(j)]);
    let trace: f64 = (0..dim).map(|i| at(i, i)).sum();
    let components = statistics.components().len() as f64;
    let freedom = statistics.images() as f64 - components;
    let covariance = (0..dim * dim).map(|k| {
        let (i, j) = (k / dim, k % dim);
        let diagonal = if i == j { trace / dim as f64 } else { 0.0 };
        ((1.0 - shrinkage) * at(i, j) + shrinkage * diagonal) / freedom
    });
    invert(covariance.collect(), dim)
}

fn square(precision: &[f64], d: &[f32]) -> f64 {
    let dim = d.len();
    let terms = precision.iter().enumerate();
    terms
        .map(|(k, p)| f64::from(d[k / dim]) * p * f64::from(d[k % dim]))
        .sum()
}

/// `t` of the fit: what a correction is 0.75 / 2n of.
fn expected_square(classifier: &Classifier, images: usize) -> f64 {
    2.0 * f64::from(classifier.corrections[0]) * images as f64 / 0.75
}

#[test]
fn the_expected_square_is_that_of_images_that_were_not_learned() {
    // From more images than dimensions to far fewer.
    for (dim, images, seed) in [(12, 60, 1), (40, 12, 2), (60, 6, 3), (90, 3, 4)] {
        let (mut found, mut truth) = (0.0, 0.0);
        for run in 0..6 {
            let mut world = World::draw(10 * seed + run, dim, 4);
            let (statistics, _) = world.learned(&[images; 4]);
            let classifier = Classifier::fit(&[&statistics], 0.1).unwrap();
            found += expected_square(&classifier, images);
            let precision = precision(&statistics, 0.1);
            for _ in 0..200 {
                let d = deviation(&mut world.rng, dim);
                truth += square(&precision, &d) / 200.0;
            }
        }
        let ratio = found / truth;
        assert!(
            (0.85..1.15).contains(&ratio),
            "{images} images in {dim} dimensions: {ratio}"
        );
    }
}

#[test]
fn a_class_of_few_images_is_named_about_as_often_as_others() {
    let mut named = [0usize; 2];
    for seed in 0..6 {
        let mut world = World::draw(seed, 48, 8);
        let counts = [4, 30, 4, 30, 4, 30, 4, 30];
        let (statistics, _) = world.learned(&counts);
        let mut classifier = Classifier::fit(&[&statistics], 0.05).unwrap();
        for corrected in [true, false] {
            if !corrected {
                classifier.corrections.fill(0.0);
            }
            let mut rng = world.rng.clone();
            for image in 0..400 {
                let class = image % counts.len();
                let d = deviation(&mut rng, 48);
                let x: Vec<f32> = world.means[class]
                    .iter()
                    .zip(d)
                    .map(|(m, d)| m + d)
                    .collect();
                let scores = scores(&classifier, &x);
                let best = (0..8)
                    .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
                    .unwrap();
                named[usize::from(corrected)] += usize::from(counts[best] == 4);
            }
        }
    }
    let share = named.map(|n| n as f64 / 2400.0);
    assert!(share[0] < 0.35, "uncorrected {share:?}");
    assert!((0.4..0.6).contains(&share[1]), "{share:?}");
}

#[test]
fn classes_of_as_many_images_are_corrected_alike_and_distances_not_at_all() {
    let (statistics, images) = World::draw(7, 10, 3).learned(&[5; 3]);
    let mut classifier = Classifier::fit(&[&statistics], 0.1).unwrap();
    let first = classifier.corrections[0];
    assert!(first > 0.0);
    assert!(classifier.corrections.iter().all(|&c| c == first));
    let with = classifier.nearest(&images[0]).0;
    classifier.corrections.fill(0.0);
    assert_eq!(classifier.nearest(&images[0]).0, with);
}

#[test]
fn a_mean_that_moved_on_its_own_is_off_by_a_share_of_its_move() {
    let (before, _) = World::draw(8, 10, 3).learned(&[7; 3]);
    let mut moved = before.clone();
    let own = |class: usize, d: usize| if class == 1 { 0.3 * d as f32 } else { 0.0 };
    for (class, component) in moved.components.iter_mut().enumerate() {
        let mean = component.mean.iter_mut().enumerate();
        mean.for_each(|(d, m)| *m += 0.5 + own(class, d));
    }
    moved.add_drift(&before, 0.1).unwrap();
    let classifier = Classifier::fit(&[&before], 0.1).unwrap();
    let image = expected_square(&classifier, 7);
    for (class, component) in moved.components().iter().enumerate() {
        let rest = |d: usize| own(class, d) - (0..3).map(|c| own(c, d)).sum::<f32>() / 3.0;
        let rest: Vec<f32> = (0..10).map(rest).collect();
        let expected = square(&precision(&before, 0.1), &rest) / 3.0 / image;
        let drift = f64::from(component.drift);
        assert!(
            (drift - expected).abs() < 1e-3 * expected,
            "{drift} instead of {expected}"
        );
    }

    // It counts like the error of few images, and errors of several moves add up.
    let once = moved.components()[1].drift;
    let fitted = Classifier::fit(&[&moved], 0.1).unwrap();
    let shares: Vec<f64> = fitted
        .corrections
        .iter()
        .map(|&c| 2.0 * f64::from(c) / image)
        .collect();
    for (share, component) in shares.iter().zip(moved.components()) {
        let expected = 0.75 / 7.0 + f64::from(component.drift);
        assert!(
            (share - expected).abs() < 1e-3 * expected,
            "{share} instead of {expected}"
        );
    }
    let mut again = moved.clone();
    again.components[1].mean.iter_mut().for_each(|m| *m += 1.0);
    again.add_drift(&moved, 0.1).unwrap();
    assert!(again.components()[1].drift > once);
}

#[test]
fn means_that_move_together_and_means_that_stay_are_as_good_as_before() {
    let (before, _) = World::draw(9, 6, 3).learned(&[5; 3]);
    let mut moved = before.clone();
    moved.add_drift(&before, 0.1).unwrap();
    assert_eq!(moved, before);
    for component in &mut moved.components {
        component.mean.iter_mut().for_each(|m| *m += 0.25);
    }
    moved.add_drift(&before, 0.1).unwrap();
    assert!(moved.components().iter().all(|c| c.drift < 1e-9));
    let other = World::draw(9, 6, 2).learned(&[5; 2]).0;
    assert_eq!(
        moved.add_drift(&other, 0.1),
        Err(HeadError::ComponentsChanged)
    );
}

#[test]
fn an_unusable_drift_is_damage() {
    let (mut statistics, _) = World::draw(10, 4, 2).learned(&[3; 2]);
    assert_eq!(statistics.check(), Ok(()));
    for drift in [-1.0, f32::NAN, f32::INFINITY] {
        statistics.components[0].drift = drift;
        assert!(matches!(statistics.check(), Err(HeadError::Damaged(_))));
    }
}

#[test]
fn components_of_a_class_count_as_many_images_as_the_class() {
    let mut world = World::draw(11, 8, 2);
    let mut statistics = Statistics::new(world.layout);
    for (class, task) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 0)] {
        let own: Vec<Vec<f32>> = (0..4).map(|_| world.image(class as usize)).collect();
        statistics.learn(class, task, &own.concat()).unwrap();
    }
    let apart = Classifier::fit(&[&statistics], 0.1).unwrap();
    let [a, b, c, d] = apart.corrections[..] else {
        panic!("{:?}", apart.corrections)
    };
    assert_eq!((a, c), (b, d));
    assert!(
        (a / c - 12.0 / 8.0).abs() < 1e-5,
        "8 and 12 images: {a} and {c}"
    );
    statistics.set_pooled(1, true);
    let pooled = Classifier::fit(&[&statistics], 0.1).unwrap();
    let [a, b, c] = pooled.corrections[..] else {
        panic!("{:?}", pooled.corrections)
    };
    assert_eq!(a, b);
    assert!(
        (a / c - 12.0 / 8.0).abs() < 1e-5,
        "8 and 12 images: {a} and {c}"
    );
}
