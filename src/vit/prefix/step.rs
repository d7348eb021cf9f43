//! What tract runs a frozen block with: operators over the mapped weights.
//!
//! tract's own matrix product packs its constant side, a second copy of every frozen matrix on
//! the heap. These operators read the file's pages where they lie, with the kernels that training
//! uses.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

use crate::kernels::attention::{AttentionShape, attention_forward};
use crate::kernels::gelu::{gelu_forward, gelu_tanh_forward};
use crate::kernels::gemm::Accuracy;
use crate::kernels::linear::linear;
use crate::kernels::norm::layer_norm_forward;
use crate::vit::{Activation, NormWeights, Weights};

/// Most rows of the MLP's hidden layer that exist at a time.
pub(crate) const MLP_ROWS: usize = 160;

/// A part of a pre-norm block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Norm1,
    QueryKeyValue,
    Attention,
    Projection,
    Norm2,
    Mlp,
}

/// One part of one block over the tokens of some images, `[images * tokens, width]`.
#[derive(Debug, Clone)]
pub(super) struct BlockStep {
    weights: Weights,
    block: usize,
    part: Part,
    /// Tokens of one image.
    tokens: usize,
}

impl BlockStep {
    pub(super) fn new(weights: &Weights, block: usize, part: Part, tokens: usize) -> Self {
        Self {
            weights: weights.clone(),
            block,
            part,
            tokens,
        }
    }

    /// Columns of the output.
    fn width(&self) -> usize {
        let d = self.weights.geometry().dim;
        if self.part == Part::QueryKeyValue {
            3 * d
        } else {
            d
        }
    }

    /// x `[rows, in]`, y `[rows, width]`.
    fn compute(&self, x: &[f32], y: &mut [f32]) {
        let geometry = self.weights.geometry();
        let w = self.weights.block(self.block);
        let (d, rows) = (geometry.dim, y.len() / self.width());
        match self.part {
            Part::Norm1 => self.norm(&w.norm1, x, y),
            Part::Norm2 => self.norm(&w.norm2, x, y),
            Part::QueryKeyValue => linear(Accuracy::Full, x, w.qkv_weight, w.qkv_bias, y),
            Part::Attention => {
                let shape = AttentionShape {
                    tokens: self.tokens,
                    heads: geometry.heads,
                    head_dim: geometry.head_dim(),
                    tile: self.tokens,
                };
                let mut scratch = vec![0.0; shape.forward_scratch()];
                let images = x.chunks_exact(3 * self.tokens * d);
                for (x, y) in images.zip(y.chunks_exact_mut(self.tokens * d)) {
                    attention_forward(&shape, x, y, &mut scratch);
                }
            }
            Part::Projection => linear(Accuracy::Full, x, w.proj_weight, w.proj_bias, y),
            Part::Mlp => {
                let hidden = geometry.hidden;
                let most = rows.div_ceil(rows.div_ceil(MLP_ROWS));
                let mut tile = vec![0.0; most * hidden];
                for (x, y) in x.chunks(most * d).zip(y.chunks_mut(most * d)) {
                    let tile = &mut tile[..x.len() / d * hidden];
                    linear(Accuracy::Full, x, w.fc1_weight, w.fc1_bias, tile);
                    match geometry.activation {
                        Activation::Gelu => gelu_forward(tile),
                        Activation::GeluTanh => gelu_tanh_forward(tile),
                    }
                    linear(Accuracy::Full, tile, w.fc2_weight, w.fc2_bias, y);
                }
            }
        }
    }

    fn norm(&self, norm: &NormWeights<'_>, x: &[f32], y: &mut [f32]) {
        let tokens = x.len() / norm.gain.len();
        let (mut mean, mut rstd) = (vec![0.0; tokens], vec![0.0; tokens]);
        let eps = self.weights.geometry().norm_eps;
        layer_norm_forward(x, norm.gain, norm.bias, eps, y, &mut mean, &mut rstd);
    }
}

/// Steps of different models differ, whatever the numbers in them.
impl PartialEq for BlockStep {
    fn eq(&self, other: &Self) -> bool {
        self.weights.same_file(&other.weights)
            && (self.block, self.part, self.tokens) == (other.block, other.part, other.tokens)
    }
}

impl Eq for BlockStep {}

impl Op for BlockStep {
    fn name(&self) -> StaticName {
        "BlockStep".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("block {}: {:?}", self.block, self.part)])
    }

    op_as_typed_op!();
}

impl EvalOp for BlockStep {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let x = input.try_as_plain_ram()?;
        let x = x.as_slice::<f32>()?;
        let mut output = Tensor::zero::<f32>(&[input.shape()[0], self.width()])?;
        self.compute(x, output.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for BlockStep {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let tokens = inputs[0].shape[0].clone();
        Ok(tvec!(f32::fact([tokens, self.width().to_dim()])))
    }

    as_op!();
}
