//! Answers about models.

use std::io::{self, Write};
use std::path::PathBuf;

use fledge::vit::{Geometry, Preprocessing};
use serde::Serialize;

use super::{Report, lossy, size};

/// `model get`.
#[derive(Debug, Clone, Serialize)]
pub struct ModelGetReport {
    pub model: String,
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    pub bytes: u64,
    pub preprocessing: Preprocessing,
    /// False when it was there already.
    pub imported: bool,
}

impl Report for ModelGetReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let did = if self.imported {
            "is ready"
        } else {
            "was ready already"
        };
        writeln!(
            out,
            "{} {did}: {} ({})",
            self.model,
            self.path.display(),
            size(self.bytes)
        )?;
        let Preprocessing { mean, std } = self.preprocessing;
        match self.imported {
            true => writeln!(
                out,
                "it sees red, green and blue from 0 to 1, less {mean:?} and over {std:?}"
            ),
            false => Ok(()),
        }
    }
}

/// `model check`.
#[derive(Debug, Clone, Serialize)]
pub struct ModelCheckReport {
    #[serde(serialize_with = "lossy")]
    pub file: PathBuf,
    pub adaptable: bool,
    #[serde(flatten)]
    pub verdict: ModelVerdict,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum ModelVerdict {
    Adaptable {
        #[serde(flatten)]
        geometry: Geometry,
        /// Tokens at the export's own resolution.
        tokens: usize,
        /// Between the trainer's forward pass and tract's run of the graph, on a probe image.
        largest_difference: f32,
    },
    Refused {
        reason: String,
    },
}

impl Report for ModelCheckReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let ModelVerdict::Adaptable {
            geometry,
            tokens,
            largest_difference,
        } = &self.verdict
        else {
            return Ok(());
        };
        writeln!(
            out,
            "{} is a Vision Transformer that fledge can adapt",
            self.file.display()
        )?;
        let activation = serde_json::to_value(geometry.activation)?;
        let rows = [
            ("width", geometry.dim.to_string()),
            ("blocks", geometry.depth.to_string()),
            ("heads", geometry.heads.to_string()),
            ("patch", format!("{} pixels", geometry.patch)),
            ("image", format!("{0} x {0} pixels", geometry.image)),
            ("tokens", tokens.to_string()),
            ("registers", geometry.registers.to_string()),
            ("norm epsilon", format!("{:e}", geometry.norm_eps)),
            (
                "activation",
                activation.as_str().unwrap_or_default().to_owned(),
            ),
            (
                "layer scale",
                if geometry.layer_scale { "yes" } else { "no" }.to_owned(),
            ),
            (
                "largest difference to tract",
                format!("{largest_difference:.2e}"),
            ),
        ];
        rows.iter()
            .try_for_each(|(name, value)| writeln!(out, "  {name:<28}{value}"))
    }

    fn shortfalls(&self) -> Vec<String> {
        match &self.verdict {
            ModelVerdict::Adaptable { .. } => Vec::new(),
            ModelVerdict::Refused { reason } => {
                vec![format!(
                    "fledge cannot adapt {}: {reason}",
                    self.file.display()
                )]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::fields;
    use super::*;

    #[test]
    fn a_refused_model_says_why_and_is_no_success() {
        let report = ModelCheckReport {
            file: "resnet.onnx".into(),
            adaptable: false,
            verdict: ModelVerdict::Refused {
                reason: "it has no attention".into(),
            },
        };
        assert_eq!(fields(&report), ["adaptable", "file", "reason"]);
        assert!(report.shortfalls()[0].contains("no attention"));
    }
}
