//! From the image to the residual stream in front of the first block: patches, class token,
//! registers, positions.

use ndarray::{Array2, Axis};
use tract_onnx::pb::NodeProto;

use super::Refusal;
use super::graph::{Graph, attribute, floats, integer};
use super::linear::Linear;
use super::trace::{CONSTANT, Column, Trace, matrices_of, unexpected};
use crate::vit::{Pixels, positions};

/// The tensors of [`crate::vit::EmbeddingWeights`] and what their shapes follow from.
pub(super) struct Embedding {
    /// The residual stream in front of the first block.
    pub stream: String,
    pub dim: usize,
    pub patch: Pixels,
    pub registers: usize,
    pub position_grid: usize,
    pub patch_weight: Vec<f32>,
    pub patch_bias: Vec<f32>,
    pub class_token: Vec<f32>,
    pub register_tokens: Vec<f32>,
    pub positions: Vec<f32>,
}

/// Largest difference, relative to the largest position, at which resizing the stored table as
/// PyTorch does counts as what the export does. Rounding stays a hundred times below.
const SAME_RESIZE: f32 = 1e-4;

/// The linear map from the pixels of a patch to a token: `[3 * patch * patch, D]`.
struct PatchProjection {
    patch: Pixels,
    dim: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Whether its output is `[1, D, grid, grid]` rather than `[1, grid * grid, D]`.
    channels_first: bool,
}

impl Embedding {
    /// Finds the stream that the first LayerNorm reads and takes apart what it is made of.
    pub fn of(graph: &Graph) -> Result<Self, Refusal> {
        let mut refusal = None;
        let mut seen = Vec::new();
        for node in graph.nodes() {
            if !matches!(node.op_type.as_str(), "LayerNormalization" | "ReduceMean") {
                continue;
            }
            let stream = graph.canonical(node.input.first().map_or("", String::as_str));
            if seen.contains(&stream) || graph.is_constant(stream) {
                continue;
            }
            seen.push(stream);
            match Self::at(graph, stream) {
                Ok(embedding) => return Ok(embedding),
                Err(e) => refusal = refusal.or(Some(e)),
            }
        }
        let has_patches = graph
            .nodes()
            .iter()
            .any(|node| patch_of(graph, node).is_some());
        Err(match refusal.filter(|_| has_patches) {
            Some(refusal) => refusal.within("embedding"),
            None if has_patches => Refusal::new("embedding", "no LayerNorm reads the tokens"),
            None => Refusal::new(
                "patch embedding",
                "no Conv whose stride equals its kernel and which reads the image input",
            ),
        })
    }

    fn at(graph: &Graph, stream: &str) -> Result<Self, Refusal> {
        let trace = Trace::of(graph, stream)?;
        let projection = PatchProjection::of(graph, trace.source()?)?;
        let (dim, patch) = (projection.dim, projection.patch);
        let grid = graph.image / patch;
        let elements = trace.matrices()?;
        let (images, tokens, width) = elements.dim();
        if images != 1 || width != dim || tokens <= grid * grid {
            return Err(unexpected(
                &format!("a class token and {grid} x {grid} patches of width {dim}"),
                &format!("{tokens} tokens of width {width}"),
            ));
        }
        let special = tokens - grid * grid;
        let elements = elements.index_axis_move(Axis(0), 0);
        let offsets: Array2<f32> = elements.mapv(|element| element.offset);
        let scales: Vec<f32> = elements.row(special).iter().map(|e| e.scale).collect();
        for ((token, channel), element) in elements.indexed_iter() {
            let as_it_should_be = match token.checked_sub(special) {
                None => element.index == CONSTANT,
                Some(position) => {
                    let index = if projection.channels_first {
                        channel * grid * grid + position
                    } else {
                        position * dim + channel
                    };
                    element.index as usize == index && element.scale == scales[channel]
                }
            };
            if !as_it_should_be {
                return Err(unexpected(
                    "constant tokens first, then the patches row by row",
                    &format!("another order at token {token}"),
                ));
            }
        }
        let flat = |first: usize, last: usize| -> Vec<f32> {
            (first..last)
                .flat_map(|t| offsets.row(t).to_vec())
                .collect()
        };
        let at_own_size = flat(special, tokens);
        let (position_grid, positions) =
            stored_positions(graph, dim, grid, &at_own_size).unwrap_or((grid, at_own_size));
        let PatchProjection {
            mut weight,
            mut bias,
            ..
        } = projection;
        for row in weight.chunks_exact_mut(dim) {
            row.iter_mut()
                .zip(&scales)
                .for_each(|(w, scale)| *w *= scale);
        }
        bias.iter_mut()
            .zip(&scales)
            .for_each(|(b, scale)| *b *= scale);
        Ok(Self {
            stream: stream.to_owned(),
            dim,
            patch,
            registers: special - 1,
            position_grid,
            patch_weight: weight,
            patch_bias: bias,
            class_token: flat(0, 1),
            register_tokens: flat(1, special),
            positions,
        })
    }
}

impl PatchProjection {
    fn of(graph: &Graph, value: &str) -> Result<Self, Refusal> {
        let (node, _) = graph
            .producer(value)
            .ok_or_else(|| unexpected("a patch embedding", "the image itself"))?;
        match node.op_type.as_str() {
            "Conv" => Self::convolution(graph, node),
            "MatMul" | "Gemm" => Self::product(graph, value),
            other => Err(unexpected("a patch embedding", other)),
        }
    }

