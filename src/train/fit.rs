//! Learning one task by gradient: cross-fitted epochs through the LDA head.
//!
//! The head is refitted all the time, and the gradient goes through it: the task's training
//! images are cut into two halves, and while one half trains, its scores come from a head whose
//! statistics hold the old classes and the *other* half. A feature that only fits the images it
//! was computed on does not score there, so the adapters learn what generalises. The statistics of
//! a half are refreshed for free, from the features its own training pass computes.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::adam::{Adam, cosine};
use super::judge::{Heads, HeldOut, Quality, classes_in, crossfit_temperature};
use super::parameters::{Guard, Parameters};
use super::selection::{SELECTION_EPOCHS, Selection, TaskRank};
use super::stack::Phase;
use super::token_drop::TokenDrop;
use super::trainer::{Encoded, Features, FitError, Target, Trainer};
use crate::adapt::{Adapters, RankChoice, TaskCore};
use crate::data::RowFile;
use crate::head::{ClassId, DEFAULT_SHRINKAGE, Statistics};
use crate::{Progress, Stage};

/// How far below its first value the training temperature may fall.
const SHARPENING: f32 = 3.0;

/// How a task is trained. The defaults and how they were found: `docs/method.md`.
#[derive(Debug, Clone, PartialEq)]
pub struct FitSettings {
    /// Upper bound for the first task; training stops early when validation no longer improves.
    pub epochs: usize,
    /// The same for later tasks, whose cores start close to where they should be.
    pub core_epochs: usize,
    /// Images a step.
    pub batch: usize,
    /// Share of an image's patch tokens that a [step leaves out](TokenDrop), 0 to 1.
    pub token_drop: f32,
    /// Learning rate of the bases.
    pub rate: f32,
    /// Learning rate of the cores: small, as old classes' statistics were taken before it acts.
    pub core_rate: f32,
    /// Learning rate of prompts.
    pub prompt_rate: f32,
    /// How far the weights go from the frozen ones to those a first task ends with, 0 to 1: a model
    /// between the two serves classes of neither better than both (Wortsman et al., arXiv 2109.01903).
    pub blend: f32,
    /// Weight of the drift guard.
    pub guard: f32,
    /// Epochs of a later task without a better validation loss before its training stops.
    pub patience: usize,
    /// Shrinkage of the head's covariance towards its trace, once trained.
    pub shrinkage: f32,
    /// The same while training: the heads of the halves rest on a few images a class, and a
    /// gradient through a barely shrunk inverse of their covariance chases its noise.
    pub training_shrinkage: f32,
    pub seed: u64,
}

impl FitSettings {
    /// Epochs and learning rate of a phase.
    fn schedule(&self, phase: Phase) -> (usize, f32) {
        match phase {
            Phase::Bases => (self.epochs, self.rate),
            Phase::Cores => (self.core_epochs, self.core_rate),
        }
    }
}

impl Default for FitSettings {
    fn default() -> Self {
        Self {
            epochs: 15,
            core_epochs: 3,
            batch: 16,
            token_drop: 0.5,
            rate: 1e-3,
            core_rate: 2e-4,
            prompt_rate: 1e-3,
            blend: 0.5,
            guard: 1.0,
            patience: 4,
            shrinkage: DEFAULT_SHRINKAGE,
            training_shrinkage: 0.4,
            seed: 0,
        }
    }
}

/// What training a task led to.
#[derive(Debug)]
pub struct Fitted {
    /// Numbers learned beside the prompts.
    pub parameters_added: usize,
    /// What the task added to the core of each site, empty for the first task.
    pub cores: Vec<TaskCore>,
    /// How the rank was chosen, where it was.
    pub choice: Option<RankChoice>,
    /// Whether the held-back images speak for them: for a first task not clearly against them, as
    /// its bases serve all later classes too; for a later one a lower loss and no lower accuracy.
    pub kept: bool,
    /// Epochs that ran.
    pub epochs: usize,
    /// Cores and prompts before training.
    pub base: Adapters,
}

/// Trains `adapters` on the task and leaves in them the parameters of a first task's last epoch,
/// [blended](FitSettings::blend) with those it began with, or of a later task's best epoch by
/// validation loss, whose training stops when it no longer improves. `features` holds every image's
/// features with `adapters`, and in the end those of the last epoch or of the blend.
///
/// # Errors
/// When the head cannot be fitted or a file cannot be read; `adapters` hold anything then.
#[allow(clippy::too_many_arguments)]
pub fn fit(
    trainer: &mut Trainer<'_>,
    adapters: &mut Adapters,
    phase: Phase,
    rank: TaskRank<'_>,
    known: &Statistics,
    guard: Guard<'_>,
    features: &Features,
    settings: &FitSettings,
    progress: &dyn Progress,
) -> Result<Fitted, FitError> {
    // Inside the pool, so that handing work to its threads allocates nothing.
    let pool = trainer.pool();
    pool.install(|| {
        Fit::new(trainer, adapters, phase, &rank, known, features, settings)?
            .run(rank, guard, progress)
    })
}

