//! A matrix product with constant weights, and what the moves behind it make of its columns.

use std::sync::Arc;

use tract_onnx::tract_hir::internal::Tensor;

use super::Refusal;
use super::graph::{Graph, attribute, floats, integer};
use super::trace::{Column, unexpected};

/// `y = x W + b` as the graph holds it.
pub(super) struct Linear {
    /// The value that is multiplied.
    pub input: String,
    weight: Arc<Tensor>,
    /// Whether the graph stores `[out, in]`.
    transposed: bool,
    /// Factor in front of the product (Gemm's alpha).
    alpha: f32,
    bias: Option<Vec<f32>>,
    pub inputs: usize,
    pub outputs: usize,
}

impl Linear {
    /// The product that computes `value`, a MatMul or Gemm whose second operand is constant.
    pub fn of(graph: &Graph, value: &str) -> Result<Self, Refusal> {
        let found = || unexpected("a matrix product with weights", graph.operator(value));
        let (node, _) = graph.producer(value).ok_or_else(found)?;
        let gemm = match node.op_type.as_str() {
            "MatMul" => false,
            "Gemm" => true,
            _ => return Err(found()),
        };
        let [input, weight, rest @ ..] = node.input.as_slice() else {
            return Err(found());
        };
        if graph.is_constant(input) || !graph.is_constant(weight) {
            return Err(unexpected(
                "a matrix product with constant weights as second operand",
                "other operands",
            ));
        }
        let weight = graph.constant(weight)?;
        let (rows, columns) = match weight.shape() {
            [ones @ .., rows, columns] if ones.iter().all(|&one| one == 1) => (*rows, *columns),
            shape => return Err(unexpected("a weight matrix", &format!("shape {shape:?}"))),
        };
        let transposed = gemm && integer(node, "transB", 0) != 0;
        if gemm && integer(node, "transA", 0) != 0 {
            return Err(unexpected("tokens in rows", "a transposed first operand"));
        }
        let factor = |name: &str| attribute(node, name).filter(|_| gemm).map_or(1.0, |a| a.f);
        let (inputs, outputs) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let bias = match rest.first().filter(|name| !name.is_empty()) {
            Some(bias) => {
                let bias = graph.constant(bias)?;
                let beta = factor("beta");
                let values: Vec<f32> = floats(&bias)?.iter().map(|b| b * beta).collect();
                if values.len() != outputs {
                    return Err(unexpected(
                        "one bias per output",
                        &format!("{}", values.len()),
                    ));
                }
                Some(values)
            }
            None => None,
        };
        Ok(Self {
            input: input.clone(),
            weight,
            transposed,
            alpha: factor("alpha"),
            bias,
            inputs,
            outputs,
        })
    }

    /// Writes the weights of `columns`, scaled as they say, into a `[inputs, stride]` matrix from
    /// column `first` on.
    pub fn weights_into(
        &self,
        columns: &[Column],
        out: &mut [f32],
        first: usize,
        stride: usize,
    ) -> Result<(), Refusal> {
        let stored = floats(&self.weight)?;
        for (row, out) in out.chunks_exact_mut(stride).enumerate() {
            for (cell, column) in out[first..].iter_mut().zip(columns) {
                let at = if self.transposed {
                    column.from * self.inputs + row
                } else {
                    row * self.outputs + column.from
                };
                *cell = stored[at] * self.alpha * column.scale;
            }
        }
        Ok(())
    }

    /// The weights of `columns` as `[inputs, columns]`.
    pub fn weights(&self, columns: &[Column]) -> Result<Vec<f32>, Refusal> {
        let mut out = vec![0.0; self.inputs * columns.len()];
        self.weights_into(columns, &mut out, 0, columns.len())?;
        Ok(out)
    }

    /// The bias of `columns`; zeros where the graph has none.
    pub fn biases(&self, columns: &[Column]) -> Vec<f32> {
        let own = |from: usize| self.bias.as_ref().map_or(0.0, |bias| bias[from]);
        columns
            .iter()
            .map(|column| own(column.from) * column.scale + column.offset)
            .collect()
    }
}
