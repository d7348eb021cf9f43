//! What was learned, and the one file it lives in.

mod claim;
mod file;
mod forget;
mod stream;

use serde::{Deserialize, Serialize};

pub use claim::{Claim, claim};
pub use file::{
    Revision, StateError, check_room, check_writable, encode, open, read, revision, write,
};
pub use forget::{Forget, ForgetError, Forgotten};

pub(crate) use stream::StreamError;

use crate::adapt::{Adapters, RankSelector, TaskCore};
use crate::data::TokenMean;
use crate::head::{Calibration, ClassId, Factor, Novelties, Statistics, TaskId};
use crate::vit::{ContentHash, Pixels};

/// Everything fledge knows, as the state file holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Knowledge {
    pub model: ModelIdentity,
    /// Side of the square images everything was learned at.
    pub resolution: Pixels,
    /// Taps whose features the head reads, ascending; tap k is the stream after k blocks.
    pub taps: Vec<usize>,
    /// First adapted block, from 0; all blocks behind it are adapted too.
    pub first_adapted: usize,
    pub adapters: Adapters,
    /// What was learned about the ranks that tasks need.
    pub ranks: RankSelector,
    pub head: Statistics,
    pub calibration: Calibration,
    /// Class names; a [`ClassId`] is an index into them.
    pub classes: Vec<String>,
    /// Tasks in the order they were learned.
    pub tasks: Vec<TaskRecord>,
}

/// Which model a state belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    pub name: String,
    pub hash: ContentHash,
}

/// One learned task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Ascending; it stays what it is when another task is forgotten.
    pub id: TaskId,
    pub name: String,
    /// What it taught, one entry a class.
    pub classes: Vec<TaughtClass>,
    /// Seconds since 1970 when it was learned.
    pub learned_at: u64,
    /// Whether its gradient update was kept; without, only the head learned.
    pub adapted: bool,
    /// Rank of the task's M and N, 0 where the cores did not change.
    pub rank: usize,
    /// What the task added to the cores, one a site, in the bases as they were then: a record of what was
    /// learned, which nothing is computed from.
    pub cores: Vec<TaskCore>,
    /// How unfamiliar each of its images was to a head without it.
    pub novelties: Novelties,
}

/// A class as one task showed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaughtClass {
    pub class: ClassId,
    /// Number of its images.
    pub images: u32,
    /// Their mean where the frozen blocks end: stand-ins for them are made with it.
    pub tokens: TokenMean,
}

impl TaskRecord {
    /// Images it was learned from.
    pub fn images(&self) -> u64 {
        self.classes
            .iter()
            .map(|taught| u64::from(taught.images))
            .sum()
    }
}

impl Knowledge {
    /// How many blocks carry adapters.
    pub fn adapted_blocks(&self) -> usize {
        let blocks = self.adapters.sites.last().map_or(0, |site| site.block + 1);
        blocks.saturating_sub(self.first_adapted)
    }

    /// Bytes that one task takes: its cores, its share of the head and its mean tokens.
    pub fn task_bytes(&self, task: &TaskRecord) -> usize {
        let components = self.head.components().iter().filter(|c| c.task == task.id);
        let head: usize = components
            .map(|c| 4 * c.mean.len() + c.factor.as_ref().map_or(0, Factor::bytes))
            .sum();
        let numbers: usize = task
            .cores
            .iter()
            .map(|core| core.m.len() + core.n.len())
            .sum();
        let tokens: usize = task.classes.iter().map(|c| c.tokens.bytes()).sum();
        head + 4 * numbers + tokens
    }

    /// Bytes in memory beside the adapters, with scatter and factors of the head on disk.
    pub fn memory(&self) -> usize {
        let tasks = self.tasks.iter().map(|task| {
            let cores = task
                .cores
                .iter()
                .map(|core| size_of::<TaskCore>() + 4 * (core.m.len() + core.n.len()));
            let classes = task.classes.iter();
            let classes: usize = classes
                .map(|taught| size_of::<TaughtClass>() + taught.tokens.bytes())
                .sum();
            // A vector grows by doubling.
            2 * size_of::<TaskRecord>() + task.name.len() + classes + cores.sum::<usize>()
        });
        let names = self.classes.iter();
        let names: usize = names
            .map(|name| 3 * (size_of::<String>() + name.len()))
            .sum();
        self.head.memory() + tasks.sum::<usize>() + names
    }

    /// The id that the next task gets.
    pub fn next_task(&self) -> TaskId {
        self.tasks
            .last()
            .map_or(0, |task| task.id.saturating_add(1))
    }

    /// The id of a class name, if it is known.
    pub fn class(&self, name: &str) -> Option<ClassId> {
        let index = self.classes.iter().position(|known| known == name)?;
        u32::try_from(index).ok()
    }
}
