//! What a block's passes need to work in: the list that memory is planned by and carved by.

use super::BlockShape;

/// A named part of the scratch slice, `[rows, cols]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    pub name: &'static str,
    pub rows: usize,
    pub cols: usize,
}

impl Buffer {
    const fn new(name: &'static str, rows: usize, cols: usize) -> Self {
        Self { name, rows, cols }
    }

    /// Number of floats.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a size in floats, not a container"
    )]
    pub const fn len(&self) -> usize {
        self.rows * self.cols
    }
}

/// The scratch of [`backward`], which is enough for every function here, in the order it lies there.
pub fn buffers(shape: &BlockShape) -> [Buffer; 6] {
    let (rows, tile) = (shape.rows(), shape.mlp_row_tile());
    let mlp = 2 * tile * (shape.dim + shape.mlp_column_tile());
    let attention = shape.attention().backward_scratch();
    [
        Buffer::new("norm 1 output", rows, shape.dim),
        Buffer::new("query, key, value", rows, 3 * shape.dim),
        Buffer::new("attention output", rows, shape.dim),
        Buffer::new("MLP tile or attention head", 1, mlp.max(attention)),
        Buffer::new("low-rank products", 2 * rows, shape.rank),
        Buffer::new("norm statistics", 2, rows + tile),
    ]
}

/// The scratch of [`forward`] and [`adapter_input`], in the order it lies there.
pub fn forward_buffers(shape: &BlockShape) -> [Buffer; 5] {
    let (rows, tile) = (shape.rows(), shape.mlp_row_tile());
    let mlp = tile * (shape.dim + shape.mlp_column_tile());
    let attention = shape.attention().forward_scratch();
    [
        Buffer::new("norm 1 output, then attention output", rows, shape.dim),
        Buffer::new("query, key, value", rows, 3 * shape.dim),
        Buffer::new("MLP tile or attention head", 1, mlp.max(attention)),
        Buffer::new("low-rank products", 2 * rows, shape.rank),
        Buffer::new("norm statistics", 2, rows),
    ]
}

/// Floats of scratch that every function here can run with.
pub fn scratch_len(shape: &BlockShape) -> usize {
    buffers(shape).iter().map(Buffer::len).sum()
}

/// Floats of scratch for [`forward`] and [`adapter_input`] alone, where nothing is trained.
pub fn forward_scratch_len(shape: &BlockShape) -> usize {
    forward_buffers(shape).iter().map(Buffer::len).sum()
}

/// Cuts `scratch` into the parts that `buffers` lists.
pub(super) fn carve<'a, const N: usize>(
    buffers: &[Buffer; N],
    scratch: &'a mut [f32],
) -> [&'a mut [f32]; N] {
    let mut rest = scratch;
    buffers.map(|buffer| {
        assert!(
            buffer.len() <= rest.len(),
            "block scratch is too short for its {}",
            buffer.name
        );
        let (part, remaining) = std::mem::take(&mut rest).split_at_mut(buffer.len());
        rest = remaining;
        part
    })
}
