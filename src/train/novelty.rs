//! How novel a task's images are to heads that did not learn them: what says from where on an image is
//! called unknown.
//!
//! Every image of the task is measured against a head over what was known and all others of the task, which has
//! a closed form, so that all have a say and not only the few that are held back. Features that were trained on an
//! image know it by heart. Only held-back images are therefore measured by the features after training; the others
//! are as novel as before it, and what training changed for held-back ones is added to them in turn: it makes images
//! that were not trained on more novel in the mean, and spreads them wider.

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
    let all = by_class(encoded.labels, own);
    let leave_out = |seen: Seen<'_>| seen.head(&all, shrinkage).leave_out(seen.read());
    let mut measured = leave_out(before)?;
    if let Some(after) = after {
        let held_back = |at: usize| encoded.validation.contains(&all[at].1);
        trained(&mut measured, &leave_out(after)?, held_back);
    }
    let mut novelties = Novelties::default();
    for novelty in measured.into_iter().flatten() {
        novelties.add(novelty)?;
    }
    Ok(novelties)
}

/// Makes of the novelty `before` training what it is after it: that of held-back images is known, and the others
/// take what changed for these in turn.
fn trained(
    before: &mut [Option<ImageNovelty>],
    after: &[Option<ImageNovelty>],
    held_back: impl Fn(usize) -> bool,
) {
    let pairs = before.iter().zip(after).enumerate();
    let changes: Vec<_> = pairs
        .filter(|&(at, _)| held_back(at))
        .filter_map(|(_, (before, after))| Some((*after)?.with((*before)?, |x, y| x - y)))
        .collect();
    let mut changes = changes.iter().cycle();
    for (at, (novelty, after)) in before.iter_mut().zip(after).enumerate() {
        if held_back(at) {
            *novelty = *after;
        } else if let (Some(novelty), Some(&change)) = (novelty, changes.next()) {
            *novelty = novelty.with(change, |x, y| x + y);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_trained_on_take_what_changed_for_held_back_ones_in_turn() {
        let novelty = |nearest, relative| Some(ImageNovelty { nearest, relative });
        // Images 1, 3 and 6 are held back; the last is its class's only one.
        let held_back = |at| [1, 3, 6].contains(&at);
        let mut before: Vec<_> = (0..6).map(|at| novelty(at as f32, Some(0.0))).collect();
        before.push(None);
        let mut after = vec![novelty(-9.0, None); 6];
        after.push(None);
        after[1] = novelty(1.5, Some(2.0));
        after[3] = novelty(2.0, Some(3.0));
        trained(&mut before, &after, held_back);
        let expected = [
            novelty(0.5, Some(2.0)),
            novelty(1.5, Some(2.0)),
            novelty(1.0, Some(3.0)),
            novelty(2.0, Some(3.0)),
            novelty(4.5, Some(2.0)),
            novelty(4.0, Some(3.0)),
            None,
        ];
        assert_eq!(before, expected);

        let mut before = [novelty(1.0, None)];
        trained(&mut before, &after[..1], |_| false);
        assert_eq!(before, [novelty(1.0, None)]);
    }
}
