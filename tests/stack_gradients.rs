//! The adapted blocks together: the prefix against the slow twin, and the gradient of features
//! with respect to every kind of learned number against central differences.

use std::path::Path;

use fledge::adapt::{Adapters, Projection};
use fledge::kernels::gemm::Accuracy;
use fledge::train::frozen;
use fledge::train::stack::{Phase, Precision, Stack, StackShape};
use fledge::vit::{Prefix, Preprocessing, Weights, import, reference};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn small_vit() -> (tempfile::TempDir, Weights) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.weights");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
    import::import(
        &fixtures.join("timm_vit_opset14.onnx"),
        Preprocessing::HALF,
        &file,
    )
    .unwrap();
    let weights = Weights::open(&file).unwrap();
    (folder, weights)
}

fn shape(weights: &Weights, prompts: usize) -> StackShape {
    let geometry = weights.geometry().clone();
    StackShape {
        blocks: 0..geometry.depth,
        cached_tokens: geometry.tokens(geometry.image),
        prompts,
        taps: vec![1, geometry.depth],
        rank: 3,
        images: 2,
        mlp_rows: usize::MAX,
        mlp_columns: usize::MAX,
        attention_rows: usize::MAX,
        checkpoint_every: 1,
        checkpoints: Precision::F32,
        kept_insides: 0,
        geometry,
    }
}

/// Adapters whose bases and cores are all away from zero.
fn adapters(shape: &StackShape, rng: &mut ChaCha8Rng) -> Adapters {
    let projections = [Projection::Query, Projection::Value];
    let mut adapters = Adapters::new(
        shape.geometry.dim,
        shape.rank,
        shape.blocks.clone(),
        &projections,
        shape.prompts,
        rng,
    );
    for site in &mut adapters.sites {
        site.b
            .iter_mut()
            .for_each(|b| *b = rng.random_range(-0.3..0.3));
        site.core
            .iter_mut()
            .for_each(|c| *c += rng.random_range(-0.3..0.3));
    }
    adapters
        .prompts
        .iter_mut()
        .for_each(|p| *p = rng.random_range(-0.5..0.5));
    adapters
}

/// A weighted sum of the features of two images, in f64.
fn objective(stack: &mut Stack<'_>, adapters: &Adapters, tokens: &[f32], weights: &[f32]) -> f64 {
    let per_image = tokens.len() / 2;
    for image in 0..2 {
        let part = &tokens[image * per_image..(image + 1) * per_image];
        stack.input(image).copy_from_slice(part);
    }
    let mut features = vec![0.0; weights.len()];
    stack.forward(adapters, Accuracy::Full, 2, &mut features);
    features
        .iter()
        .zip(weights)
        .map(|(f, w)| f64::from(*f) * f64::from(*w))
        .sum()
}

