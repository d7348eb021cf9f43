//! Import of a ViT from ONNX.
//!
//! [`inspect`] recognises the ViT in a graph by its dataflow, whatever the exporter called things;
//! [`import`] also writes its weights to a file that maps into memory, and accepts the result
//! only if a forward pass over those weights agrees with tract's run of the original graph.
//!
//! The steps, a file each: `load` reads the protobuf, `graph` views it, `trace` finds out where
//! the elements of a tensor come from, `embedding`, `norm`, `attention` and `mlp` read the parts
//! of a ViT with its help, `recognise` walks the residual stream through them, and `parity`
//! compares.

mod attention;
mod embedding;
mod graph;
mod linear;
mod load;
mod mlp;
mod norm;
pub mod parity;
mod recognise;
mod trace;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tract_onnx::prelude::TractResult;

use self::graph::Graph;
use super::{ContentHash, Geometry, Preprocessing, Weights, WeightsError, reference};
pub use parity::Difference;

/// Names of the original graph's tensors where fledge can enter or leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundaries {
    /// The image input `[1, 3, image, image]`.
    pub image: String,
    /// The residual stream `[1, tokens, D]`: in front of the first block, then behind each.
    /// `stream[k]` is tap k.
    pub stream: Vec<String>,
    /// The final norm's output `[1, tokens, D]`.
    pub norm: String,
}

impl Boundaries {
    /// All names in the order of the flow, without the image.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let stream = self.stream.iter().map(String::as_str);
        stream.chain(std::iter::once(self.norm.as_str()))
    }
}

/// A ViT found in a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Recognised {
    pub geometry: Geometry,
    pub boundaries: Boundaries,
}

/// A ViT whose weights were written and found to compute what the original does.
#[derive(Debug, Clone)]
pub struct Imported {
    pub geometry: Geometry,
    pub boundaries: Boundaries,
    pub hash: ContentHash,
    /// How far our forward pass is from tract's, boundary by boundary, on the probe image.
    pub differences: Vec<Difference>,
}

impl Imported {
    /// The largest absolute difference at any boundary.
    pub fn max_difference(&self) -> f32 {
        self.differences
            .iter()
            .map(|d| d.absolute)
            .fold(0.0, f32::max)
    }

    /// The largest difference relative to its tensor's largest magnitude.
    pub fn max_relative_difference(&self) -> f32 {
        let relative = self.differences.iter().map(Difference::relative);
        relative.fold(0.0, f32::max)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write in {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is not a usable ONNX model: {reason}")]
    NotOnnx { path: PathBuf, reason: String },
    #[error("{path} is not a ViT that fledge can adapt: {part}: {reason}")]
    NotAdaptable {
        path: PathBuf,
        /// Where in the model, such as `block 3, attention`.
        part: String,
        /// What was expected there and what was found.
        reason: String,
    },
    #[error("tract cannot run {path}, so the import cannot be checked: {reason}")]
    CannotRun { path: PathBuf, reason: String },
    #[error(
        "{path} was recognised as a ViT, but fledge's forward pass disagrees with the original at \
         `{boundary}`: by {relative:.1e} of its largest value, at most {:.0e} is accepted",
        parity::TOLERANCE
    )]
    Disagrees {
        path: PathBuf,
        /// The first boundary beyond the tolerance.
        boundary: String,
        relative: f32,
    },
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Why a part of a graph is not what a ViT has there.
#[derive(Debug, Clone)]
struct Refusal {
    part: String,
    reason: String,
}

impl Refusal {
    fn new(part: &str, reason: impl Into<String>) -> Self {
        Self {
            part: part.to_owned(),
            reason: reason.into(),
        }
    }

    /// The same refusal, told for a named part of the model.
    fn within(self, part: &str) -> Self {
        Self {
            part: part.to_owned(),
            ..self
        }
    }

    /// The same refusal, with what it is about in front of the reason.
    fn about(self, what: &str) -> Self {
        Self {
            reason: format!("{what}: {}", self.reason),
            ..self
        }
    }

