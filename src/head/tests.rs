//! The streaming head against a slow, obvious LDA in f64.

mod correction;
mod novelty;
mod twin;

use proptest::prelude::*;

use super::*;
use crate::state::StreamError;
use twin::{Set, assert_close, assert_same_scores, assert_same_statistics, scores, shuffled};

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scores_are_those_of_the_textbook_formula(
        seed in any::<u64>(), parts in 1usize..4, dim in 1usize..70, classes in 1u32..6, images in 2usize..9,
    ) {
        let set = Set::draw(seed, Layout { parts, dim }, classes, 1, images);
        let classifier = Classifier::fit(&[&set.statistics()], 0.1).unwrap();
        let x = &set.features[seed as usize % set.features.len()];
        assert_same_scores(&scores(&classifier, x), &set.scores(0.1, x), 2e-3);
    }

    #[test]
    fn the_order_and_batching_of_images_do_not_matter(
        seed in any::<u64>(), dim in 1usize..40, classes in 1u32..4, images in 1usize..90, batch in 1usize..90,
    ) {
        let layout = Layout { parts: 2, dim };
        let set = Set::draw(seed, layout, classes, 2, images);
        let mut batched = Statistics::transient(layout, 0..2);
        for component in set.components() {
            let own: Vec<f32> = set.of(component).flatten().copied().collect();
            for features in own.chunks(batch * layout.width()) {
                batched.learn(component.0, component.1, features).unwrap();
            }
        }
        for part in 0..2 {
            let full = set.scatter(part);
            let truth: Vec<f32> = (0..dim).flat_map(|i| full[i * dim..=i * dim + i].iter().map(|&v| v as f32)).collect();
            assert_close(&batched.scatter(part).unwrap(), &truth, 1e-5);
        }
        assert_eq!(batched.tasks(), 2);
        let mut streamed = Statistics::transient(layout, 0..2);
        set.learn_into(&mut streamed, shuffled(set.features.len(), seed).into_iter());
        assert_same_statistics(&streamed, &batched, 1e-5);
        // With factors kept, each call rounds them to f16: once here, then once an image.
        assert_same_statistics(&set.statistics(), &batched, 1e-3);
        let mut removable = Statistics::new(layout);
        set.learn_into(&mut removable, shuffled(set.features.len(), !seed).into_iter());
        assert_same_statistics(&removable, &batched, 1e-2);
    }

    #[test]
    fn a_forgotten_class_leaves_no_trace(
        seed in any::<u64>(), dim in 1usize..70, classes in 2u32..5, images in 1usize..80,
    ) {
        let set = Set::draw(seed, Layout { parts: 2, dim }, classes, 1, images);
        let keep: Vec<usize> = (0..set.features.len()).filter(|&i| set.labels[i].0 != 0).collect();
        let mut never_saw = Statistics::new(set.layout);
        set.learn_into(&mut never_saw, keep.iter().copied());
        let mut forgot = Statistics::new(set.layout);
        set.learn_into(&mut forgot, shuffled(set.features.len(), seed).into_iter().filter(|&i| set.labels[i].0 == 0));
        set.learn_into(&mut forgot, keep.iter().copied());
        prop_assert_eq!(forgot.forget(0), Ok(images as u64));
        assert_same_statistics(&forgot, &never_saw, 1e-5);
        let x = &set.features[0];
        let fit = |s: &Statistics| scores(&Classifier::fit(&[s], 0.1).unwrap(), x);
        // Outright, for the centre may keep nothing either. The image is of the class that went: it can
        // lie as far from one that stayed as from another, but their centred scores cannot all be
        // small, and f32 moves them by 1e-5 of the largest (the covariance's condition is in the hundreds).
        assert_close(&fit(&forgot), &fit(&never_saw), 1e-4);
    }

    #[test]
    fn the_sum_of_statistics_fits_like_all_images_together(
        seed in any::<u64>(), dim in 1usize..40, classes in 1u32..4, images in 2usize..12,
    ) {
        let set = Set::draw(seed, Layout { parts: 2, dim }, classes, 1, images);
        let mut halves = [Statistics::new(set.layout), Statistics::transient(set.layout, 0..2)];
        for i in 0..set.features.len() {
            set.learn_into(&mut halves[i % 2], [i].into_iter());
        }
        let summed = Classifier::fit(&[&halves[0], &halves[1]], 0.1).unwrap();
        let x = &set.features[0];
        assert_same_scores(&scores(&summed, x), &set.scores(0.1, x), 2e-3);
    }

    #[test]
    fn a_pooled_class_is_fitted_as_if_its_components_were_one(
        seed in any::<u64>(), dim in 1usize..30, images in 2usize..20,
    ) {
        let set = Set::draw(seed, Layout { parts: 2, dim }, 3, 2, images);
        let mut pooled = set.without_factors();
        pooled.set_pooled(1, true);
        let mut together = Statistics::transient(set.layout, 0..2);
        for (class, task) in set.components() {
            let own: Vec<f32> = set.of((class, task)).flatten().copied().collect();
            let task = if class == 1 { 0 } else { task };
            together.learn(class, task, &own).unwrap();
        }
        let x = &set.features[0];
        let fit = |s: &Statistics| scores(&Classifier::fit(&[s], 0.1).unwrap(), x);
        assert_same_scores(&fit(&pooled), &fit(&together), 1e-4);
        // Each is still there to be removed, and takes its mark along.
        let mut pooled = set.statistics();
        pooled.set_pooled(1, true);
        pooled.forget_task(1).unwrap();
        prop_assert!(!pooled.is_pooled(1));
        let mut alone = set.statistics();
        alone.forget_task(1).unwrap();
        prop_assert_eq!(&pooled, &alone);
    }

    #[test]
    fn what_a_movement_changes_is_a_difference_of_scores(
        seed in any::<u64>(), parts in 1usize..3, dim in 1usize..20, classes in 1u32..5,
    ) {
        let set = Set::draw(seed, Layout { parts, dim }, classes, 1, 6);
        let classifier = Classifier::fit(&[&set.statistics()], 0.5).unwrap();
        let (from, to) = (&set.features[0], &set.features[5]);
        let moved: Vec<f32> = from.iter().zip(to).map(|(from, to)| to - from).collect();
        let mut changes = vec![0.0; classifier.components().len()];
        classifier.component_changes(&moved, &mut changes).unwrap();
        let (before, after) = (scores(&classifier, from), scores(&classifier, to));
        let expected: Vec<f64> = before.iter().zip(&after).map(|(b, a)| a - b).collect();
        let largest = before.iter().chain(&after).fold(1.0f64, |most, s| most.max(s.abs()));
        for (found, expected) in changes.iter().zip(&expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-4 * largest, "{} {}", found, expected);
        }
        // Backward is the transpose: <d, W m> = <W^T d, m>.
        let d: Vec<f32> = (0..changes.len()).map(|k| (k as f32 * 1.7).sin()).collect();
        let mut back = vec![0.0; moved.len()];
        classifier.component_changes_backward(&d, &mut back).unwrap();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let (one, other) = (dot(&d, &changes), dot(&back, &moved));
        prop_assert!((one - other).abs() < 1e-4 * largest, "{} {}", one, other);
    }

    #[test]
    fn gradients_agree_with_central_differences(
        seed in any::<u64>(), parts in 1usize..3, dim in 1usize..20, tasks in 1u32..4,
    ) {
        let set = Set::draw(seed, Layout { parts, dim }, 3, tasks, 6);
        let classifier = Classifier::fit(&[&set.statistics()], 0.5).unwrap();
        // Between two components of a class, both take part in the gradient.
        let n = set.features.len();
        let x: Vec<f32> = set.features[0].iter().zip(&set.features[6 % n]).map(|(a, b)| 0.5 * (a + b)).collect();
        let d_scores = [0.3f32, -0.8, 0.5];
        let mut gradient = vec![0.0; x.len()];
        classifier.backward(&x, &d_scores, &mut gradient).unwrap();
        let objective = |x: &[f32]| -> f64 {
            (0..3).map(|c| classifier.class_score(c, x) * f64::from(d_scores[c])).sum()
        };
        let scale = gradient.iter().fold(1.0f64, |top, g| top.max(f64::from(g.abs())));
        for d in 0..x.len() {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[d] += 1e-2;
            down[d] -= 1e-2;
            let step = f64::from(up[d]) - f64::from(down[d]);
            let numeric = (objective(&up) - objective(&down)) / step;
            let gap = (numeric - f64::from(gradient[d])).abs() / scale;
            prop_assert!(gap < 1e-2, "{numeric} and {} differ by {gap:e}", gradient[d]);
        }
    }
}