    fn convolution(graph: &Graph, node: &NodeProto) -> Result<Self, Refusal> {
        let patch = patch_of(graph, node).ok_or_else(|| {
            unexpected(
                "a Conv whose stride equals its kernel and which reads the image input",
                "another Conv",
            )
        })?;
        let stored = graph.constant(&node.input[1])?;
        let (dim, pixels) = (stored.shape()[0], 3 * patch * patch);
        let stored = floats(&stored)?;
        let weight = (0..pixels * dim)
            .map(|at| stored[at % dim * pixels + at / dim])
            .collect();
        let bias = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(bias) => floats(&*graph.constant(bias)?)?.to_vec(),
            None => vec![0.0; dim],
        };
        if bias.len() != dim {
            return Err(unexpected(
                "one bias per channel",
                &format!("{}", bias.len()),
            ));
        }
        Ok(Self {
            patch,
            dim,
            weight,
            bias,
            channels_first: true,
        })
    }

    /// Patches cut out by reshapes and multiplied by a matrix: the moves say which pixel meets
    /// which row.
    fn product(graph: &Graph, value: &str) -> Result<Self, Refusal> {
        let linear = Linear::of(graph, value)?;
        let trace = Trace::of(graph, &linear.input)?;
        let image = graph.image;
        if trace.source()? != graph.canonical(&graph.input) {
            return Err(unexpected(
                "patches of the image",
                graph.operator(&linear.input),
            ));
        }
        let patch = (linear.inputs / 3).isqrt();
        if patch == 0 || 3 * patch * patch != linear.inputs || !image.is_multiple_of(patch) {
            return Err(unexpected(
                "square RGB patches",
                &format!("{} inputs", linear.inputs),
            ));
        }
        let grid = image / patch;
        let elements = trace.matrices()?;
        if elements.dim().0 * elements.dim().1 != grid * grid {
            return Err(unexpected("one row per patch", "another number"));
        }
        let mut rows = Vec::with_capacity(linear.inputs);
        for (position, row) in elements.rows().into_iter().enumerate() {
            for (input, element) in row.iter().enumerate() {
                let index = element.index as usize;
                let (channel, y, x) = (
                    index / (image * image),
                    index / image % image,
                    index % image,
                );
                let inside = (channel * patch + y % patch) * patch + x % patch;
                if position == 0 {
                    rows.push(inside);
                }
                let here = (y / patch) * grid + x / patch == position && rows[input] == inside;
                if element.index == CONSTANT
                    || element.scale != 1.0
                    || element.offset != 0.0
                    || !here
                {
                    return Err(unexpected("patches row by row", "another arrangement"));
                }
            }
        }
        let all: Vec<Column> = (0..linear.outputs)
            .map(|from| Column {
                from,
                scale: 1.0,
                offset: 0.0,
            })
            .collect();
        let stored = linear.weights(&all)?;
        let dim = linear.outputs;
        let mut weight = vec![0.0; stored.len()];
        for (row, &inside) in stored.chunks_exact(dim).zip(&rows) {
            weight[inside * dim..(inside + 1) * dim].copy_from_slice(row);
        }
        Ok(Self {
            patch,
            dim,
            weight,
            bias: linear.biases(&all),
            channels_first: false,
        })
    }
}

/// The patch side, if a node is a Conv that cuts the image into patches.
fn patch_of(graph: &Graph, node: &NodeProto) -> Option<Pixels> {
    let [input, weight, ..] = node.input.as_slice() else {
        return None;
    };
    if node.op_type != "Conv" || graph.canonical(input) != graph.input || !graph.is_constant(weight)
    {
        return None;
    }
    let shape = graph.shape(weight).ok()?;
    let [_, 3, patch, other] = shape[..] else {
        return None;
    };
    let all = |name: &str, value: usize, default: bool| {
        attribute(node, name).map_or(default, |a| a.ints.iter().all(|&i| i == value as i64))
    };
    let plain = patch == other
        && all("strides", patch, patch == 1)
        && all("dilations", 1, true)
        && all("pads", 0, true)
        && integer(node, "group", 1) == 1
        && graph.image.is_multiple_of(patch);
    plain.then_some(patch)
}

/// The table that the graph resizes to the grid in use, if resizing it as PyTorch does gives what
/// the graph adds. Otherwise the positions stay at the export's own grid.
fn stored_positions(
    graph: &Graph,
    dim: usize,
    grid: usize,
    at_own_size: &[f32],
) -> Option<(usize, Vec<f32>)> {
    let largest = at_own_size.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    graph.nodes().iter().find_map(|node| {
        let input = node.input.first().filter(|_| node.op_type == "Resize")?;
        let table = graph
            .is_constant(input)
            .then(|| graph.constant(input).ok())??;
        let (channels, side, other) = matrices_of(table.shape()).ok()?;
        if channels != dim || side != other {
            return None;
        }
        let values = floats(&table).ok()?;
        let stored: Vec<f32> = (0..values.len())
            .map(|at| values[at % dim * side * side + at / dim])
            .collect();
        let same = positions::resize(&stored, dim, side, grid)
            .iter()
            .zip(at_own_size)
            .all(|(ours, theirs)| (ours - theirs).abs() <= SAME_RESIZE * largest);
        same.then_some((side, stored))
    })
}
