//! What a limit on memory asks of the process: fewer heaps, and work that is refused before it
//! begins rather than ended midway.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fledge::board::{Machine, TooLittleMemory};
use fledge::train::plan::Budget;

/// What tells the C library how many heaps to keep.
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// Starts this program anew with a single heap, where address space is limited and nobody said
/// otherwise: the C library reserves 64 MiB of addresses for a heap of each thread, a quarter of
/// the 256 MiB that have to do, and reads the setting only when a program begins.
#[cfg(unix)]
pub fn keep_one_heap_under_a_limit() {
    use std::os::unix::process::CommandExt;
    if env::var_os(HEAPS).is_some() || Machine::here().address_space_limit().is_none() {
        return;
    }
    let mut arguments = env::args_os();
    if let (Ok(program), Some(name)) = (env::current_exe(), arguments.next()) {
        // Returns only when it fails, and then the heaps stay as they are.
        let _ = Command::new(program)
            .arg0(name)
            .args(arguments)
            .env(HEAPS, "1")
            .exec();
    }
}

#[cfg(not(unix))]
pub fn keep_one_heap_under_a_limit() {}

/// What memory is wanted for.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    Learning {
        threads: usize,
        budget: Budget,
    },
    Using {
        threads: usize,
        /// Images in work at a time.
        at_once: usize,
    },
}

const MIB: u64 = 1 << 20;
/// What each thread takes that encodes images to learn from.
const ENCODING: u64 = 12 * MIB;
/// What a picture in work is taken to need.
const PICTURE: u64 = 6 * MIB;

impl Work {
    /// What makes [`Work::heap`] smaller.
    fn remedy(self) -> &'static str {
        match self {
            Self::Learning { threads, budget }
                if budget.bytes() as u64 > ENCODING * threads as u64 =>
            {
                "use a smaller --budget"
            }
            Self::Learning { threads: 2.., .. } => "use fewer --threads",
            Self::Using { threads: 2.., .. } => "use fewer `threads`, which the configuration sets",
            Self::Learning { .. } | Self::Using { .. } => "use a model with fewer weights",
        }
    }

    /// Bytes of heap and stacks besides a state of `state` bytes. A fifth of it, more than what is kept of it in
    /// memory, counts in the budget of learning, and makes one grow. Measured with the default model and rounded up, see firmware-config/README.md.
    fn heap(self, state: u64) -> u64 {
        match self {
            // Images are encoded before training begins.
            Self::Learning { threads, budget } => {
                let grown = if budget.grows() { state / 5 } else { 0 };
                20 * MIB + (ENCODING * threads as u64).max(budget.bytes() as u64 + grown)
            }
            Self::Using { threads, at_once } => {
                6 * MIB + 2 * MIB * threads as u64 + PICTURE * at_once as u64 + state
            }
        }
    }
}

/// A refusal, and what takes less.
#[derive(Debug, thiserror::Error)]
#[error("{refused}, or {remedy}")]
pub struct Refused {
    refused: TooLittleMemory,
    remedy: &'static str,
}

/// Says now, rather than being ended midway, that a memory limit does not suffice for `work` with
/// the model in the file `weights`, which gets mapped, and what was read from the file `state`.
/// Returns what is left beside it, where anything bounds it.
pub fn foresee(work: Work, weights: &Path, state: &Path) -> Result<Option<u64>, Refused> {
    let checked = check(bytes(weights), work.heap(bytes(state)));
    checked.map_err(|refused| Refused {
        refused,
        remedy: work.remedy(),
    })
}

/// The same for reading the state file `state`, whose bytes are held beside what is made of them. Which of the
/// files `models` it needs is known once it is read: a refusal allows for the largest, so that the limit it names suffices.
pub fn foresee_reading(work: Work, models: &[PathBuf], state: &Path) -> Result<(), Refused> {
    let reading = 2 * bytes(state) + 2 * MIB;
    if check(0, reading).is_ok() {
        return Ok(());
    }
    let largest = models.iter().map(|model| bytes(model)).max();
    // By then what was read is in use, and [`foresee`] counts from there.
    let checked = check(largest.unwrap_or(0), work.heap(bytes(state)) + reading);
    checked.map(drop).map_err(|refused| Refused {
        refused,
        remedy: work.remedy(),
    })
}

/// Bytes that decoding a picture may take where `at_once` are in work, of what [`foresee`] found to be left.
pub fn for_a_picture(left: Option<u64>, at_once: usize) -> usize {
    let share = left.map(|left| PICTURE + left / at_once as u64);
    share.map_or(usize::MAX, |bytes| bytes.try_into().unwrap_or(usize::MAX))
}

/// A file that is not there is an error of its own, and needs no memory.
fn bytes(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |file| file.len())
}

fn check(mapped: u64, heap: u64) -> Result<Option<u64>, TooLittleMemory> {
    let limit = Machine::here().memory_limit();
    limit.map(|limit| limit.check(mapped, heap)).transpose()
}
