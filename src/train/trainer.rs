//! Workers, each with an adapted stack of its own, over the encoded images of a task.

use std::ops::Range;

use rayon::prelude::*;

use super::objective::{cross_entropy, score_drift};
use super::plan::Plan;
use super::stack::{Phase, Stack};
use super::stand_ins::StandIns;
use super::token_drop::TokenDrop;
use crate::adapt::Adapters;
use crate::data::{CacheError, PrefixCache, RowFile};
use crate::head::{ClassId, Classifier, HeadError};
use crate::kernels::gemm::Accuracy;
use crate::kernels::threads;
use crate::vit::Weights;

/// One task's images, encoded: what training reads.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// Prefix outputs of these images, and perhaps of others.
    pub cache: &'a PrefixCache,
    /// Record in the cache of each image.
    pub records: &'a [usize],
    /// Class of each image.
    pub labels: &'a [ClassId],
    /// Images that train.
    pub training: &'a [usize],
    /// Images held back.
    pub validation: &'a [usize],
    /// Images that stand in for old ones; their classes are not learned, and none is held back.
    pub stand_ins: StandIns<'a>,
}

/// Features of every image of a task, `[images, F]`, kept current while training. They wait in a
/// file: 15 KB an image at the default settings would soon be more than all the rest.
#[derive(Debug)]
pub struct Features(RowFile);

impl Features {
    /// Zeros.
    ///
    /// # Errors
    /// When there is no room for the file.
    pub fn new(images: usize, width: usize) -> Result<Self, CacheError> {
        RowFile::create(images, width).map(Self)
    }

    /// Floats in one image's features.
    pub fn width(&self) -> usize {
        self.0.width()
    }

    /// Reads the features of one image, `[F]`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, image: usize, out: &mut [f32]) -> Result<(), CacheError> {
        self.0.read(image, 0..self.width(), out)
    }

    /// Reads some columns of the features of one image.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read_part(
        &self,
        image: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CacheError> {
        self.0.read(image, columns, out)
    }

    /// Reads the features of the first `images` images, `[images, F]`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn rows(&self, images: usize) -> Result<Vec<f32>, CacheError> {
        let mut rows = vec![0.0; images * self.width()];
        for (image, row) in rows.chunks_exact_mut(self.width()).enumerate() {
            self.read(image, row)?;
        }
        Ok(rows)
    }

    fn write(&self, image: usize, features: &[f32]) -> Result<(), CacheError> {
        self.0.write(image, 0, features)
    }

    /// The features as they are now, to compare with later.
    ///
    /// # Errors
    /// When there is no room for another file.
    pub fn snapshot(&self) -> Result<Self, CacheError> {
        self.0.copy().map(Self)
    }
}

/// The buffers of one worker.
struct Worker<'w> {
    stack: Stack<'w>,
    /// Gradient of the adapters over this worker's share of a batch.
    gradient: Vec<f32>,
    /// Features of a micro-batch, `[images, F]`.
    features: Vec<f32>,
    /// What the stack makes of a micro-batch, `[images, F_stack]`, and the gradient of that.
    stacked: Vec<f32>,
    d_stacked: Vec<f32>,
    d_row: Vec<f32>,
    scores: Vec<f32>,
    /// How the scores of an image moved since before the task.
    drift: Vec<f32>,
    /// Cached tokens of an image that take part in a step.
    kept: Vec<usize>,
    loss: f64,
    scored: usize,
}

/// A head that training sends its gradient through.
pub trait Scorer: Sync {
    /// Scores in one image's answer.
    fn classes(&self) -> usize;

    /// Scores of one image: `features` is `[F]`, `scores` `[classes]`.
    ///
    /// # Errors
    /// When a length does not fit or a feature is not a finite number.
    fn scores(&self, features: &[f32], scores: &mut [f32]) -> Result<(), HeadError>;

    /// Adds to `d_features` `[F]` what `d_scores` `[classes]` sends back through the scores.
    ///
    /// # Errors
    /// As [`Scorer::scores`].
    fn backward(
        &self,
        features: &[f32],
        d_scores: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError>;
}

impl Scorer for Classifier {
    fn classes(&self) -> usize {
        Classifier::classes(self).len()
    }

    fn scores(&self, features: &[f32], scores: &mut [f32]) -> Result<(), HeadError> {
        Classifier::scores(self, features, scores)
    }

