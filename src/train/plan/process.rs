//! What the whole process takes: the frozen blocks that it reads, the program, and what is planned.
//!
//! It is kept within a quarter more than the weights where a budget allows that at all, by giving
//! the pages of some blocks back while they wait ([`Stack::in_turns`](crate::train::stack::Stack)).

use super::Demand;
use crate::vit::weights_bytes;

/// The program itself, stacks, and what the C library keeps between allocations.
pub(super) const PROGRAM_BYTES: usize = 15 << 20;
/// How much more than that `benches/memory.sh` has seen.
const SLACK_BYTES: usize = 3 << 20;

/// How many blocks at either end take turns while so many workers train within `bytes`; none where
/// the process would be too large all the same.
pub(super) fn blocks_in_turns(demand: &Demand, workers: usize, bytes: usize) -> Option<usize> {
    let (weights, block) = weights_bytes(&demand.geometry);
    let (most, blocks) = (weights + weights / 4, demand.blocks());
    let whole = bytes + PROGRAM_BYTES + SLACK_BYTES + blocks * block;
    // Several workers are at a block each, so all blocks are in use.
    let in_turns = if workers > 1 { 0 } else { blocks / 4 };
    (0..=in_turns).find(|turns| whole <= most + turns * block)
}
