//! How fast this machine runs the frozen model and a training step: whole passes over made-up
//! images, as `fledge bench` reports them.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::features::Features;
use super::judge::{classes_in, learn_on_shelf};
use super::plan::{Demand, Plan, PlanError};
use super::stack::Phase;
use super::target::Target;
use super::token_drop::TokenDrop;
use super::trainer::{Encoded, FitError, Trainer};
use crate::adapt::{Adapters, Projection};
use crate::data::{CacheError, PrefixCache};
use crate::head::{Classifier, HeadError, Layout, Shrinkage, Statistics};
use crate::kernels::gemm::Kernel;
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::vit::{Geometry, Pixels, Prefix, PrefixError, Weights};
use crate::{Progress, Stage};

const RESOLUTIONS: [usize; 2] = [8, 16];
const RANK: usize = 16;
const PROMPTS: usize = 8;
const BATCH: usize = 16;
const IMAGES: usize = 32;
/// Images that each thread runs together.
const TOGETHER: usize = 4;
const CLASSES: usize = 8;

/// One thing measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    pub what: String,
    /// Pixels; 0 for a bare matrix product.
    pub resolution: Pixels,
    pub threads: usize,
    /// Median and least wall-clock milliseconds an image, or a product.
    pub ms: f64,
    pub least_ms: f64,
    /// Operations (in 10^9) that cannot be avoided: nothing is counted for computing again.
    pub gflop: f64,
    /// `gflop` over the median time.
    pub gflops: f64,
}

/// A measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("cannot start threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Name of the matrix kernel in use.
pub fn kernel() -> &'static str {
    Kernel::chosen().map_or("matrixmultiply", Kernel::name)
}

/// Measures products, forward passes and training steps within `budget` bytes, each for `time` and
/// with each of these numbers of threads.
///
/// # Errors
/// When a step does not fit the budget, or threads or the cache file cannot be had.
pub fn run(
    weights: &Weights,
    threads: &[usize],
    budget: usize,
    time: Duration,
    progress: &dyn Progress,
) -> Result<Vec<Measured>, BenchError> {
    let geometry = weights.geometry();
    let mut all = Vec::new();
    progress.begin(
        Stage::Measure,
        threads.len() * (1 + 2 * RESOLUTIONS.len() + 2),
    );
    for &threads in threads {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        all.push(pool.install(|| product(geometry, threads, time)));
        progress.advance(1);
        for patches in RESOLUTIONS {
            let resolution = patches * geometry.patch;
            all.push(pool.install(|| forward(weights, resolution, false, threads, time))?);
            all.push(pool.install(|| forward(weights, resolution, true, threads, time))?);
            progress.advance(2);
        }
        for blocks in [geometry.depth, geometry.depth.min(4)] {
            all.push(step(weights, blocks, &pool, budget, time)?);
            progress.advance(1);
        }
    }
    progress.finish();
    Ok(all)
}

/// Operations of one block's forward pass of one image.
fn block_operations(g: &Geometry, tokens: usize) -> f64 {
    let (t, d, hidden) = (tokens as f64, g.dim as f64, g.hidden as f64);
    2.0 * t * (4.0 * d * d + 2.0 * d * hidden) + 4.0 * t * t * d
}

/// Runs `once` for some time; it returns how many images it did.
fn timed(
    time: Duration,
    mut once: impl FnMut() -> Result<usize, BenchError>,
) -> Result<(f64, f64), BenchError> {
    once()?;
    let (begun, mut each) = (Instant::now(), Vec::new());
    while begun.elapsed() < time || each.len() < 3 {
        let start = Instant::now();
        let images = once()?;
        each.push(1e3 * start.elapsed().as_secs_f64() / images as f64);
    }
    each.sort_by(f64::total_cmp);
    Ok((each[each.len() / 2], each[0]))
}

fn measured(
    what: String,
    resolution: Pixels,
    threads: usize,
    (ms, least_ms): (f64, f64),
    operations: f64,
) -> Measured {
    Measured {
        what,
        resolution,
        threads,
        ms,
        least_ms,
        gflop: operations / 1e9,
        gflops: operations / 1e6 / ms,
    }
}

/// The largest product of a block over eight images' tokens.
fn product(g: &Geometry, threads: usize, time: Duration) -> Measured {
    let (m, k, n) = (8 * 65, g.dim, g.hidden);
    let (a, b, mut c) = (vec![0.5; m * k], vec![0.25; k * n], vec![0.0; m * n]);
    let times = timed(time, || {
        let (a, b) = (MatRef::new(&a, m, k), MatRef::new(&b, k, n));
        matmul(1.0, a, b, 0.0, MatMut::new(&mut c, m, n));
        Ok(1)
    });
    let operations = 2.0 * (m * k * n) as f64;
    let times = times.unwrap_or((f64::NAN, f64::NAN));
    measured(
        format!("product [{m}, {k}] x [{k}, {n}]"),
        0,
        threads,
        times,
        operations,
    )
}

