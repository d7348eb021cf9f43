//! LayerNorm, recognised by what it computes: one operator or a dozen small ones.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::tract_hir::internal::*;

use super::Refusal;
use super::graph::{Graph, attribute, floats};
use super::trace::{Trace, unexpected};

/// Gain and bias `[D]`, and what is added to the variance.
pub(super) struct Norm {
    pub gain: Vec<f32>,
    pub bias: Vec<f32>,
    pub eps: f32,
}

/// Nodes between the residual stream and the normalised value of a decomposed LayerNorm; the
/// longest form seen has nine.
const MAX_NODES: usize = 24;
/// Half the spread of the probe tokens: small ones show eps, the large one only the normalisation.
const SPREADS: [f32; 4] = [1e-6, 1e-4, 1e-2, 1.0];
/// Relative error of an eps that still reproduces the probe in `f32`.
const EPS_TOLERANCE: f32 = 0.02;

impl Norm {
    /// `value` as the LayerNorm of `stream`: gain and bias are read off the moves behind the
    /// normalised value, eps off the graph.
    pub fn of(graph: &Graph, value: &str, stream: &str) -> Result<Self, Refusal> {
        let trace = Trace::of(graph, value)?;
        let core = trace.source()?;
        let width = graph.shape(stream)?.last().copied().unwrap_or(0);
        let columns = trace.columns(width)?;
        if columns.len() != width || columns.iter().enumerate().any(|(c, k)| k.from != c) {
            return Err(unexpected("the channels in order", "channels moved"));
        }
        let mut norm = Self {
            gain: columns.iter().map(|column| column.scale).collect(),
            bias: columns.iter().map(|column| column.offset).collect(),
            eps: normalisation_eps(graph, core, stream)?,
        };
        if let Some((node, _)) = graph.producer(core)
            && node.op_type == "LayerNormalization"
        {
            norm.compose(graph, node.input.get(1), node.input.get(2))?;
        }
        Ok(norm)
    }

    /// Puts the operator's own gain and bias before those found behind it.
    fn compose(
        &mut self,
        graph: &Graph,
        gain: Option<&String>,
        bias: Option<&String>,
    ) -> Result<(), Refusal> {
        if let Some(name) = bias.filter(|name| !name.is_empty()) {
            let own = graph.constant(name)?;
            for ((bias, gain), own) in self.bias.iter_mut().zip(&self.gain).zip(floats(&own)?) {
                *bias += gain * own;
            }
        }
        if let Some(name) = gain.filter(|name| !name.is_empty()) {
            let own = graph.constant(name)?;
            if floats(&own)?.len() != self.gain.len() {
                return Err(unexpected(
                    "one gain per channel",
                    &format!("{:?}", own.shape()),
                ));
            }
            for (gain, own) in self.gain.iter_mut().zip(floats(&own)?) {
                *gain *= own;
            }
        }
        Ok(())
    }
}

