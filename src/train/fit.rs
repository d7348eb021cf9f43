//! Learning one task by gradient: cross-fitted epochs through the LDA head.
//!
//! The head is refitted all the time, and the gradient goes through it: the task's training
//! images are cut into two halves, and while one half trains, its scores come from a head whose
//! statistics hold the old classes and the *other* half. A feature that only fits the images it
//! was computed on does not score there, so the adapters learn what generalises. The statistics of
//! a half are refreshed for free, from the features its own training pass computes.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::adam::{Adam, cosine};
use super::judge::{Quality, classes_in, crossfit_temperature, head_of, quality, scored};
use super::parameters::{Guard, Parameters};
use super::selection::{SELECTION_EPOCHS, Selection, TaskRank};
use super::stack::Phase;
use super::trainer::{Encoded, Features, FitError, Target, Trainer};
use crate::adapt::{Adapters, RankChoice};
use crate::head::{DEFAULT_SHRINKAGE, Statistics};
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
    /// Learning rate of the bases.
    pub rate: f32,
    /// Learning rate of the cores: small, as old classes' statistics were taken before it acts.
    pub core_rate: f32,
    /// Learning rate of prompts in the first task; later it is lower in proportion to the cores'.
    pub prompt_rate: f32,
    /// Weight of the drift guard.
    pub guard: f32,
    /// Epochs without a better validation loss before training stops.
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
            rate: 1e-3,
            core_rate: 2e-4,
            prompt_rate: 1e-3,
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
    /// The best parameters seen after an epoch, by validation loss.
    pub parameters: Parameters,
    /// Whether validation with them has a lower loss than before.
    pub improved: bool,
    /// How the rank was chosen, where it was.
    pub choice: Option<RankChoice>,
    /// Epochs that ran.
    pub epochs: usize,
    /// Validation before the first epoch and with the best parameters.
    pub before: Quality,
    pub after: Quality,
}

