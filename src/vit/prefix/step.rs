//! What tract runs a frozen block with: operators over the mapped weights.
//!
//! tract's own matrix product packs its constant side, a second copy of every frozen matrix on
//! the heap. These operators read the file's pages where they lie, with the kernels that training
//! uses.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

use crate::kernels::attention::{AttentionShape, attention_forward};
use crate::kernels::gelu::{gelu_forward, gelu_tanh_forward};
use crate::kernels::linear::linear;
use crate::kernels::matmul::MatRef;
use crate::kernels::norm::layer_norm_forward;
use crate::vit::{Activation, NormWeights, Weights};

/// Rows of the MLP's hidden layer that exist at a time.
const MLP_ROWS: usize = 128;

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

/// One part of one block over `[tokens, width]`.
#[derive(Debug, Clone)]
pub(super) struct BlockStep {
    weights: Weights,
    block: usize,
    part: Part,
}

impl BlockStep {
    pub(super) fn new(weights: &Weights, block: usize, part: Part) -> Self {
        Self {
            weights: weights.clone(),
            block,
            part,
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

    /// x `[tokens, in]`, y `[tokens, width]`.
    fn compute(&self, x: &[f32], y: &mut [f32]) {
        let geometry = self.weights.geometry();
        let w = self.weights.block(self.block);
        let (d, tokens) = (geometry.dim, y.len() / self.width());
        match self.part {
            Part::Norm1 => self.norm(&w.norm1, x, y),
            Part::Norm2 => self.norm(&w.norm2, x, y),
            Part::QueryKeyValue => {
                linear(x, MatRef::new(w.qkv_weight, d, 3 * d), w.qkv_bias, y);
            }
            Part::Attention => {
                let shape = AttentionShape {
                    tokens,
                    heads: geometry.heads,
                    head_dim: geometry.head_dim(),
                    tile: tokens,
                };
                attention_forward(&shape, x, y, &mut vec![0.0; shape.forward_scratch()]);
            }
            Part::Projection => linear(x, MatRef::new(w.proj_weight, d, d), w.proj_bias, y),
            Part::Mlp => {
                let hidden = geometry.hidden;
                let fc1 = MatRef::new(w.fc1_weight, d, hidden);
                let fc2 = MatRef::new(w.fc2_weight, hidden, d);
                let mut tile = vec![0.0; tokens.min(MLP_ROWS) * hidden];
                let rows = x.chunks(MLP_ROWS * d);
                for (x, y) in rows.zip(y.chunks_mut(MLP_ROWS * d)) {
                    let tile = &mut tile[..x.len() / d * hidden];
                    linear(x, fc1, w.fc1_bias, tile);
                    match geometry.activation {
                        Activation::Gelu => gelu_forward(tile),
                        Activation::GeluTanh => gelu_tanh_forward(tile),
                    }
                    linear(tile, fc2, w.fc2_bias, y);
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
            && (self.block, self.part) == (other.block, other.part)
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
