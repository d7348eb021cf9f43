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
    let whole = bytes + PROGRAM_BYTES + blocks * block;
    if workers > 1 {
        // Each of them is at another block, so all blocks are in use.
        return (whole <= most).then_some(0);
    }
    (0..=blocks / 4).find(|turns| whole + SLACK_BYTES <= most + turns * block)
}
