//! A whole training step, from cached tokens to the loss: cross-entropy of a task's images and the hold on
//! stand-ins for old classes, against central differences.

use std::path::Path;

use fledge::adapt::{Adapters, Projection};
use fledge::data::{PrefixCache, TokenGrid, TokenMean};
use fledge::head::{ClassId, Classifier, Layout, Statistics};
use fledge::train::features::Features;
use fledge::train::judge::{classes_in, learn_on_shelf};
use fledge::train::plan::{Demand, Plan};
use fledge::train::stack::Phase;
use fledge::train::stand_ins::StandIns;
use fledge::train::target::{Hold, Target};
use fledge::train::token_drop::TokenDrop;
use fledge::train::trainer::{Encoded, Trainer};
use fledge::vit::{Preprocessing, Weights, import};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const RESOLUTION: usize = 28;
/// Images of two old classes, and then of two new ones.
const IMAGES: usize = 16;
const OLD: usize = IMAGES / 2;
const RANK: usize = 3;

struct Scene {
    _folder: tempfile::TempDir,
    weights: Weights,
    cache: PrefixCache,
    labels: Vec<ClassId>,
    grid: TokenGrid,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("small.weights");
        let export =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/timm_vit_opset14.onnx");
        import::import(&export, Preprocessing::HALF, &file).unwrap();
        let weights = Weights::open(&file).unwrap();
        let geometry = weights.geometry();
        let tokens = geometry.tokens(RESOLUTION);
        let cache = PrefixCache::create(None, IMAGES, tokens, geometry.dim, 0).unwrap();
        let labels: Vec<ClassId> = (0..IMAGES).map(|image| (image / 4) as ClassId).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for (image, &class) in labels.iter().enumerate() {
            let token = |k: usize| {
                let pattern = ((class as usize * 7919 + k * 104_729) % 1009) as f32 / 1009.0 - 0.5;
                pattern + rng.random_range(-0.3f32..0.3)
            };
            let tokens: Vec<f32> = (0..tokens * geometry.dim).map(token).collect();
            cache.write(image, &tokens, &[]).unwrap();
        }
        let grid = TokenGrid::new(
            geometry.dim,
            1 + geometry.registers,
            geometry.grid(RESOLUTION),
        );
        Self {
            _folder: folder,
            weights,
            cache,
            labels,
            grid,
        }
    }

    fn mean(&self, class: ClassId) -> TokenMean {
        let of_class = |&image: &usize| self.labels[image] == class;
        let images: Vec<usize> = (0..IMAGES).filter(of_class).collect();
        TokenMean::of(&self.cache, images.into_iter(), &self.grid).unwrap()
    }

    fn plan(&self, threads: usize) -> Plan {
        let geometry = self.weights.geometry();
        let demand = Demand {
            geometry: geometry.clone(),
            resolution: RESOLUTION,
            first_adapted: 0,
            projections: 2,
            prompts: 0,
            rank: RANK,
            taps: vec![geometry.depth],
            classes: 4,
            task_classes: 2,
            images: IMAGES,
            largest_class: 4,
            known: 0,
            known_head: 0,
            batch: 8,
            threads,
            later: true,
            bases: true,
        };
        Plan::new(&demand, 64 << 20).unwrap()
    }

    fn adapters(&self) -> Adapters {
        let (dim, depth) = (self.weights.geometry().dim, self.weights.geometry().depth);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let projections = [Projection::Query, Projection::Value];
        let mut adapters = Adapters::new(dim, RANK, 0..depth, &projections, 0, &mut rng);
        for site in &mut adapters.sites {
            site.b
                .iter_mut()
                .for_each(|b| *b = rng.random_range(-0.3..0.3));
        }
        adapters
    }
}

/// The adapters, `share` of the way along a fixed direction.
fn moved(adapters: &Adapters, share: f32) -> Adapters {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut moved = adapters.clone();
    for site in &mut moved.sites {
        for x in site.a.iter_mut().chain(&mut site.b) {
            *x += share * rng.random_range(-1.0f32..1.0);
        }
    }
    moved
}

/// Loss and gradient of a step over `batch`, stand-ins being the images from `IMAGES` on, with the bases
/// moved from those that scores are held to; and the loss a little further or less far along.
struct Step {
    loss: f64,
    gradient: Vec<f32>,
    near: [f64; 2],
}

const MOVED: f32 = 0.05;
const NEAR: f32 = 4e-3;

