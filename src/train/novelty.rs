//! How novel a task's images are to heads that did not learn them: what says from where on an image is
//! called unknown.
//!
//! Every image of the task is measured against a head over what was known and all others of the task, which has
//! a closed form, so that all have a say and not only the few that are held back. Features that were trained on an
//! image know it by heart. The images are therefore measured as the features were before training, and what
//! training changes is taken from the images that were held back from it: the mean of what it changed for each.

use std::ops::Range;

use super::features::Features;
use super::trainer::{Encoded, FitError};
use crate::head::{ClassId, ImageNovelty, Novelties, Shrinkage, Statistics, Strangeness};

/// What was known before a task, and the features of its images that belong to these statistics.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub known: &'a Statistics,
    pub features: &'a Features,
}

/// Novelty of the `own` images of a task; those that are their class's only one have none. `before` is from
/// before training, `after` from after it where something was trained.
///
/// # Errors
/// When a head cannot be fitted or a feature cannot be read.
pub fn novelties(
    encoded: &Encoded<'_>,
    own: &[usize],
    before: Seen<'_>,
    after: Option<Seen<'_>>,
    shrinkage: Shrinkage,
) -> Result<Novelties, FitError> {
    let mut novelties = Novelties::default();
    let all = by_class(encoded.labels, own);
    let measured = before.head(&all, shrinkage).leave_out(before.read())?;
    let change = match after {
        Some(after) => change(encoded, before, after, shrinkage)?,
        None => None,
    };
    for novelty in measured.into_iter().flatten() {
        novelties.add(change.map_or(novelty, |change| novelty.with(change, |x, y| x + y)))?;
    }
    Ok(novelties)
}

/// How much more novel held-back images are after training, in the mean.
fn change(
    encoded: &Encoded<'_>,
    before: Seen<'_>,
    after: Seen<'_>,
    shrinkage: Shrinkage,
) -> Result<Option<ImageNovelty>, FitError> {
    if encoded.validation.is_empty() {
        return Ok(None);
    }
    let training = by_class(encoded.labels, encoded.training);
    let measure = |seen: Seen<'_>| {
        let head = seen.head(&training, shrinkage);
        head.measure(encoded.validation, seen.read())
    };
    let pairs = measure(after)?.into_iter().zip(measure(before)?);
    let changes: Vec<_> = pairs.map(|(x, y)| x.with(y, |x, y| x - y)).collect();
    Ok(mean(&changes))
}

impl<'a> Seen<'a> {
    /// The head over what was known and the `learned` images.
    fn head(&self, learned: &'a [(ClassId, usize)], shrinkage: Shrinkage) -> Strangeness<'a> {
        Strangeness {
            known: self.known,
            learned,
            shrinkage,
        }
    }

    fn read(&self) -> impl FnMut(usize, Range<usize>, &mut [f32]) -> Result<(), FitError> {
        |image, columns, out| Ok(self.features.read_part(image, columns, out)?)
    }
}

/// Images with their classes, class by class, in the order given within each.
pub(super) fn by_class(labels: &[ClassId], images: &[usize]) -> Vec<(ClassId, usize)> {
    let mut sorted: Vec<_> = images.iter().map(|&image| (labels[image], image)).collect();
    sorted.sort_by_key(|&(class, _)| class);
    sorted
}

fn mean(of: &[ImageNovelty]) -> Option<ImageNovelty> {
    let (first, others) = of.split_first()?;
    let sum = others
        .iter()
        .fold(*first, |sum, &it| sum.with(it, |x, y| x + y));
    Some(sum.with(sum, |x, _| x / of.len() as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_over_the_images_that_have_a_number() {
        let novelty = |nearest, relative| ImageNovelty { nearest, relative };
        assert_eq!(mean(&[]), None);
        let two = [novelty(1.0, Some(4.0)), novelty(2.0, Some(-2.0))];
        assert_eq!(mean(&two), Some(novelty(1.5, Some(1.0))));
        assert_eq!(mean(&[novelty(1.0, None)]), Some(novelty(1.0, None)));
    }
}