/// Where in the training an epoch is, and the temperature it began with.
struct Schedule {
    epoch: usize,
    steps_an_epoch: usize,
    total: usize,
    start: f32,
}

/// Everything an epoch works with, allocated before the first.
struct Fit<'f, 'a> {
    trainer: &'f mut Trainer<'a>,
    /// Cores and prompts before training.
    base: Adapters,
    phase: Phase,
    features: &'f Features,
    settings: &'f FitSettings,
    rng: ChaCha8Rng,
    parameters: Parameters,
    /// The rank while it is being chosen.
    selection: Option<Selection>,
    /// The best parameters so far.
    best: RowFile,
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
    step: usize,
}

impl<'f, 'a: 'f> Fit<'f, 'a> {
    fn new(
        trainer: &'f mut Trainer<'a>,
        adapters: &'f mut Adapters,
        phase: Phase,
        rank: &TaskRank<'_>,
        known: &'f Statistics,
        features: &'f Features,
        settings: &'f FitSettings,
    ) -> Result<Self, FitError> {
        let encoded = trainer.encoded();
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let columns = match rank {
            TaskRank::Fixed(rank) => *rank,
            TaskRank::Selected(selector) => selector.most(),
        };
        let parameters = Parameters::new(adapters, phase, columns, &mut rng);
        let mut held_out = HeldOut::new(encoded, features.width());
        held_out.reserve(encoded.labels.len(), classes_in_all(encoded, known));
        let best = RowFile::create(1, parameters.values().len())?;
        best.write(0, 0, parameters.values())?;
        Ok(Self {
            base: adapters.without_bases(),
            phase,
            features,
            settings,
            best,
            selection: Selection::of(phase, rank),
            adam: Adam::new(parameters.len()),
            chained: vec![0.0; parameters.chain_len()],
            guard_work: vec![0.0; adapters.rank * adapters.rank],
            adapters,
            heads: Heads::new(encoded, known),
            held_out,
            class: Vec::with_capacity(encoded.labels.len()),
            halves: Halves::new(encoded),
            step: 0,
            parameters,
            rng,
            trainer,
        })
    }

    fn run(
        mut self,
        rank: TaskRank<'_>,
        guard: Guard<'_>,
        progress: &dyn Progress,
    ) -> Result<Fitted, FitError> {
        let encoded = self.trainer.encoded();
        let settings = self.settings;
        let (most_epochs, _) = settings.schedule(self.phase);
        self.halves.draw(encoded, &mut self.rng);
        let start = crossfit_temperature(
            &self.halves.halves,
            &mut self.heads,
            &mut self.held_out,
            self.trainer,
            (self.adapters, self.phase),
            self.features,
            settings.training_shrinkage,
        )?;
        let before = self.quality()?;
        if let Some(selection) = self
            .selection
            .as_mut()
            .filter(|_| most_epochs < SELECTION_EPOCHS)
        {
            // Too short to select: what earlier tasks taught decides.
            selection.end(before.loss, &mut self.parameters, &mut self.adam);
            self.chained.truncate(self.parameters.len());
            self.best.write(0, 0, self.parameters.values())?;
        }
        let (mut after, mut lowest) = (None, f64::INFINITY);
        let halves = &self.halves.halves;
        let steps_an_epoch: usize = halves
            .iter()
            .map(|h| h.len().div_ceil(settings.batch))
            .sum();
        let total = most_epochs * steps_an_epoch;
        let (mut epochs, mut stale) = (0, 0);
        while epochs < most_epochs && stale < settings.patience {
            let stage = Stage::Epoch {
                number: epochs + 1,
                of: most_epochs,
            };
            progress.begin(stage, encoded.training.len());
            if epochs > 0 {
                self.halves.draw(encoded, &mut self.rng);
            }
            let schedule = Schedule {
                epoch: epochs,
                steps_an_epoch,
                total,
                start,
            };
            for half in 0..2 {
                self.train_half(half, &schedule, guard, progress)?;
            }
            epochs += 1;
            // How well a first task's own classes are told apart says little about how well its
            // bases serve the classes to come, so all its epochs run and the last one stands.
            if self.phase == Phase::Bases {
                continue;
            }
            self.refresh()?;
            let now = self.quality()?;
            if let Some(selection) = &mut self.selection {
                let (parameters, adam) = (&mut self.parameters, &mut self.adam);
                // What was best with more columns than are chosen does not count.
                if selection.after_epoch(epochs, now.loss, parameters, adam) {
                    self.chained.truncate(parameters.len());
                    parameters.apply(&self.base, self.adapters);
                    continue;
                }
                if selection.pending() {
                    continue;
                }
            }
            if now.loss < lowest {
                lowest = now.loss;
                after = Some(now);
                self.best.write(0, 0, self.parameters.values())?;
                stale = 0;
            } else {
                stale += 1;
            }
        }
        match self.phase {
            Phase::Bases => {
                self.adapters.blend(&self.base, settings.blend);
                self.refresh()?;
                after = (epochs > 0).then(|| self.quality()).transpose()?;
            }
            Phase::Cores => {
                let numbers = self.parameters.values().len();
                self.best
                    .read(0, 0..numbers, self.parameters.values_mut())?;
                self.parameters.apply(&self.base, self.adapters);
            }
        }
        Ok(Fitted {
            parameters_added: self.parameters.prompts_start(),
            cores: self.parameters.task_cores(),
            choice: self.selection.and_then(|selection| selection.finish(rank)),
            kept: after.is_some_and(|after| match self.phase {
                Phase::Bases => after.not_clearly_below(&before),
                Phase::Cores => after.loss < before.loss && after.at_least(&before),
            }),
            epochs,
            base: self.base,
        })
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
            (self.adapters, self.phase),
            other,
            self.features,
            settings.training_shrinkage,
        )?;
        self.held_out.score(images, head, self.features)?;
        let fresh = self.held_out.temperature(head.classes().len())?;
        self.class.clear();
        self.class
            .extend(classes_in(head, self.trainer.encoded().labels));
        let mut target = Target {
            class: &self.class,
            head,
            // Bounded, or a head that gets everything right would sharpen without end.
            temperature: fresh
                .map_or(schedule.start, |t| t.value)
                .max(schedule.start / SHARPENING),
            phase: self.phase,
            dropped: TokenDrop::NONE,
        };
        let (_, peak_rate) = settings.schedule(self.phase);
        for images in images.chunks(settings.batch) {
            let rate = cosine(self.step, schedule.total / 10, schedule.total);
            if let Some(selection) = &mut self.selection {
                let (epoch, steps) = (schedule.epoch, schedule.steps_an_epoch);
                let parameters = &mut self.parameters;
                selection.open_gates(epoch, self.step, steps, parameters, &mut self.rng);
                parameters.apply(&self.base, self.adapters);
            }
            target.dropped = TokenDrop {
                share: settings.token_drop,
                seed: self.rng.random(),
            };
            let (_, gradient) =
                self.trainer
                    .gradient(images, self.adapters, self.features, &target)?;
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
                    peak_rate
                } else {
                    settings.prompt_rate * peak_rate / settings.rate
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
            (self.adapters, self.phase),
            encoded.training,
            self.features,
            self.settings.shrinkage,
        )?;
        self.held_out
            .quality(encoded.validation, head, self.features)
    }
}

