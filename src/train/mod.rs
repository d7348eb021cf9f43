//! Learning by gradient: the adapted blocks forward and backward, the optimiser, the epochs.

pub mod adam;
pub mod bench;
pub mod block;
mod draws;
pub mod features;
pub mod fit;
pub mod frozen;
pub mod judge;
pub mod lesson;
pub mod novelty;
pub mod objective;
pub mod parameters;
pub mod plan;
pub mod saved;
pub mod selection;
pub mod stack;
pub mod stand_ins;
pub mod target;
pub mod token_drop;
pub mod trainer;
mod worker;