    fn at(self, path: &Path) -> ImportError {
        ImportError::NotAdaptable {
            path: path.to_owned(),
            part: self.part,
            reason: self.reason,
        }
    }
}

/// Recognises the ViT in the ONNX file at `path` without writing anything.
///
/// # Errors
/// When the file is no ONNX model or holds no ViT that fledge can adapt; the error says where and
/// what was expected.
pub fn inspect(path: &Path) -> Result<Recognised, ImportError> {
    let graph = Graph::new(load::load(path)?, path)?;
    let (recognised, _) = recognise::recognise(&graph).map_err(|refusal| refusal.at(path))?;
    Ok(recognised)
}

/// Imports the ONNX file `onnx` into a model file at `destination`, checked with the reference
/// forward pass.
///
/// # Errors
/// As [`import_with`].
pub fn import(
    onnx: &Path,
    preprocessing: Preprocessing,
    destination: &Path,
) -> Result<Imported, ImportError> {
    import_with(onnx, preprocessing, destination, reference_forward)
}

/// Checks whether the ONNX file `onnx` could be imported, and how well it agrees, leaving nothing
/// behind.
///
/// # Errors
/// As [`import_with`].
pub fn check_with(
    onnx: &Path,
    forward: impl Fn(&Weights, &[f32]) -> Vec<Vec<f32>>,
) -> Result<Imported, ImportError> {
    let folder = tempfile::tempdir().map_err(|source| ImportError::Write {
        path: std::env::temp_dir(),
        source,
    })?;
    let destination = folder.path().join("checked.weights");
    import_with(onnx, Preprocessing::IMAGENET, &destination, forward)
}

/// [`reference::forward`] at the size the export was made for.
pub fn reference_forward(weights: &Weights, image: &[f32]) -> Vec<Vec<f32>> {
    reference::forward(weights, image, weights.geometry().image)
}

/// Imports the ONNX file `onnx` into a model file at `destination`.
///
/// `forward` runs the imported weights on an image `[3, image, image]` of the export's own size
/// and returns the tensors of [`Boundaries::names`]; the import is accepted if they agree with
/// tract's run of the original within [`parity::TOLERANCE`]. Until then `destination` is not
/// touched.
///
/// # Errors
/// When the file is no ONNX model, holds no ViT that fledge can adapt, cannot be run by tract,
/// disagrees with `forward`, or the model file cannot be written.
pub fn import_with(
    onnx: &Path,
    preprocessing: Preprocessing,
    destination: &Path,
    forward: impl Fn(&Weights, &[f32]) -> Vec<Vec<f32>>,
) -> Result<Imported, ImportError> {
    let graph = Graph::new(load::load(onnx)?, onnx)?;
    let (recognised, tensors) = recognise::recognise(&graph).map_err(|refusal| refusal.at(onnx))?;
    let Recognised {
        geometry,
        boundaries,
    } = recognised;

    let folder = load::folder_of(destination);
    let write_error = |source| ImportError::Write {
        path: folder.to_owned(),
        source,
    };
    std::fs::create_dir_all(folder).map_err(write_error)?;
    let unchecked = tempfile::Builder::new()
        .prefix(".import-")
        .tempdir_in(folder)
        .map_err(write_error)?;
    let candidate = unchecked.path().join("candidate.weights");
    let hash = Weights::write(&candidate, &geometry, &preprocessing, &tensors)?;
    // From here on the mapped file holds the weights; tract keeps the original's.
    drop(tensors);

    let image = parity::probe_image(geometry.image);
    let weights = Weights::open(&candidate)?;
    let ours = forward(&weights, &image);
    drop(weights);
    let theirs =
        parity::original(graph, &boundaries, &image).map_err(|reason| ImportError::CannotRun {
            path: onnx.to_owned(),
            reason,
        })?;
    let differences = parity::compare(&boundaries, &ours, &theirs);
    // Not a number is not within the tolerance either.
    let within = |d: &&Difference| d.relative() <= parity::TOLERANCE;
    if let Some(difference) = differences.iter().find(|d| !within(d)) {
        return Err(ImportError::Disagrees {
            path: onnx.to_owned(),
            boundary: difference.name.clone(),
            relative: difference.relative(),
        });
    }
    std::fs::rename(&candidate, destination).map_err(write_error)?;
    Ok(Imported {
        geometry,
        boundaries,
        hash,
        differences,
    })
}

/// Runs a piece of tract on data from outside. Its errors become sentences, and so does a panic:
/// a corrupt model must not take the process down.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(e
            .chain()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")),
        Err(_) => Err("tract gave up on it; the file is probably corrupt".into()),
    }
}
