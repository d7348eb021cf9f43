//! What follows training: the head is judged, the old classes' statistics follow the features, and
//! the task is learned for good. One part of the head at a time.

use super::{Demand, List, PlannedBuffer, Turn};
use crate::head::{self, Transport};

/// Bytes of a component beside its mean: names, counts, and what says where its factors are.
const COMPONENT_BYTES: usize = 1024;

impl Demand {
    pub(super) fn closing(&self) -> Vec<PlannedBuffer> {
        let mut list = List::of(Turn::Closing);
        self.after_encoding(&mut list);
        self.new_head(&mut list);
        let (dim, width) = (self.geometry.dim, self.width());
        let parts = 2 * self.taps.len();
        let packed = dim * (dim + 1) / 2;
        let name = "head: class means of the task";
        list.floats(name, &[self.task_classes, width], 1);
        let name = "head: weights and offsets";
        list.floats(name, &[self.classes, width + 2 * parts], 1);
        list.floats("head: covariance of one part", &[dim, dim], 1);
        list.floats("head: scatter of one part", &[packed], 1);
        list.floats("head: solving", &[head::solver_floats(dim)], 1);
        let name = "head: deviations of a class, and images of it";
        list.floats(name, &[2, self.rows() + 64, dim], 1);
        let name = "head: between the means";
        list.floats(name, &[self.classes, self.classes], 1);
        list.floats("head: features of images", &[3, width], 1);
        let name = "lists and scores of images";
        list.floats(name, &[self.images, 20 + self.classes], 1);

        if !self.later {
            return list.1;
        }
        let mut moving = List::of(Turn::Moving);
        self.after_encoding(&mut moving);
        self.new_head(&mut moving);
        moving.floats("how features move, fitted", &[Transport::floats(dim)], 1);
        moving.floats("head: scatter of one part", &[packed], 1);
        let name = "head: deviations of a class, and as they were";
        moving.floats(name, &[3, self.rows(), dim], 1);
        [list.1, moving.1].concat()
    }

    /// Most deviations of a class that are looked at together.
    fn rows(&self) -> usize {
        (self.largest_class + head::TILE).min(self.geometry.dim + head::TILE)
    }

    /// The head as it will be; as it was, it is there until all is done.
    fn new_head(&self, list: &mut List) {
        let shape = format!(
            "{} bytes and [{}, {}] f32",
            self.known_head,
            self.task_classes,
            self.width()
        );
        list.add("class means as they will be", shape, self.new_head_bytes());
    }

    pub(super) fn new_head_bytes(&self) -> usize {
        self.known_head + self.task_classes * (4 * self.width() + COMPONENT_BYTES)
    }
}
