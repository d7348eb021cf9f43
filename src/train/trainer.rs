//! Workers, each with an adapted stack of its own, over the encoded images of a task.

use rayon::prelude::*;

use super::features::Features;
use super::plan::Plan;
use super::stack::Phase;
use super::stand_ins::StandIns;
use super::target::Target;
use super::token_drop::TokenDrop;
use super::worker::Worker;
use crate::adapt::Adapters;
use crate::data::{CacheError, PrefixCache};
use crate::head::{ClassId, HeadError};
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
            .map(|_| Worker::new(weights, plan, gradient, width))
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
        let scored: usize = self.workers[..busy].iter().map(|w| w.losses.scored).sum();
        let loss = self.workers[..busy].iter().map(|w| w.losses.loss).sum();
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

/// Training could not go on.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("cannot keep or read back what training works on: {0}")]
    Cache(#[from] CacheError),
}
