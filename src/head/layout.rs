//! The shape of a feature vector, and the names of what is learned from it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::HeadError;
use super::factor::packed_row;

/// A class, numbered by the caller.
pub type ClassId = u32;
/// A task (or domain), numbered by the caller.
pub type TaskId = u32;

/// Features beyond this are refused: their squares would leave f32 in the sums.
pub(super) const MAX_MAGNITUDE: f32 = 1e12;

/// Shape of a feature vector: `parts` vectors of `dim` floats, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub parts: usize,
    pub dim: usize,
}

impl Layout {
    /// Floats in a feature vector.
    pub fn width(&self) -> usize {
        self.parts * self.dim
    }

    /// Where a part lies in a feature vector.
    pub fn part(&self, part: usize) -> Range<usize> {
        part * self.dim..(part + 1) * self.dim
    }

    /// Floats in the packed lower triangle of one part's scatter.
    pub fn packed(&self) -> usize {
        packed_row(self.dim)
    }

    /// Checks features of one part of an image.
    ///
    /// # Errors
    /// As [`Layout::check`].
    pub(super) fn check_part(
        &self,
        features: &[f32],
        image: usize,
        part: usize,
    ) -> Result<(), HeadError> {
        let one = Self { parts: 1, ..*self };
        match one.check(features) {
            Err(HeadError::NotFinite { position, .. }) => Err(HeadError::NotFinite {
                image,
                position: self.part(part).start + position,
            }),
            checked => checked.map(|_| ()),
        }
    }

    /// Checks `[n, width]` features and returns n.
    ///
    /// # Errors
    /// [`HeadError::Shape`] when the length is no multiple of the width,
    /// [`HeadError::NotFinite`] when a value is NaN, infinite or absurdly large.
    pub fn check(&self, features: &[f32]) -> Result<usize, HeadError> {
        let width = self.width();
        if width == 0 || !features.len().is_multiple_of(width) {
            return Err(HeadError::Shape {
                what: "feature vector",
                expected: width,
                found: features.len(),
            });
        }
        let usable = -MAX_MAGNITUDE..=MAX_MAGNITUDE;
        match features.iter().position(|v| !usable.contains(v)) {
            Some(at) => Err(HeadError::NotFinite {
                image: at / width,
                position: at % width,
            }),
            None => Ok(features.len() / width),
        }
    }
}
