//! Features of a task's images, on disk while the task is learned.

use std::ops::Range;

use crate::data::{CacheError, RowFile};

/// Features of every image of a task, `[images, F]`, kept current while training. They wait in a
/// file: 15 KB an image at the default settings would soon be more than all the rest.
#[derive(Debug)]
pub struct Features(RowFile);

impl Features {
    /// Zeros.
    ///
    /// # Errors
    /// When there is no room for the file.
    pub fn new(images: usize, width: usize) -> Result<Self, CacheError> {
        RowFile::create(images, width).map(Self)
    }

    /// Floats in one image's features.
    pub fn width(&self) -> usize {
        self.0.width()
    }

    /// Reads the features of one image, `[F]`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, image: usize, out: &mut [f32]) -> Result<(), CacheError> {
        self.0.read(image, 0..self.width(), out)
    }

    /// Reads some columns of the features of one image.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read_part(
        &self,
        image: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CacheError> {
        self.0.read(image, columns, out)
    }

    /// Reads the features of the first `images` images, `[images, F]`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn rows(&self, images: usize) -> Result<Vec<f32>, CacheError> {
        let mut rows = vec![0.0; images * self.width()];
        for (image, row) in rows.chunks_exact_mut(self.width()).enumerate() {
            self.read(image, row)?;
        }
        Ok(rows)
    }

    pub(super) fn write(&self, image: usize, features: &[f32]) -> Result<(), CacheError> {
        self.0.write(image, 0, features)
    }

    /// The features as they are now, to compare with later.
    ///
    /// # Errors
    /// When there is no room for another file.
    pub fn snapshot(&self) -> Result<Self, CacheError> {
        self.0.copy().map(Self)
    }
}
