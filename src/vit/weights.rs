//! An imported model on disk: one file that memory-maps straight into `f32` slices.
//!
//! Layout: 8-byte magic, `u32` version, `u32` length of the postcard header, the header, zero
//! padding to 64 bytes, then every tensor as little-endian `f32`, each starting on a 64-byte
//! boundary. All matrices of the network are `[in, out]`, so that a layer is `y = x W + b`, and stored
//! in [panels](crate::kernels::panels); positions and registers are row-major.
//! Layer scale, where the model has one, is already multiplied into the projection behind it.

mod file;
mod identity;
mod layout;

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::Geometry;
use crate::kernels::panels::Panels;
use file::{ALIGNMENT, Header, read_header, write_file};
pub use identity::ContentHash;
use identity::content_hash;
pub(crate) use layout::weights_bytes;
use layout::{BLOCK_TENSORS, EMBEDDING_TENSORS, Stored, layout};

/// How pixels become the model's input: `(rgb / 255 - mean) / std`, per channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Preprocessing {
    /// ImageNet statistics, the usual choice for DeiT, DINOv2 and most timm models.
    pub const IMAGENET: Self = Self {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };
    /// Pixels scaled to -1..1, as Hugging Face ViT and timm AugReg models expect.
    pub const HALF: Self = Self {
        mean: [0.5; 3],
        std: [0.5; 3],
    };
}

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot read the model file {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a usable fledge model file: {reason}; import it again with `fledge model get`"
    )]
    Malformed { path: PathBuf, reason: String },
}

/// Everything before the first block. Position tables are separate from the tokens.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingWeights<'a> {
    /// `[3 * patch * patch, D]`; rows in channel, row, column order.
    pub patch_weight: Panels<'a>,
    /// `[D]`
    pub patch_bias: &'a [f32],
    /// `[D]`, class token plus its position.
    pub class_token: &'a [f32],
    /// `[registers, D]`
    pub registers: &'a [f32],
    /// `[position_grid * position_grid, D]`, patch positions at the stored grid.
    pub positions: &'a [f32],
}

/// Gain and bias of a LayerNorm, each `[D]`.
#[derive(Debug, Clone, Copy)]
pub struct NormWeights<'a> {
    pub gain: &'a [f32],
    pub bias: &'a [f32],
}

/// One transformer block, pre-norm.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    pub norm1: NormWeights<'a>,
    /// `[D, 3 D]`: query, key and value side by side.
    pub qkv_weight: Panels<'a>,
    /// `[3 D]`
    pub qkv_bias: &'a [f32],
    /// `[D, D]`
    pub proj_weight: Panels<'a>,
    /// `[D]`
    pub proj_bias: &'a [f32],
    pub norm2: NormWeights<'a>,
    /// `[D, hidden]`
    pub fc1_weight: Panels<'a>,
    /// `[hidden]`
    pub fc1_bias: &'a [f32],
    /// `[hidden, D]`
    pub fc2_weight: Panels<'a>,
    /// `[D]`
    pub fc2_bias: &'a [f32],
}

/// The tensors of a model in file order, as an import produces them: matrices `[in, out]`, row-major.
///
/// Order: patch weight, patch bias, class token, registers, positions; for each block norm1 gain
/// and bias, qkv weight and bias, projection weight and bias, norm2 gain and bias, fc1 weight and
/// bias, fc2 weight and bias; then the final norm's gain and bias.
#[derive(Debug, Clone, Default)]
pub struct Tensors(pub Vec<Vec<f32>>);

/// A model file, mapped read-only. Pages are clean and shared between processes; a clone is another
/// handle on the same mapping.
#[derive(Clone)]
pub struct Weights(Arc<Mapped>);