#[test]
fn every_kind_of_gradient_matches_central_differences() {
    let (_folder, weights) = small_vit();
    let shape = shape(&weights, 2);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut adapters = adapters(&shape, &mut rng);
    let mut stack = Stack::new(&weights, shape.clone());
    let n = 2 * shape.cached_tokens * shape.geometry.dim;
    let tokens: Vec<f32> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
    let direction: Vec<f32> = (0..2 * shape.features())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    for phase in [Phase::Bases, Phase::Cores] {
        let mut gradient = vec![0.0; shape.gradient_len(&adapters, phase)];
        objective(&mut stack, &adapters, &tokens, &direction);
        stack.backward(&adapters, phase, 2, &direction, &mut gradient);
        let scale = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        for index in (0..gradient.len()).step_by(7) {
            let mut at = |step: f32| {
                *learned(&mut adapters, phase, index) += step;
                let value = objective(&mut stack, &adapters, &tokens, &direction);
                *learned(&mut adapters, phase, index) -= step;
                value
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            let error = (f64::from(gradient[index]) - slope).abs();
            assert!(
                error < 1e-2 * f64::from(scale).max(slope.abs()),
                "{phase:?} {index}: {} and {slope}",
                gradient[index]
            );
        }
    }
}

/// Gradients of a batch with everything kept, and with another plan.
fn gradient_with(
    weights: &Weights,
    shape: &StackShape,
    accuracy: Accuracy,
    phase: Phase,
) -> Vec<f32> {
    gradient_of(Stack::new(weights, shape.clone()), accuracy, phase)
}

fn gradient_of(mut stack: Stack<'_>, accuracy: Accuracy, phase: Phase) -> Vec<f32> {
    let shape = &stack.shape().clone();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let adapters = adapters(shape, &mut rng);
    let n = 2 * shape.cached_tokens * shape.geometry.dim;
    let tokens: Vec<f32> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
    let direction: Vec<f32> = (0..2 * shape.features())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let mut gradient = vec![0.0; shape.gradient_len(&adapters, phase)];
    let per_image = n / 2;
    let width = shape.features();
    for first in (0..2).step_by(shape.images) {
        for slot in 0..shape.images {
            let at = (first + slot) * per_image;
            stack
                .input(slot)
                .copy_from_slice(&tokens[at..at + per_image]);
        }
        let mut features = vec![0.0; shape.images * width];
        stack.forward(&adapters, accuracy, shape.images, &mut features);
        let direction = &direction[first * width..(first + shape.images) * width];
        stack.backward(&adapters, phase, shape.images, direction, &mut gradient);
    }
    gradient
}

fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn images_with_fewer_tokens_run_as_in_a_stack_made_for_them() {
    let (_folder, weights) = small_vit();
    let all = shape(&weights, 2);
    for (checkpoint_every, checkpoints, kept_insides) in [
        (1, Precision::F32, 0),
        (2, Precision::F32, 1),
        (2, Precision::Bf16, 0),
        (1, Precision::F32, all.blocks.len()),
    ] {
        let large = StackShape {
            checkpoint_every,
            checkpoints,
            kept_insides,
            ..all.clone()
        };
        for cached_tokens in [2, all.cached_tokens - 3, all.cached_tokens] {
            let small = StackShape {
                cached_tokens,
                ..large.clone()
            };
            let mut stack = Stack::new(&weights, large.clone());
            stack.take_tokens(cached_tokens);
            let found = gradient_of(stack, Accuracy::Full, Phase::Bases);
            let expected = gradient_with(&weights, &small, Accuracy::Full, Phase::Bases);
            assert_eq!(found, expected, "{cached_tokens} tokens");
        }
    }
}

#[test]
fn the_gradient_of_every_plan_is_that_of_the_untiled_step() {
    let (_folder, weights) = small_vit();
    let untiled = shape(&weights, 2);
    for phase in [Phase::Bases, Phase::Cores] {
        let expected = gradient_with(&weights, &untiled, Accuracy::Full, phase);
        for checkpoint_every in 1..=untiled.blocks.len() + 1 {
            for (images, mlp_rows, mlp_columns, attention_rows, kept_insides) in [
                (2, usize::MAX, usize::MAX, usize::MAX, 0),
                (1, 3, 32, 2, 0),
                (2, 5, usize::MAX, 1, 0),
                (2, usize::MAX, usize::MAX, usize::MAX, 1),
                (1, 3, 32, 2, untiled.blocks.len()),
            ] {
                let plan = StackShape {
                    images,
                    mlp_rows,
                    mlp_columns,
                    attention_rows,
                    checkpoint_every,
                    kept_insides,
                    ..untiled.clone()
                };
                let off = relative_difference(
                    &gradient_with(&weights, &plan, Accuracy::Training, phase),
                    &expected,
                );
                assert!(off < 1e-4, "{plan:?}: {off}");
                let plan = StackShape {
                    checkpoints: Precision::Bf16,
                    ..plan
                };
                let off = relative_difference(
                    &gradient_with(&weights, &plan, Accuracy::Training, phase),
                    &expected,
                );
                assert!(off < 3e-2, "{plan:?}: {off}");
            }
        }
    }
}

#[test]
fn weights_that_take_turns_give_the_same_gradient() {
    let (_folder, weights) = small_vit();
    let shape = shape(&weights, 2);
    for accuracy in [Accuracy::Full, Accuracy::Training] {
        let [always, one, two] = [0, 1, 2].map(|in_turns| {
            let stack = Stack::new(&weights, shape.clone()).in_turns(in_turns);
            gradient_of(stack, accuracy, Phase::Bases)
        });
        assert_eq!(always, one);
        assert_eq!(always, two);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_block_that_is_given_back_takes_no_memory_until_it_is_read() {
    let (_folder, weights) = small_vit();
    // Of the mapping of the model file.
    let resident = || -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let path = weights.path().to_str().unwrap();
        let mut ours = maps.lines().skip_while(|line| !line.ends_with(path));
        let rss = ours.find_map(|line| line.strip_prefix("Rss:"));
        rss.map_or(0, |rss| {
            1024 * rss.trim_end_matches("kB").trim().parse::<usize>().unwrap()
        })
    };
    let read = |block: usize| weights.block(block).fc1_weight.unpack().iter().sum::<f32>();
    let page = 4096;
    let blocks = weights.geometry().depth;
    let first: Vec<f32> = (0..blocks).map(read).collect();
    let before = resident();
    if before < weights.bytes_of(0..blocks) {
        eprintln!("skipped: this system does not tell what of a mapping is resident");
        return;
    }
    weights.release_block(1);
    assert!(resident() + weights.bytes_of(1..2) <= before + 2 * page);
    assert_eq!((0..blocks).map(read).collect::<Vec<_>>(), first);
    assert!(resident() + 2 * page >= before);
}

/// The number that element `index` of a gradient belongs to.
fn learned(adapters: &mut Adapters, phase: Phase, index: usize) -> &mut f32 {
    let (d, r) = (adapters.dim, adapters.rank);
    let per_site = if phase == Phase::Bases {
        2 * d * r
    } else {
        r * r
    };
    let sites = adapters.sites.len();
    if index >= sites * per_site {
        return &mut adapters.prompts[index - sites * per_site];
    }
    let site = &mut adapters.sites[index / per_site];
    let index = index % per_site;
    match phase {
        Phase::Cores => &mut site.core[index],
        Phase::Bases if index < d * r => &mut site.a[index],
        Phase::Bases => &mut site.b[index - d * r],
    }
}

#[test]
fn the_tract_prefix_agrees_with_the_slow_twin_at_its_own_size() {
    let (_folder, weights) = small_vit();
    let geometry = weights.geometry();
    let side = geometry.image;
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let image: Vec<f32> = (0..3 * side * side)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let slow = reference::forward(&weights, &image, side);
    let fast = frozen::forward(&weights, &image);
    let prefix = Prefix::new(&weights, side, geometry.depth).unwrap();
    let mut seen = Vec::new();
    prefix
        .run(&patches(&image, side, geometry.patch), |_, stream| {
            seen.push(stream.to_vec())
        })
        .unwrap();
    assert_eq!(seen.len(), geometry.depth + 1);
    for (k, stream) in seen.iter().enumerate() {
        for ((&a, &b), &c) in stream.iter().zip(&slow[k]).zip(&fast[k]) {
            assert!((a - b).abs() < 1e-4 && (c - b).abs() < 1e-4, "boundary {k}");
        }
    }
}

fn patches(image: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let grid = side / patch;
    let mut out = Vec::new();
    for at in 0..grid * grid {
        for channel in 0..3 {
            for y in 0..patch {
                for x in 0..patch {
                    let (row, column) = (at / grid * patch + y, at % grid * patch + x);
                    out.push(image[(channel * side + row) * side + column]);
                }
            }
        }
    }
    out
}