#[test]
fn the_distance_is_that_to_the_nearest_mean_under_the_inverse_covariance() {
    for (images, dim) in [(4, 60), (30, 5), (1, 7)] {
        let set = Set::draw(9, Layout { parts: 2, dim }, 3, 2, images);
        let (classifier, distances) =
            Classifier::fit_with_distances(&[&set.statistics()], 0.1).unwrap();
        assert_eq!(
            classifier,
            Classifier::fit(&[&set.statistics()], 0.1).unwrap()
        );
        for shift in [0.0, 5.0] {
            let x: Vec<f32> = set.features[0].iter().map(|v| v + shift).collect();
            let ours = f64::from(distances.distance(&classifier, &x).unwrap());
            if images > 1 {
                let truth = set.distance(0.1, &x) / (2 * dim) as f64;
                assert!((ours / truth - 1.0).abs() < 1e-3, "{ours} and {truth}");
            } else {
                assert_eq!(ours < 1e-5, shift == 0.0);
            }
        }
        let bad = distances.distance(&classifier, &vec![f32::NAN; 2 * dim]);
        assert!(matches!(bad, Err(HeadError::NotFinite { .. })));
    }
}

#[test]
fn the_relative_distance_subtracts_that_under_the_covariance_of_everything() {
    for (images, dim) in [(4, 40), (30, 5)] {
        let set = Set::draw(10, Layout { parts: 2, dim }, 3, 2, images);
        let statistics = set.statistics();
        let classifier = Classifier::fit(&[&statistics], 0.1).unwrap();
        let relative = RelativeMahalanobis::fit(&classifier, &[&statistics]).unwrap();
        for shift in [0.0, 5.0] {
            let x: Vec<f32> = set.features[0].iter().map(|v| v + shift).collect();
            let ours = f64::from(relative.distance(&classifier, &x).unwrap());
            let nearest = set.distance(0.1, &x);
            let truth = (nearest - set.background(0.1, &x)) / (2 * dim) as f64;
            let scale = truth.abs().max(nearest / (2 * dim) as f64);
            assert!((ours - truth).abs() < 1e-3 * scale, "{ours} and {truth}");
        }
        let other = Set::draw(10, set.layout, 4, 2, images).statistics();
        let refused = RelativeMahalanobis::fit(&classifier, &[&other]);
        assert_eq!(refused, Err(HeadError::ComponentsChanged));
    }
}

