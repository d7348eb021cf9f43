//! Walks the residual stream from the patches to the final norm and collects what it passes.

use tract_onnx::pb::NodeProto;

use super::attention::{Attention, is_attention};
use super::embedding::Embedding;
use super::graph::Graph;
use super::linear::Linear;
use super::mlp::Mlp;
use super::norm::{self, Norm};
use super::trace::{Column, Trace, unexpected};
use super::{Boundaries, Recognised, Refusal};
use crate::vit::{Activation, Geometry, Tensors};

/// More blocks than any ViT has; a longer chain is a corrupt file.
const MAX_DEPTH: usize = 256;

/// What every block of a ViT has in common.
struct Shared {
    heads: usize,
    hidden: usize,
    eps: f32,
    activation: Activation,
    layer_scale: bool,
}

/// Recognises the ViT in a graph and takes its weights, in the order of [`Tensors`].
pub(super) fn recognise(graph: &Graph) -> Result<(Recognised, Tensors), Refusal> {
    let embedding = Embedding::of(graph)?;
    let dim = embedding.dim;
    let mut stream = vec![embedding.stream];
    let mut tensors = Tensors(vec![
        embedding.patch_weight,
        embedding.patch_bias,
        embedding.class_token,
        embedding.register_tokens,
        embedding.positions,
    ]);
    let mut shared = None;
    while let Some(attention_add) = residual_add(graph, last(&stream))
        .map_err(|refusal| refusal.within(&format!("block {}", stream.len() - 1)))?
    {
        let index = stream.len() - 1;
        if index == MAX_DEPTH {
            return Err(Refusal::new(
                "depth",
                format!("more than {MAX_DEPTH} blocks"),
            ));
        }
        let at = |part: &str| format!("block {index}, {part}");
        let (middle, own) = attention(graph, last(&stream), attention_add, &mut tensors)
            .map_err(|refusal| refusal.within(&at("attention")))?;
        let (output, own) =
            mlp(graph, &middle, own, &mut tensors).map_err(|refusal| refusal.within(&at("MLP")))?;
        shared = Some(agree(shared, own).map_err(|refusal| refusal.within(&at("geometry")))?);
        stream.push(output);
    }
    let shared = shared.ok_or_else(|| {
        Refusal::new(
            "block 0",
            "no residual Add joins the embedded tokens with a branch of them; a norm between \
             embedding and blocks is not supported",
        )
    })?;
    let (output, final_norm) =
        norm::reading(graph, last(&stream)).map_err(|refusal| refusal.within("final norm"))?;
    let depth = stream.len() - 1;
    if final_norm.eps != shared.eps {
        return Err(Refusal::new(
            "final norm",
            format!("expected eps {}, found {}", shared.eps, final_norm.eps),
        ));
    }
    tensors.0.extend([final_norm.gain, final_norm.bias]);
    let geometry = Geometry {
        dim,
        depth,
        heads: shared.heads,
        hidden: shared.hidden,
        patch: embedding.patch,
        image: graph.image,
        registers: embedding.registers,
        position_grid: embedding.position_grid,
        norm_eps: shared.eps,
        activation: shared.activation,
        layer_scale: shared.layer_scale,
    };
    let boundaries = Boundaries {
        image: graph.input.clone(),
        stream,
        norm: output,
    };
    Ok((
        Recognised {
            geometry,
            boundaries,
        },
        tensors,
    ))
}

fn last(stream: &[String]) -> &str {
    stream.last().map_or("", String::as_str)
}

/// The Add that puts a branch back onto the stream; none behind the last block.
fn residual_add<'g>(graph: &'g Graph, stream: &str) -> Result<Option<&'g NodeProto>, Refusal> {
    let shape = graph.shape(stream)?;
    let mut adds = graph.readers(stream).filter(|node| {
        node.op_type == "Add"
            && !node.input.iter().any(|input| graph.is_constant(input))
            && node
                .output
                .first()
                .is_some_and(|output| graph.shape(output).is_ok_and(|found| found == shape))
    });
    match (adds.next(), adds.next()) {
        (add, None) => Ok(add),
        _ => Err(unexpected(
            "one branch added to the residual stream at a time",
            "several (parallel branches)",
        )),
    }
}