struct Mapped {
    path: PathBuf,
    map: Mmap,
    header: Header,
    /// Byte range of each tensor in `map`.
    tensors: Vec<Range<usize>>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.0.path)
            .field("geometry", &self.0.header.geometry)
            .field("hash", &self.0.header.hash)
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// Writes a model file at `path` through a temporary neighbour, so that a reader never sees
    /// half of one, and returns the model's identity.
    ///
    /// # Errors
    /// When a tensor's length does not fit `geometry`, or the file cannot be written.
    pub fn write(
        path: &Path,
        geometry: &Geometry,
        preprocessing: &Preprocessing,
        tensors: &Tensors,
    ) -> Result<ContentHash, WeightsError> {
        let layout = layout(geometry);
        let given = tensors.0.iter().map(Vec::len);
        if !layout.iter().map(|stored| stored.given()).eq(given) {
            return Err(malformed(
                path,
                "tensor lengths do not fit the geometry".into(),
            ));
        }
        let all = tensors.0.iter().map(|tensor| Cow::Borrowed(&tensor[..]));
        let hash = content_hash(geometry, preprocessing, all);
        let header = Header {
            geometry: geometry.clone(),
            preprocessing: *preprocessing,
            hash,
        };
        write_file(path, &header, tensors, &layout).map_err(|source| io_error(path, source))?;
        Ok(hash)
    }

    /// Maps a model file.
    ///
    /// # Errors
    /// When the file cannot be opened, is no model file, or is cut short.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut file = File::open(path).map_err(|source| io_error(path, source))?;
        let (header, start) = read_header(&mut file, path)?;
        // SAFETY: the file is ours, written once and replaced only by rename; a mapping of the
        // old inode stays valid. Truncation by a third party is outside what a mapping can guard.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| io_error(path, source))?;
        let mut offset = start;
        let mut tensors = Vec::new();
        for stored in layout(&header.geometry) {
            let end = offset + stored.len() * size_of::<f32>();
            tensors.push(offset..end);
            offset = end.next_multiple_of(ALIGNMENT);
        }
        let end = tensors.last().map_or(0, |range| range.end);
        if end > map.len() {
            return Err(malformed(
                path,
                format!("it has {} bytes and needs {end}", map.len()),
            ));
        }
        Ok(Self(Arc::new(Mapped {
            path: path.to_owned(),
            map,
            header,
            tensors,
        })))
    }

    /// Reads every weight, and compares them with what the file says of them.
    ///
    /// # Errors
    /// When they are not those that were written.
    pub fn verify(&self) -> Result<(), WeightsError> {
        let header = &self.0.header;
        let stored = layout(&header.geometry);
        let tensors = stored
            .iter()
            .enumerate()
            .map(|(index, stored)| match *stored {
                Stored::Plain(_) => Cow::Borrowed(self.tensor(index)),
                Stored::Panels(rows, cols) => {
                    Cow::Owned(Panels::new(self.tensor(index), rows, cols).unpack())
                }
            });
        match content_hash(&header.geometry, &header.preprocessing, tensors) == header.hash {
            true => Ok(()),
            false => Err(malformed(&self.0.path, "its weights are damaged".into())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether `other` is a handle on the same mapping.
    pub fn same_file(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub fn geometry(&self) -> &Geometry {
        &self.0.header.geometry
    }

    pub fn preprocessing(&self) -> &Preprocessing {
        &self.0.header.preprocessing
    }

    /// The identity that a state file records.
    pub fn hash(&self) -> ContentHash {
        self.0.header.hash
    }

    pub fn embedding(&self) -> EmbeddingWeights<'_> {
        let geometry = self.geometry();
        let inputs = 3 * geometry.patch * geometry.patch;
        EmbeddingWeights {
            patch_weight: Panels::new(self.tensor(0), inputs, geometry.dim),
            patch_bias: self.tensor(1),
            class_token: self.tensor(2),
            registers: self.tensor(3),
            positions: self.tensor(4),
        }
    }

    /// Weights of block `index`, counted from 0.
    ///
    /// # Panics
    /// When `index` is not below the depth.
    pub fn block(&self, index: usize) -> BlockWeights<'_> {
        assert!(index < self.0.header.geometry.depth, "block out of range");
        let first = EMBEDDING_TENSORS + index * BLOCK_TENSORS;
        let at = |k: usize| self.tensor(first + k);
        let matrix = |k: usize, rows, cols| Panels::new(at(k), rows, cols);
        let (d, hidden) = (self.geometry().dim, self.geometry().hidden);
        BlockWeights {
            norm1: NormWeights {
                gain: at(0),
                bias: at(1),
            },
            qkv_weight: matrix(2, d, 3 * d),
            qkv_bias: at(3),
            proj_weight: matrix(4, d, d),
            proj_bias: at(5),
            norm2: NormWeights {
                gain: at(6),
                bias: at(7),
            },
            fc1_weight: matrix(8, d, hidden),
            fc1_bias: at(9),
            fc2_weight: matrix(10, hidden, d),
            fc2_bias: at(11),
        }
    }

    /// Bytes of some blocks.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn bytes_of(&self, blocks: Range<usize>) -> usize {
        self.place_of(blocks).len()
    }

    /// Where some blocks lie in the mapping.
    fn place_of(&self, blocks: Range<usize>) -> Range<usize> {
        let of = |block: usize| EMBEDDING_TENSORS + block * BLOCK_TENSORS;
        let tensors = &self.0.tensors[of(blocks.start)..of(blocks.end)];
        match (tensors.first(), tensors.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }

    /// Gives the memory of all pages below a block back: they are read from the file again when they
    /// are next used. What the system refuses here costs memory and nothing else.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn release_below(&self, block: usize) {
        let first = self.0.tensors[0].start;
        self.release_bytes(
            first..self.0.tensors[EMBEDDING_TENSORS + block * BLOCK_TENSORS - 1].end,
        );
    }

    /// Gives the memory of one block back, as [`Weights::release_below`] does.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn release_block(&self, block: usize) {
        self.release_bytes(self.place_of(block..block + 1));
    }

    fn release_bytes(&self, place: Range<usize>) {
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping is read-only and of a file, so that pages that are dropped come back
        // as they were.
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            let map = &self.0.map;
            map.unchecked_advise_range(advice, place.start, place.len())
        };
        #[cfg(not(target_os = "linux"))]
        let _ = place;
    }

    /// The norm behind the last block.
    pub fn final_norm(&self) -> NormWeights<'_> {
        let first = self.0.tensors.len() - 2;
        NormWeights {
            gain: self.tensor(first),
            bias: self.tensor(first + 1),
        }
    }

    fn tensor(&self, index: usize) -> &[f32] {
        let bytes = &self.0.map[self.0.tensors[index].clone()];
        // SAFETY: mappings are page-aligned and every tensor starts on a 64-byte boundary within
        // one, so the pointer is aligned for f32; any bit pattern is a valid f32; the length is a
        // multiple of four by construction and was checked against the mapping in `open`.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<f32>()) }
    }
}

fn io_error(path: &Path, source: io::Error) -> WeightsError {
    WeightsError::Io {
        path: path.to_owned(),
        source,
    }
}

fn malformed(path: &Path, reason: String) -> WeightsError {
    WeightsError::Malformed {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