/// Trains `base` on the task until validation stops improving, and returns the best parameters.
/// `features` holds every image's features with `base`, and in the end those of the last epoch.
///
/// # Errors
/// When the head cannot be fitted or the cache cannot be read; nothing is learned then.
#[allow(clippy::too_many_arguments)]
pub fn fit(
    trainer: &mut Trainer<'_>,
    base: &Adapters,
    phase: Phase,
    rank: TaskRank<'_>,
    known: &Statistics,
    guard: Guard<'_>,
    features: &mut Features,
    settings: &FitSettings,
    progress: &dyn Progress,
) -> Result<Fitted, FitError> {
    let encoded = trainer.encoded();
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let (most_epochs, peak_rate) = settings.schedule(phase);
    let mut selection = Selection::of(phase, &rank);
    let columns = match &rank {
        TaskRank::Fixed(rank) => *rank,
        TaskRank::Selected(selector) => selector.most(),
    };
    let mut parameters = Parameters::new(base, phase, columns, &mut rng);
    let mut adapters = base.clone();
    let mut adam = Adam::new(parameters.len());
    let mut adapter_gradient = vec![0.0; trainer.gradient_len(base, phase)];
    let mut gradient = vec![0.0; parameters.len()];
    let mut guard_work = vec![0.0; base.rank * base.rank];
    let mut halves = draw_halves(encoded, &mut rng);
    let start = crossfit_temperature(
        encoded,
        &halves,
        known,
        features,
        settings.training_shrinkage,
    )?;
    let quality_of = |features: &Features| -> Result<Quality, FitError> {
        let head = head_of(
            encoded,
            encoded.training,
            known,
            features,
            settings.shrinkage,
        )?;
        Ok(quality(encoded, encoded.validation, &head, features)?)
    };
    let before = quality_of(features)?;
    if let Some(selection) = selection
        .as_mut()
        .filter(|_| most_epochs < SELECTION_EPOCHS)
    {
        // Too short to select: what earlier tasks taught decides.
        selection.end(before.loss, &mut parameters, &mut adam);
        gradient.truncate(parameters.len());
    }
    let mut best = (None, parameters.clone());
    let mut lowest = f64::INFINITY;
    let steps_an_epoch: usize = halves
        .iter()
        .map(|h| h.len().div_ceil(settings.batch))
        .sum();
    let total = most_epochs * steps_an_epoch;
    let (mut step, mut epochs, mut stale) = (0, 0, 0);
    while epochs < most_epochs && stale < settings.patience {
        let stage = Stage::Epoch {
            number: epochs + 1,
            of: most_epochs,
        };
        progress.begin(stage, encoded.training.len());
        if epochs > 0 {
            halves = draw_halves(encoded, &mut rng);
        }
        for half in 0..halves.len() {
            let (images, other) = (&halves[half], &halves[1 - half]);
            let shrinkage = settings.training_shrinkage;
            let classifier = head_of(encoded, other, known, features, shrinkage)?;
            let fresh = scored(encoded, images, &classifier, features)?
                .temperature(classifier.classes().len())?;
            let target = Target {
                class: &classes_in(&classifier, encoded.labels),
                head: &classifier,
                // Bounded, or a head that gets everything right would sharpen without end.
                temperature: fresh.map_or(start, |t| t.value).max(start / SHARPENING),
                phase,
            };
            for images in images.chunks(settings.batch) {
                let rate = cosine(step, total / 10, total);
                if let Some(selection) = &mut selection {
                    selection.open_gates(epochs, step, steps_an_epoch, &mut parameters, &mut rng);
                    parameters.apply(base, &mut adapters);
                }
                trainer.gradient(images, &adapters, features, &target, &mut adapter_gradient)?;
                progress.advance(images.len());
                parameters.add_guard(
                    base,
                    guard,
                    settings.guard,
                    &mut guard_work,
                    &mut adapter_gradient,
                );
                if let Some(selection) = &mut selection {
                    selection.learn(epochs, &parameters, &adapter_gradient);
                }
                parameters.chain(&adapter_gradient, &mut gradient);
                let prompts_start = parameters.prompts_start();
                adam.update(parameters.values_mut(), &gradient, |i| {
                    let peak = if i < prompts_start {
                        peak_rate
                    } else {
                        settings.prompt_rate * peak_rate / settings.rate
                    };
                    peak * rate
                });
                parameters.apply(base, &mut adapters);
                step += 1;
            }
        }
        epochs += 1;
        trainer.refresh(encoded.validation, &adapters, features)?;
        let now = quality_of(features)?;
        if let Some(selection) = &mut selection {
            // What was best with more columns than are chosen does not count.
            if selection.after_epoch(epochs, now.loss, &mut parameters, &mut adam) {
                gradient.truncate(parameters.len());
                parameters.apply(base, &mut adapters);
                continue;
            }
            if selection.pending() {
                continue;
            }
        }
        if now.loss < lowest {
            lowest = now.loss;
            best = (Some(now), parameters.clone());
            stale = 0;
        } else {
            stale += 1;
        }
    }
    Ok(Fitted {
        parameters: best.1,
        improved: lowest < before.loss,
        choice: selection.and_then(|selection| selection.finish(rank)),
        epochs,
        before,
        after: best.0.unwrap_or(before),
    })
}

/// The training images in two halves, each class spread evenly over both.
fn draw_halves(encoded: &Encoded<'_>, rng: &mut ChaCha8Rng) -> [Vec<usize>; 2] {
    let mut order = encoded.training.to_vec();
    order.shuffle(rng);
    order.sort_by_key(|&image| encoded.labels[image]);
    let mut halves = [Vec::new(), Vec::new()];
    for (position, image) in order.into_iter().enumerate() {
        halves[position % 2].push(image);
    }
    halves.iter_mut().for_each(|half| half.shuffle(rng));
    halves
}
