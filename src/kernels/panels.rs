//! Frozen matrices in the order a product reads them: panels of [`WIDTH`] columns, each panel row by
//! row, the last one filled up with zeros.
//!
//! A product goes through its right side a few columns at a time. In a row-major matrix these are
//! short pieces far apart; in panels they are one stream, which the processor fetches ahead and which
//! needs no packing (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
//! 2008, section 4.2.3, with the packing done once, when the model is imported).

use std::ops::Range;

/// Columns of a panel: the widest register tile of any kernel, and a multiple of the narrower ones.
pub const WIDTH: usize = 32;

/// A read-only matrix in panels, or its transpose.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    /// From the first element on.
    data: &'a [f32],
    rows: usize,
    cols: usize,
    /// Floats between one panel and the next.
    stride: usize,
}

/// The transpose of a matrix in panels: what a gradient goes back through.
#[derive(Debug, Clone, Copy)]
pub struct PanelsT<'a>(pub(super) Panels<'a>);

impl<'a> Panels<'a> {
    /// Floats that `[rows, cols]` takes in panels.
    pub const fn len(rows: usize, cols: usize) -> usize {
        rows * cols.next_multiple_of(WIDTH)
    }

    /// `[rows, cols]` of what [`Panels::pack`] made.
    ///
    /// # Panics
    /// When `data` does not have [`Panels::len`] floats.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        let padded = cols.checked_next_multiple_of(WIDTH);
        assert_eq!(
            Some(data.len()),
            padded.and_then(|padded| padded.checked_mul(rows)),
            "panels have the wrong length"
        );
        Self {
            data,
            rows,
            cols,
            stride: rows * WIDTH,
        }
    }

    /// The panels of a row-major matrix `[rows, cols]`.
    ///
    /// # Panics
    /// When `matrix` has another length.
    pub fn pack(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        assert_eq!(matrix.len(), rows * cols, "matrix has the wrong length");
        let mut packed = Vec::with_capacity(Self::len(rows, cols));
        for first in (0..cols).step_by(WIDTH) {
            for row in matrix.chunks_exact(cols) {
                let valid = &row[first..cols.min(first + WIDTH)];
                packed.extend_from_slice(valid);
                packed.resize(packed.len() + WIDTH - valid.len(), 0.0);
            }
        }
        packed
    }

    /// The row-major matrix `[rows, cols]`.
    pub fn unpack(self) -> Vec<f32> {
        let elements = (0..self.rows * self.cols).map(|i| self.at(i / self.cols, i % self.cols));
        elements.collect()
    }

    /// The transpose, without moving data.
    pub fn t(self) -> PanelsT<'a> {
        PanelsT(self)
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn rows_of(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        Self {
            data: &self.data[rows.start * WIDTH..],
            rows: rows.len(),
            ..self
        }
    }

    /// Some of the columns, from the start of a panel on.
    ///
    /// # Panics
    /// When there are fewer, or the first does not start a panel.
    pub fn columns_of(self, columns: Range<usize>) -> Self {
        assert!(columns.start <= columns.end && columns.end <= self.cols);
        assert!(
            columns.start.is_multiple_of(WIDTH),
            "columns start inside a panel"
        );
        Self {
            data: &self.data[columns.start / WIDTH * self.stride..],
            cols: columns.len(),
            ..self
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Each panel: its first column, and from its first element on as far as the data goes.
    pub(super) fn iter(self) -> impl Iterator<Item = (usize, &'a [f32])> {
        let starts = (0..self.cols).step_by(WIDTH);
        starts.map(move |first| (first, &self.data[first / WIDTH * self.stride..]))
    }

    pub(crate) fn data(&self) -> &'a [f32] {
        self.data
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Element `(i, j)`.
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        self.data[j / WIDTH * self.stride + i * WIDTH + j % WIDTH]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn panels_hold_the_matrix(rows in 1usize..9, cols in 1usize..80) {
            let matrix: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
            let packed = Panels::pack(&matrix, rows, cols);
            prop_assert_eq!(Panels::new(&packed, rows, cols).unpack(), matrix);
        }

        #[test]
        fn a_part_holds_those_rows_and_columns(rows in 2usize..9, panels in 1usize..4, short in 1usize..WIDTH) {
            let cols = panels * WIDTH + short;
            let matrix: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
            let packed = Panels::pack(&matrix, rows, cols);
            let part = Panels::new(&packed, rows, cols)
                .columns_of((panels - 1) * WIDTH..cols - 1)
                .rows_of(1..rows);
            prop_assert_eq!((part.rows(), part.cols()), (rows - 1, WIDTH + short - 1));
            for i in 0..part.rows() {
                for j in 0..part.cols() {
                    prop_assert_eq!(part.at(i, j), matrix[(i + 1) * cols + (panels - 1) * WIDTH + j]);
                }
            }
        }
    }
}