    fn backward(
        &self,
        features: &[f32],
        d_scores: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError> {
        Classifier::backward(self, features, d_scores, d_features)
    }
}

/// What a batch is trained towards.
pub struct Target<'a> {
    pub head: &'a dyn Scorer,
    /// Index into the head's classes of each image's class, where the head knows it.
    pub class: &'a [Option<usize>],
    pub temperature: f32,
    pub phase: Phase,
    /// Patch tokens that this step leaves out.
    pub dropped: TokenDrop,
    /// What holds old classes' scores to those before the task, if anything does.
    pub hold: Option<Hold<'a>>,
}

/// Holds [the scores](score_drift) of stand-ins to those of the weights before the task, or where there
/// are none, the scores of all images.
#[derive(Debug, Clone, Copy)]
pub struct Hold<'a> {
    pub head: &'a Classifier,
    /// What those weights make of the same tokens of every image held.
    pub before: &'a Features,
    pub weight: f32,
}

/// Memory of the first worker that nobody needs between steps: its stack's arena, and its gradient.
#[derive(Debug, Default)]
pub(super) struct Loan {
    pub arena: Vec<f32>,
    pub gradient: Vec<f32>,
}

/// The workers of a plan, and the images they work on.
pub struct Trainer<'a> {
    pool: &'a rayon::ThreadPool,
    encoded: &'a Encoded<'a>,
    /// Features of one image.
    width: usize,
    /// Floats in the largest gradient.
    gradient: usize,
    workers: Vec<Worker<'a>>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Allocates the buffers of every worker of `plan`.
    pub fn new(
        pool: &'a rayon::ThreadPool,
        weights: &'a Weights,
        plan: &Plan,
        encoded: &'a Encoded<'a>,
        adapters: &Adapters,
    ) -> Self {
        let shape = &plan.stack;
        let width = encoded.cache.pooled() + shape.features();
        let phase = match plan.bases {
            true => Phase::Bases,
            false => Phase::Cores,
        };
        let gradient = shape.gradient_len(adapters, phase);
        let workers = (0..plan.workers)
            .map(|_| Worker {
                stack: Stack::new(weights, shape.clone()).in_turns(plan.in_turns),
                gradient: vec![0.0; gradient],
                features: vec![0.0; shape.images * width],
                stacked: vec![0.0; shape.images * shape.features()],
                d_stacked: vec![0.0; shape.images * shape.features()],
                d_row: vec![0.0; width],
                scores: Vec::with_capacity(plan.classes),
                drift: Vec::with_capacity(plan.classes),
                kept: Vec::with_capacity(shape.cached_tokens),
                loss: 0.0,
                scored: 0,
            })
            .collect();
        Self {
            pool,
            encoded,
            width,
            gradient,
            workers,
        }
    }

    /// The threads it works with.
    pub(super) fn pool(&self) -> &'a rayon::ThreadPool {
        self.pool
    }

    /// Lends memory until it is [given back](Trainer::give_back).
    pub(super) fn lend(&mut self) -> Loan {
        let worker = &mut self.workers[0];
        Loan {
            arena: worker.stack.lend(),
            gradient: std::mem::take(&mut worker.gradient),
        }
    }

    /// Takes lent memory back, whatever is in it now.
    pub(super) fn give_back(&mut self, mut loan: Loan) {
        loan.gradient.resize(self.gradient, 0.0);
        let worker = &mut self.workers[0];
        worker.stack.give_back(loan.arena);
        worker.gradient = loan.gradient;
    }

    /// The images it works on.
    pub fn encoded(&self) -> &'a Encoded<'a> {
        self.encoded
    }

    /// Floats in the gradient that [`Trainer::gradient`] returns.
    pub fn gradient_len(&self, adapters: &Adapters, phase: Phase) -> usize {
        self.workers[0].stack.shape().gradient_len(adapters, phase)
    }

    /// Features of one image: `F`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Runs `images` with `adapters` and refreshes their features.
    ///
    /// # Errors
    /// When the prefix cache cannot be read.
    pub fn refresh(
        &mut self,
        images: &[usize],
        adapters: &Adapters,
        features: &Features,
    ) -> Result<(), FitError> {
        self.refresh_thinned(images, adapters, features, TokenDrop::NONE)
    }

    /// Refreshes as [`Trainer::refresh`] does, with tokens left out as in a step.
    ///
    /// # Errors
    /// When the prefix cache cannot be read.
    pub fn refresh_thinned(
        &mut self,
        images: &[usize],
        adapters: &Adapters,
        features: &Features,
        dropped: TokenDrop,
    ) -> Result<(), FitError> {
        self.step(images, adapters, features, dropped, None)
    }

    /// How many of so many images each worker takes.
    fn share(&self, images: usize) -> usize {
        images.div_ceil(self.workers.len()).max(1)
    }

    /// Sum over `images` of `z z^T` with `z = A^T h`, `[r, r]` a site, and the number of tokens:
    /// what the drift guard remembers of a task.
    ///
    /// # Errors
    /// When the prefix cache cannot be read.
    pub fn gram(
        &mut self,
        images: &[usize],
        adapters: &Adapters,
    ) -> Result<(Vec<f32>, usize), FitError> {
        let per_worker = self.share(images.len());
        let encoded = self.encoded;
        let workers = &mut self.workers;
        let partial: Vec<Vec<f32>> = self.pool.install(|| {
            workers
                .par_iter_mut()
                .zip(images.par_chunks(per_worker))
                .map(|(worker, images)| worker.gram(images, encoded, adapters))
                .collect::<Result<_, _>>()
        })?;
        let mut sum = vec![0.0; adapters.sites.len() * adapters.rank * adapters.rank];
        for part in &partial {
            add(&mut sum, part);
        }
        let tokens = self.workers[0].stack.shape().tokens();
        Ok((sum, images.len() * tokens))
    }

    /// Runs one batch on all threads; with a target, gradients and losses are left in the workers.
    fn step(
        &mut self,
        images: &[usize],
        adapters: &Adapters,
        features: &Features,
        dropped: TokenDrop,
        target: Option<&Target<'_>>,
    ) -> Result<(), FitError> {
        let share = self.share(images.len());
        let encoded = self.encoded;
        let workers = &mut self.workers;
        self.pool.install(|| {
            workers
                .par_iter_mut()
                .zip(images.par_chunks(share))
                .try_for_each(|(worker, images)| {
                    worker.run(images, encoded, adapters, features, dropped, target)
                })
        })
    }

    /// One training step: the summed loss, and the gradient, over the number of images whose class the
    /// head knows, in the adapters' layout. Workers are added in a fixed order, so that a
    /// number of threads always gives the same result.
    ///
    /// # Errors
    /// When the prefix cache cannot be read or a feature is not a finite number.
    pub fn gradient(
        &mut self,
        images: &[usize],
        adapters: &Adapters,
        features: &Features,
        target: &Target<'_>,
    ) -> Result<(f64, &mut [f32]), FitError> {
        self.step(images, adapters, features, target.dropped, Some(target))?;
        let used = self.gradient_len(adapters, target.phase);
        let busy = images.len().div_ceil(self.share(images.len())).max(1);
        let scored: usize = self.workers[..busy].iter().map(|w| w.scored).sum();
        let loss = self.workers[..busy].iter().map(|w| w.loss).sum();
        let (first, others) = self.workers[..busy].split_at_mut(1);
        let gradient = &mut first[0].gradient[..used];
        for worker in others {
            add(gradient, &worker.gradient[..used]);
        }
        let scale = 1.0 / scored.max(1) as f32;
        gradient.iter_mut().for_each(|g| *g *= scale);
        Ok((loss, gradient))
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

impl Worker<'_> {
    fn run(
        &mut self,
        images: &[usize],
        encoded: &Encoded<'_>,
        adapters: &Adapters,
        features: &Features,
        dropped: TokenDrop,
        target: Option<&Target<'_>>,
    ) -> Result<(), FitError> {
        let width = features.width();
        let micro = self.stack.shape().images;
        let stacked = self.stack.shape().features();
        let lower = width - stacked;
        let accuracy = match target {
            Some(_) => Accuracy::Training,
            None => Accuracy::Full,
        };
        let stand_ins = encoded.stand_ins.images();
        let first_patch = 1 + self.stack.shape().geometry.registers;
        let patches = self.stack.most_tokens() - first_patch;
        self.stack
            .take_tokens(first_patch + dropped.patches(patches));
        self.loss = 0.0;
        self.scored = 0;
        if let Some(target) = target {
            let used = self.stack.shape().gradient_len(adapters, target.phase);
            self.gradient[..used].fill(0.0);
            self.scores.resize(target.head.classes(), 0.0);
            let held = target.hold.map_or(0, |hold| hold.head.components().len());
            self.drift.resize(held, 0.0);
        }
        for images in images.chunks(micro) {
            self.see(images, encoded, adapters, accuracy, dropped)?;
            let rows = &self.features[..images.len() * width];
            for (row, &image) in rows.chunks_exact(width).zip(images) {
                features.write(image, row)?;
            }
            let Some(target) = target else {
                continue;
            };
            let d_stacked = &mut self.d_stacked[..images.len() * stacked];
            d_stacked.fill(0.0);
            let rows = self.features[..images.len() * width]
                .chunks_exact(width)
                .zip(d_stacked.chunks_exact_mut(stacked));
            for (&image, (row, d_made)) in images.iter().zip(rows) {
                let class = target.class[image].filter(|_| !stand_ins.contains(&image));
                let held = stand_ins.is_empty() || stand_ins.contains(&image);
                let hold = target.hold.filter(|_| held);
                if class.is_none() && hold.is_none() {
                    continue;
                }
                if let Some(hold) = hold {
                    let moved = &mut self.d_row;
                    hold.before.read(image, moved)?;
                    moved.iter_mut().zip(row).for_each(|(m, x)| *m = x - *m);
                    hold.head.component_changes(moved, &mut self.drift)?;
                    self.loss += score_drift(&mut self.drift, target.temperature, hold.weight);
                }
                self.d_row.fill(0.0);
                if let Some(hold) = hold {
                    let d = &mut self.d_row;
                    hold.head.component_changes_backward(&self.drift, d)?;
                }
                if let Some(class) = class {
                    target.head.scores(row, &mut self.scores)?;
                    self.loss += cross_entropy(&mut self.scores, class, target.temperature);
                    self.scored += 1;
                    target.head.backward(row, &self.scores, &mut self.d_row)?;
                }
                d_made.copy_from_slice(&self.d_row[lower..]);
            }
            let used = self.stack.shape().gradient_len(adapters, target.phase);
            let gradient = &mut self.gradient[..used];
            let phase = target.phase;
            threads::awake(|| {
                self.stack
                    .backward(adapters, phase, images.len(), d_stacked, gradient);
            });
        }
        Ok(())
    }

    /// Runs a micro-batch up to its features, `[images, F]`.
    fn see(
        &mut self,
        images: &[usize],
        encoded: &Encoded<'_>,
        adapters: &Adapters,
        accuracy: Accuracy,
        dropped: TokenDrop,
    ) -> Result<(), FitError> {
        let stacked = self.stack.shape().features();
        let width = self.d_row.len();
        let lower = width - stacked;
        let first_patch = 1 + self.stack.shape().geometry.registers;
        let patches = self.stack.most_tokens() - first_patch;
        let rows = &mut self.features[..images.len() * width];
        for (slot, &image) in images.iter().enumerate() {
            let pooled = &mut rows[slot * width..slot * width + lower];
            let record = encoded.records[image];
            dropped.draw(image, first_patch, patches, &mut self.kept);
            let (tokens, kept) = (self.stack.input(slot), &self.kept);
            if kept.len() == first_patch + patches {
                encoded.cache.read(record, tokens, pooled)?;
            } else {
                encoded.cache.read_rows(record, kept, tokens, pooled)?;
            }
            encoded.stand_ins.translate(image, kept, tokens);
        }
        let made = &mut self.stacked[..images.len() * stacked];
        threads::awake(|| {
            self.stack.forward(adapters, accuracy, images.len(), made);
        });
        let made = made.chunks_exact(stacked);
        for (row, made) in rows.chunks_exact_mut(width).zip(made) {
            row[lower..].copy_from_slice(made);
        }
        Ok(())
    }

    fn gram(
        &mut self,
        images: &[usize],
        encoded: &Encoded<'_>,
        adapters: &Adapters,
    ) -> Result<Vec<f32>, FitError> {
        let mut sum = vec![0.0; adapters.sites.len() * adapters.rank * adapters.rank];
        let micro = self.stack.shape().images;
        let lower = self.d_row.len() - self.stack.shape().features();
        self.stack.take_tokens(self.stack.most_tokens());
        for images in images.chunks(micro) {
            for (slot, &image) in images.iter().enumerate() {
                let record = encoded.records[image];
                let pooled = &mut self.d_row[..lower];
                encoded.cache.read(record, self.stack.input(slot), pooled)?;
            }
            threads::awake(|| self.stack.gram(adapters, images.len(), &mut sum));
        }
        Ok(sum)
    }
}

/// Training could not go on.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("cannot keep or read back what training works on: {0}")]
    Cache(#[from] CacheError),
}
