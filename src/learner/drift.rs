//! How old classes' statistics follow while a task moves the features under them: what each class leaves
//! behind, the stand-ins made of it, and the map fitted to them.

use super::{EncodedClass, EncodedTask, LearnSettings, Learner};
use crate::data::{CacheError, PrefixCache, TokenGrid, TokenMean};
use crate::head::{ClassId, Statistics, Transport};
use crate::state::TaughtClass;
use crate::train::features::Features;
use crate::train::stand_ins::StandIns;
use crate::train::trainer::FitError;

impl Learner {
    /// Where tokens of the learner's images belong.
    pub(super) fn token_grid(&self) -> TokenGrid {
        let geometry = self.weights.geometry();
        let side = geometry.grid(self.knowledge.resolution);
        TokenGrid::new(geometry.dim, 1 + geometry.registers, side)
    }

    /// Stand-ins for everything known, made of the task's training images.
    pub(super) fn stand_ins<'k>(
        &'k self,
        task: &EncodedTask<'_>,
        taught: &'k [TaughtClass],
        settings: &LearnSettings,
        records: &mut Vec<usize>,
        labels: &mut Vec<ClassId>,
    ) -> StandIns<'k> {
        let old: Vec<(ClassId, &TokenMean)> = self
            .knowledge
            .tasks
            .iter()
            .flat_map(|task| &task.classes)
            .map(|old| (old.class, &old.tokens))
            .collect();
        let images: Vec<(usize, &TokenMean)> = task
            .classes
            .iter()
            .zip(taught)
            .flat_map(|(class, own)| class.training.iter().map(|&record| (record, &own.tokens)))
            .collect();
        StandIns::of(
            &old,
            &images,
            self.token_grid(),
            settings.stand_ins,
            records,
            labels,
        )
    }

    /// Moves the statistics of old classes along with the features of the first `images` images.
    pub(super) fn follow(
        &self,
        head: &mut Statistics,
        before: &Features,
        after: &Features,
        images: usize,
    ) -> Result<(), FitError> {
        let known = &self.knowledge;
        let below = known.taps.iter().filter(|&&tap| tap <= known.first_adapted);
        let layout = head.layout();
        // Features of taps below the adapted blocks never move.
        for part in 2 * below.count()..layout.parts {
            Transport::fit::<FitError>(
                layout,
                part..part + 1,
                images,
                |image, columns, out| Ok(before.read_part(image, columns, out)?),
                |image, columns, out| Ok(after.read_part(image, columns, out)?),
            )?
            .apply(head)?;
        }
        Ok(())
    }
}

impl EncodedClass {
    /// The mean tokens of all its images.
    pub(super) fn mean_tokens(
        &self,
        cache: &PrefixCache,
        grid: &TokenGrid,
    ) -> Result<TokenMean, CacheError> {
        let records: Vec<usize> = self
            .training
            .iter()
            .chain(&self.validation)
            .copied()
            .collect();
        TokenMean::of(cache, records.into_iter(), grid)
    }
}
