//! Novelty: the closed form of leaving an image out, and the scale it makes.

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::twin::{Set, invert, normal};
use crate::head::novelty::LeftOut;
use crate::head::{Layout, Novelties, Novelty, Statistics};

/// `x^T A y`
fn form(x: &[f64], a: &[f64], y: &[f64]) -> f64 {
    let n = y.len();
    let rows = x.iter().zip(a.chunks_exact(n));
    rows.map(|(x, row)| x * row.iter().zip(y).map(|(a, y)| a * y).sum::<f64>())
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_image_left_out_is_as_far_as_from_statistics_without_it(
        seed in any::<u64>(), dim in 2usize..24, classes in 2u32..6, images in 3usize..9, at in any::<prop::sample::Index>(),
    ) {
        let set = Set::draw(seed, Layout { parts: 1, dim }, classes, 1, images);
        // Without factors, whose rounding would show.
        let mut statistics = Statistics::transient(set.layout, 0..1);
        set.learn_into(&mut statistics, 0..set.features.len());
        let (classifier, novelty) = Novelty::fit(&[&statistics], 0.2).unwrap();
        let (n, count) = (images as f64, f64::from(classes));
        let image = at.index(set.features.len());
        let k = set.labels[image].0 as usize;
        let means: Vec<Vec<f64>> = (0..classes).map(|c| set.mean((c, 0), 0)).collect();

        // The image against the others of its class, and the covariance without its share.
        let x: Vec<f64> = set.features[image].iter().map(|&v| f64::from(v)).collect();
        let others: Vec<f64> = x.iter().zip(&means[k]).map(|(x, m)| (n * m - x) / (n - 1.0)).collect();
        let deviation: Vec<f64> = x.iter().zip(&others).map(|(x, m)| x - m).collect();
        let freedom = count * (n - 1.0);
        let weight = 0.8 / freedom * (n - 1.0) / n;
        let scatter = set.scatter(0);
        let trace: f64 = (0..dim).map(|i| scatter[i * dim + i]).sum();
        let without: Vec<f64> = (0..dim * dim).map(|i| {
            let diagonal = if i / dim == i % dim { 0.2 * trace / (dim as f64 * freedom) } else { 0.0 };
            0.8 * scatter[i] / freedom + diagonal - weight * deviation[i / dim] * deviation[i % dim]
        }).collect();
        let mut new_means = means.clone();
        new_means[k].clone_from(&others);
        let new_center: Vec<f64> = (0..dim).map(|d| new_means.iter().map(|m| m[d]).sum::<f64>() / count).collect();
        let total: Vec<f64> = (0..dim * dim).map(|i| {
            let spread = new_means.iter().map(|m| (m[i / dim] - new_center[i / dim]) * (m[i % dim] - new_center[i % dim]));
            without[i] + spread.sum::<f64>() / count
        }).collect();
        let from_center: Vec<f64> = x.iter().zip(&new_center).map(|(x, c)| x - c).collect();
        let inverse = invert(without, dim);
        let nearest = form(&deviation, &inverse, &deviation);
        let truth = [nearest, nearest - form(&from_center, &invert(total, dim), &from_center)];

        let to_mean: Vec<f32> = means[k].iter().map(|&m| m as f32).collect();
        let products: Vec<f64> = (0..classes as usize).map(|j| classifier.projection(j, 0, &to_mean)).collect();
        let out = LeftOut { group: k, products: &products, share: 1.0 / n, weight };
        let delta: Vec<f32> = deviation.iter().map(|&d| d as f32).collect();
        let mut scores = vec![0.0; classes as usize];
        let place = novelty.left_out(&classifier, 0, &delta, &out, &mut scores);
        for (ours, truth) in place.distances().iter().zip(truth) {
            let gap = (ours - truth).abs() / nearest.max(1.0);
            prop_assert!(gap < 2e-3, "{ours} instead of {truth}");
        }
        // By the scores it is as far from every other mean, too.
        for (mean, &score) in new_means.iter().zip(&scores) {
            let away: Vec<f64> = x.iter().zip(mean).map(|(x, m)| x - m).collect();
            let truth = form(&away, &inverse, &away);
            let ours = place.squares[0] - 2.0 * f64::from(score);
            let gap = (ours - truth).abs() / truth.max(nearest).max(1.0);
            prop_assert!(gap < 2e-3, "{ours} instead of {truth}");
        }
    }
}

/// Mean novelty of fresh images of the set's classes, and of images shifted away from all.
fn mean_novelty(set: &Set, learned: usize) -> [f32; 2] {
    let layout = set.layout;
    let mut statistics = Statistics::new(layout);
    let (mut fresh, mut shifted) = (Vec::new(), Vec::new());
    for component in set.components() {
        let own: Vec<f32> = set.of(component).take(learned).flatten().copied().collect();
        statistics.learn(component.0, component.1, &own).unwrap();
        fresh.extend(set.of(component).skip(learned).cloned());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let strange: Vec<f32> = (0..layout.width())
        .map(|_| 1.5 * normal(&mut rng))
        .collect();
    for x in &fresh {
        shifted.push(x.iter().zip(&strange).map(|(x, s)| x + s).collect());
    }
    let (classifier, novelty) = Novelty::fit(&[&statistics], 0.05).unwrap();
    [fresh, shifted].map(|images: Vec<Vec<f32>>| {
        let all = images
            .iter()
            .map(|x| novelty.of(&classifier, x).unwrap().unwrap());
        all.sum::<f32>() / images.len() as f32
    })
}

#[test]
fn fresh_images_are_not_novel_however_few_or_many_were_learned() {
    // From fewer images than dimensions to many more, with the plain and the relative distance.
    for classes in [2, 8] {
        for learned in [8, 30, 150] {
            let layout = Layout { parts: 2, dim: 60 };
            let set = Set::draw(4, layout, classes, 1, learned + 25);
            let [fresh, shifted] = mean_novelty(&set, learned);
            assert!(fresh.abs() < 0.6, "{classes} {learned}: {fresh}");
            assert!(shifted > fresh + 1.0, "{classes} {learned}: {shifted}");
        }
    }
}

#[test]
fn without_two_images_of_a_class_nothing_is_unknown() {
    let set = Set::draw(5, Layout { parts: 1, dim: 6 }, 4, 1, 1);
    let (classifier, novelty) = Novelty::fit(&[&set.statistics()], 0.05).unwrap();
    assert_eq!(novelty.of(&classifier, &set.features[0]), Ok(None));
    let threshold = novelty.threshold(&classifier, [Novelties::default()].iter(), 0.05);
    assert_eq!(threshold, f32::INFINITY);
}
