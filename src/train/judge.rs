//! Heads over a task while it is learned, and how well they do.

use super::features::Features;
use super::novelty::by_class;
use super::objective::cross_entropy;
use super::trainer::{Encoded, FitError, Trainer};
use crate::head::{
    ClassId, Classifier, HeadError, Retaking, Shrinkage, Statistics, TaskId, Temperature, Workspace,
};

/// How well a head does on a set of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Mean cross-entropy in nats, of scores divided by the temperature that suits them best.
    pub loss: f64,
    /// Share of images whose best score is their class.
    pub accuracy: f64,
    /// Images that were judged.
    pub images: usize,
}

impl Quality {
    /// Whether images were judged and the accuracy is at most one standard error of a share,
    /// `sqrt(p (1 - p) / n)`, below that of `other`: within what chance does.
    pub fn not_clearly_below(&self, other: &Self) -> bool {
        let p = other.accuracy;
        let error = (p * (1.0 - p) / other.images.max(1) as f64).sqrt();
        other.images > 0 && self.accuracy >= p - error
    }
}

/// Heads over everything known and some images of the task, fitted one after another in the same
/// memory: a part at a time, so that only one part's scatter of those images exists.
#[derive(Debug)]
pub(super) struct Heads<'a> {
    encoded: &'a Encoded<'a>,
    known: &'a Statistics,
    task: Statistics,
    retaking: Retaking,
    workspace: Workspace,
    head: Classifier,
    /// Class and position of the images, sorted.
    order: Vec<(ClassId, usize)>,
}

impl<'a> Heads<'a> {
    pub fn new(encoded: &'a Encoded<'a>, known: &'a Statistics) -> Self {
        let layout = known.layout();
        Self {
            encoded,
            known,
            // Without scatter, as that is taken into lent memory.
            task: Statistics::transient(layout, 0..0),
            retaking: Retaking::new(layout.dim),
            workspace: Workspace::default(),
            head: Classifier::empty(layout),
            order: Vec::with_capacity(encoded.labels.len()),
        }
    }

    /// Fits a head over everything known and `images`.
    ///
    /// # Errors
    /// When the features cannot be read or the head cannot be fitted.
    pub fn fit(
        &mut self,
        images: &[usize],
        features: &Features,
        shrinkage: Shrinkage,
    ) -> Result<&Classifier, FitError> {
        let labels = self.encoded.labels;
        self.order.clear();
        let numbered = images.iter().enumerate();
        self.order
            .extend(numbered.map(|(position, &image)| (labels[image], position)));
        // Positions differ, so this is as stable as a sort that would allocate.
        self.order.sort_unstable();
        let layout = self.known.layout();
        for part in 0..layout.parts {
            let columns = layout.part(part);
            self.task.retake::<FitError>(
                part,
                TaskId::MAX,
                &self.order,
                &mut self.retaking,
                |position, out| Ok(features.read_part(images[position], columns.clone(), out)?),
            )?;
            let sources = [self.known, &self.task];
            if part == 0 {
                self.head.start(&sources, shrinkage, &mut self.workspace)?;
            }
            self.head
                .refit(&sources, part..part + 1, &mut self.workspace)?;
        }
        Ok(&self.head)
    }

    /// Fits as [`Heads::fit`] does, in memory that `trainer` does not need meanwhile.
    ///
    /// # Errors
    /// As [`Heads::fit`].
    pub fn fit_in(
        &mut self,
        trainer: &mut Trainer<'_>,
        images: &[usize],
        features: &Features,
        shrinkage: Shrinkage,
    ) -> Result<&Classifier, FitError> {
        let mut loan = trainer.lend();
        loan.arena = self.workspace.swap_matrix(loan.arena);
        loan.gradient = self.task.swap_scatter(loan.gradient);
        let fitted = self.fit(images, features, shrinkage).map(|_| ());
        loan.arena = self.workspace.swap_matrix(loan.arena);
        loan.gradient = self.task.swap_scatter(loan.gradient);
        trainer.give_back(loan);
        fitted.map(|()| &self.head)
    }

    /// The head fitted last.
    pub fn fitted(&self) -> &Classifier {
        &self.head
    }
}

/// What a head without the held-back images does on the task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    pub train_accuracy: f64,
    /// Of the held-back images.
    pub validation: Quality,
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
    shrinkage: Shrinkage,
) -> Result<Judgement, FitError> {
    let mut heads = Heads::new(encoded, known);
    let head = heads.fit(encoded.training, features, shrinkage)?;
    let mut held_out = HeldOut::new(encoded, features.width());
    let train_accuracy = held_out.quality(encoded.training, head, features)?.accuracy;
    let validation = held_out.quality(encoded.validation, head, features)?;
    held_out.score(encoded.validation, head, features)?;
    let temperature = held_out.temperature(head.classes().len())?;
    Ok(Judgement {
        train_accuracy,
        validation,
        temperature,
    })
}

