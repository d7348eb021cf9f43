//! The front door: a model, what it has learned, and the three things to do with it: learn a
//! task, classify an image, score a folder.

mod course;
mod drift;
mod encode;
mod encoded;
mod fisher;
mod learn;
mod recognise;
mod setup;
mod task_images;
mod window;

use std::time::SystemTime;

use crate::adapt::Adapters;
use crate::head::Statistics;
use crate::state::{Forget, ForgetError, Forgotten, Knowledge};
use crate::train::plan::{Demand, Plan, PlanError};
use crate::train::stack::{Phase, StackShape};
use crate::vit::{PrefixError, Weights};
use setup::{blank, check_consistent};

pub use encode::{EncodeError, Encoder};
pub(crate) use encoded::Research;
pub use encoded::{EncodedClass, EncodedTask};
pub use learn::{LearnError, LearnReport, LearnSettings};
pub use recognise::{
    ClassScore, DEFAULT_FALSE_ALARMS, Guess, Recognised, Recogniser, ScoreError, ScoreReport,
};
pub use setup::{AdaptBlocks, Setup, SetupError, default_taps, thread_pool};

/// A frozen model and what it has learned.
#[derive(Debug)]
pub struct Learner {
    weights: Weights,
    knowledge: Knowledge,
    pool: rayon::ThreadPool,
}

impl Learner {
    /// Starts from nothing.
    ///
    /// # Errors
    /// When the setup does not fit the model.
    pub fn new(
        weights: Weights,
        model: &str,
        setup: &Setup,
        threads: usize,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            knowledge: blank(&weights, model, setup)?,
            weights,
            pool: thread_pool(threads)?,
        })
    }

    /// Forgets everything and starts again with another setup.
    ///
    /// # Errors
    /// When the setup does not fit the model; nothing is forgotten then.
    pub fn start_over(&mut self, setup: &Setup) -> Result<(), SetupError> {
        self.knowledge = blank(&self.weights, &self.knowledge.model.name, setup)?;
        Ok(())
    }

    /// Goes on from what was learned before.
    ///
    /// # Errors
    /// When `knowledge` belongs to another model.
    pub fn resume(
        weights: Weights,
        knowledge: Knowledge,
        threads: usize,
    ) -> Result<Self, SetupError> {
        if knowledge.model.hash != weights.hash() {
            return Err(SetupError::OtherModel {
                name: knowledge.model.name,
                learned_with: knowledge.model.hash,
                given: weights.hash(),
            });
        }
        check_consistent(&weights, &knowledge)?;
        Ok(Self {
            weights,
            knowledge,
            pool: thread_pool(threads)?,
        })
    }

    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Forgets classes or a task.
    ///
    /// # Errors
    /// As [`Knowledge::forget`].
    pub fn forget(&mut self, what: &Forget) -> Result<Forgotten, ForgetError> {
        self.knowledge.forget(what)
    }

    pub(crate) fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Takes over what another learner with the same model and setup knows.
    pub(crate) fn set_knowledge(&mut self, knowledge: Knowledge) {
        self.knowledge = knowledge;
    }

    fn encoder(&self) -> Result<Encoder<'_>, PrefixError> {
        let k = &self.knowledge;
        Encoder::new(&self.weights, k.resolution, k.first_adapted, &k.taps)
    }

    /// How the next task would be learned, if its classes have so many `images`.
    ///
    /// # Errors
    /// When it does not fit the budget.
    pub fn plan(&self, images: &[usize], settings: &LearnSettings) -> Result<Plan, PlanError> {
        let (k, batch) = (&self.knowledge, settings.fit.batch);
        let demand = self.demand(&k.adapters, &k.head, images, batch);
        Plan::allowed(&demand, settings.budget)
    }

    /// Bytes that the next task adds to the state, if its classes have so many `images`: what of them depends
    /// on images and classes, so a little less than it takes.
    pub fn state_growth(&self, images: &[usize]) -> u64 {
        let layout = self.knowledge.head.layout();
        let mut numbers = match self.knowledge.head.components().is_empty() {
            // The scatter that all share.
            true => 4 * layout.parts * layout.packed(),
            false => 0,
        };
        for &images in images {
            // A triangle of f16 in each part, and the mean.
            let rows = images.saturating_sub(1).min(layout.dim);
            numbers += 2 * layout.parts * (rows * layout.dim - rows * rows.saturating_sub(1) / 2);
            numbers += 4 * layout.width() + self.token_grid().bytes();
        }
        numbers as u64
    }

    /// What training `adapters` takes beside the statistics `head`, on a task whose classes have so
    /// many `images`, in steps of `batch`.
    pub(crate) fn demand(
        &self,
        adapters: &Adapters,
        head: &Statistics,
        images: &[usize],
        batch: usize,
    ) -> Demand {
        let k = &self.knowledge;
        let largest = images.iter().copied().max().unwrap_or(0);
        let geometry = self.weights.geometry().clone();
        Demand {
            resolution: k.resolution,
            first_adapted: k.first_adapted,
            projections: adapters.sites.len() / (geometry.depth - k.first_adapted).max(1),
            prompts: adapters.prompts.len() / geometry.dim,
            rank: adapters.rank,
            taps: k.taps.clone(),
            classes: head.components().len() + images.len(),
            task_classes: images.len(),
            images: images.iter().sum(),
            largest_class: head.largest().max(largest),
            known: head.memory() + k.memory() - k.head.memory(),
            known_head: head.memory(),
            batch,
            threads: self.pool.current_num_threads(),
            later: !k.tasks.is_empty(),
            bases: true,
            geometry,
        }
    }

    /// What the next task learns first: bases from scratch, or cores where statistics rest on the
    /// features that the bases make.
    fn phase(&self) -> Phase {
        match self.knowledge.tasks.is_empty() {
            true => Phase::Bases,
            false => Phase::Cores,
        }
    }

    /// The blocks behind the prefix for one image at a time, to classify.
    fn stack_shape(&self) -> StackShape {
        let k = &self.knowledge;
        self.demand(&k.adapters, &k.head, &[], 1).stack()
    }
}

/// Seconds since 1970, 0 on a clock that is before that.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