/// The eps of the normalisation that computes `core` from `stream`.
///
/// An operator says it. A decomposed one is run on tokens of known spread s around a mean of 0,
/// which it must turn into `s / sqrt(s^2 + eps)`; that gives eps, and the constant of the graph
/// that comes closest gives its exact value.
fn normalisation_eps(graph: &Graph, core: &str, stream: &str) -> Result<f32, Refusal> {
    let found = |what: &str| {
        unexpected(
            "a LayerNorm of the residual stream",
            &format!("{what} ({} `{core}`)", graph.operator(core)),
        )
    };
    let (node, _) = graph.producer(core).ok_or_else(|| found("an input"))?;
    if !graph.computed_from(core, stream, MAX_NODES) {
        return Err(found("something that reads more than the stream"));
    }
    if node.op_type == "LayerNormalization" {
        let last = graph.shape(stream)?.len() as i64 - 1;
        let axis = attribute(node, "axis").map_or(-1, |a| a.i);
        if axis != -1 && axis != last {
            return Err(found("a norm over more than the channels"));
        }
        return Ok(attribute(node, "epsilon").map_or(1e-5, |a| a.f));
    }
    let shape = graph.shape(stream)?;
    let width = shape.last().copied().unwrap_or(0);
    if width < 2 {
        return Err(found("a single channel"));
    }
    let probe = probe(&shape, width)?;
    let mut known = HashMap::from([(stream.to_owned(), probe)]);
    let result = graph.evaluate(core, &mut known)?;
    let normalised = floats(&result)?;
    if normalised.len() != shape.iter().product::<usize>() {
        return Err(found("a change of shape"));
    }
    let candidates = known
        .keys()
        .filter_map(|value| graph.producer(value))
        .flat_map(|(node, _)| &node.input)
        .filter(|input| graph.is_constant(input))
        .filter_map(|input| graph.constant(input).ok())
        .filter(|tensor| tensor.len() == 1)
        .filter_map(|tensor| floats(&tensor).ok().map(|values| values[0]));
    // The exponent of a Pow and the like are constants too: only an eps explains the probe.
    let mut best: Option<(f32, f32)> = None;
    for eps in candidates.filter(|&eps| (0.0..0.1).contains(&eps)) {
        // An export of one patch has fewer tokens than spreads.
        let error = SPREADS
            .iter()
            .zip(normalised.chunks_exact(width))
            .map(|(&spread, token)| {
                let expected = spread / (spread * spread + eps).sqrt();
                let up = (token[0] - expected).abs();
                let down = (token[1] + expected).abs();
                up.max(down) / expected
            })
            .fold(0.0, f32::max);
        if best.is_none_or(|(known, _)| error < known) {
            best = Some((error, eps));
        }
    }
    match best {
        Some((error, eps)) if error < EPS_TOLERANCE => Ok(eps),
        _ => Err(found("other arithmetic")),
    }
}

/// Tokens that alternate between plus and minus a spread: mean 0, variance spread squared.
fn probe(shape: &[usize], width: usize) -> Result<Arc<Tensor>, Refusal> {
    let length: usize = shape.iter().product();
    let values: Vec<f32> = (0..length)
        .map(|at| {
            let spread = SPREADS[(at / width) % SPREADS.len()];
            match at % width {
                // An odd width has one channel without a partner.
                c if c + 1 == width && width % 2 == 1 => 0.0,
                c if c % 2 == 0 => spread,
                _ => -spread,
            }
        })
        .collect();
    Tensor::from_shape(shape, &values)
        .map(IntoArcTensor::into_arc_tensor)
        .map_err(|e| Refusal::new("probe", e.to_string()))
}

/// Finds the LayerNorm that reads the final residual stream; its output with gain and bias.
pub(super) fn reading(graph: &Graph, stream: &str) -> Result<(String, Norm), Refusal> {
    let shape = graph.shape(stream)?;
    let mut reached: Vec<&str> = vec![stream];
    let mut next = 0;
    while let Some(&value) = reached.get(next).filter(|_| next < MAX_NODES) {
        next += 1;
        for node in graph.readers(value) {
            let Some(output) = node.output.first() else {
                continue;
            };
            if reached.contains(&output.as_str()) {
                continue;
            }
            reached.push(output);
            let could_be = matches!(node.op_type.as_str(), "LayerNormalization" | "Div" | "Mul");
            if could_be
                && graph.shape(output).is_ok_and(|found| found == shape)
                && normalisation_eps(graph, output, stream).is_ok()
            {
                let value = with_gain_and_bias(graph, output);
                let norm = Norm::of(graph, value, stream)?;
                return Ok((value.to_owned(), norm));
            }
        }
    }
    Err(unexpected(
        "a final LayerNorm over all tokens",
        "none that reads the last block's output",
    ))
}

/// Follows a normalised value through the Mul and Add with constants right behind it.
fn with_gain_and_bias<'g>(graph: &'g Graph, core: &'g str) -> &'g str {
    let mut value = core;
    for operator in ["Mul", "Add"] {
        let mut readers = graph.readers(value);
        if let (Some(node), None) = (readers.next(), readers.next())
            && node.op_type == operator
            && node.input.iter().any(|input| graph.is_constant(input))
            && let Some(output) = node.output.first()
        {
            value = output;
        }
    }
    value
}