#[test]
fn a_class_of_several_domains_scores_as_their_mixture() {
    let set = Set::draw(5, Layout { parts: 2, dim: 6 }, 2, 3, 8);
    let classifier = Classifier::fit(&[&set.statistics()], 0.1).unwrap();
    let x = &set.features[20];
    let components = set.scores(0.1, x);
    let top = components.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mixture = |own: &[f64]| top + (own.iter().map(|s| (s - top).exp()).sum::<f64>() / 3.0).ln();
    let truth = [mixture(&components[..3]), mixture(&components[3..])];
    assert_same_scores(&scores(&classifier, x), &truth, 1e-3);
}

#[test]
fn a_class_is_pooled_only_where_that_clearly_scores_better() {
    let mut statistics = Set::draw(5, Layout { parts: 1, dim: 4 }, 3, 2, 4).statistics();
    statistics.set_pooled(1, true);
    let gains = [0.2, -0.1, 0.02];
    let loss = |s: &Statistics| -> Result<f64, HeadError> {
        let pooled = (0..3).filter(|&class| s.is_pooled(class));
        Ok(1.0 - pooled.map(|class| gains[class as usize]).sum::<f64>())
    };
    statistics.pool_where_better(&[0, 1, 2], loss).unwrap();
    assert_eq!(
        [0, 1, 2].map(|class| statistics.is_pooled(class)),
        [true, false, false]
    );
}

