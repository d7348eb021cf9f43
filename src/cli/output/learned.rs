//! Answers about what was learned.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::{Report, count, lossy, percent, size, skipped};

/// `learn`.
#[derive(Debug, Clone, Serialize)]
pub struct LearnReport {
    /// Name of the task: that of its folder.
    pub task: String,
    /// Names of the task's classes.
    pub classes: Vec<String>,
    /// Images used, the held-back ones included.
    pub images: usize,
    /// Files that could not be used.
    pub skipped: usize,
    pub epochs: usize,
    pub seconds: f64,
    pub train_accuracy: f64,
    /// On the held-back images; none when the task is too small to hold any back.
    pub validation_accuracy: Option<f64>,
    pub parameters_added: usize,
    /// Rank of what the task added to each adapted matrix; none where its update was not kept.
    pub rank: Option<usize>,
    /// Validation loss in nats after a brief pretraining, where the rank was chosen by it.
    pub difficulty: Option<f64>,
    /// How probable each rank was found to be.
    pub rank_probabilities: Option<BTreeMap<String, f64>>,
    /// Size of the state file.
    pub state_bytes: u64,
    /// Most bytes of heap that were in use at a time, from the program's start to the saved state.
    /// The frozen model is mapped and not among them.
    pub peak_heap_bytes: usize,
}

impl Report for LearnReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "learned {} from {} in {:.1} s",
            count(self.classes.len(), "class", "classes"),
            count(self.images, "image", "images"),
            self.seconds
        )?;
        let held_back = match self.validation_accuracy {
            Some(accuracy) => format!("{} of the images held back", percent(accuracy)),
            None => "too few images to hold any back".to_owned(),
        };
        let rank = match (self.rank, self.difficulty) {
            (Some(rank), Some(loss)) => format!("{rank}, chosen at a validation loss of {loss:.2}"),
            (Some(rank), None) => rank.to_string(),
            (None, _) if self.epochs == 0 => "none: the head alone learned".to_owned(),
            (None, _) if self.validation_accuracy.is_none() => {
                "none: no images were held back to judge an update by".to_owned()
            }
            (None, _) => "none: the images held back spoke against the update".to_owned(),
        };
        let rows = [
            ("task", self.task.clone()),
            ("classes", self.classes.join(", ")),
            (
                "right",
                format!(
                    "{held_back}, {} of the others",
                    percent(self.train_accuracy)
                ),
            ),
            ("epochs", self.epochs.to_string()),
            (
                "added",
                count(self.parameters_added, "parameter", "parameters"),
            ),
            ("rank", rank),
            ("state file", size(self.state_bytes)),
        ];
        rows.iter()
            .try_for_each(|(name, value)| writeln!(out, "  {name:<12}{value}"))
    }

    fn shortfalls(&self) -> Vec<String> {
        skipped(self.skipped, "learned")
    }
}

/// `forget`.
#[derive(Debug, Clone, Serialize)]
pub struct ForgetReport {
    /// Names that are no longer known.
    pub classes: Vec<String>,
    /// Names that the forgotten task taught and that other tasks still know.
    pub still_known: Vec<String>,
    /// Numbers of the tasks that nothing is left of.
    pub tasks: Vec<u64>,
    /// Images whose features left the statistics.
    pub images: u64,
    /// Size of the state file.
    pub state_bytes: u64,
}

impl Report for ForgetReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "forgot {} ({})",
            count(self.classes.len(), "class", "classes"),
            match self.images {
                1 => "1 image".to_owned(),
                images => format!("{images} images"),
            }
        )?;
        let numbers: Vec<String> = self.tasks.iter().map(u64::to_string).collect();
        let rows = [
            ("classes", self.classes.join(", ")),
            ("still known from other tasks", self.still_known.join(", ")),
            ("tasks", numbers.join(", ")),
            ("state file", size(self.state_bytes)),
        ];
        rows.iter()
            .filter(|(_, value)| !value.is_empty())
            .try_for_each(|(name, value)| writeln!(out, "  {name:<30}{value}"))
    }
}

