//! The MLP of a block. Its activation is identified by running it: exporters write GELU in half a
//! dozen ways, all of which compute the same function.

use std::collections::{HashMap, HashSet};

use tract_onnx::tract_hir::internal::*;

use super::Refusal;
use super::graph::{Graph, floats};
use super::linear::Linear;
use super::trace::{Column, Trace, unexpected};
use crate::vit::{Activation, reference};

pub(super) struct Mlp {
    /// The normalised value that the first matrix reads.
    pub input: String,
    pub hidden: usize,
    pub activation: Activation,
    pub fc1_weight: Vec<f32>,
    pub fc1_bias: Vec<f32>,
    pub fc2_weight: Vec<f32>,
    pub fc2_bias: Vec<f32>,
    pub layer_scale: bool,
}

/// Nodes between the two matrices; the tanh form of GELU has nine.
const MAX_NODES: usize = 40;
/// Largest difference of an export's activation from the function it computes; constants stored as
/// f16 cause up to 1e-4. The two forms of GELU are up to 5e-4 apart, so the closer one is meant.
const TOLERANCE: f32 = 2e-4;
/// The activation is compared on -8..8; beyond, both forms of GELU are the identity or zero.
const RANGE: f32 = 8.0;
/// Points at which the functions are compared.
const SAMPLES: usize = 4096;

impl Mlp {
    /// Reads the MLP whose second matrix is `second`, seen through `branch` columns.
    pub fn of(graph: &Graph, second: &Linear, branch: &[Column]) -> Result<Self, Refusal> {
        let activated = graph.canonical(&second.input);
        let (between, product) = back_to_product(graph, activated)?;
        let first = Linear::of(graph, product)?;
        let hidden = forward_to_activation(graph, product, &between);
        let trace = Trace::of(graph, hidden)?;
        if trace.source()? != product {
            return Err(unexpected(
                "a bias behind the first matrix",
                "more than that",
            ));
        }
        let columns = trace.columns(first.outputs)?;
        if columns.len() != second.inputs {
            return Err(unexpected(
                &format!("{} hidden channels", second.inputs),
                &format!("{}", columns.len()),
            ));
        }
        Ok(Self {
            input: graph.canonical(&first.input).to_owned(),
            hidden: columns.len(),
            activation: activation(graph, hidden, activated)?,
            fc1_weight: first.weights(&columns)?,
            fc1_bias: first.biases(&columns),
            fc2_weight: second.weights(branch)?,
            fc2_bias: second.biases(branch),
            layer_scale: branch.iter().any(|column| column.scale != 1.0),
        })
    }
}

/// Goes back from the activated value to the one matrix product it is computed from; also returns
/// every value on the way.
fn back_to_product<'g>(
    graph: &'g Graph,
    activated: &'g str,
) -> Result<(HashSet<&'g str>, &'g str), Refusal> {
    let mut between = HashSet::new();
    let mut product = None;
    let mut open = vec![activated];
    while let Some(value) = open.pop() {
        if graph.is_constant(value) || between.contains(value) {
            continue;
        }
        let (node, _) = graph
            .producer(value)
            .filter(|_| between.len() < MAX_NODES)
            .ok_or_else(|| unexpected("an activation of a matrix product", "no such product"))?;
        if matches!(node.op_type.as_str(), "MatMul" | "Gemm") {
            if product.is_some_and(|known| known != value) {
                return Err(unexpected(
                    "an MLP of two matrices",
                    "two products in front of its activation (a gated MLP)",
                ));
            }
            product = Some(value);
            continue;
        }
        between.insert(value);
        let inputs = node.input.iter().filter(|input| !input.is_empty());
        open.extend(inputs.map(|input| graph.canonical(input)));
    }
    product
        .map(|product| (between, product))
        .ok_or_else(|| unexpected("a matrix product in front of the activation", "none"))
}

/// Goes forward from the product while there is only one way and it only moves, scales or shifts:
/// where it ends, the non-linearity begins.
fn forward_to_activation<'g>(
    graph: &'g Graph,
    product: &'g str,
    between: &HashSet<&'g str>,
) -> &'g str {
    let mut value = product;
    loop {
        let mut readers = graph.readers(value);
        let (Some(node), None) = (readers.next(), readers.next()) else {
            return value;
        };
        let simple = match node.op_type.as_str() {
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => true,
            "Add" | "Sub" | "Mul" => node.input.iter().any(|input| graph.is_constant(input)),
            _ => false,
        };
        match node.output.first().filter(|_| simple) {
            Some(next) if between.contains(next.as_str()) => value = next,
            _ => return value,
        }
    }
}

/// Which activation the graph computes from `hidden` to `activated`.
fn activation(graph: &Graph, hidden: &str, activated: &str) -> Result<Activation, Refusal> {
    let shape = graph.shape(hidden)?;
    let length: usize = shape.iter().product();
    let step = 2.0 * RANGE / length.max(2) as f32;
    let ramp: Vec<f32> = (0..length).map(|k| k as f32 * step - RANGE).collect();
    let probe = Tensor::from_shape(&shape, &ramp)
        .map_err(|e| Refusal::new("probe", e.to_string()))?
        .into_arc_tensor();
    let mut known = HashMap::from([(hidden.to_owned(), probe)]);
    let result = graph.evaluate(activated, &mut known)?;
    let computed = floats(&result)?;
    if computed.len() != ramp.len() {
        return Err(unexpected(
            "an activation of each hidden value",
            "one that changes their number (a gated MLP)",
        ));
    }
    let difference = |candidate: Activation| {
        let function = reference::activation(candidate);
        let samples = ramp.iter().zip(computed).step_by(length.div_ceil(SAMPLES));
        samples
            .map(|(&x, &y)| (function(x) - y).abs())
            .fold(0.0, f32::max)
    };
    let (exact, tanh) = (
        difference(Activation::Gelu),
        difference(Activation::GeluTanh),
    );
    if exact.min(tanh) <= TOLERANCE {
        return Ok(if exact <= tanh {
            Activation::Gelu
        } else {
            Activation::GeluTanh
        });
    }
    Err(unexpected(
        "GELU, exact or by tanh",
        &format!(
            "an activation that differs from both by {:.1e} or more on -8..8",
            exact.min(tanh)
        ),
    ))
}
