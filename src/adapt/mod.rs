//! What adapts: F-LoRA matrices in shared low-rank bases, and prompt tokens.
//!
//! FM-LoRA (arXiv 2504.08823) adds `A C B^T` to frozen projections. The first task learns the bases
//! A and B; from then on they are frozen and orthonormal, and each task t adds `M_t N_t^T` to the
//! core C, so that all tasks together cost one `[r, r]` matrix a projection at inference.

mod flora;
mod rank;

pub use flora::{Adapters, Projection, Site, TaskCore};
pub use rank::{CANDIDATES, Draw, RankChoice, RankSelector};