fn step(batch: &[usize], weight: f32, stands_in: bool, dropped: TokenDrop, share: f32) -> Step {
    let scene = Scene::new();
    let old = [scene.mean(0), scene.mean(1)];
    let new = [scene.mean(2), scene.mean(3)];
    let mut records: Vec<usize> = (0..IMAGES).collect();
    let mut labels = scene.labels.clone();
    let images: Vec<(usize, &TokenMean)> = (OLD..IMAGES)
        .map(|image| (image, &new[usize::from(image >= OLD + 4)]))
        .collect();
    let stand_ins = match stands_in {
        true => StandIns::of(
            &[(0, &old[0]), (1, &old[1])],
            &images,
            scene.grid,
            8,
            &mut records,
            &mut labels,
        ),
        false => StandIns::default(),
    };
    let training: Vec<usize> = (OLD..IMAGES).collect();
    let encoded = Encoded {
        cache: &scene.cache,
        records: &records,
        labels: &labels,
        training: &training,
        validation: &[],
        stand_ins,
    };
    let pool = fledge::learner::thread_pool(2).unwrap();
    let (plan, adapters) = (scene.plan(2), scene.adapters());
    let mut trainer = Trainer::new(&pool, &scene.weights, &plan, &encoded, &adapters);
    let all: Vec<usize> = (0..records.len()).collect();
    let features = Features::new(all.len(), trainer.width()).unwrap();
    trainer.refresh(&all, &adapters, &features).unwrap();
    let layout = Layout {
        parts: 2,
        dim: scene.weights.geometry().dim,
    };
    let mut statistics = Statistics::transient(layout, 0..2);
    let own: Vec<usize> = (0..IMAGES).collect();
    statistics.shelve().unwrap();
    learn_on_shelf(&mut statistics, &labels, &own, &features, 0).unwrap();
    let head = Classifier::fit(&[&statistics], 0.4).unwrap();
    let before = Features::new(all.len(), trainer.width()).unwrap();
    trainer
        .refresh_thinned(&all, &adapters, &before, dropped)
        .unwrap();
    let class: Vec<Option<usize>> = classes_in(&head, &labels).collect();
    let target = Target {
        head: &head,
        class: &class,
        temperature: 2.0,
        phase: Phase::Bases,
        dropped,
        hold: (weight > 0.0).then_some(Hold {
            head: &head,
            before: &before,
            weight,
        }),
    };
    let mut at = |share: f32| {
        let adapters = moved(&adapters, share);
        let (loss, gradient) = trainer
            .gradient(batch, &adapters, &features, &target)
            .unwrap();
        (loss, gradient.to_vec())
    };
    let near = [at(share - NEAR).0, at(share + NEAR).0];
    let (loss, gradient) = at(share);
    Step {
        loss,
        gradient,
        near,
    }
}

const HALF: TokenDrop = TokenDrop {
    share: 0.5,
    seed: 3,
};

/// The gradient along the direction that [`moved`] goes.
fn slope(gradient: &[f32]) -> f64 {
    let scene = Scene::new();
    let adapters = scene.adapters();
    let (from, to) = (moved(&adapters, 0.0), moved(&adapters, 1.0));
    // The layout of a gradient of bases: A and B of one site after another.
    let direction = from.sites.iter().zip(&to.sites).flat_map(|(from, to)| {
        let a = from.a.iter().zip(&to.a);
        a.chain(from.b.iter().zip(&to.b))
            .map(|(from, to)| to - from)
    });
    let pairs = direction.zip(gradient);
    pairs.map(|(d, g)| f64::from(d) * f64::from(*g)).sum()
}

#[test]
fn the_gradient_of_a_step_with_stand_ins_matches_central_differences() {
    let batch: Vec<usize> = (OLD..IMAGES).chain(IMAGES..IMAGES + 8).collect();
    for dropped in [TokenDrop::NONE, HALF] {
        let step = step(&batch, 0.7, true, dropped, MOVED);
        let expected = (step.near[1] - step.near[0]) / f64::from(2.0 * NEAR);
        // The gradient is over the task's own images, the loss a sum.
        let found = 8.0 * slope(&step.gradient);
        let error = (found - expected).abs() / expected.abs();
        assert!(error < 2e-2, "{found} and {expected}");
    }
}

#[test]
fn stand_ins_are_held_and_not_learned() {
    let own: Vec<usize> = (OLD..IMAGES).collect();
    let with: Vec<usize> = own.iter().copied().chain(IMAGES..IMAGES + 8).collect();
    let close = |a: &[f32], b: &[f32]| {
        let largest = a.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let mut pairs = a.iter().zip(b);
        pairs.all(|(a, b)| (a - b).abs() < 1e-3 * largest)
    };
    // Where nothing has moved, the hold pulls nowhere, and a stand-in's class says nothing.
    let (alone, joined) = (
        step(&own, 0.0, true, HALF, 0.0),
        step(&with, 0.7, true, HALF, 0.0),
    );
    assert!((alone.loss - joined.loss).abs() < 1e-3 * alone.loss);
    assert!(close(&alone.gradient, &joined.gradient));
    // Once they have moved, it pulls them back, and only them.
    let (alone, joined, own_held) = (
        step(&own, 0.0, true, HALF, MOVED),
        step(&with, 0.7, true, HALF, MOVED),
        step(&own, 0.7, true, HALF, MOVED),
    );
    assert!(joined.loss > alone.loss);
    assert!(!close(&alone.gradient, &joined.gradient));
    assert_eq!(alone.gradient, own_held.gradient);
    // Without stand-ins, the task's images are held themselves.
    let held = step(&own, 0.7, false, HALF, MOVED);
    assert!(held.loss > alone.loss && !close(&alone.gradient, &held.gradient));
}
