//! Answers that name what is on images.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::{Report, lossy, percent, skipped};

/// `score`.
#[derive(Debug, Clone, Serialize)]
pub struct ScoreReport {
    pub images: usize,
    pub accuracy: f64,
    pub per_class: BTreeMap<String, ClassScore>,
    pub ms_per_image: f64,
    /// Files that could not be read as images.
    #[serde(skip)]
    pub skipped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassScore {
    pub images: usize,
    pub accuracy: f64,
}

impl Report for ScoreReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = self
            .per_class
            .keys()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or(0)
            .max(5);
        writeln!(
            out,
            "{:<width$}  {:>6}  {:>8}",
            "class", "images", "accuracy"
        )?;
        for (name, class) in &self.per_class {
            writeln!(
                out,
                "{name:<width$}  {:>6}  {:>8}",
                class.images,
                percent(class.accuracy)
            )?;
        }
        writeln!(
            out,
            "{:<width$}  {:>6}  {:>8}",
            "all",
            self.images,
            percent(self.accuracy)
        )?;
        writeln!(out, "{:.1} ms an image", self.ms_per_image)
    }

    fn shortfalls(&self) -> Vec<String> {
        skipped(self.skipped, "scored")
    }
}

/// `classify`: one entry an image, in the order given.
#[derive(Debug, Clone, Serialize)]
pub struct ClassifyReport {
    pub images: Vec<ClassifiedImage>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ClassifiedImage {
    #[serde(serialize_with = "lossy")]
    pub image: PathBuf,
    #[serde(flatten)]
    pub answer: Answer,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Named {
        label: String,
        probability: f64,
        /// The likeliest classes, likeliest first.
        top: Vec<Candidate>,
    },
    Unreadable {
        error: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    pub label: String,
    pub probability: f64,
}

impl Report for ClassifyReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        for image in &self.images {
            let Answer::Named {
                label,
                probability,
                top,
            } = &image.answer
            else {
                continue;
            };
            write!(
                out,
                "{}: {label} {}",
                image.image.display(),
                percent(*probability)
            )?;
            let others: Vec<String> = top
                .iter()
                .filter(|candidate| candidate.label != *label)
                .map(|other| format!("{} {}", other.label, percent(other.probability)))
                .collect();
            if !others.is_empty() {
                write!(out, " ({})", others.join(", "))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn shortfalls(&self) -> Vec<String> {
        let unreadable = |image: &ClassifiedImage| match &image.answer {
            Answer::Named { .. } => None,
            Answer::Unreadable { error } => Some(format!("{}: {error}", image.image.display())),
        };
        self.images.iter().filter_map(unreadable).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::{fields, text};
    use super::*;

    #[test]
    fn score_answers_with_the_fields_of_the_contract() {
        let class = ClassScore {
            images: 8,
            accuracy: 0.875,
        };
        let report = ScoreReport {
            images: 8,
            accuracy: 0.875,
            per_class: BTreeMap::from([("robin".to_owned(), class)]),
            ms_per_image: 18.0,
            skipped: 0,
        };
        assert_eq!(
            fields(&report),
            ["accuracy", "images", "ms_per_image", "per_class"]
        );
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            value["per_class"]["robin"],
            serde_json::json!({"images": 8, "accuracy": 0.875})
        );
        assert!(text(&report).contains("87.5 %"));
    }

    #[test]
    fn an_unreadable_image_has_its_own_entry_and_the_others_their_lines() {
        let named = Answer::Named {
            label: "robin".into(),
            probability: 0.9,
            top: vec![
                Candidate {
                    label: "robin".into(),
                    probability: 0.9,
                },
                Candidate {
                    label: "wren".into(),
                    probability: 0.1,
                },
            ],
        };
        let report = ClassifyReport {
            images: vec![
                ClassifiedImage {
                    image: "bad.txt".into(),
                    answer: Answer::Unreadable {
                        error: "not an image".into(),
                    },
                },
                ClassifiedImage {
                    image: "a.jpg".into(),
                    answer: named,
                },
            ],
        };
        assert_eq!(text(&report), "a.jpg: robin 90.0 % (wren 10.0 %)\n");
        assert_eq!(report.shortfalls(), ["bad.txt: not an image"]);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            value["images"][0],
            serde_json::json!({"image": "bad.txt", "error": "not an image"})
        );
        assert_eq!(value["images"][1]["top"][1]["label"], "wren");
    }
}
