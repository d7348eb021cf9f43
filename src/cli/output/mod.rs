//! What each command answers: as a JSON object for programs, as a few plain lines for people.
//! Accuracies and probabilities are fractions from 0 to 1 in JSON and percentages in the text.

use std::borrow::Cow;
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

/// An error and its causes, without those that an error above already tells.
pub fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.as_str() {
            "" => cause,
            told if told.contains(&cause) => told.to_owned(),
            told => format!("{told}: {cause}"),
        }
    })
}

/// Text for a terminal: control characters, which names of files and classes may hold and a terminal would
/// obey, are escaped; line breaks stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n';
    if !text.contains(obeyed) {
        return text.into();
    }
    let escaped = text.chars().map(|c| match c {
        c if obeyed(c) => c.escape_default().to_string(),
        c => c.to_string(),
    });
    escaped.collect()
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
    let text = if json {
        serde_json::to_string(report)? + "\n"
    } else {
        let mut text = Vec::new();
        report.describe(&mut text)?;
        printable(&String::from_utf8_lossy(&text)).into_owned()
    };
    let shortfalls = report.shortfalls();
    for shortfall in &shortfalls {
        // A closed stderr leaves nowhere to complain; the exit code still tells.
        let _ = writeln!(io::stderr(), "error: {}", printable(shortfall));
    }
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written.map_err(stdout_error) {
        // Who has read enough still learns from the exit code what is missing.
        Err(error) if shortfalls.is_empty() || !error.is::<OutputClosed>() => Err(error),
        _ if shortfalls.is_empty() => Ok(Outcome::Done),
        _ => Ok(Outcome::Partly),
    }
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
mod tests {
    use super::{printable, told};

    #[test]
    fn a_terminal_is_told_nothing_by_a_name() {
        assert_eq!(printable("Mäuse 2\nΔ"), "Mäuse 2\nΔ");
        assert_eq!(
            printable("\u{1b}[31mred\r\u{9b}2J"),
            "\\u{1b}[31mred\\r\\u{9b}2J"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let disk = std::io::Error::other("the disk is full");
        let error = anyhow::Error::new(disk).context("cannot save: the disk is full; free some");
        assert_eq!(told(&error), "cannot save: the disk is full; free some");
        let error = error.context("learning failed");
        assert_eq!(
            told(&error),
            "learning failed: cannot save: the disk is full; free some"
        );
    }
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