/// `state show`.
#[derive(Debug, Clone, Serialize)]
pub struct StateReport {
    #[serde(serialize_with = "lossy")]
    pub state: PathBuf,
    pub bytes: u64,
    pub model: String,
    /// Content hash of the model, in hexadecimal.
    pub model_hash: String,
    /// Pixels.
    pub resolution: usize,
    /// How many of the last blocks are adapted.
    pub adapt_blocks: usize,
    pub tasks: Vec<TaskSummary>,
}

#[derive(Debug, Clone, Serialize)]
pub struct TaskSummary {
    /// From 1, in the order of learning; the number of a forgotten task stays free.
    pub task: u64,
    pub name: String,
    pub classes: Vec<String>,
    pub images: usize,
    /// None for a task learned with `--instant`.
    pub rank: Option<usize>,
    /// RFC 3339, UTC.
    pub date: String,
    /// What the task takes of the state file.
    pub bytes: u64,
}

impl Report for StateReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let hash = self.model_hash.get(..12).unwrap_or(&self.model_hash);
        writeln!(
            out,
            "{}: {}, model {} ({hash}) at {} pixels, last {} adapted",
            self.state.display(),
            size(self.bytes),
            self.model,
            self.resolution,
            count(self.adapt_blocks, "block", "blocks"),
        )?;
        writeln!(
            out,
            "{:>4}  {:<20}  {:>6}  {:>4}  {:>9}  classes",
            "task", "learned", "images", "rank", "bytes"
        )?;
        for task in &self.tasks {
            let rank = task
                .rank
                .map_or_else(|| "-".to_owned(), |rank| rank.to_string());
            writeln!(
                out,
                "{:>4}  {:<20}  {:>6}  {rank:>4}  {:>9}  {}",
                task.task,
                task.date,
                task.images,
                task.bytes,
                task.classes.join(", ")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::{fields, text};
    use super::*;

    fn learned(skipped: usize) -> LearnReport {
        LearnReport {
            task: "birds".into(),
            classes: vec!["robin".into(), "wren".into()],
            images: 40,
            skipped,
            epochs: 6,
            seconds: 3.21,
            train_accuracy: 1.0,
            validation_accuracy: Some(0.95),
            parameters_added: 4096,
            rank: Some(8),
            difficulty: Some(0.25),
            rank_probabilities: None,
            state_bytes: 1_850_000,
            peak_heap_bytes: 7_000_000,
        }
    }

    #[test]
    fn learn_answers_with_the_fields_of_the_contract() {
        let mut expected = [
            "task",
            "classes",
            "images",
            "skipped",
            "epochs",
            "seconds",
            "train_accuracy",
            "validation_accuracy",
            "parameters_added",
            "rank",
            "difficulty",
            "rank_probabilities",
            "state_bytes",
            "peak_heap_bytes",
        ];
        expected.sort_unstable();
        assert_eq!(fields(&learned(0)), expected);
    }

    #[test]
    fn forget_answers_with_the_fields_of_the_contract() {
        let report = ForgetReport {
            classes: vec!["robin".into()],
            still_known: Vec::new(),
            tasks: vec![2],
            images: 12,
            state_bytes: 1_700_000,
        };
        assert_eq!(
            fields(&report),
            ["classes", "images", "state_bytes", "still_known", "tasks"]
        );
        let told = text(&report);
        assert!(
            told.contains("12 images") && told.contains("robin"),
            "{told}"
        );
        assert!(!told.contains("still known"), "{told}");
    }

    #[test]
    fn skipped_files_make_an_answer_incomplete() {
        assert!(learned(0).shortfalls().is_empty());
        assert_eq!(learned(2).shortfalls().len(), 1);
    }
}
