//! What adapts: F-LoRA matrices in shared low-rank bases, and prompt tokens.
//!
//! FM-LoRA (arXiv 2504.08823) adds `A C B^T` to frozen projections. The first task learns the bases
//! A and B, which are orthonormal from then on; each later task t adds `M_t N_t^T` to the core C, so
//! that all tasks together cost one `[r, r]` matrix a projection at inference. In the paper A and B
//! then stand still; here they learn on in later tasks, held by the scores of all known classes
//! (`docs/method.md` tells why).

mod flora;
mod orthonormal;
mod rank;

pub use flora::{Adapters, Projection, Site, TaskCore};
pub use rank::{CANDIDATES, Draw, RankChoice, RankSelector};
