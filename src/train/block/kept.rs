//! What a forward pass may keep for the backward pass, where there is memory for it.

use std::ops::Range;

use super::BlockShape;

/// The insides of a block that cost most to compute again: two thirds of its products.
#[derive(Debug)]
pub struct Kept<'a> {
    /// Query, key and value, `[rows, 3 D]`.
    pub(super) qkv: &'a mut [f32],
    /// The stream behind attention, `[rows, D]`.
    pub(super) x1: &'a mut [f32],
    /// The hidden layer in front of its activation, `[rows, hidden]`.
    pub(super) hidden: &'a mut [f32],
}

impl<'a> Kept<'a> {
    /// Floats for one row, that is for one token.
    pub const fn row(dim: usize, hidden: usize) -> usize {
        4 * dim + hidden
    }

    /// Lays it out in `memory`.
    ///
    /// # Panics
    /// When that has fewer than [`Kept::row`] floats for each of the shape's rows.
    pub fn new(shape: &BlockShape, memory: &'a mut [f32]) -> Self {
        let (rows, dim) = (shape.rows(), shape.dim);
        let (qkv, rest) = memory.split_at_mut(3 * rows * dim);
        let (x1, rest) = rest.split_at_mut(rows * dim);
        let hidden = &mut rest[..rows * shape.hidden];
        Self { qkv, x1, hidden }
    }
}

/// Writes `columns` of a matrix whose rows are `width` long: from `[rows, columns]`.
pub(super) fn store_columns(from: &[f32], to: &mut [f32], width: usize, columns: &Range<usize>) {
    let rows = from.chunks_exact(columns.len());
    for (from, to) in rows.zip(to.chunks_exact_mut(width)) {
        to[columns.clone()].copy_from_slice(from);
    }
}

/// Reads what [`store_columns`] wrote: to `[rows, columns]`.
pub(super) fn load_columns(from: &[f32], width: usize, columns: &Range<usize>, to: &mut [f32]) {
    let rows = to.chunks_exact_mut(columns.len());
    for (to, from) in rows.zip(from.chunks_exact(width)) {
        to.copy_from_slice(&from[columns.clone()]);
    }
}
