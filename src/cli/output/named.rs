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
    /// By the likeliest class, over the images of known classes; none when no class is known.
    pub accuracy: Option<f64>,
    /// Images called unknown.
    pub unknown: usize,
    /// With "unknown" as an answer: right for classes never learned, wrong for the others.
    pub open_set_accuracy: Option<f64>,
    /// The false-alarm rate asked for.
    pub reject: f32,
    pub per_class: BTreeMap<String, ClassScore>,
    pub ms_per_image: f64,
    /// Files that could not be read as images.
    #[serde(skip)]
    pub skipped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassScore {
    pub images: usize,
    /// None for a class that was never learned.
    pub accuracy: Option<f64>,
    pub unknown: usize,
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
            "{:<width$}  {:>6}  {:>8}  {:>7}",
            "class", "images", "accuracy", "unknown"
        )?;
        let known = |accuracy: Option<f64>| accuracy.map_or_else(|| "-".to_owned(), percent);
        let mut row = |name: &str, images: usize, accuracy: &str, unknown: usize| {
            let unknown = match self.reject {
                0.0 => "-".to_owned(),
                _ => unknown.to_string(),
            };
            writeln!(
                out,
                "{name:<width$}  {images:>6}  {accuracy:>8}  {unknown:>7}"
            )
        };
        for (name, class) in &self.per_class {
            row(name, class.images, &known(class.accuracy), class.unknown)?;
        }
        row("all", self.images, &known(self.accuracy), self.unknown)?;
        if let (true, Some(accuracy)) = (self.unknown > 0, self.open_set_accuracy) {
            writeln!(
                out,
                "{} right when \"unknown\" counts as the answer",
                percent(accuracy)
            )?;
        }
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
        /// "unknown" when it is; a class may have that very name, so see `unknown`.
        label: String,
        unknown: bool,
        /// Of the label; none when the image is unknown.
        probability: Option<f64>,
        /// The likeliest classes, likeliest first, as if it had to be one of them.
        top: Vec<Candidate>,
    },
    Unreadable {
        error: String,
    },
}

impl Answer {
    pub fn named(label: String, probability: f64, top: Vec<Candidate>) -> Self {
        Self::Named {
            label,
            unknown: false,
            probability: Some(probability),
            top,
        }
    }

    /// Nothing that was learned.
    pub fn unknown(top: Vec<Candidate>) -> Self {
        Self::Named {
            label: "unknown".to_owned(),
            unknown: true,
            probability: None,
            top,
        }
    }
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
                ..
            } = &image.answer
            else {
                continue;
            };
            write!(out, "{}: {label}", image.image.display())?;
            if let Some(probability) = probability {
                write!(out, " {}", percent(*probability))?;
            }
            let others: Vec<String> = top
                .iter()
                .filter(|candidate| probability.is_none() || candidate.label != *label)
                .map(|other| format!("{} {}", other.label, percent(other.probability)))
                .collect();
            if !others.is_empty() {
                let nearest = if probability.is_none() {
                    "nearest: "
                } else {
                    ""
                };
                write!(out, " ({nearest}{})", others.join(", "))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn shortfalls(&self) -> Vec<String> {
        let unreadable = |image: &ClassifiedImage| match &image.answer {
            Answer::Named { .. } => None,
            Answer::Unreadable { error } => {
                let path = image.image.display().to_string();
                let names_it = error.starts_with(&path);
                Some(if names_it {
                    error.clone()
                } else {
                    format!("{path}: {error}")
                })
            }
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
            accuracy: Some(0.875),
            unknown: 1,
        };
        let stranger = ClassScore {
            images: 4,
            accuracy: None,
            unknown: 3,
        };
        let report = ScoreReport {
            images: 12,
            accuracy: Some(0.875),
            unknown: 4,
            open_set_accuracy: Some(0.75),
            reject: 0.05,
            per_class: BTreeMap::from([
                ("robin".to_owned(), class),
                ("violin".to_owned(), stranger),
            ]),
            ms_per_image: 18.0,
            skipped: 0,
        };
        assert_eq!(
            fields(&report),
            [
                "accuracy",
                "images",
                "ms_per_image",
                "open_set_accuracy",
                "per_class",
                "reject",
                "unknown"
            ]
        );
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            value["per_class"]["robin"],
            serde_json::json!({"images": 8, "accuracy": 0.875, "unknown": 1})
        );
        let shown = text(&report);
        assert!(
            shown.contains("87.5 %") && shown.contains("75.0 % right when"),
            "{shown}"
        );
        let stranger = shown
            .lines()
            .find(|line| line.starts_with("violin"))
            .unwrap();
        let cells: Vec<_> = stranger.split_whitespace().collect();
        assert_eq!(cells, ["violin", "4", "-", "3"]);
    }

    #[test]
    fn an_unknown_image_is_told_from_a_class_of_that_name() {
        let top = |label: &str| {
            vec![Candidate {
                label: label.into(),
                probability: 0.7,
            }]
        };
        let answer = |answer: Answer| ClassifyReport {
            images: vec![ClassifiedImage {
                image: "a.jpg".into(),
                answer,
            }],
        };
        let unknown = answer(Answer::unknown(top("robin")));
        assert_eq!(text(&unknown), "a.jpg: unknown (nearest: robin 70.0 %)\n");
        let value = serde_json::to_value(&unknown).unwrap();
        assert_eq!(
            value["images"][0],
            serde_json::json!({
                "image": "a.jpg", "label": "unknown", "unknown": true, "probability": null,
                "top": [{"label": "robin", "probability": 0.7_f64}]
            })
        );
        let named = answer(Answer::named("unknown".into(), 0.7, top("unknown")));
        assert_eq!(text(&named), "a.jpg: unknown 70.0 %\n");
        assert_eq!(
            serde_json::to_value(&named).unwrap()["images"][0]["unknown"],
            false
        );
    }

    #[test]
    fn an_unreadable_image_has_its_own_entry_and_the_others_their_lines() {
        let named = Answer::named(
            "robin".into(),
            0.9,
            vec![
                Candidate {
                    label: "robin".into(),
                    probability: 0.9,
                },
                Candidate {
                    label: "wren".into(),
                    probability: 0.1,
                },
            ],
        );
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
