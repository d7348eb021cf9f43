//! What each command answers: as a JSON object for programs, as a few plain lines for people.
//! Accuracies and probabilities are fractions from 0 to 1 in JSON and percentages in the text.

use std::io::{self, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

use super::Outcome;

mod config;
mod learned;
mod measured;
mod model;
mod named;

pub use config::ConfigReport;
pub use learned::{ForgetReport, LearnReport, StateReport, TaskSummary};
pub use measured::{BenchReport, PlanReport};
pub use model::{ModelCheckReport, ModelGetReport, ModelVerdict};
pub use named::{Answer, Candidate, ClassScore, ClassifiedImage, ClassifyReport, ScoreReport};

/// Whoever read our standard output has stopped reading.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct OutputClosed;

/// Turns a failure to write to stdout into the error that `main` knows how to end with.
pub fn stdout_error(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        anyhow::Error::new(OutputClosed)
    } else {
        anyhow::Error::new(error).context("cannot write the result to standard output")
    }
}

/// The answer of a command.
pub trait Report: Serialize {
    /// Writes the answer in plain words.
    fn describe(&self, out: &mut dyn Write) -> io::Result<()>;

    /// What was asked for and not done, a sentence each. Goes to stderr; not empty means exit
    /// code 1.
    fn shortfalls(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Writes the answer to stdout and what is missing from it to stderr.
pub fn emit<R: Report>(report: &R, json: bool) -> anyhow::Result<Outcome> {
    // Written in one go: a reader never sees half an object.
    let mut text = Vec::new();
    if json {
        serde_json::to_writer(&mut text, report)?;
        text.push(b'\n');
    } else {
        report.describe(&mut text)?;
    }
    let shortfalls = report.shortfalls();
    for shortfall in &shortfalls {
        // A closed stderr leaves nowhere to complain; the exit code still tells.
        let _ = writeln!(io::stderr(), "error: {shortfall}");
    }
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&text)
        .and_then(|()| stdout.flush())
        .map_err(stdout_error)?;
    Ok(if shortfalls.is_empty() {
        Outcome::Done
    } else {
        Outcome::Partly
    })
}

pub fn skipped(files: usize, done: &str) -> Vec<String> {
    match files {
        0 => Vec::new(),
        1 => vec![format!(
            "1 file could not be used (see the warning); the rest was {done}"
        )],
        _ => vec![format!(
            "{files} files could not be used (see the warnings); the rest was {done}"
        )],
    }
}

/// "1 image", "12 images".
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A fraction from 0 to 1 as a percentage.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// Bytes in decimal units.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// JSON is Unicode; a path need not be.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
mod shown {
    use super::Report;

    pub fn fields(report: &impl Report) -> Vec<String> {
        let value = serde_json::to_value(report).unwrap();
        value.as_object().unwrap().keys().cloned().collect()
    }

    pub fn text(report: &impl Report) -> String {
        let mut out = Vec::new();
        report.describe(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }
}
