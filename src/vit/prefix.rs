//! The frozen prefix: patch embedding and the blocks before the first adapted one, run by tract.
//!
//! The graph is built block by block from the mapped weights rather than cut out of the original
//! export, for two reasons: an export is fixed to one image size while a prefix is wanted at any
//! multiple of the patch, and a constant in a graph is copied and packed, which would put the frozen
//! blocks on the heap. The steps of a block are operators of ours that read the mapped file.

mod step;

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::math;

use super::{Geometry, Pixels, Weights, positions};
use crate::kernels::gemm::Accuracy;
use crate::kernels::linear::product;
use crate::kernels::threads;
pub(crate) use step::MLP_ROWS;
use step::{BlockStep, Part};

/// tract could not build or run a block.
#[derive(Debug, thiserror::Error)]
pub enum PrefixError {
    #[error(
        "the resolution {resolution} is not a positive multiple of the model's {patch} pixel patches; use for example {nearest}"
    )]
    Resolution {
        resolution: Pixels,
        patch: Pixels,
        nearest: Pixels,
    },
    #[error("tract cannot run block {block} of the frozen model: {reason}")]
    Block { block: usize, reason: String },
}

/// Patch embedding and the first blocks of a model at one resolution.
pub struct Prefix {
    geometry: Geometry,
    resolution: Pixels,
    weights: Weights,
    /// `[1 + registers, D]`: the class token with its position, then the registers.
    leading: Vec<f32>,
    /// `[patches, D]`: resized positions plus the patch bias.
    patch_offsets: Vec<f32>,
    blocks: Vec<Arc<TypedRunnableModel>>,
}

impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefix")
            .field("resolution", &self.resolution)
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

