//! What a method under comparison does, whatever it is.

use crate::learner::{EncodedTask, LearnError};

/// A method at work on one sequence of tasks.
pub(super) trait Contender {
    /// Learns the next task.
    fn learn(&mut self, task: &EncodedTask<'_>) -> Result<Learned, LearnError>;

    /// Names of the classes that the images behind `records` are taken for.
    fn classify(&mut self, records: &[usize]) -> Result<Vec<String>, LearnError>;
}

/// What a task cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Learned {
    /// Numbers added to adapters, prompts and a trained head.
    pub parameters: usize,
    /// Bytes added to what must be kept, statistics included.
    pub bytes: usize,
    /// Rank of what was added to each adapted matrix, where one was chosen or given.
    pub rank: Option<usize>,
}
