//! The head: a streaming linear discriminant analysis that names the class of a feature vector.
//!
//! A feature vector is the concatenation of `parts` vectors of `dim` floats, one part a tap and
//! pooling. [`Statistics`] holds what was learned: a count and a mean per component (one class of
//! one task) and, per part, one covariance shared by all of them. [`Classifier`] is fitted from
//! statistics in closed form, [`Calibration`] turns its scores into
//! probabilities, and [`Novelty`] with a [`Sketch`] of that of images left out says when an image is
//! like nothing that was learned.

mod accumulate;
mod by_part;
mod calibration;
mod cholesky;
mod classifier;
mod drift;
mod factor;
mod fit;
mod forget;
mod layout;
mod novelty;
mod pool;
mod reject;
mod relative;
mod retake;
mod shelve;
mod shrinkage;
mod statistics;
mod transport;

pub use by_part::Strangeness;
pub use calibration::{Calibration, Temperature, probabilities};
pub use classifier::Classifier;
pub use factor::Factor;
pub(crate) use factor::TILE;
pub(crate) use fit::solver_floats;
pub use fit::{PartFit, Workspace};
pub use layout::{ClassId, Layout, TaskId};
pub use novelty::{ImageNovelty, Novelties, Novelty};
pub use reject::{Mahalanobis, Sketch};
pub use relative::RelativeMahalanobis;
pub use retake::Retaking;
pub use shrinkage::Shrinkage;
pub use statistics::{Component, Statistics};
pub use transport::Transport;

use crate::data::CacheError;

/// What can go wrong in the head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error(
        "feature vector {image} has no usable number at position {position} (NaN, infinite or \
         beyond {limit:e}); check the image, and the model's file with `fledge model get`",
        limit = layout::MAX_MAGNITUDE
    )]
    NotFinite { image: usize, position: usize },
    #[error(
        "{what}: expected {expected} values, got {found}; check taps and classes against the state"
    )]
    Shape {
        what: &'static str,
        expected: usize,
        found: usize,
    },
    #[error("class {class} of task {task} is not among what was learned")]
    UnknownComponent { class: ClassId, task: TaskId },
    #[error(
        "class {class} of task {task} has no scatter factor, so it can neither grow nor be \
         removed exactly; restore an older state file or learn again"
    )]
    NoFactor { class: ClassId, task: TaskId },
    #[error("what was learned waits on disk, and {0}")]
    Disk(String),
    #[error("nothing has been learned yet; learn a task first")]
    Empty,
    #[error("the components changed since the classifier was fitted; fit it again from the start")]
    ComponentsChanged,
    #[error("shrinkage must lie between 0 and 1")]
    Shrinkage,
    #[error("the stored statistics are damaged: {0}; restore an older state file or learn again")]
    Damaged(&'static str),
}

impl From<CacheError> for HeadError {
    fn from(error: CacheError) -> Self {
        Self::Disk(error.to_string())
    }
}

#[cfg(test)]
mod tests;
