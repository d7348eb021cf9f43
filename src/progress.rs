//! How long work reports on itself. The library never prints: it tells a [`Progress`] what it is
//! doing, and whoever embeds it decides what to show.

use std::fmt;

/// One leg of a long job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Fetching the model; steps are bytes, or unknown (a total of 0).
    Download,
    /// Reading and checking a model.
    Import,
    /// Decoding images and running the frozen blocks on them; steps are images.
    Prefix,
    /// One pass of training; steps are images. Epochs count from 1.
    Epoch { number: usize, of: usize },
    /// Classifying images; steps are images.
    Score,
    /// Comparing methods; steps are tasks.
    Evaluate,
    /// Timing passes over made-up images; steps are measurements.
    Measure,
    /// Writing the state file.
    Save,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Download => write!(f, "fetching the model"),
            Self::Import => write!(f, "reading the model"),
            Self::Prefix => write!(f, "looking at the images"),
            Self::Epoch { number, of } => write!(f, "training, epoch {number} of {of}"),
            Self::Score => write!(f, "classifying"),
            Self::Evaluate => write!(f, "comparing methods"),
            Self::Measure => write!(f, "measuring"),
            Self::Save => write!(f, "saving"),
        }
    }
}

/// Receives the progress of a job. Images run in parallel, so every method may be called from
/// any thread. A method may take its time, and the work waits: see [`Cooled`](crate::board::Cooled).
pub trait Progress: Sync {
    /// `stage` begins and has `total` steps, 0 when that is not known. A stage that was under
    /// way has ended.
    fn begin(&self, stage: Stage, total: usize);

    /// `steps` more steps of the current stage are done.
    fn advance(&self, steps: usize);

    /// The last stage has ended.
    fn finish(&self);

    /// Something was left out or needs attention, and the job goes on: one plain sentence that
    /// says what, where, and what to do.
    fn warn(&self, warning: &str);

    /// Whether the job should end as soon as what is finished is safe. Asked now and then by jobs
    /// that have finished parts to keep.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Stage, _: usize) {}
    fn advance(&self, _: usize) {}
    fn finish(&self) {}
    fn warn(&self, _: &str) {}
}
