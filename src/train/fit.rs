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
use rayon::prelude::*;

use super::adam::{Adam, cosine};
use super::objective::cross_entropy;
use super::parameters::Parameters;
use super::stack::{Phase, Stack, StackShape};
use crate::adapt::Adapters;
use crate::data::PrefixCache;
use crate::head::{
    ClassId, Classifier, DEFAULT_SHRINKAGE, HeadError, Statistics, TaskId, Temperature,
};
use crate::vit::Weights;
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
    /// Images that run through a block together on one thread.
    pub micro_batch: usize,
    /// Learning rate of the bases.
    pub rate: f32,
    /// Learning rate of the cores: small, as old classes' statistics were taken before it acts.
    pub core_rate: f32,
    /// Learning rate of prompts.
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
            micro_batch: 2,
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

/// One task's images, encoded: what training reads.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// Prefix outputs, one an image.
    pub cache: &'a PrefixCache,
    /// Class of each image.
    pub labels: &'a [ClassId],
    /// Images that train.
    pub training: &'a [usize],
    /// Images held back.
    pub validation: &'a [usize],
}

/// Features of every image of a task, `[images, F]`, kept current while training.
#[derive(Debug, Clone)]
pub struct Features {
    width: usize,
    values: Vec<f32>,
}

impl Features {
    pub fn new(images: usize, width: usize) -> Self {
        Self {
            width,
            values: vec![0.0; images * width],
        }
    }

    pub fn of(&self, image: usize) -> &[f32] {
        &self.values[image * self.width..(image + 1) * self.width]
    }

    pub fn of_mut(&mut self, image: usize) -> &mut [f32] {
        &mut self.values[image * self.width..(image + 1) * self.width]
    }
}

/// What training a task led to.
#[derive(Debug)]
pub struct Fitted {
    /// The best parameters seen after an epoch, by validation loss.
    pub parameters: Parameters,
    /// Whether validation with them has a lower loss than before.
    pub improved: bool,
    /// Epochs that ran.
    pub epochs: usize,
    /// Validation before the first epoch and with the best parameters.
    pub before: Quality,
    pub after: Quality,
}

/// How well a head does on a set of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Mean cross-entropy in nats, of scores divided by the temperature that suits them best.
    pub loss: f64,
    /// Share of images whose best score is their class.
    pub accuracy: f64,
}

impl Quality {
    /// Whether these figures are no worse than `other`: accuracy first, loss to break a tie.
    pub fn at_least(&self, other: &Self) -> bool {
        self.accuracy > other.accuracy
            || (self.accuracy == other.accuracy && self.loss <= other.loss)
    }
}

/// The buffers of one thread.
struct Worker<'w> {
    stack: Stack<'w>,
    /// Gradient of the adapters over this worker's share of a batch.
    gradient: Vec<f32>,
    /// Features of its images, `[share, F]`.
    features: Vec<f32>,
    /// What the stack makes of a micro-batch, `[images, F_stack]`, and the gradient of that.
    stacked: Vec<f32>,
    d_stacked: Vec<f32>,
    d_row: Vec<f32>,
    scores: Vec<f32>,
    loss: f64,
    scored: usize,
}

/// The head that scores a half while it trains.
struct Target<'a> {
    classifier: &'a Classifier,
    /// Index into the classifier's classes of each image's class, where the head knows it.
    class: &'a [Option<usize>],
    temperature: f32,
    phase: Phase,
}