/// Decides for those of `classes` that `known` has already whether their components are fitted as
/// one, by the loss of the held-back images under a head with the training images. Pooling moves
/// the mean of either domain towards the other, so what it costs the new one stands for both.
/// Works in memory that `trainer` does not need meanwhile.
///
/// # Errors
/// When a head cannot be fitted.
pub fn choose_pooling(
    trainer: &mut Trainer<'_>,
    classes: impl Iterator<Item = ClassId>,
    known: &mut Statistics,
    features: &Features,
    shrinkage: Shrinkage,
) -> Result<(), FitError> {
    let encoded = trainer.encoded();
    let before = known.classes();
    let again: Vec<ClassId> = classes
        .filter(|class| before.binary_search(class).is_ok())
        .collect();
    if again.is_empty() || encoded.validation.is_empty() {
        return Ok(());
    }
    let mut held_out = HeldOut::new(encoded, features.width());
    known.pool_where_better(&again, |known| {
        let mut heads = Heads::new(encoded, known);
        let training = encoded.training;
        let head = heads.fit_in(trainer, training, features, shrinkage)?;
        Ok(held_out.quality(encoded.validation, head, features)?.loss)
    })
}

/// Adds the features of `images` to `statistics` as the new `task`, in the memory of one part.
///
/// # Errors
/// When a feature is not a finite number or a file fails; `statistics` are not to be used then.
pub fn learn_on_shelf(
    statistics: &mut Statistics,
    labels: &[ClassId],
    images: &[usize],
    features: &Features,
    task: TaskId,
) -> Result<(), FitError> {
    let images = by_class(labels, images);
    statistics.learn_on_shelf(task, &images, |image, columns, out| {
        Ok(features.read_part(image, columns, out)?)
    })
}

/// Scores of held-out images and the indices of their classes among the head's, in memory that is
/// used again.
#[derive(Debug)]
pub(super) struct HeldOut<'a> {
    encoded: &'a Encoded<'a>,
    /// `[images, classes]`
    scores: Vec<f32>,
    classes: Vec<usize>,
    /// Features of one image.
    row: Vec<f32>,
}

impl<'a> HeldOut<'a> {
    pub fn new(encoded: &'a Encoded<'a>, width: usize) -> Self {
        Self {
            encoded,
            scores: Vec::new(),
            classes: Vec::with_capacity(encoded.labels.len()),
            row: vec![0.0; width],
        }
    }

    /// Makes room for `images` images and `classes` classes, so that scoring allocates nothing.
    pub fn reserve(&mut self, images: usize, classes: usize) {
        self.scores.clear();
        self.scores.reserve_exact(images * classes);
    }

    /// Scores the `images` whose class the head knows.
    pub fn score(
        &mut self,
        images: &[usize],
        head: &Classifier,
        features: &Features,
    ) -> Result<(), FitError> {
        let width = head.classes().len();
        self.scores.clear();
        self.classes.clear();
        for &image in images {
            if let Ok(class) = head.classes().binary_search(&self.encoded.labels[image]) {
                let start = self.scores.len();
                self.scores.resize(start + width, 0.0);
                features.read(image, &mut self.row)?;
                head.scores(&self.row, &mut self.scores[start..])?;
                self.classes.push(class);
            }
        }
        Ok(())
    }

    /// The temperature that suits the scores best; none without an image.
    pub fn temperature(&self, classes: usize) -> Result<Option<Temperature>, HeadError> {
        if self.classes.is_empty() {
            return Ok(None);
        }
        Temperature::fit(&self.scores, classes, &self.classes).map(Some)
    }

    /// Loss and accuracy of a head on `images`, at the temperature that suits it best, as it would
    /// be calibrated. No images count as perfect: without a held-back image nothing can be seen to
    /// improve.
    pub fn quality(
        &mut self,
        images: &[usize],
        head: &Classifier,
        features: &Features,
    ) -> Result<Quality, FitError> {
        self.score(images, head, features)?;
        let width = head.classes().len();
        let Some(temperature) = self.temperature(width)? else {
            return Ok(Quality {
                loss: 0.0,
                accuracy: 1.0,
                images: 0,
            });
        };
        let (mut loss, mut right) = (0.0, 0usize);
        for (scores, &class) in self.scores.chunks_exact_mut(width).zip(&self.classes) {
            let best = (0..width).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            right += usize::from(best == Some(class));
            loss += cross_entropy(scores, class, temperature.value);
        }
        let n = self.classes.len() as f64;
        Ok(Quality {
            loss: loss / n,
            accuracy: right as f64 / n,
            images: self.classes.len(),
        })
    }
}

/// Index of each label in the classifier's classes.
pub fn classes_in(
    classifier: &Classifier,
    labels: &[ClassId],
) -> impl Iterator<Item = Option<usize>> {
    labels
        .iter()
        .map(|label| classifier.classes().binary_search(label).ok())
}

/// The temperature at which the heads of the two halves, each on the other half, fit best.
pub(super) fn crossfit_temperature(
    halves: &[Vec<usize>; 2],
    heads: &mut Heads<'_>,
    held_out: &mut HeldOut<'_>,
    trainer: &mut Trainer<'_>,
    features: &Features,
    shrinkage: Shrinkage,
) -> Result<f32, FitError> {
    let mut log_sum = 0.0;
    let mut images = 0;
    for (images_of, other) in [(&halves[0], &halves[1]), (&halves[1], &halves[0])] {
        if other.is_empty() {
            continue;
        }
        let head = heads.fit_in(trainer, other, features, shrinkage)?;
        held_out.score(images_of, head, features)?;
        if let Some(fit) = held_out.temperature(head.classes().len())? {
            log_sum += f64::from(fit.value).ln() * f64::from(fit.images);
            images += fit.images;
        }
    }
    let parts = heads.fitted().layout().parts as f32;
    Ok(match images {
        0 => parts,
        n => (log_sum / f64::from(n)).exp() as f32,
    })
}