impl Prefix {
    /// Prepares the embedding and the first `blocks` blocks for square images of `resolution`.
    ///
    /// # Errors
    /// When `resolution` is no positive multiple of the patch, or tract refuses a block.
    pub fn new(weights: &Weights, resolution: Pixels, blocks: usize) -> Result<Self, PrefixError> {
        let geometry = weights.geometry().clone();
        check_resolution(&geometry, resolution)?;
        let embedding = weights.embedding();
        let d = geometry.dim;
        let mut patch_offsets = positions::resize(
            embedding.positions,
            d,
            geometry.position_grid,
            geometry.grid(resolution),
        );
        for row in patch_offsets.chunks_exact_mut(d) {
            row.iter_mut()
                .zip(embedding.patch_bias)
                .for_each(|(offset, bias)| *offset += bias);
        }
        let tokens = geometry.tokens(resolution);
        let blocks = (0..blocks)
            .map(|index| {
                block(weights, index, tokens).map_err(|e| PrefixError::Block {
                    block: index,
                    reason: format!("{e:#}"),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            resolution,
            weights: weights.clone(),
            leading: [embedding.class_token, embedding.registers].concat(),
            patch_offsets,
            blocks,
            geometry,
        })
    }

    /// Number of blocks the prefix runs.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Runs some images together on the calling thread: the weights are read once for all of them.
    ///
    /// `patches` is `[images, patches, 3 * patch * patch]`, normalised; `at_boundary` as in
    /// [`Prefix::run_embedded`].
    ///
    /// # Errors
    /// When tract fails to run a block.
    pub fn run(
        &self,
        patches: &[f32],
        at_boundary: impl FnMut(usize, &[f32]) + Send,
    ) -> Result<(), PrefixError> {
        let one = 3 * self.resolution * self.resolution;
        let tokens = self.leading.len() + self.patch_offsets.len();
        let mut stream = Vec::with_capacity(patches.len() / one * tokens);
        for patches in patches.chunks_exact(one) {
            self.embed(patches, &mut stream);
        }
        self.run_embedded(stream, at_boundary)
    }

    /// Runs images that [`Prefix::embed`] embedded one after the other. `at_boundary(k, tokens)` sees
    /// the residual stream `[images, tokens, D]` after `k` blocks, for `k` from 0 (the embedding) to
    /// [`Prefix::depth`].
    ///
    /// # Errors
    /// When tract fails to run a block.
    pub fn run_embedded(
        &self,
        stream: Vec<f32>,
        at_boundary: impl FnMut(usize, &[f32]) + Send,
    ) -> Result<(), PrefixError> {
        threads::awake(|| self.run_blocks(stream, at_boundary))
    }

    fn run_blocks(
        &self,
        mut stream: Vec<f32>,
        mut at_boundary: impl FnMut(usize, &[f32]),
    ) -> Result<(), PrefixError> {
        at_boundary(0, &stream);
        let shape = [stream.len() / self.geometry.dim, self.geometry.dim];
        let mut value: Option<TValue> = None;
        for (index, block) in self.blocks.iter().enumerate() {
            let failed = |e: TractError| PrefixError::Block {
                block: index,
                reason: format!("{e:#}"),
            };
            let input = match value.take() {
                Some(value) => value,
                None => Tensor::from_shape(&shape, &std::mem::take(&mut stream))
                    .map_err(failed)?
                    .into_tvalue(),
            };
            let output = block.run(tvec![input]).map_err(failed)?.remove(0);
            let plain = output.try_as_plain_ram().map_err(failed)?;
            at_boundary(index + 1, plain.as_slice::<f32>().map_err(failed)?);
            value = Some(output);
        }
        Ok(())
    }

    /// Appends the tokens of one image at the input of the first block, `[tokens, D]`; `patches` is
    /// `[patches, 3 * patch * patch]`.
    pub fn embed(&self, patches: &[f32], stream: &mut Vec<f32>) {
        stream.extend_from_slice(&self.leading);
        let first = stream.len();
        stream.extend_from_slice(&self.patch_offsets);
        let weight = self.weights.embedding().patch_weight;
        product(Accuracy::Full, patches, weight, 1.0, &mut stream[first..]);
    }
}

/// Refuses resolutions that do not divide into patches.
///
/// # Errors
/// When `resolution` is no positive multiple of the patch.
pub fn check_resolution(geometry: &Geometry, resolution: Pixels) -> Result<(), PrefixError> {
    let patch = geometry.patch;
    if resolution > 0 && resolution.is_multiple_of(patch) {
        return Ok(());
    }
    Err(PrefixError::Resolution {
        resolution,
        patch,
        nearest: ((resolution + patch / 2) / patch).max(1) * patch,
    })
}

/// One pre-norm block as a tract plan over the tokens of any number of images, `[rows, D]` to
/// `[rows, D]`.
fn block(weights: &Weights, index: usize, tokens: usize) -> TractResult<Arc<TypedRunnableModel>> {
    let mut graph = TypedModel::default();
    let step = |part| BlockStep::new(weights, index, part, tokens);
    let rows = graph.symbols.sym("rows").to_dim();
    let d = weights.geometry().dim.to_dim();
    let x = graph.add_source("tokens", f32::fact([rows, d]))?;
    let h = graph.wire_node("norm1", step(Part::Norm1), &[x])?[0];
    let qkv = graph.wire_node("query_key_value", step(Part::QueryKeyValue), &[h])?[0];
    let mixed = graph.wire_node("attention", step(Part::Attention), &[qkv])?[0];
    let attended = graph.wire_node("projection", step(Part::Projection), &[mixed])?[0];
    let x = graph.wire_node("attention_residual", math::add(), &[x, attended])?[0];
    let h = graph.wire_node("norm2", step(Part::Norm2), &[x])?[0];
    let mixed = graph.wire_node("mlp", step(Part::Mlp), &[h])?[0];
    let x = graph.wire_node("mlp_residual", math::add(), &[x, mixed])?[0];
    graph.select_output_outlets(&[x])?;
    graph.into_optimized()?.into_runnable()
}
