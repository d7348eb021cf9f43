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
    pub const fn new(name: &'static str, rows: usize, cols: usize) -> Self {
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

/// The scratch of [`backward`](super::backward), which is enough for every function here, in
/// the order it lies there; less of it where the forward pass [kept](super::Kept) its insides.
pub fn buffers(shape: &BlockShape, kept: bool) -> [Buffer; 6] {
    let (rows, tile) = (shape.rows(), shape.mlp_row_tile());
    let mlp = mlp_parts(shape, tile, shape.mlp_column_tile(), kept);
    let attention = shape.attention().backward_scratch();
    let computed = if kept { 0 } else { rows };
    [
        Buffer::new("norm 1 output", rows, shape.dim),
        Buffer::new("query, key, value", computed, 3 * shape.dim),
        Buffer::new("attention output", rows, shape.dim),
        Buffer::new(
            "MLP tile or attention head",
            1,
            mlp.iter().sum::<usize>().max(attention),
        ),
        Buffer::new("low-rank products", 2 * rows, shape.rank),
        Buffer::new("norm statistics", 2, rows + tile),
    ]
}

/// Floats of what the MLP's gradient works in, for so many rows and hidden columns: x1, norm 2's
/// output, hidden and its gradient. What is kept is read where it lies, but for a tile of columns.
pub(super) fn mlp_parts(shape: &BlockShape, rows: usize, columns: usize, kept: bool) -> [usize; 4] {
    let (x1, hidden) = match kept {
        true if columns == shape.hidden => (0, 0),
        true => (0, columns),
        false => (shape.dim, columns),
    };
    [x1, shape.dim, hidden, columns].map(|width| rows * width)
}

/// The scratch of [`forward`](super::forward), in the order it lies there; less of it where the insides
/// are [kept](super::Kept).
pub fn forward_buffers(shape: &BlockShape, kept: bool) -> [Buffer; 5] {
    let (rows, tile) = (shape.rows(), shape.mlp_row_tile());
    let mlp = tile * (shape.dim + shape.mlp_column_tile());
    let attention = shape.attention().forward_scratch();
    let computed = if kept { 0 } else { rows };
    [
        Buffer::new("norm 1 output, then attention output", rows, shape.dim),
        Buffer::new("query, key, value", computed, 3 * shape.dim),
        Buffer::new("MLP tile or attention head", 1, mlp.max(attention)),
        Buffer::new("low-rank products", 2 * rows, shape.rank),
        Buffer::new("norm statistics", 2, rows),
    ]
}

/// Floats of scratch that every function here can run with, where insides are kept or are not: what the
/// backward pass takes is enough for the forward one.
pub fn scratch_len(shape: &BlockShape, kept: bool) -> usize {
    buffers(shape, kept).iter().map(Buffer::len).sum()
}

/// Floats of scratch for [`forward`](super::forward) alone, where nothing is trained.
pub fn forward_scratch_len(shape: &BlockShape) -> usize {
    forward_buffers(shape, false).iter().map(Buffer::len).sum()
}

/// Cuts the first parts of so many floats off `memory`.
pub(super) fn split<const N: usize>(memory: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = memory;
    lens.map(|len| {
        let (part, remaining) = std::mem::take(&mut rest).split_at_mut(len);
        rest = remaining;
        part
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gemm::Accuracy;
    use crate::vit::Activation;

    const SHAPE: BlockShape = BlockShape {
        images: 2,
        tokens: 5,
        dim: 12,
        heads: 3,
        hidden: 20,
        rank: 2,
        norm_eps: 1e-6,
        activation: Activation::Gelu,
        accuracy: Accuracy::Full,
        mlp_rows: usize::MAX,
        mlp_columns: usize::MAX,
        attention_rows: usize::MAX,
    };

    #[test]
    fn smaller_tiles_need_less_scratch() {
        let tiled = BlockShape {
            mlp_rows: 3,
            mlp_columns: 4,
            attention_rows: 2,
            ..SHAPE
        };
        assert!(scratch_len(&tiled, false) < scratch_len(&SHAPE, false));
        assert!(forward_scratch_len(&tiled) < forward_scratch_len(&SHAPE));
        assert!(forward_scratch_len(&SHAPE) < scratch_len(&SHAPE, false));
        assert!(scratch_len(&SHAPE, true) < scratch_len(&SHAPE, false));
    }

    #[test]
    fn parts_lie_one_after_the_other_in_the_listed_order() {
        let mut scratch: Vec<f32> = (0..scratch_len(&SHAPE, false)).map(|i| i as f32).collect();
        let parts = carve(&buffers(&SHAPE, false), &mut scratch);
        let mut start = 0;
        for (part, buffer) in parts.iter().zip(buffers(&SHAPE, false)) {
            assert_eq!((part.len(), part[0]), (buffer.len(), start as f32));
            start += buffer.len();
        }
    }

    #[test]
    #[should_panic(expected = "too short for its norm statistics")]
    fn a_short_scratch_names_the_part_that_does_not_fit() {
        let mut scratch = vec![0.0; scratch_len(&SHAPE, false) - 1];
        let _ = carve(&buffers(&SHAPE, false), &mut scratch);
    }
}
