//! The course of one task: what it is taught, and how much of that stays.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{LearnError, LearnSettings, Learner};
use crate::Progress;
use crate::adapt::{Adapters, RankChoice, RankSelector, TaskCore};
use crate::head::Statistics;
use crate::state::TaughtClass;
use crate::train::features::Features;
use crate::train::fit::{Fitted, fit};
use crate::train::judge::{Judgement, choose_pooling, judge};
use crate::train::lesson::Lesson;
use crate::train::parameters::Guard;
use crate::train::plan::Plan;
use crate::train::selection::TaskRank;
use crate::train::trainer::{Encoded, FitError, Trainer};

/// What training changes in place, taken out of the knowledge meanwhile.
pub(super) struct Taken {
    pub adapters: Adapters,
    pub head: Statistics,
}

/// A task that is about to be learned.
pub(super) struct Course<'c> {
    pub learner: &'c Learner,
    pub settings: &'c LearnSettings,
    pub plan: &'c Plan,
    /// A later task's adapters from before it, to go back to.
    pub saved: Option<&'c Adapters>,
    pub encoded: &'c Encoded<'c>,
    /// The task's own images.
    pub own: &'c [usize],
    /// Its classes.
    pub taught: &'c [TaughtClass],
    /// Whether anything is trained at all.
    pub trains: bool,
    /// Whether statistics of old classes follow the features.
    pub follows: bool,
}

/// Where a course ends. The adapters are those that stay.
pub(super) struct Outcome {
    /// Statistics of what was known before, where the features have them now.
    pub head: Statistics,
    /// How the task fares with them.
    pub judged: Judgement,
    /// Of the task's images, with the adapters that stay.
    pub features: Features,
    /// The same with those before the task, where what was trained stays.
    pub features_before: Option<Features>,
    /// What a later task added to the cores.
    pub cores: Vec<TaskCore>,
    pub parameters_added: usize,
    /// Epochs that ran.
    pub epochs: usize,
    /// How the rank was chosen, where it was.
    pub choice: Option<RankChoice>,
    /// Whether what was trained stays.
    pub kept: bool,
}

/// What lessons are taught with.
struct Room<'r, 't> {
    trainer: Trainer<'t>,
    features: Features,
    guard: Guard<'r>,
    progress: &'r dyn Progress,
}

impl<'c> Course<'c> {
    /// Teaches the task, and keeps of it what its held-back images do not speak against. What the drift guard
    /// remembers of it joins the adapters.
    ///
    /// # Errors
    /// When the cache cannot be read or the head cannot be fitted; `taken` holds anything then.
    pub fn take(
        &self,
        taken: &mut Taken,
        ranks: &mut RankSelector,
        guard: Guard<'_>,
        progress: &dyn Progress,
    ) -> Result<Outcome, LearnError> {
        let mut trainer = self.trainer(&taken.adapters);
        let features = Features::new(self.encoded.labels.len(), trainer.width());
        let features = features.map_err(FitError::from)?;
        self.refresh(&mut trainer, &taken.adapters, &features)?;
        choose_pooling(
            &mut trainer,
            self.taught.iter().map(|taught| taught.class),
            &mut taken.head,
            &features,
            self.settings.fit.shrinkage,
        )?;
        let room = Room {
            trainer,
            features,
            guard,
            progress,
        };
        match self.saved {
            None if self.trains => self.first(taken, room),
            None => {
                let mut rng = ChaCha8Rng::seed_from_u64(self.settings.fit.seed);
                taken.adapters.draw_output_bases(&mut rng);
                self.stay(taken, room.trainer, room.features)
            }
            Some(saved) if self.trains => self.later(taken, saved, ranks, room),
            Some(_) => self.stay(taken, room.trainer, room.features),
        }
    }

    fn first(&self, taken: &mut Taken, mut room: Room<'_, 'c>) -> Result<Outcome, LearnError> {
        let before = room.features.snapshot().map_err(FitError::from)?;
        let fitted = self.teach(taken, &mut room, Lesson::First)?;
        room.progress.finish();
        let kept = fitted.first_is_kept();
        let adapters = &mut taken.adapters;
        // Bases are kept in any case, for later cores to work in; with a core of zero they
        // change no feature.
        adapters.orthonormalise();
        if !kept {
            adapters.clear_cores();
            adapters.prompts.copy_from_slice(&fitted.prompts);
            self.refresh(&mut room.trainer, adapters, &room.features)?;
        }
        Ok(Outcome {
            features_before: kept.then_some(before),
            kept,
            epochs: fitted.epochs,
            parameters_added: fitted.parameters_added,
            ..self.stay(taken, room.trainer, room.features)?
        })
    }