#[test]
fn refitting_the_parts_that_changed_equals_a_fit_from_the_start() {
    let layout = Layout { parts: 3, dim: 10 };
    let before = Set::draw(1, layout, 3, 1, 5);
    let mut after_set = Set::draw(2, layout, 3, 1, 5);
    for (new, old) in after_set.features.iter_mut().zip(&before.features) {
        new[..10].copy_from_slice(&old[..10]);
    }
    let mut workspace = Workspace::default();
    let mut refitted = Classifier::fit(&[&before.statistics()], 0.1).unwrap();
    let after = after_set.statistics();
    refitted.refit(&[&after], 1..3, &mut workspace).unwrap();
    assert_eq!(refitted, Classifier::fit(&[&after], 0.1).unwrap());

    // Statistics of the changed parts alone are enough, and refused for the others.
    let mut some = Statistics::transient(layout, 1..3);
    for component in after_set.components() {
        let own: Vec<f32> = after_set.of(component).flatten().copied().collect();
        some.learn(component.0, component.1, &own).unwrap();
    }
    assert!(some.scatter(0).unwrap().is_empty());
    let mut partial = Classifier::fit(&[&before.statistics()], 0.1).unwrap();
    partial.refit(&[&some], 1..3, &mut workspace).unwrap();
    let x = &after_set.features[0];
    assert_same_scores(&scores(&partial, x), &scores(&refitted, x), 1e-3);
    let refused = partial.refit(&[&some], 0..3, &mut workspace);
    assert!(matches!(refused, Err(HeadError::Shape { .. })));

    let other = Set::draw(2, layout, 4, 1, 5).statistics();
    let refused = refitted.refit(&[&other], 1..3, &mut workspace);
    assert_eq!(refused, Err(HeadError::ComponentsChanged));
}

#[test]
fn one_image_a_class_becomes_the_nearest_mean() {
    let set = Set::draw(3, Layout { parts: 2, dim: 30 }, 4, 1, 1);
    let classifier = Classifier::fit(&[&set.statistics()], 0.1).unwrap();
    assert_eq!(classifier.outcomes(), [PartFit::NearestMean; 2]);
    for (i, x) in set.features.iter().enumerate() {
        let scores = scores(&classifier, x);
        assert!(scores.iter().all(|s| s.is_finite()));
        assert!((0..4).all(|c| c == i || scores[c] < scores[i]));
    }
}

#[test]
fn identical_images_and_a_single_class_never_make_nan() {
    for value in [0.0, 1.0, -1e12, 1e12, 1e-30, f32::MIN_POSITIVE / 8.0] {
        let mut statistics = Statistics::new(Layout { parts: 1, dim: 5 });
        statistics.learn(7, 0, &[value; 20]).unwrap();
        for classes in 1..3 {
            let classifier = Classifier::fit(&[&statistics], 0.0).unwrap();
            assert_eq!(classifier.outcomes(), [PartFit::NearestMean]);
            for x in [0.0, value, 1e12] {
                let scores = scores(&classifier, &[x; 5]);
                assert_eq!(scores.len(), classes);
                assert!(
                    scores.iter().all(|s| s.is_finite()),
                    "{value} {x} {scores:?}"
                );
            }
            statistics.learn(8, 0, &[-value; 20]).unwrap();
        }
    }
}

