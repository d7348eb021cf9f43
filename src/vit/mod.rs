//! The frozen Vision Transformer: its import from ONNX, its geometry, its memory-mapped weights,
//! and the prefix of blocks that tract runs.

mod geometry;
pub mod import;
pub mod positions;
mod prefix;
pub mod reference;
pub mod store;
#[allow(unsafe_code)]
mod weights;

pub use geometry::{Activation, Geometry, Pixels};
pub(crate) use prefix::MLP_ROWS;
pub use prefix::{Prefix, PrefixError, check_resolution};
pub(crate) use weights::weights_bytes;
pub use weights::{
    BlockWeights, ContentHash, EmbeddingWeights, NormWeights, Preprocessing, Tensors, Weights,
    WeightsError,
};
