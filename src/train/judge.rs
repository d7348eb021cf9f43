//! Heads over a task while it is learned, and how well they do.

use super::objective::cross_entropy;
use super::trainer::{Encoded, Features, FitError};
use crate::head::{
    ClassId, Classifier, HeadError, Novelties, Novelty, Statistics, TaskId, Temperature,
};

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

/// A head over everything known and `images` of the task.
pub(super) fn head_of(
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
        let mut rows = Vec::with_capacity(group.len() * features.width());
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

/// Decides for those of `classes` that `known` has already whether their components are fitted as
/// one, by the loss of the held-back images under a head with the training images. Pooling moves
/// the mean of either domain towards the other, so what it costs the new one stands for both.
///
/// # Errors
/// When a head cannot be fitted.
pub fn choose_pooling(
    encoded: &Encoded<'_>,
    classes: impl Iterator<Item = ClassId>,
    known: &mut Statistics,
    features: &Features,
    shrinkage: f32,
) -> Result<(), HeadError> {
    let before = known.classes();
    let again: Vec<ClassId> = classes
        .filter(|class| before.binary_search(class).is_ok())
        .collect();
    if again.is_empty() || encoded.validation.is_empty() {
        return Ok(());
    }
    let mut task = Statistics::transient(known.layout(), 0..known.layout().parts);
    learn_into(
        &mut task,
        encoded.labels,
        encoded.training,
        features,
        TaskId::MAX,
    )?;
    known.pool_where_better(&again, |known| {
        let head = Classifier::fit(&[known, &task], shrinkage)?;
        Ok(quality(encoded, encoded.validation, &head, features)?.loss)
    })
}

/// Novelty of the held-back images to a head over everything known and the training images.
///
/// # Errors
/// When the head cannot be fitted.
pub fn novelties(
    encoded: &Encoded<'_>,
    known: &Statistics,
    features: &Features,
    shrinkage: f32,
) -> Result<Novelties, HeadError> {
    let mut seen = Novelties::default();
    if encoded.validation.is_empty() {
        return Ok(seen);
    }
    let mut task = Statistics::new(known.layout());
    learn_into(
        &mut task,
        encoded.labels,
        encoded.training,
        features,
        TaskId::MAX,
    )?;
    let (classifier, novelty) = Novelty::fit(&[known, &task], shrinkage)?;
    for &image in encoded.validation {
        novelty.observe(&classifier, features.of(image), &mut seen)?;
    }
    Ok(seen)
}

/// Scores of held-out images and the indices of their classes among the head's.
#[derive(Default)]
pub(super) struct HeldOut {
    /// `[images, classes]`
    scores: Vec<f32>,
    classes: Vec<usize>,
}

impl HeldOut {
    pub fn temperature(&self, classes: usize) -> Result<Option<Temperature>, HeadError> {
        if self.classes.is_empty() {
            return Ok(None);
        }
        Temperature::fit(&self.scores, classes, &self.classes).map(Some)
    }
}

/// Scores the `images` whose class the head knows.
pub(super) fn scored(
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
pub fn classes_in(classifier: &Classifier, labels: &[ClassId]) -> Vec<Option<usize>> {
    labels
        .iter()
        .map(|label| classifier.classes().binary_search(label).ok())
        .collect()
}

/// Loss and accuracy of a head on `images`, at the temperature that suits it best, as it would be
/// calibrated. No images count as perfect: without a held-back image nothing can be seen to improve.
pub(super) fn quality(
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
pub(super) fn crossfit_temperature(
    encoded: &Encoded<'_>,
    halves: &[Vec<usize>; 2],
    known: &Statistics,
    features: &Features,
    shrinkage: f32,
) -> Result<f32, FitError> {
    let mut log_sum = 0.0;
    let mut images = 0;
    for (images_of, other) in [(&halves[0], &halves[1]), (&halves[1], &halves[0])] {
        if other.is_empty() {
            continue;
        }
        let head = head_of(encoded, other, known, features, shrinkage)?;
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
