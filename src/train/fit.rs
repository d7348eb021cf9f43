//! Learning one task by gradient: cross-fitted epochs through the LDA head.
//!
//! The head is refitted all the time, and the gradient goes through it: the task's training
//! images are cut into two halves, and while one half trains, its scores come from a head whose
//! statistics hold the old classes and the *other* half. A feature that only fits the images it
//! was computed on does not score there, so the adapters learn what generalises. The statistics of
//! a half are refreshed for free, from the features its own training pass computes.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::adam::{Adam, cosine};
use super::draws::{Halves, Turns};
use super::features::Features;
use super::judge::{Heads, HeldOut, Quality, classes_in, crossfit_temperature};
use super::lesson::{FitSettings, Lesson};
use super::parameters::{Guard, Parameters};
use super::selection::{SELECTION_EPOCHS, Selection, TaskRank};
use super::stack::Phase;
use super::target::{Hold, Target};
use super::token_drop::TokenDrop;
use super::trainer::{Encoded, FitError, Trainer};
use crate::adapt::{Adapters, RankChoice, TaskCore};
use crate::head::{ClassId, Statistics};
use crate::{Progress, Stage};

/// How far below its first value the training temperature may fall.
const SHARPENING: f32 = 3.0;

/// What training a task led to.
#[derive(Debug)]
pub struct Fitted {
    /// Numbers learned beside the prompts.
    pub parameters_added: usize,
    /// What the task added to the core of each site, empty for the first task.
    pub cores: Vec<TaskCore>,
    /// How the rank was chosen, where it was.
    pub choice: Option<RankChoice>,
    /// How the held-back images fared before training; not told of a later task's bases, which go on from its
    /// M and N.
    pub before: Option<Quality>,
    /// The same for a first task's end. A later one's can be told only once old statistics have
    /// followed the features.
    pub after: Option<Quality>,
    /// Epochs that ran.
    pub epochs: usize,
    /// Prompts before training.
    pub prompts: Vec<f32>,
}

/// Trains `adapters` on the task and leaves in them the parameters of the last epoch; bases are
/// [blended](FitSettings::blend) with those before. `features` holds every image's features with
/// `adapters`, where bases go on those that M and N left behind, and in the end those of a first task's blend, or
/// anything after a later lesson.
///
/// # Errors
/// When the head cannot be fitted or a file cannot be read; `adapters` hold anything then.
#[allow(clippy::too_many_arguments)]
pub fn fit(
    trainer: &mut Trainer<'_>,
    adapters: &mut Adapters,
    lesson: Lesson<'_>,
    known: &Statistics,
    guard: Guard<'_>,
    features: &Features,
    settings: &FitSettings,
    progress: &dyn Progress,
) -> Result<Fitted, FitError> {
    // Inside the pool, so that handing work to its threads allocates nothing.
    let pool = trainer.pool();
    pool.install(|| {
        Fit::new(trainer, adapters, &lesson, known, features, settings)?
            .run(lesson, guard, progress)
    })
}

impl Fitted {
    /// Whether what a first task learned is kept: the held-back images do not speak clearly against
    /// it. How well its own classes are told apart says little about how well it serves the classes
    /// to come, so it need not be better.
    pub fn first_is_kept(&self) -> bool {
        let told = self.after.zip(self.before);
        told.is_some_and(|(after, before)| after.not_clearly_below(&before))
    }
}

/// Where in the training an epoch is, and the temperature it began with.
struct Schedule {
    epoch: usize,
    steps_an_epoch: usize,
    total: usize,
    start: f32,
    peak_rate: f32,
    /// Patch tokens that the epoch leaves out.
    dropped: TokenDrop,
}

/// Everything an epoch works with, allocated before the first.
struct Fit<'f, 'a> {
    trainer: &'f mut Trainer<'a>,
    /// Cores and prompts before training.
    base: Adapters,
    phase: Phase,
    /// What the weights before a later task make of the images that its bases are held on, as they are
    /// thinned.
    held: Option<Features>,
    turns: Turns,
    features: &'f Features,
    settings: &'f FitSettings,
    rng: ChaCha8Rng,
    parameters: Parameters,
    /// The rank while it is being chosen.
    selection: Option<Selection>,
    /// What the blocks see.
    adapters: &'f mut Adapters,
    adam: Adam,
    /// Where the gradient of M and N is made.
    chained: Vec<f32>,
    guard_work: Vec<f32>,
    heads: Heads<'f>,
    held_out: HeldOut<'f>,
    /// Index of each image's class among the head's.
    class: Vec<Option<usize>>,
    halves: Halves,
    /// Tasks learned before.
    learned: usize,
    step: usize,
}

