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
