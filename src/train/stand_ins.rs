//! Stand-ins for images of old classes, which are gone: an image of the task at hand, whose tokens
//! are moved by the difference between the mean tokens of an old class and of its own (feature
//! translation, Petit et al., FeTrIL, arXiv 2211.13131, here in front of the adapted blocks). They
//! are never learned: while the task is, the scores of old classes are held on them, and afterwards they
//! show how the features of old classes moved.

use std::ops::Range;

use crate::data::{TokenGrid, TokenMean};
use crate::head::ClassId;

/// Stand-ins of one class of one task, at most.
const A_CLASS: usize = 12;
/// Stand-ins made of one image, at most: what they take stays in proportion to the task.
const AN_IMAGE: usize = 4;

/// The images of an [`Encoded`](super::trainer::Encoded) task that are stand-ins: all from some
/// index on. The default has none.
#[derive(Debug, Clone, Default)]
pub struct StandIns<'a> {
    first: usize,
    grid: Option<TokenGrid>,
    /// Mean tokens that an image is moved from and to.
    moves: Vec<(&'a TokenMean, &'a TokenMean)>,
}

impl<'a> StandIns<'a> {
    /// Stand-ins for `old` classes, made of `images`, which are given with the mean tokens of their
    /// class: at most `most` in all. Appends the record and the class of each to the lists that the
    /// task's images are in.
    pub fn of(
        old: &[(ClassId, &'a TokenMean)],
        images: &[(usize, &'a TokenMean)],
        grid: TokenGrid,
        most: usize,
        records: &mut Vec<usize>,
        labels: &mut Vec<ClassId>,
    ) -> Self {
        let mut stand_ins = Self {
            first: records.len(),
            grid: Some(grid),
            moves: Vec::new(),
        };
        // Of a state file that says something else, or of no image.
        let fits = |mean: &TokenMean| mean.fits(&grid);
        let old: Vec<_> = old.iter().filter(|(_, mean)| fits(mean)).collect();
        let images: Vec<_> = images.iter().filter(|(_, mean)| fits(mean)).collect();
        if old.is_empty() || images.is_empty() {
            return stand_ins;
        }
        let total = Self::count(old.len(), images.len(), most);
        for number in 0..total {
            // Old classes and images are both gone through evenly, at paces of their own.
            let &(class, to) = old[number * old.len() / total];
            let &(record, from) = images[number * STRIDE % images.len()];
            records.push(record);
            labels.push(class);
            stand_ins.moves.push((from, to));
        }
        stand_ins
    }

    /// At most, by default.
    pub const MOST: usize = 512;

    /// How many there are for so many old classes, made of so many images.
    pub fn count(old: usize, images: usize, most: usize) -> usize {
        (A_CLASS * old).min(AN_IMAGE * images).min(most)
    }

    /// Bytes that so many of them take while a task is learned.
    pub(super) fn bytes(count: usize) -> usize {
        // Its means, record, class, index in the head, and places in two lists of images; lists grow by
        // doubling.
        2 * count * (7 * size_of::<usize>() + size_of::<ClassId>())
    }

    /// Which images are stand-ins.
    pub(super) fn images(&self) -> Range<usize> {
        self.first..self.first + self.moves.len()
    }

    /// Moves those tokens of an image that take part to where it stands in, if it is a stand-in.
    pub(super) fn translate(&self, image: usize, kept: &[usize], tokens: &mut [f32]) {
        let found = image
            .checked_sub(self.first)
            .and_then(|at| self.moves.get(at));
        if let (Some((from, to)), Some(grid)) = (found, &self.grid) {
            grid.translate(kept, tokens, from, to);
        }
    }
}

/// From one image to the next; a prime, so that all take their turn however many there are.
const STRIDE: usize = 7919;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PrefixCache;

    fn mean(value: f32, grid: &TokenGrid) -> TokenMean {
        let cache = PrefixCache::create(None, 1, 5, 2, 0).unwrap();
        cache.write(0, &[value; 10], &[]).unwrap();
        TokenMean::of(&cache, 0..1, grid).unwrap()
    }

    #[test]
    fn every_old_class_is_stood_in_for_by_images_of_every_class() {
        let grid = TokenGrid::new(2, 1, 2);
        let (one, two) = (mean(1.0, &grid), mean(2.0, &grid));
        let (near, far) = (mean(5.0, &grid), mean(50.0, &grid));
        let images: Vec<_> = (0..9)
            .map(|k| (k, if k < 5 { &one } else { &two }))
            .collect();
        let (mut records, mut labels) = ((0..9).collect(), vec![7; 9]);
        let old = [(3, &near), (4, &far)];
        let stand_ins = StandIns::of(&old, &images, grid, 512, &mut records, &mut labels);
        assert_eq!(records.len(), 9 + 2 * A_CLASS);
        assert_eq!(labels.iter().filter(|&&class| class == 4).count(), A_CLASS);
        for image in 0..9 {
            assert!(records[9..].contains(&image));
        }
        for (image, (&record, &class)) in records.iter().zip(&labels).enumerate() {
            let mut tokens = [0.5; 10];
            stand_ins.translate(image, &[0, 1, 2, 3, 4], &mut tokens);
            let own = if record < 5 { 1.0 } else { 2.0 };
            let expected = match class {
                3 => 0.5 + 5.0 - own,
                4 => 0.5 + 50.0 - own,
                _ => 0.5,
            };
            assert_eq!(tokens, [expected; 10]);
        }
    }

    #[test]
    fn many_classes_share_the_stand_ins_there_are() {
        let grid = TokenGrid::new(2, 1, 2);
        let one = mean(1.0, &grid);
        let old: Vec<_> = (0..90).map(|class| (class, &one)).collect();
        let images: Vec<_> = (0..10).map(|k| (k, &one)).collect();
        let (mut records, mut labels) = ((0..10).collect(), vec![90; 10]);
        StandIns::of(&old, &images, grid, 30, &mut records, &mut labels);
        assert_eq!(labels[10..], (0..30).map(|k| 3 * k).collect::<Vec<_>>());
        StandIns::of(&old, &images[..5], grid, 30, &mut records, &mut labels);
        assert_eq!(labels.len(), 10 + 30 + 20);
        let none = StandIns::of(&old, &[(0, &one)], grid, 0, &mut records, &mut labels);
        assert!(none.moves.is_empty());
        let damaged = [(1, &TokenMean::default())];
        let none = StandIns::of(&damaged, &[(0, &one)], grid, 9, &mut records, &mut labels);
        assert!(none.moves.is_empty() && records.len() == 60);
    }
}