    fn later(
        &self,
        taken: &mut Taken,
        saved: &Adapters,
        ranks: &mut RankSelector,
        mut room: Room<'_, 'c>,
    ) -> Result<Outcome, LearnError> {
        let shrinkage = self.settings.fit.shrinkage;
        let before = room.features.snapshot().map_err(FitError::from)?;
        let rank = match self.settings.rank {
            Some(rank) => TaskRank::Fixed(rank),
            None => TaskRank::Selected(ranks),
        };
        let fitted = self.teach(taken, &mut room, Lesson::Cores(rank))?;
        let mut epochs = fitted.epochs;
        if self.plan.bases && self.settings.fit.later_epochs > 0 {
            taken.adapters.absorb_cores();
            epochs += self.teach(taken, &mut room, Lesson::Onward(saved))?.epochs;
            taken.adapters.orthonormalise();
            taken.adapters.turn_gram(saved);
        }
        room.progress.finish();
        let Room {
            mut trainer,
            features,
            ..
        } = room;
        self.refresh(&mut trainer, &taken.adapters, &features)?;
        let (sum, tokens) = trainer.gram(self.own, &taken.adapters)?;
        // What follows needs the memory.
        drop(trainer);
        let mut head = taken.head.clone();
        if self.follows {
            let images = self.encoded.labels.len();
            self.learner.follow(&mut head, &before, &features, images)?;
            head.add_drift(&taken.head, shrinkage)?;
        }
        let judged = judge(self.encoded, &head, &features, shrinkage)?;
        let fared = |before| judged.validation.not_clearly_below(&before);
        if epochs > 0 && fitted.before.is_some_and(fared) {
            taken.adapters.remember(&sum, tokens);
            return Ok(Outcome {
                head,
                judged,
                features,
                features_before: Some(before),
                cores: fitted.cores,
                parameters_added: fitted.parameters_added,
                epochs,
                choice: fitted.choice,
                kept: true,
            });
        }
        drop(head);
        drop(features);
        taken.adapters.restore(saved);
        let trainer = self.trainer(&taken.adapters);
        Ok(Outcome {
            epochs,
            choice: fitted.choice,
            ..self.stay(taken, trainer, before)?
        })
    }

    /// Leaves what was known where it is.
    fn stay(
        &self,
        taken: &mut Taken,
        mut trainer: Trainer<'c>,
        features: Features,
    ) -> Result<Outcome, LearnError> {
        let (sum, tokens) = trainer.gram(self.own, &taken.adapters)?;
        drop(trainer);
        taken.adapters.remember(&sum, tokens);
        let head = taken.head.clone();
        let shrinkage = self.settings.fit.shrinkage;
        let judged = judge(self.encoded, &head, &features, shrinkage)?;
        Ok(Outcome {
            head,
            judged,
            features,
            features_before: None,
            cores: Vec::new(),
            parameters_added: 0,
            epochs: 0,
            choice: None,
            kept: false,
        })
    }

    fn teach(
        &self,
        taken: &mut Taken,
        room: &mut Room<'_, 'c>,
        lesson: Lesson<'_>,
    ) -> Result<Fitted, FitError> {
        fit(
            &mut room.trainer,
            &mut taken.adapters,
            lesson,
            &taken.head,
            room.guard,
            &room.features,
            &self.settings.fit,
            room.progress,
        )
    }

    /// Workers over the images of the task.
    pub fn trainer(&self, adapters: &Adapters) -> Trainer<'c> {
        let Learner { pool, weights, .. } = self.learner;
        Trainer::new(pool, weights, self.plan, self.encoded, adapters)
    }

    /// Features of all images, stand-ins and exemplars too.
    fn refresh(
        &self,
        trainer: &mut Trainer<'_>,
        adapters: &Adapters,
        features: &Features,
    ) -> Result<(), FitError> {
        let all: Vec<usize> = (0..self.encoded.labels.len()).collect();
        trainer.refresh(&all, adapters, features)
    }
}