impl<'f, 'a: 'f> Fit<'f, 'a> {
    fn new(
        trainer: &'f mut Trainer<'a>,
        adapters: &'f mut Adapters,
        lesson: &Lesson<'_>,
        known: &'f Statistics,
        features: &'f Features,
        settings: &'f FitSettings,
    ) -> Result<Self, FitError> {
        let encoded = trainer.encoded();
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let phase = lesson.phase();
        let columns = match lesson {
            Lesson::Cores(TaskRank::Fixed(rank)) => *rank,
            Lesson::Cores(TaskRank::Selected(selector)) => selector.most(),
            Lesson::First | Lesson::Onward(_) => 0,
        };
        let holds = matches!(lesson, Lesson::Onward(_)) && settings.hold > 0.0;
        let held = holds.then(|| Features::new(encoded.labels.len(), features.width()));
        let parameters = Parameters::new(adapters, phase, columns, &mut rng);
        let mut held_out = HeldOut::new(encoded, features.width());
        let images = encoded.training.len() + encoded.validation.len();
        held_out.reserve(images, classes_in_all(encoded, known));
        Ok(Self {
            base: match lesson {
                Lesson::First | Lesson::Cores(_) => adapters.without_bases(),
                // What comes before the lesson is in it.
                Lesson::Onward(_) => Adapters::default(),
            },
            phase,
            held: held.transpose()?,
            turns: Turns::new(encoded, settings.batch),
            features,
            settings,
            selection: match lesson {
                Lesson::Cores(TaskRank::Selected(selector)) => Some(Selection::of(selector)),
                _ => None,
            },
            adam: Adam::new(parameters.len()),
            chained: vec![0.0; parameters.chain_len()],
            guard_work: vec![0.0; adapters.rank * adapters.rank],
            adapters,
            heads: Heads::new(encoded, known),
            held_out,
            class: Vec::with_capacity(encoded.labels.len()),
            halves: Halves::new(encoded),
            learned: known.tasks(),
            step: 0,
            parameters,
            rng,
            trainer,
        })
    }

    fn run(
        mut self,
        lesson: Lesson<'_>,
        guard: Guard<'_>,
        progress: &dyn Progress,
    ) -> Result<Fitted, FitError> {
        let encoded = self.trainer.encoded();
        let settings = self.settings;
        self.halves.draw(encoded, &mut self.rng);
        let halves = &self.halves.halves;
        let steps_an_epoch: usize = halves
            .iter()
            .map(|h| h.len().div_ceil(settings.batch))
            .sum();
        let (epochs, peak_rate) = settings.schedule(&lesson, steps_an_epoch);
        let start = crossfit_temperature(
            &self.halves.halves,
            &mut self.heads,
            &mut self.held_out,
            self.trainer,
            self.features,
            settings.training_shrinkage.into(),
        )?;
        let before = match lesson {
            Lesson::First | Lesson::Cores(_) => Some(self.quality()?),
            Lesson::Onward(_) => None,
        };
        if let (Some(selection), Some(before)) = (&mut self.selection, before)
            && epochs < SELECTION_EPOCHS
        {
            // Too short to select: what earlier tasks taught decides.
            selection.end(before.loss, &mut self.parameters, &mut self.adam);
            self.chained.truncate(self.parameters.len());
        }
        let total = epochs * steps_an_epoch;
        for epoch in 0..epochs {
            let stage = Stage::Epoch {
                number: epoch + 1,
                of: epochs,
            };
            progress.begin(stage, encoded.training.len());
            if epoch > 0 {
                self.halves.draw(encoded, &mut self.rng);
            }
            let schedule = Schedule {
                epoch,
                steps_an_epoch,
                total,
                start,
                peak_rate,
                dropped: TokenDrop {
                    share: settings.token_drop,
                    seed: self.rng.random(),
                },
            };
            if let (Lesson::Onward(before), Some(held)) = (&lesson, &self.held) {
                let images = match self.turns.draw(encoded, &mut self.rng) {
                    [] => encoded.training,
                    stand_ins => stand_ins,
                };
                self.trainer
                    .refresh_thinned(images, before, held, schedule.dropped)?;
            }
            for half in 0..2 {
                self.train_half(half, &schedule, guard, progress)?;
            }
            if self.selection.as_ref().is_some_and(Selection::pending) {
                self.select(epoch + 1)?;
            }
        }
        let mut after = None;
        match lesson {
            Lesson::First => {
                self.adapters.blend(&self.base, settings.blend);
                self.refresh()?;
                after = (epochs > 0).then(|| self.quality()).transpose()?;
            }
            Lesson::Onward(before) => {
                let share = settings.onward_blend(self.learned);
                self.adapters.blend_bases(before, share);
            }
            Lesson::Cores(_) => {}
        }
        let choice = match (self.selection, lesson) {
            (Some(selection), Lesson::Cores(rank)) => selection.finish(rank),
            _ => None,
        };
        Ok(Fitted {
            parameters_added: self.parameters.prompts_start(),
            cores: self.parameters.task_cores(),
            choice,
            before,
            after,
            epochs,
            prompts: self.base.prompts,
        })
    }

    /// After one of the epochs in which the rank is selected.
    fn select(&mut self, epochs: usize) -> Result<(), FitError> {
        self.refresh()?;
        let loss = self.quality()?.loss;
        let Some(selection) = &mut self.selection else {
            return Ok(());
        };
        let (parameters, adam) = (&mut self.parameters, &mut self.adam);
        if selection.after_epoch(epochs, loss, parameters, adam) {
            self.chained.truncate(parameters.len());
            parameters.apply(&self.base, self.adapters);
        }
        Ok(())
    }

    /// One half of the task trains against a head fitted to the other.
    fn train_half(
        &mut self,
        half: usize,
        schedule: &Schedule,
        guard: Guard<'_>,
        progress: &dyn Progress,
    ) -> Result<(), FitError> {
        let settings = self.settings;
        let (images, other) = (&self.halves.halves[half], &self.halves.halves[1 - half]);
        let head = self.heads.fit_in(
            self.trainer,
            other,
            self.features,
            settings.training_shrinkage.into(),
        )?;
        self.held_out.score(images, head, self.features)?;
        let fresh = self.held_out.temperature(head.classes().len())?;
        self.class.clear();
        self.class
            .extend(classes_in(head, self.trainer.encoded().labels));
        let target = Target {
            class: &self.class,
            head,
            // Bounded, or a head that gets everything right would sharpen without end.
            temperature: fresh
                .map_or(schedule.start, |t| t.value)
                .max(schedule.start / SHARPENING),
            phase: self.phase,
            dropped: schedule.dropped,
            hold: self.held.as_ref().map(|before| Hold {
                head,
                before,
                weight: settings.hold,
            }),
        };
        for images in images.chunks(settings.batch) {
            let rate = cosine(self.step, schedule.total / 10, schedule.total);
            if let Some(selection) = &mut self.selection {
                let (epoch, steps) = (schedule.epoch, schedule.steps_an_epoch);
                let parameters = &mut self.parameters;
                selection.open_gates(epoch, self.step, steps, parameters, &mut self.rng);
                parameters.apply(&self.base, self.adapters);
            }
            let batch = self.turns.join(images);
            let (_, gradient) =
                self.trainer
                    .gradient(batch, self.adapters, self.features, &target)?;
            progress.advance(images.len());
            let work = &mut self.guard_work;
            self.parameters
                .add_guard(&self.base, guard, settings.guard, work, gradient);
            if let Some(selection) = &mut self.selection {
                selection.learn(schedule.epoch, &self.parameters, gradient);
            }
            let prompts_start = self.parameters.prompts_start();
            let gradient = self.parameters.chain(gradient, &mut self.chained);
            let (adapters, adam) = (&mut *self.adapters, &mut self.adam);
            self.parameters.update(adapters, adam, gradient, |i| {
                let peak = if i < prompts_start {
                    schedule.peak_rate
                } else {
                    settings.prompt_rate * schedule.peak_rate / settings.rate
                };
                peak * rate
            });
            self.parameters.apply(&self.base, self.adapters);
            self.step += 1;
        }
        Ok(())
    }

    /// Features of all images with the adapters as they are, from all tokens.
    fn refresh(&mut self) -> Result<(), FitError> {
        let encoded = self.trainer.encoded();
        for images in [encoded.training, encoded.validation] {
            self.trainer.refresh(images, self.adapters, self.features)?;
        }
        Ok(())
    }

    /// How well the head of all training images does on the held-back ones.
    fn quality(&mut self) -> Result<Quality, FitError> {
        let encoded = self.trainer.encoded();
        let head = self.heads.fit_in(
            self.trainer,
            encoded.training,
            self.features,
            self.settings.shrinkage,
        )?;
        self.held_out
            .quality(encoded.validation, head, self.features)
    }
}

/// An upper bound for the classes of a head over what is known and the task; those of stand-ins are known.
fn classes_in_all(encoded: &Encoded<'_>, known: &Statistics) -> usize {
    let images = encoded.training.iter().chain(encoded.validation);
    let mut classes: Vec<ClassId> = images.map(|&image| encoded.labels[image]).collect();
    classes.sort_unstable();
    classes.dedup();
    classes.len() + known.components().len()
}
