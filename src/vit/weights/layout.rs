//! Which tensors a model file holds, in which order and form.

use crate::kernels::panels::Panels;
use crate::vit::Geometry;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// So many numbers, as they are.
    Plain(usize),
    /// `[rows, cols]` in panels.
    Panels(usize, usize),
}

impl Stored {
    /// Numbers of the tensor itself.
    pub(super) fn given(self) -> usize {
        match self {
            Self::Plain(len) => len,
            Self::Panels(rows, cols) => rows * cols,
        }
    }

    /// Numbers in the file.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Plain(len) => len,
            Self::Panels(rows, cols) => Panels::len(rows, cols),
        }
    }
}

/// All tensors in file order: embedding, blocks, final norm.
pub(super) fn layout(g: &Geometry) -> Vec<Stored> {
    use Stored::{Panels, Plain};
    let d = g.dim;
    let mut tensors = vec![
        Panels(3 * g.patch * g.patch, d),
        Plain(d),
        Plain(d),
        Plain(g.registers * d),
        Plain(g.position_grid * g.position_grid * d),
    ];
    for _ in 0..g.depth {
        tensors.extend([
            Plain(d),
            Plain(d),
            Panels(d, 3 * d),
            Plain(3 * d),
            Panels(d, d),
            Plain(d),
            Plain(d),
            Plain(d),
            Panels(d, g.hidden),
            Plain(g.hidden),
            Panels(g.hidden, d),
            Plain(d),
        ]);
    }
    tensors.extend([Plain(d), Plain(d)]);
    tensors
}

/// Bytes of all weights of such a model, and of one block.
pub(crate) fn weights_bytes(geometry: &Geometry) -> (usize, usize) {
    let bytes = |tensors: &[Stored]| -> usize {
        let floats = tensors.iter().map(|stored| stored.len());
        floats.map(|len| len * size_of::<f32>()).sum()
    };
    let tensors = layout(geometry);
    let block = &tensors[EMBEDDING_TENSORS..];
    (
        bytes(&tensors),
        bytes(&block[..BLOCK_TENSORS.min(block.len())]),
    )
}

pub(super) const EMBEDDING_TENSORS: usize = 5;
pub(super) const BLOCK_TENSORS: usize = 12;