/// An upper bound for the classes of a head over what is known and the task.
fn classes_in_all(encoded: &Encoded<'_>, known: &Statistics) -> usize {
    let mut classes = encoded.labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    classes.len() + known.components().len()
}

/// The training images in two halves, each class spread evenly over both.
struct Halves {
    order: Vec<usize>,
    /// Class, position after shuffling, and image.
    sorted: Vec<(ClassId, usize, usize)>,
    halves: [Vec<usize>; 2],
}

impl Halves {
    fn new(encoded: &Encoded<'_>) -> Self {
        let images = encoded.training.len();
        Self {
            order: Vec::with_capacity(images),
            sorted: Vec::with_capacity(images),
            halves: [(); 2].map(|()| Vec::with_capacity(images.div_ceil(2))),
        }
    }

    fn draw(&mut self, encoded: &Encoded<'_>, rng: &mut ChaCha8Rng) {
        self.order.clear();
        self.order.extend_from_slice(encoded.training);
        self.order.shuffle(rng);
        self.sorted.clear();
        let numbered = self.order.iter().enumerate();
        self.sorted
            .extend(numbered.map(|(position, &image)| (encoded.labels[image], position, image)));
        // Positions differ, so this is as stable as a sort that would allocate.
        self.sorted.sort_unstable();
        self.halves.iter_mut().for_each(Vec::clear);
        for (position, &(_, _, image)) in self.sorted.iter().enumerate() {
            self.halves[position % 2].push(image);
        }
        self.halves.iter_mut().for_each(|half| half.shuffle(rng));
    }
}