#[test]
fn a_singular_covariance_without_shrinkage_is_raised_and_said() {
    let set = Set::draw(4, Layout { parts: 1, dim: 30 }, 2, 1, 3);
    let classifier = Classifier::fit(&[&set.statistics()], 0.0).unwrap();
    assert!(matches!(classifier.outcomes(), [PartFit::Raised { shrinkage }] if *shrinkage > 0.0));
    assert!(
        scores(&classifier, &set.features[0])
            .iter()
            .all(|s| s.is_finite())
    );
}

#[test]
fn a_bad_feature_is_named_and_changes_nothing() {
    let set = Set::draw(5, Layout { parts: 2, dim: 3 }, 2, 1, 4);
    let mut statistics = set.statistics();
    let before = statistics.clone();
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut features = vec![1.0; 12];
        features[8] = bad;
        let refused = statistics.learn(9, 0, &features);
        assert_eq!(
            refused,
            Err(HeadError::NotFinite {
                image: 1,
                position: 2
            })
        );
    }
    assert!(matches!(
        statistics.learn(9, 0, &[1.0; 5]),
        Err(HeadError::Shape { .. })
    ));
    assert_eq!(statistics, before);

    let classifier = Classifier::fit(&[&statistics], 0.1).unwrap();
    let refused = classifier.scores(&[f32::NAN; 6], &mut [0.0; 2]);
    assert_eq!(
        refused,
        Err(HeadError::NotFinite {
            image: 0,
            position: 0
        })
    );
    assert!(matches!(
        classifier.scores(&[0.0; 6], &mut [0.0; 3]),
        Err(HeadError::Shape { .. })
    ));
    assert_eq!(Classifier::fit(&[], 0.1), Err(HeadError::Empty));
    assert_eq!(
        Classifier::fit(&[&statistics], f32::NAN),
        Err(HeadError::Shrinkage)
    );
}

#[test]
fn a_task_is_forgotten_whole_and_only_with_its_factors() {
    let set = Set::draw(6, Layout { parts: 2, dim: 12 }, 3, 2, 9);
    let mut statistics = set.statistics();
    let components = statistics.components.iter_mut();
    let factors: Vec<_> = components.map(|c| c.factor.take()).collect();
    let needed = HeadError::NoFactor { class: 0, task: 1 };
    assert_eq!(statistics.forget_task(1), Err(needed.clone()));
    assert_eq!(statistics.learn(0, 1, &set.features[0]), Err(needed));
    for (component, factor) in statistics.components.iter_mut().zip(factors) {
        component.factor = factor;
    }
    assert_eq!(statistics, set.statistics());
    assert_eq!(statistics.forget_task(1), Ok(27));
    let mut never_saw = Statistics::new(set.layout);
    for component in set.components().into_iter().filter(|c| c.1 == 0) {
        let own: Vec<f32> = set.of(component).flatten().copied().collect();
        never_saw.learn(component.0, component.1, &own).unwrap();
    }
    assert_same_statistics(&statistics, &never_saw, 1e-5);
}

#[test]
fn a_factor_never_outgrows_the_dimension_and_holds_no_image() {
    let set = Set::draw(7, Layout { parts: 1, dim: 5 }, 1, 1, 300);
    let mut statistics = Statistics::new(set.layout);
    statistics.learn(0, 0, &set.features.concat()).unwrap();
    let factor = statistics.components()[0].factor.as_ref().unwrap();
    assert_eq!(factor.rank(0), 5);
    assert_eq!(factor.bytes(), 5 * 4 + 2 * 15);

    let few = Set::draw(7, Layout { parts: 1, dim: 40 }, 1, 1, 10).statistics();
    let mut rows = factor::Rows::new(40);
    few.components()[0]
        .factor
        .as_ref()
        .unwrap()
        .unpack(0, &mut rows)
        .unwrap();
    assert_eq!(rows.len(), 9);
    for i in 0..9 {
        let leading = rows.row(i)[..i].iter().all(|&v| v == 0.0);
        assert!(leading && rows.row(i)[i] != 0.0, "row {i} was not mixed");
    }
}