fn forward(
    weights: &Weights,
    resolution: Pixels,
    many: bool,
    threads: usize,
    time: Duration,
) -> Result<Measured, BenchError> {
    let g = weights.geometry();
    let prefix = Prefix::new(weights, resolution, g.depth)?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let together = if many { TOGETHER } else { 1 };
    let patches: Vec<f32> = (0..together * 3 * resolution * resolution)
        .map(|_| rng.random_range(-2.0..2.0))
        .collect();
    let images = if many { together * threads } else { 1 };
    let times = timed(time, || {
        if many {
            (0..threads)
                .into_par_iter()
                .try_for_each(|_| prefix.run(&patches, |_, _| ()))?;
        } else {
            prefix.run(&patches, |_, _| ())?;
        }
        Ok(images)
    })?;
    let tokens = g.tokens(resolution);
    let embedding = 2.0 * (3 * resolution * resolution * g.dim) as f64;
    let operations = embedding + g.depth as f64 * block_operations(g, tokens);
    let what = if many {
        "forward, many images"
    } else {
        "forward, one image"
    };
    Ok(measured(
        what.to_owned(),
        resolution,
        threads,
        times,
        operations,
    ))
}

/// A training step of the last `blocks` blocks at the smaller resolution, from the cache file on.
fn step(
    weights: &Weights,
    blocks: usize,
    pool: &rayon::ThreadPool,
    budget: usize,
    time: Duration,
) -> Result<Measured, BenchError> {
    let g = weights.geometry().clone();
    let resolution = RESOLUTIONS[0] * g.patch;
    let first_adapted = g.depth - blocks;
    let tap = g.depth;
    let demand = Demand {
        resolution,
        first_adapted,
        projections: 2,
        prompts: PROMPTS,
        rank: RANK,
        taps: vec![tap],
        classes: CLASSES,
        task_classes: CLASSES,
        images: IMAGES,
        largest_class: IMAGES.div_ceil(CLASSES),
        known: 0,
        known_head: 0,
        batch: BATCH,
        threads: pool.current_num_threads(),
        later: false,
        bases: true,
        geometry: g.clone(),
    };
    let plan = Plan::new(&demand, budget)?;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let tokens = g.tokens(resolution);
    let cache = PrefixCache::create(None, IMAGES, tokens, g.dim, 0)?;
    let mut stream = vec![0.0; tokens * g.dim];
    for image in 0..IMAGES {
        stream
            .iter_mut()
            .for_each(|x| *x = rng.random_range(-1.0..1.0));
        cache.write(image, &stream, &[])?;
    }
    let labels: Vec<u32> = (0..IMAGES).map(|image| (image % CLASSES) as u32).collect();
    let all: Vec<usize> = (0..IMAGES).collect();
    let encoded = Encoded {
        cache: &cache,
        records: &all,
        labels: &labels,
        training: &all,
        validation: &[],
        stand_ins: super::stand_ins::StandIns::default(),
    };
    let projections = [Projection::Query, Projection::Value];
    let adapters = Adapters::new(
        g.dim,
        RANK,
        first_adapted..g.depth,
        &projections,
        PROMPTS,
        &mut rng,
    );
    let mut trainer = Trainer::new(pool, weights, &plan, &encoded, &adapters);
    let features = Features::new(IMAGES, trainer.width())?;
    trainer.refresh(&all, &adapters, &features)?;
    let mut statistics = Statistics::transient(
        Layout {
            parts: 2,
            dim: g.dim,
        },
        0..2,
    );
    statistics.shelve()?;
    learn_on_shelf(&mut statistics, &labels, &all, &features, 0)?;
    let classifier = Classifier::fit(&[&statistics], Shrinkage::Estimated)?;
    let target = Target {
        class: &classes_in(&classifier, &labels).collect::<Vec<_>>(),
        head: &classifier,
        temperature: 1.0,
        phase: Phase::Bases,
        dropped: TokenDrop::NONE,
        hold: None,
    };
    let times = timed(time, || {
        trainer.gradient(&all[..BATCH], &adapters, &features, &target)?;
        Ok(BATCH)
    })?;
    let what = match first_adapted {
        0 => "training step, all blocks".to_owned(),
        _ => format!("training step, last {blocks} blocks from the cache"),
    };
    // Forward, and the gradient of every activation.
    let operations = 2.0 * blocks as f64 * block_operations(&g, tokens + PROMPTS);
    Ok(measured(
        what,
        resolution,
        demand.threads,
        times,
        operations,
    ))
}