/// The branch of a residual Add: its last matrix product and what becomes of its columns.
fn branch(
    graph: &Graph,
    stream: &str,
    add: &NodeProto,
    dim: usize,
) -> Result<(Linear, Vec<Column>), Refusal> {
    let value = add
        .input
        .iter()
        .find(|input| graph.canonical(input) != stream)
        .ok_or_else(|| unexpected("a branch of the stream", "the stream twice"))?;
    let trace = Trace::of(graph, value)?;
    let linear = Linear::of(graph, trace.source()?)?;
    let columns = trace.columns(linear.outputs)?;
    if columns.len() != dim {
        return Err(unexpected(
            &format!("{dim} channels"),
            &format!("{}", columns.len()),
        ));
    }
    Ok((linear, columns))
}

fn width(graph: &Graph, stream: &str) -> Result<usize, Refusal> {
    Ok(graph.shape(stream)?.last().copied().unwrap_or(0))
}

/// Reads norm and attention; returns the stream behind them.
fn attention(
    graph: &Graph,
    stream: &str,
    add: &NodeProto,
    tensors: &mut Tensors,
) -> Result<(String, Shared), Refusal> {
    let dim = width(graph, stream)?;
    let (projection, columns) = branch(graph, stream, add, dim)?;
    if !is_attention(graph, &projection) {
        return Err(unexpected(
            "attention as the first branch",
            "something else",
        ));
    }
    let attention = Attention::of(graph, &projection, &columns)?;
    let norm = Norm::of(graph, &attention.input, stream)?;
    tensors.0.extend([
        norm.gain,
        norm.bias,
        attention.qkv_weight,
        attention.qkv_bias,
        attention.proj_weight,
        attention.proj_bias,
    ]);
    let shared = Shared {
        heads: attention.heads,
        hidden: 0,
        eps: norm.eps,
        activation: Activation::Gelu,
        layer_scale: attention.layer_scale,
    };
    Ok((output(add), shared))
}

/// Reads norm and MLP; returns the stream behind them.
fn mlp(
    graph: &Graph,
    stream: &str,
    shared: Shared,
    tensors: &mut Tensors,
) -> Result<(String, Shared), Refusal> {
    let dim = width(graph, stream)?;
    let add = residual_add(graph, stream)?
        .ok_or_else(|| unexpected("a second branch", "no Add that reads the stream"))?;
    let (second, columns) = branch(graph, stream, add, dim)?;
    let mlp = Mlp::of(graph, &second, &columns)?;
    let norm = Norm::of(graph, &mlp.input, stream)?;
    if norm.eps != shared.eps {
        return Err(unexpected(
            &format!("eps {}", shared.eps),
            &format!("{}", norm.eps),
        ));
    }
    tensors.0.extend([
        norm.gain,
        norm.bias,
        mlp.fc1_weight,
        mlp.fc1_bias,
        mlp.fc2_weight,
        mlp.fc2_bias,
    ]);
    let shared = Shared {
        hidden: mlp.hidden,
        activation: mlp.activation,
        layer_scale: shared.layer_scale || mlp.layer_scale,
        ..shared
    };
    Ok((output(add), shared))
}

fn output(node: &NodeProto) -> String {
    node.output.first().cloned().unwrap_or_default()
}

/// All blocks of a ViT are alike; only a layer scale of one may hide in some.
fn agree(known: Option<Shared>, own: Shared) -> Result<Shared, Refusal> {
    let Some(known) = known else {
        return Ok(own);
    };
    let figures = |s: &Shared| (s.heads, s.hidden, s.eps, s.activation);
    if figures(&known) != figures(&own) {
        return Err(unexpected(
            &format!("heads, hidden, eps, activation {:?}", figures(&known)),
            &format!("{:?}", figures(&own)),
        ));
    }
    Ok(Shared {
        layer_scale: known.layer_scale || own.layer_scale,
        ..known
    })
}
