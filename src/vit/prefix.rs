//! The frozen prefix: patch embedding and the blocks before the first adapted one, run by tract.
//!
//! The graph is built block by block from the mapped weights rather than cut out of the original
//! export, for two reasons: an export is fixed to one image size while a prefix is wanted at any
//! multiple of the patch, and tract packs a block's matrices as it optimises, so that building one
//! block at a time never holds more than one block of unpacked copies.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::nn::gelu_approximate::gelu_approximate;
use tract_onnx::tract_core::ops::nn::gelu_exact::gelu_exact;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind};
use tract_onnx::tract_core::ops::{array::Slice, math};

use super::{Activation, BlockWeights, Geometry, NormWeights, Pixels, Weights, positions};
use crate::kernels::matmul::{MatMut, MatRef, matmul};

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
    /// `[3 * patch * patch, D]`
    patch_weight: Vec<f32>,
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
                block(&geometry, &weights.block(index), tokens).map_err(|e| PrefixError::Block {
                    block: index,
                    reason: format!("{e:#}"),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            resolution,
            patch_weight: embedding.patch_weight.to_vec(),
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

    /// Runs one image on the calling thread.
    ///
    /// `patches` is `[patches, 3 * patch * patch]`, normalised. `at_boundary(k, tokens)` sees the
    /// residual stream `[tokens, D]` after `k` blocks, for `k` from 0 (the embedding) to
    /// [`Prefix::depth`].
    ///
    /// # Errors
    /// When tract fails to run a block.
    pub fn run(
        &self,
        patches: &[f32],
        mut at_boundary: impl FnMut(usize, &[f32]),
    ) -> Result<(), PrefixError> {
        let mut stream = self.embed(patches);
        at_boundary(0, &stream);
        let shape = [self.geometry.tokens(self.resolution), self.geometry.dim];
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

    /// Tokens at the input of the first block, `[tokens, D]`.
    fn embed(&self, patches: &[f32]) -> Vec<f32> {
        let d = self.geometry.dim;
        let rows = self.geometry.grid(self.resolution).pow(2);
        let inputs = 3 * self.geometry.patch * self.geometry.patch;
        let mut stream = self.leading.clone();
        stream.extend_from_slice(&self.patch_offsets);
        let (_, patch_tokens) = stream.split_at_mut(self.leading.len());
        matmul(
            1.0,
            MatRef::new(patches, rows, inputs),
            MatRef::new(&self.patch_weight, inputs, d),
            1.0,
            MatMut::new(patch_tokens, rows, d),
        );
        stream
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

/// One pre-norm block as an optimised tract plan, `[tokens, D]` to `[tokens, D]`.
fn block(
    g: &Geometry,
    w: &BlockWeights<'_>,
    tokens: usize,
) -> TractResult<Arc<TypedRunnableModel>> {
    let mut graph = Wiring {
        model: TypedModel::default(),
        geometry: g,
    };
    let x = graph
        .model
        .add_source("tokens", f32::fact([tokens, g.dim]))?;
    let attended = graph.attention(x, w)?;
    let x = graph.node("attention_residual", math::add(), &[x, attended])?;
    let mixed = graph.mlp(x, w)?;
    let x = graph.node("mlp_residual", math::add(), &[x, mixed])?;
    graph.model.select_output_outlets(&[x])?;
    graph.model.into_optimized()?.into_runnable()
}

/// A block's graph while it is being wired.
struct Wiring<'a> {
    model: TypedModel,
    geometry: &'a Geometry,
}

impl Wiring<'_> {
    fn node(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        Ok(self.model.wire_node(name, op, inputs)?[0])
    }

    fn constant(&mut self, name: &str, shape: &[usize], data: &[f32]) -> TractResult<OutletId> {
        self.model.add_const(name, Tensor::from_shape(shape, data)?)
    }

    /// `x W + b`, `[tokens, in]` to `[tokens, out]`.
    fn linear(
        &mut self,
        name: &str,
        x: OutletId,
        weight: &[f32],
        bias: &[f32],
    ) -> TractResult<OutletId> {
        let outputs = bias.len();
        let w = self.constant(
            &format!("{name}.weight"),
            &[weight.len() / outputs, outputs],
            weight,
        )?;
        let b = self.constant(&format!("{name}.bias"), &[1, outputs], bias)?;
        let product = EinSum::new("td,de->te".parse()?, f32::datum_type());
        let y = self.node(&format!("{name}.product"), product, &[x, w])?;
        self.node(name, math::add(), &[y, b])
    }

    /// LayerNorm over the last axis (Ba et al., arXiv 1607.06450).
    fn norm(&mut self, name: &str, x: OutletId, w: &NormWeights<'_>) -> TractResult<OutletId> {
        let d = self.geometry.dim;
        let part = |suffix: &str| format!("{name}.{suffix}");
        let sum = Reduce {
            axes: tvec![1],
            reducer: Reducer::Sum,
        };
        let sum = self.node(&part("sum"), sum, &[x])?;
        let scale = self.constant(&part("inverse_dim"), &[1, 1], &[1.0 / d as f32])?;
        let mean = self.node(&part("mean"), math::mul(), &[sum, scale])?;
        let centred = self.node(&part("centred"), math::sub(), &[x, mean])?;
        let rms = RmsNorm {
            axis: 1,
            eps: Arc::new(tensor0(self.geometry.norm_eps)),
        };
        let unit = self.node(&part("unit"), rms, &[centred])?;
        let gain = self.constant(&part("gain"), &[1, d], w.gain)?;
        let bias = self.constant(&part("bias"), &[1, d], w.bias)?;
        let scaled = self.node(&part("scaled"), math::mul(), &[unit, gain])?;
        self.node(name, math::add(), &[scaled, bias])
    }

    /// Multi-head self-attention (Vaswani et al., arXiv 1706.03762, section 3.2).
    fn attention(&mut self, x: OutletId, w: &BlockWeights<'_>) -> TractResult<OutletId> {
        let (d, heads) = (self.geometry.dim, self.geometry.heads);
        let head_dim = self.geometry.head_dim();
        let h = self.norm("norm1", x, &w.norm1)?;
        let qkv = self.linear("qkv", h, w.qkv_weight, w.qkv_bias)?;
        let mut heads_of = |name: &str, third: usize| -> TractResult<OutletId> {
            let slice = Slice::new(1, third * d, (third + 1) * d);
            let columns = self.node(&format!("{name}.columns"), slice, &[qkv])?;
            let split = AxisOp::Reshape(
                1,
                tvec![d.to_dim()],
                tvec![heads.to_dim(), head_dim.to_dim()],
            );
            self.node(name, split, &[columns])
        };
        let (q, k, v) = (
            heads_of("query", 0)?,
            heads_of("key", 1)?,
            heads_of("value", 2)?,
        );
        let scores = EinSum::new("qhd,khd->hqk".parse()?, f32::datum_type());
        let scores = self.node("scores", scores, &[q, k])?;
        let scale = self.constant("scale", &[1, 1, 1], &[(head_dim as f32).sqrt().recip()])?;
        let scores = self.node("scaled_scores", math::mul(), &[scores, scale])?;
        let softmax = Softmax {
            axes: tvec![2],
            quant_output_dt: None,
            kind: SoftmaxKind::Softmax,
        };
        let probabilities = self.node("probabilities", softmax, &[scores])?;
        let mix = EinSum::new("hqk,khd->qhd".parse()?, f32::datum_type());
        let mixed = self.node("mixed", mix, &[probabilities, v])?;
        let join = AxisOp::Reshape(
            1,
            tvec![heads.to_dim(), head_dim.to_dim()],
            tvec![d.to_dim()],
        );
        let joined = self.node("joined", join, &[mixed])?;
        self.linear("projection", joined, w.proj_weight, w.proj_bias)
    }

    fn mlp(&mut self, x: OutletId, w: &BlockWeights<'_>) -> TractResult<OutletId> {
        let h = self.norm("norm2", x, &w.norm2)?;
        let u = self.linear("fc1", h, w.fc1_weight, w.fc1_bias)?;
        let g = match self.geometry.activation {
            Activation::Gelu => self.node("gelu", gelu_exact(), &[u])?,
            Activation::GeluTanh => self.node("gelu", gelu_approximate(false), &[u])?,
        };
        self.linear("fc2", g, w.fc2_weight, w.fc2_bias)
    }
}