/// One worker a thread, and the images they work on.
pub struct Trainer<'a> {
    pool: &'a rayon::ThreadPool,
    encoded: &'a Encoded<'a>,
    /// Images of a batch that one worker takes.
    share: usize,
    /// Features of one image.
    width: usize,
    workers: Vec<Worker<'a>>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("workers", &self.workers.len())
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Allocates what every thread of `pool` needs for batches of `batch` images.
    pub fn new(
        pool: &'a rayon::ThreadPool,
        weights: &'a Weights,
        shape: &StackShape,
        encoded: &'a Encoded<'a>,
        adapters: &Adapters,
        batch: usize,
    ) -> Self {
        let threads = pool.current_num_threads().max(1);
        let share = batch.div_ceil(threads).max(1);
        let width = encoded.cache.pooled() + shape.features();
        let longest = shape
            .gradient_len(adapters, Phase::Bases)
            .max(shape.gradient_len(adapters, Phase::Cores));
        let workers = (0..threads)
            .map(|_| Worker {
                stack: Stack::new(weights, shape.clone()),
                gradient: vec![0.0; longest],
                features: vec![0.0; share * width],
                stacked: vec![0.0; shape.images * shape.features()],
                d_stacked: vec![0.0; shape.images * shape.features()],
                d_row: vec![0.0; width],
                scores: Vec::new(),
                loss: 0.0,
                scored: 0,
            })
            .collect();
        Self {
            pool,
            encoded,
            share,
            width,
            workers,
        }
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
        features: &mut Features,
    ) -> Result<(), FitError> {
        for images in images.chunks(self.share * self.workers.len()) {
            self.step(images, adapters, features, None)?;
        }
        Ok(())
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
        let per_worker = images.len().div_ceil(self.workers.len()).max(1);
        let cache = self.encoded.cache;
        let workers = &mut self.workers;
        let partial: Vec<Vec<f32>> = self.pool.install(|| {
            workers
                .par_iter_mut()
                .zip(images.par_chunks(per_worker))
                .map(|(worker, images)| worker.gram(images, cache, adapters))
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
        features: &mut Features,
        target: Option<&Target<'_>>,
    ) -> Result<(), FitError> {
        let (share, width) = (self.share, self.width);
        let cache = self.encoded.cache;
        let workers = &mut self.workers;
        self.pool.install(|| {
            workers
                .par_iter_mut()
                .zip(images.par_chunks(share))
                .try_for_each(|(worker, images)| worker.run(images, cache, adapters, width, target))
        })?;
        for (worker, images) in self.workers.iter().zip(images.chunks(share)) {
            for (&image, row) in images.iter().zip(worker.features.chunks_exact(width)) {
                features.of_mut(image).copy_from_slice(row);
            }
        }
        Ok(())
    }

    /// One training step: mean gradient of the batch over the images the head could score, in the
    /// adapters' layout, and the summed loss. Workers are added in a fixed order, so that a number
    /// of threads always gives the same result.
    fn gradient(
        &mut self,
        images: &[usize],
        adapters: &Adapters,
        features: &mut Features,
        target: &Target<'_>,
        gradient: &mut [f32],
    ) -> Result<f64, FitError> {
        self.step(images, adapters, features, Some(target))?;
        let busy = images.len().div_ceil(self.share);
        let workers = &self.workers[..busy];
        let scored: usize = workers.iter().map(|w| w.scored).sum();
        gradient.fill(0.0);
        for worker in workers {
            add(gradient, &worker.gradient[..gradient.len()]);
        }
        let scale = 1.0 / scored.max(1) as f32;
        gradient.iter_mut().for_each(|g| *g *= scale);
        Ok(workers.iter().map(|w| w.loss).sum())
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

impl Worker<'_> {
    fn run(
        &mut self,
        images: &[usize],
        cache: &PrefixCache,
        adapters: &Adapters,
        width: usize,
        target: Option<&Target<'_>>,
    ) -> Result<(), FitError> {
        let micro = self.stack.shape().images;
        let stacked = self.stack.shape().features();
        let lower = width - stacked;
        self.loss = 0.0;
        self.scored = 0;
        if let Some(target) = target {
            let used = self.stack.shape().gradient_len(adapters, target.phase);
            self.gradient[..used].fill(0.0);
            self.scores.resize(target.classifier.classes().len(), 0.0);
        }
        for (images, rows) in images
            .chunks(micro)
            .zip(self.features.chunks_mut(micro * width))
        {
            for (slot, &image) in images.iter().enumerate() {
                let pooled = &mut rows[slot * width..slot * width + lower];
                cache.read(image, self.stack.input(slot), pooled)?;
            }
            let made = &mut self.stacked[..images.len() * stacked];
            self.stack.forward(adapters, images.len(), made);
            for (row, made) in rows.chunks_exact_mut(width).zip(made.chunks_exact(stacked)) {
                row[lower..].copy_from_slice(made);
            }
            let Some(target) = target else {
                continue;
            };
            let d_stacked = &mut self.d_stacked[..images.len() * stacked];
            d_stacked.fill(0.0);
            let rows = rows
                .chunks_exact(width)
                .zip(d_stacked.chunks_exact_mut(stacked));
            for (&image, (row, d_made)) in images.iter().zip(rows) {
                let Some(class) = target.class[image] else {
                    continue;
                };
                target.classifier.scores(row, &mut self.scores)?;
                self.loss += cross_entropy(&mut self.scores, class, target.temperature);
                self.scored += 1;
                self.d_row.fill(0.0);
                target
                    .classifier
                    .backward(row, &self.scores, &mut self.d_row)?;
                d_made.copy_from_slice(&self.d_row[lower..]);
            }
            let used = self.stack.shape().gradient_len(adapters, target.phase);
            let gradient = &mut self.gradient[..used];
            self.stack
                .backward(adapters, target.phase, images.len(), d_stacked, gradient);
        }
        Ok(())
    }

    fn gram(
        &mut self,
        images: &[usize],
        cache: &PrefixCache,
        adapters: &Adapters,
    ) -> Result<Vec<f32>, FitError> {
        let mut sum = vec![0.0; adapters.sites.len() * adapters.rank * adapters.rank];
        let micro = self.stack.shape().images;
        let lower = self.d_row.len() - self.stack.shape().features();
        for images in images.chunks(micro) {
            for (slot, &image) in images.iter().enumerate() {
                cache.read(image, self.stack.input(slot), &mut self.d_row[..lower])?;
            }
            let made = images.len() * self.stack.shape().features();
            self.stack
                .forward(adapters, images.len(), &mut self.stacked[..made]);
            self.stack.add_gram(adapters, images.len(), &mut sum);
        }
        Ok(sum)
    }
}

/// Training could not go on.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("cannot read the prefix cache back: {0}")]
    Cache(#[from] crate::data::CacheError),
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
    task_rank: usize,
    known: &Statistics,
    features: &mut Features,
    settings: &FitSettings,
    progress: &dyn Progress,
) -> Result<Fitted, FitError> {
    let encoded = trainer.encoded;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut parameters = Parameters::new(base, phase, task_rank, &mut rng);
    let mut adapters = base.clone();
    let mut adam = Adam::new(parameters.len());
    let shape = trainer.workers[0].stack.shape();
    let mut adapter_gradient = vec![0.0; shape.gradient_len(base, phase)];
    let mut gradient = vec![0.0; parameters.len()];
    let mut guard_work = vec![0.0; base.rank * base.rank];
    let prompts_start = parameters.prompts_start();

    let (most_epochs, peak_rate) = settings.schedule(phase);
    let mut halves = draw_halves(encoded, &mut rng);
    let start = crossfit_temperature(encoded, &halves, known, features, settings)?;
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
                classifier: &classifier,
                // Bounded, or a head that gets everything right would sharpen without end.
                temperature: fresh.map_or(start, |t| t.value).max(start / SHARPENING),
                phase,
            };
            for images in images.chunks(settings.batch) {
                let rate = cosine(step, total / 10, total);
                trainer.gradient(images, &adapters, features, &target, &mut adapter_gradient)?;
                progress.advance(images.len());
                parameters.add_guard(base, settings.guard, &mut guard_work, &mut adapter_gradient);
                parameters.chain(&adapter_gradient, &mut gradient);
                adam.update(parameters.values_mut(), &gradient, |i| {
                    let peak = if i < prompts_start {
                        peak_rate
                    } else {
                        settings.prompt_rate
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

/// A head over everything known and `images` of the task.
fn head_of(
    encoded: &Encoded<'_>,
    images: &[usize],
    known: &Statistics,
    features: &Features,
    shrinkage: f32,
) -> Result<Classifier, FitError> {
    let mut task = Statistics::transient(known.layout(), 0..known.layout().parts);
    learn_into(&mut task, encoded.labels, images, features, TaskId::MAX)?;
    Ok(Classifier::fit(&[known, &task], shrinkage)?)
}

/// Adds the features of `images` to `statistics`, class by class, as `task`.
///
/// # Errors
/// When a feature is not a finite number.
pub fn learn_into(
    statistics: &mut Statistics,
    labels: &[ClassId],
    images: &[usize],
    features: &Features,
    task: TaskId,
) -> Result<(), HeadError> {
    let mut by_class = images.to_vec();
    by_class.sort_by_key(|&image| labels[image]);
    for group in by_class.chunk_by(|&a, &b| labels[a] == labels[b]) {
        let mut rows = Vec::with_capacity(group.len() * features.width);
        group
            .iter()
            .for_each(|&image| rows.extend_from_slice(features.of(image)));
        statistics.learn(labels[group[0]], task, &rows)?;
    }
    Ok(())
}

/// What a head without the held-back images does on the task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    pub train_accuracy: f64,
    /// `None` when nothing was held back.
    pub validation_accuracy: Option<f64>,
    /// Makes the held-back images' probabilities fit best; `None` when nothing was held back.
    pub temperature: Option<Temperature>,
}

/// Judges `features` with a head over everything known and the task's training images.
///
/// # Errors
/// When the head cannot be fitted.
pub fn judge(
    encoded: &Encoded<'_>,
    known: &Statistics,
    features: &Features,
    shrinkage: f32,
) -> Result<Judgement, FitError> {
    let head = head_of(encoded, encoded.training, known, features, shrinkage)?;
    let held_out = scored(encoded, encoded.validation, &head, features)?;
    let validation = quality(encoded, encoded.validation, &head, features)?;
    Ok(Judgement {
        train_accuracy: quality(encoded, encoded.training, &head, features)?.accuracy,
        validation_accuracy: (!held_out.classes.is_empty()).then_some(validation.accuracy),
        temperature: held_out.temperature(head.classes().len())?,
    })
}

/// Scores of held-out images and the indices of their classes among the head's.
#[derive(Default)]
struct HeldOut {
    /// `[images, classes]`
    scores: Vec<f32>,
    classes: Vec<usize>,
}

impl HeldOut {
    fn temperature(&self, classes: usize) -> Result<Option<Temperature>, HeadError> {
        if self.classes.is_empty() {
            return Ok(None);
        }
        Temperature::fit(&self.scores, classes, &self.classes).map(Some)
    }
}

/// Scores the `images` whose class the head knows.
fn scored(
    encoded: &Encoded<'_>,
    images: &[usize],
    head: &Classifier,
    features: &Features,
) -> Result<HeldOut, HeadError> {
    let mut held_out = HeldOut::default();
    let width = head.classes().len();
    for &image in images {
        if let Ok(class) = head.classes().binary_search(&encoded.labels[image]) {
            let start = held_out.scores.len();
            held_out.scores.resize(start + width, 0.0);
            head.scores(features.of(image), &mut held_out.scores[start..])?;
            held_out.classes.push(class);
        }
    }
    Ok(held_out)
}

/// Index of each label in the classifier's classes.
fn classes_in(classifier: &Classifier, labels: &[ClassId]) -> Vec<Option<usize>> {
    labels
        .iter()
        .map(|label| classifier.classes().binary_search(label).ok())
        .collect()
}

/// Loss and accuracy of a head on `images`, at the temperature that suits it best, as it would be
/// calibrated. No images count as perfect, so that a task too small for a validation part is
/// judged by the guard alone.
fn quality(
    encoded: &Encoded<'_>,
    images: &[usize],
    head: &Classifier,
    features: &Features,
) -> Result<Quality, HeadError> {
    let width = head.classes().len();
    let mut held_out = scored(encoded, images, head, features)?;
    let Some(temperature) = held_out.temperature(width)? else {
        return Ok(Quality {
            loss: 0.0,
            accuracy: 1.0,
        });
    };
    let (mut loss, mut right) = (0.0, 0usize);
    for (scores, &class) in held_out
        .scores
        .chunks_exact_mut(width)
        .zip(&held_out.classes)
    {
        let best = (0..width).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        right += usize::from(best == Some(class));
        loss += cross_entropy(scores, class, temperature.value);
    }
    let n = held_out.classes.len() as f64;
    Ok(Quality {
        loss: loss / n,
        accuracy: right as f64 / n,
    })
}

/// The temperature at which the heads of the two halves, each on the other half, fit best.
fn crossfit_temperature(
    encoded: &Encoded<'_>,
    halves: &[Vec<usize>; 2],
    known: &Statistics,
    features: &Features,
    settings: &FitSettings,
) -> Result<f32, FitError> {
    let mut log_sum = 0.0;
    let mut images = 0;
    for (images_of, other) in [(&halves[0], &halves[1]), (&halves[1], &halves[0])] {
        if other.is_empty() {
            continue;
        }
        let head = head_of(encoded, other, known, features, settings.training_shrinkage)?;
        let held_out = scored(encoded, images_of, &head, features)?;
        if let Some(fit) = held_out.temperature(head.classes().len())? {
            log_sum += f64::from(fit.value).ln() * f64::from(fit.images);
            images += fit.images;
        }
    }
    let parts = known.layout().parts as f32;
    Ok(match images {
        0 => parts,
        n => (log_sum / f64::from(n)).exp() as f32,
    })
}
