//! One thread's share of a training step: its images forward, the loss, and back.

use super::features::Features;
use super::objective::{cross_entropy, score_drift};
use super::plan::Plan;
use super::stack::Stack;
use super::stand_ins::StandIns;
use super::target::Target;
use super::token_drop::TokenDrop;
use super::trainer::{Encoded, FitError};
use crate::adapt::Adapters;
use crate::kernels::gemm::Accuracy;
use crate::kernels::threads;
use crate::vit::Weights;

/// The buffers of one worker.
pub(super) struct Worker<'w> {
    pub stack: Stack<'w>,
    /// Gradient of the adapters over this worker's share of a batch.
    pub gradient: Vec<f32>,
    /// Features of a micro-batch, `[images, F]`.
    features: Vec<f32>,
    /// What the stack makes of a micro-batch, `[images, F_stack]`, and the gradient of that.
    stacked: Vec<f32>,
    d_stacked: Vec<f32>,
    /// Cached tokens of an image that take part in a step.
    kept: Vec<usize>,
    pub losses: Losses,
}

/// Sums over the images of a step, and what the loss of one is made in.
pub(super) struct Losses {
    pub loss: f64,
    /// Images whose class the head knows.
    pub scored: usize,
    /// Gradient of an image's features, `[F]`.
    d_row: Vec<f32>,
    scores: Vec<f32>,
    /// How the scores of an image moved since before the task.
    drift: Vec<f32>,
}

impl Losses {
    fn new(classes: usize, width: usize) -> Self {
        Self {
            loss: 0.0,
            scored: 0,
            d_row: vec![0.0; width],
            scores: Vec::with_capacity(classes),
            drift: Vec::with_capacity(classes),
        }
    }

    /// Nothing summed, and room for the scores of a target.
    fn start(&mut self, target: Option<&Target<'_>>) {
        self.loss = 0.0;
        self.scored = 0;
        if let Some(target) = target {
            self.scores.resize(target.head.classes(), 0.0);
            let held = target.hold.map_or(0, |hold| hold.head.components().len());
            self.drift.resize(held, 0.0);
        }
    }

    /// Adds the loss of an image with features `row`; returns the gradient of these, `[F]`, or nothing
    /// for an image that has no loss.
    ///
    /// # Errors
    /// When the features from before cannot be read or one is not a finite number.
    fn add(
        &mut self,
        image: usize,
        row: &[f32],
        stand_ins: &StandIns<'_>,
        target: &Target<'_>,
    ) -> Result<Option<&[f32]>, FitError> {
        let stand_ins = stand_ins.images();
        let class = target.class[image].filter(|_| !stand_ins.contains(&image));
        let held = stand_ins.is_empty() || stand_ins.contains(&image);
        let hold = target.hold.filter(|_| held);
        if class.is_none() && hold.is_none() {
            return Ok(None);
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
        Ok(Some(&self.d_row))
    }
}

impl<'w> Worker<'w> {
    /// Buffers for the micro-batches of `plan`, for `gradient` floats of adapters at most and `width` of
    /// features.
    pub fn new(weights: &'w Weights, plan: &Plan, gradient: usize, width: usize) -> Self {
        let shape = &plan.stack;
        Self {
            stack: Stack::new(weights, shape.clone()).in_turns(plan.in_turns),
            gradient: vec![0.0; gradient],
            features: vec![0.0; shape.images * width],
            stacked: vec![0.0; shape.images * shape.features()],
            d_stacked: vec![0.0; shape.images * shape.features()],
            kept: Vec::with_capacity(shape.cached_tokens),
            losses: Losses::new(plan.classes, width),
        }
    }

    /// Features of one image.
    fn width(&self) -> usize {
        self.losses.d_row.len()
    }

    /// Runs `images` and keeps their features; with a target, leaves the gradient and the loss of its share.
    ///
    /// # Errors
    /// When the prefix cache cannot be read or a feature is not a finite number.
    pub fn run(
        &mut self,
        images: &[usize],
        encoded: &Encoded<'_>,
        adapters: &Adapters,
        features: &Features,
        dropped: TokenDrop,
        target: Option<&Target<'_>>,
    ) -> Result<(), FitError> {
        let width = self.width();
        let micro = self.stack.shape().images;
        let accuracy = match target {
            Some(_) => Accuracy::Training,
            None => Accuracy::Full,
        };
        let first_patch = 1 + self.stack.shape().geometry.registers;
        let patches = self.stack.most_tokens() - first_patch;
        self.stack
            .take_tokens(first_patch + dropped.patches(patches));
        self.losses.start(target);
        if let Some(target) = target {
            let used = self.stack.shape().gradient_len(adapters, target.phase);
            self.gradient[..used].fill(0.0);
        }
        for images in images.chunks(micro) {
            self.see(images, encoded, adapters, accuracy, dropped)?;
            let rows = &self.features[..images.len() * width];
            for (row, &image) in rows.chunks_exact(width).zip(images) {
                features.write(image, row)?;
            }
            if let Some(target) = target {
                self.learn(images, &encoded.stand_ins, adapters, target)?;
            }
        }
        Ok(())
    }

    /// Adds the loss and the gradient of the micro-batch that was seen.
    fn learn(
        &mut self,
        images: &[usize],
        stand_ins: &StandIns<'_>,
        adapters: &Adapters,
        target: &Target<'_>,
    ) -> Result<(), FitError> {
        let width = self.width();
        let stacked = self.stack.shape().features();
        let d_stacked = &mut self.d_stacked[..images.len() * stacked];
        d_stacked.fill(0.0);
        let rows = self.features[..images.len() * width]
            .chunks_exact(width)
            .zip(d_stacked.chunks_exact_mut(stacked));
        for (&image, (row, d_made)) in images.iter().zip(rows) {
            if let Some(d_row) = self.losses.add(image, row, stand_ins, target)? {
                d_made.copy_from_slice(&d_row[width - stacked..]);
            }
        }
        let phase = target.phase;
        let used = self.stack.shape().gradient_len(adapters, phase);
        let gradient = &mut self.gradient[..used];
        threads::awake(|| {
            self.stack
                .backward(adapters, phase, images.len(), d_stacked, gradient);
        });
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
        let width = self.width();
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

    /// Sum over `images` of `z z^T` with `z = A^T h`, `[r, r]` a site.
    ///
    /// # Errors
    /// When the prefix cache cannot be read.
    pub fn gram(
        &mut self,
        images: &[usize],
        encoded: &Encoded<'_>,
        adapters: &Adapters,
    ) -> Result<Vec<f32>, FitError> {
        let mut sum = vec![0.0; adapters.sites.len() * adapters.rank * adapters.rank];
        let micro = self.stack.shape().images;
        let lower = self.width() - self.stack.shape().features();
        self.stack.take_tokens(self.stack.most_tokens());
        for images in images.chunks(micro) {
            for (slot, &image) in images.iter().enumerate() {
                let record = encoded.records[image];
                let pooled = &mut self.losses.d_row[..lower];
                encoded.cache.read(record, self.stack.input(slot), pooled)?;
            }
            threads::awake(|| self.stack.gram(adapters, images.len(), &mut sum));
        }
        Ok(sum)
    }
}