#[test]
fn statistics_survive_their_file_format_and_damage_is_noticed() {
    let set = Set::draw(8, Layout { parts: 2, dim: 8 }, 2, 1, 5);
    let statistics = set.statistics();
    let bytes = postcard::to_allocvec(&statistics).unwrap();
    assert!(bytes.len() < statistics.bytes() + 100);
    let read: Statistics = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(read, statistics);
    assert_eq!(read.check(), Ok(()));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x7f;
        // Whatever was read, into memory or onto disk, must either be refused or be safe to use.
        let in_memory = postcard::from_bytes::<Statistics>(&damaged).ok();
        let sound = |read: &Statistics| read.check().is_ok();
        let both = [in_memory, on_disk(&damaged).ok()];
        for mut read in both.into_iter().flatten().filter(sound) {
            let width = read.layout().width();
            if let Ok(classifier) = Classifier::fit(&[&read], 0.1) {
                let mut out = vec![0.0; classifier.classes().len()];
                classifier.scores(&vec![1.0; width], &mut out).unwrap();
            }
            let _ = read.learn(0, 0, &vec![1.0; width]);
            let _ = read.forget(1);
        }
    }
}

fn on_disk(bytes: &[u8]) -> Result<Statistics, StreamError> {
    Statistics::deserialize_shelved(&mut postcard::Deserializer::from_bytes(bytes))
}

#[test]
fn classes_without_their_scatter_are_refused() {
    let mut statistics = Set::draw(8, Layout { parts: 2, dim: 8 }, 2, 1, 5).statistics();
    assert!(on_disk(&postcard::to_allocvec(&statistics).unwrap()).is_ok());
    statistics.scatter.clear();
    let read = on_disk(&postcard::to_allocvec(&statistics).unwrap());
    assert!(read.unwrap_err().to_string().contains("scatter"));
    let nothing = Statistics::new(Layout { parts: 2, dim: 8 });
    assert!(on_disk(&postcard::to_allocvec(&nothing).unwrap()).is_ok());
}

#[test]
fn an_estimated_shrinkage_is_told_and_is_that_of_the_covariance() {
    let layout = Layout { parts: 1, dim: 6 };
    let mut statistics = Statistics::new(layout);
    // The spread of each direction is half of that of the one before.
    let rows: Vec<f32> = (0..6 * 2000u32)
        .map(|k| {
            let noise = f32::from((k.wrapping_mul(2_654_435_761) >> 16) as u16) / 65_536.0;
            noise / (1 << (k % 6)) as f32
        })
        .collect();
    let (few, many) = rows.split_at(6 * 20);
    let mut shares = Vec::new();
    for (class, rows) in [(0, few), (1, many)] {
        statistics.learn(class, 0, rows).unwrap();
        let estimated = Classifier::fit(&[&statistics], Shrinkage::Estimated).unwrap();
        let [PartFit::AsAsked { shrinkage }] = *estimated.outcomes() else {
            panic!("{:?}", estimated.outcomes());
        };
        let asked = Classifier::fit(&[&statistics], shrinkage).unwrap();
        assert_eq!(
            scores(&estimated, &rows[..6]),
            scores(&asked, &rows[..6]),
            "{shrinkage}"
        );
        shares.push(shrinkage);
    }
    assert_eq!(shares[0], 0.05);
    assert!(shares[1] > 0.0 && shares[1] < 0.02, "{shares:?}");
}
