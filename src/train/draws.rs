//! What is drawn for an epoch: which half of the task an image is in, and which stand-ins go with it.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::trainer::Encoded;
use crate::head::ClassId;

/// Stand-ins, which take turns in the steps of an epoch.
pub(super) struct Turns {
    drawn: Vec<usize>,
    taken: usize,
    /// Images of a step and the stand-ins that go with them.
    batch: Vec<usize>,
}

impl Turns {
    pub fn new(encoded: &Encoded<'_>, batch: usize) -> Self {
        Self {
            drawn: Vec::with_capacity(encoded.stand_ins.images().len()),
            taken: 0,
            batch: Vec::with_capacity(2 * batch),
        }
    }

    /// Draws those of an epoch, at most as many as there are training images.
    pub fn draw(&mut self, encoded: &Encoded<'_>, rng: &mut ChaCha8Rng) -> &[usize] {
        self.taken = 0;
        self.drawn.clear();
        self.drawn.extend(encoded.stand_ins.images());
        self.drawn.shuffle(rng);
        self.drawn.truncate(encoded.training.len());
        &self.drawn
    }

    /// The images of a step and, where stand-ins were drawn, as many of these.
    pub fn join(&mut self, images: &[usize]) -> &[usize] {
        self.batch.clear();
        self.batch.extend_from_slice(images);
        if !self.drawn.is_empty() {
            let turns = self.taken..self.taken + images.len();
            let drawn = turns.map(|turn| self.drawn[turn % self.drawn.len()]);
            self.batch.extend(drawn);
            self.taken += images.len();
        }
        &self.batch
    }
}

/// The training images in two halves, each class spread evenly over both.
pub(super) struct Halves {
    order: Vec<usize>,
    /// Class, position after shuffling, and image.
    sorted: Vec<(ClassId, usize, usize)>,
    pub halves: [Vec<usize>; 2],
}

impl Halves {
    pub fn new(encoded: &Encoded<'_>) -> Self {
        let images = encoded.training.len();
        Self {
            order: Vec::with_capacity(images),
            sorted: Vec::with_capacity(images),
            halves: [(); 2].map(|()| Vec::with_capacity(images.div_ceil(2))),
        }
    }

    pub fn draw(&mut self, encoded: &Encoded<'_>, rng: &mut ChaCha8Rng) {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;
    use crate::data::{PrefixCache, TokenGrid, TokenMean};
    use crate::train::stand_ins::StandIns;

    /// Runs `check` on a task of as many images of class 2 as of class 3, all of them training, with at most
    /// so many stand-ins.
    fn with_task(images: usize, stand_ins: usize, check: impl FnOnce(&Encoded<'_>)) {
        let grid = TokenGrid::new(2, 1, 2);
        let cache = PrefixCache::create(None, images, 5, 2, 0).unwrap();
        for image in 0..images {
            cache.write(image, &[image as f32; 10], &[]).unwrap();
        }
        let mean = TokenMean::of(&cache, 0..images, &grid).unwrap();
        let mut records: Vec<usize> = (0..images).collect();
        let mut labels: Vec<ClassId> = records.iter().map(|k| 2 + (k % 2) as ClassId).collect();
        let made_of: Vec<_> = records.iter().map(|&record| (record, &mean)).collect();
        let old = [(0, &mean), (1, &mean)];
        let training = records.clone();
        let stand_ins = StandIns::of(&old, &made_of, grid, stand_ins, &mut records, &mut labels);
        check(&Encoded {
            cache: &cache,
            records: &records,
            labels: &labels,
            training: &training,
            validation: &[],
            stand_ins,
        });
    }

    #[test]
    fn every_step_has_as_many_stand_ins_as_images_and_all_take_turns() {
        with_task(10, 7, |task| {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut turns = Turns::new(task, 4);
            let drawn = turns.draw(task, &mut rng).to_vec();
            assert_eq!(BTreeSet::from_iter(drawn.clone()), (10..17).collect());
            assert_eq!(
                turns.join(&[3, 1, 4, 5]),
                [&[3, 1, 4, 5], &drawn[..4]].concat()
            );
            let around = [&[9, 2, 6, 8], &drawn[4..], &drawn[..1]].concat();
            assert_eq!(turns.join(&[9, 2, 6, 8]), around);
            assert_eq!(turns.join(&[7]), [7, drawn[1]]);
            // The next epoch begins with another one.
            let next = turns.draw(task, &mut rng).to_vec();
            assert_ne!(next, drawn);
            assert_eq!(turns.join(&[0]), [0, next[0]]);
        });
    }

    #[test]
    fn an_epoch_draws_no_more_stand_ins_than_it_takes() {
        with_task(6, 20, |task| {
            let mut turns = Turns::new(task, 4);
            let mut seen = BTreeSet::new();
            for seed in 0..40 {
                let drawn = turns.draw(task, &mut ChaCha8Rng::seed_from_u64(seed));
                assert_eq!(drawn.len(), 6);
                seen.extend(drawn.iter().copied());
            }
            assert_eq!(seen, (6..26).collect());
        });
        with_task(6, 0, |task| {
            let mut turns = Turns::new(task, 4);
            assert!(
                turns
                    .draw(task, &mut ChaCha8Rng::seed_from_u64(0))
                    .is_empty()
            );
            assert_eq!(turns.join(&[5, 0]), [5, 0]);
        });
    }

    #[test]
    fn halves_hold_every_training_image_once_and_classes_evenly() {
        with_task(14, 4, |task| {
            let mut halves = Halves::new(task);
            halves.draw(task, &mut ChaCha8Rng::seed_from_u64(5));
            let [one, two] = &halves.halves;
            let all: BTreeSet<usize> = one.iter().chain(two).copied().collect();
            assert_eq!((one.len(), two.len()), (7, 7));
            assert_eq!(all, (0..14).collect());
            for half in [one, two] {
                let of_class = half.iter().filter(|&&k| task.labels[k] == 2).count();
                assert!((3..=4).contains(&of_class), "{half:?}");
            }
        });
    }
}
