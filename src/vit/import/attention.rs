//! Self-attention: query, key and value told apart by what happens to them, not by their names.

use ndarray::ArrayView3;

use super::Refusal;
use super::graph::{Graph, axis, integer};
use super::linear::Linear;
use super::trace::{CONSTANT, Column, Element, Trace, columns, matrices_of, unexpected};

/// The weights of one attention, in the layout of [`crate::vit::BlockWeights`].
pub(super) struct Attention {
    /// The normalised value that query, key and value read.
    pub input: String,
    pub heads: usize,
    pub qkv_weight: Vec<f32>,
    pub qkv_bias: Vec<f32>,
    pub proj_weight: Vec<f32>,
    pub proj_bias: Vec<f32>,
    /// Whether the branch is scaled behind its projection.
    pub layer_scale: bool,
}

/// A product of two computed matrices, per head: `[heads, rows, columns]` each.
struct Product<'g> {
    operands: [&'g str; 2],
}

impl<'g> Product<'g> {
    fn of(graph: &'g Graph, value: &str) -> Result<Self, Refusal> {
        match graph.producer(value) {
            Some((node, _)) if node.op_type == "MatMul" => match node.input.as_slice() {
                [a, b] => Ok(Self { operands: [a, b] }),
                _ => Err(unexpected("two operands", "a different number")),
            },
            _ => Err(unexpected(
                "a product of two computed matrices",
                graph.operator(value),
            )),
        }
    }
}

/// Whether a branch's projection reads a product of two computed matrices, as only attention does.
pub(super) fn is_attention(graph: &Graph, projection: &Linear) -> bool {
    let trace = Trace::of(graph, &projection.input);
    let source = trace.ok().and_then(|trace| trace.source);
    let product = source.and_then(|source| Product::of(graph, &source).map(|p| p.operands).ok());
    product.is_some_and(|operands| !operands.iter().any(|operand| graph.is_constant(operand)))
}

impl Attention {
    /// Reads the attention whose projection is `projection`, seen through `branch` columns.
    pub fn of(graph: &Graph, projection: &Linear, branch: &[Column]) -> Result<Self, Refusal> {
        let mixed = Trace::of(graph, &projection.input)?;
        let context = mixed.source()?;
        let product = Product::of(graph, context)?;
        let (probabilities, softmax, value_side) = probabilities(graph, &product)?;
        let scores = Scores::of(graph, &softmax)?;

        // Context is [heads, queries, d], or [heads, d, queries] where the graph multiplies the
        // transposes; probabilities are the first operand in the first case.
        let upright = value_side == 1;
        let contracted = if upright {
            Contracted::Columns
        } else {
            Contracted::Rows
        };
        check_contraction(&probabilities, scores.keys, contracted)?;
        let value = operand(graph, product.operands[value_side], !upright)
            .map_err(|refusal| refusal.about("value"))?;
        let [query, key] = scores.query_and_key(graph)?;

        let width = query.linear.outputs;
        let input = query.trace_input(graph)?;
        for other in [&key, &value] {
            if other.trace_input(graph)? != input {
                return Err(unexpected(
                    "query, key and value of the same normalised stream",
                    "different inputs",
                ));
            }
        }
        let inner = query.columns.len();
        let dim = projection.outputs;
        if inner != dim || key.columns.len() != dim || value.columns.len() != dim {
            return Err(unexpected(
                &format!("query, key and value of the model's width {dim}"),
                &format!(
                    "{inner}, {} and {} (of {width} columns)",
                    key.columns.len(),
                    value.columns.len()
                ),
            ));
        }
        let heads = query.heads;
        let head_dim = dim / heads;
        // fledge divides the scores by sqrt(head_dim); what the export does beyond that goes into
        // the query's weights.
        let extra = scores.scale * (head_dim as f32).sqrt();
        let query_columns: Vec<Column> = query.columns.iter().map(|c| c.times(extra)).collect();

        let mut qkv_weight = vec![0.0; query.linear.inputs * 3 * dim];
        let parts = [
            (&query, query_columns.as_slice()),
            (&key, key.columns.as_slice()),
            (&value, value.columns.as_slice()),
        ];
        let mut qkv_bias = Vec::with_capacity(3 * dim);
        for (part, (operand, columns)) in parts.into_iter().enumerate() {
            let linear = &operand.linear;
            linear.weights_into(columns, &mut qkv_weight, part * dim, 3 * dim)?;
            qkv_bias.extend(linear.biases(columns));
        }
        let rows = projection_rows(&mixed, graph, context, upright)?;
        let stored = projection.weights(branch)?;
        let mut proj_weight = vec![0.0; stored.len()];
        for (row, &(channel, scale)) in stored.chunks_exact(dim).zip(&rows) {
            let out = &mut proj_weight[channel * dim..(channel + 1) * dim];
            out.iter_mut().zip(row).for_each(|(o, w)| *o = w * scale);
        }
        Ok(Self {
            input,
            heads,
            qkv_weight,
            qkv_bias,
            proj_weight,
            proj_bias: projection.biases(branch),
            layer_scale: branch.iter().any(|column| column.scale != 1.0),
        })
    }
}

impl Column {
    fn times(self, factor: f32) -> Self {
        // Rounding in a scale such as sqrt(1 / 8)^2 must not disturb the weights.
        if (factor - 1.0).abs() < 1e-6 {
            return self;
        }
        Self {
            scale: self.scale * factor,
            offset: self.offset * factor,
            ..self
        }
    }
}

/// Query, key or value as an operand of a product: columns head by head.
struct Operand {
    linear: Linear,
    heads: usize,
    columns: Vec<Column>,
}

impl Operand {
    fn trace_input(&self, graph: &Graph) -> Result<String, Refusal> {
        Ok(graph.canonical(&self.linear.input).to_owned())
    }
}

/// An operand `[heads, tokens, d]`, or `[heads, d, tokens]` when `transposed`.
fn operand(graph: &Graph, value: &str, transposed: bool) -> Result<Operand, Refusal> {
    let trace = Trace::of(graph, value)?;
    let linear = Linear::of(graph, trace.source()?)?;
    let mut matrices = trace.matrices()?;
    if transposed {
        matrices.swap_axes(1, 2);
    }
    Ok(Operand {
        heads: matrices.dim().0,
        columns: columns(matrices, linear.outputs)?,
        linear,
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Contracted {
    Rows,
    Columns,
}

/// Which operand of the context product is the Softmax, seen through its moves: its trace, the
/// Softmax's value, and the index of the other operand.
fn probabilities(graph: &Graph, product: &Product<'_>) -> Result<(Trace, String, usize), Refusal> {
    for (this, other) in [(0, 1), (1, 0)] {
        let trace = Trace::of(graph, product.operands[this])?;
        let source = trace.source()?.to_owned();
        if graph.operator(&source) == "Softmax" {
            return Ok((trace, source, other));
        }
    }
    Err(unexpected(
        "a Softmax in front of the value product",
        &format!(
            "{} and {}",
            graph.operator(product.operands[0]),
            graph.operator(product.operands[1])
        ),
    ))
}

/// The product of queries and keys in front of a Softmax.
struct Scores<'g> {
    product: Product<'g>,
    scale: f32,
    /// Which axis of the Softmax's value runs over the keys: its rows or its columns.
    keys: Contracted,
    /// The same for the product's own value, which may be transposed on the way.
    product_keys: Contracted,
}

impl<'g> Scores<'g> {
    fn of(graph: &'g Graph, softmax: &str) -> Result<Self, Refusal> {
        let (node, _) = graph
            .producer(softmax)
            .ok_or_else(|| unexpected("a Softmax", "nothing"))?;
        let rank = graph.shape(softmax)?.len();
        let keys = match rank - axis(integer(node, "axis", -1), rank)? {
            1 => Contracted::Columns,
            2 => Contracted::Rows,
            _ => return Err(unexpected("a Softmax over tokens", "one over another axis")),
        };
        let input = node.input.first().map_or("", String::as_str);
        let trace = Trace::of(graph, input)?;
        let product = Product::of(graph, trace.source()?)?;
        let matrices = trace.matrices()?;
        let first = matrices[(0, 0, 0)];
        if matrices
            .iter()
            .any(|e| e.scale != first.scale || e.offset != 0.0 || e.index == CONSTANT)
        {
            return Err(unexpected(
                "scores with one scale and no mask",
                "a mask or a position bias",
            ));
        }
        let transposed = is_transposed(&matrices)?;
        Ok(Self {
            product,
            scale: first.scale,
            keys,
            product_keys: match (keys, transposed) {
                (keys, false) => keys,
                (Contracted::Rows, true) => Contracted::Columns,
                (Contracted::Columns, true) => Contracted::Rows,
            },
        })
    }

    /// The product's operands: its rows are the first one's tokens, its columns the second one's.
    fn query_and_key(&self, graph: &Graph) -> Result<[Operand; 2], Refusal> {
        let side = |index: usize, transposed| {
            operand(graph, self.product.operands[index], transposed)
                .map_err(|refusal| refusal.about("query or key"))
        };
        let (first, second) = (side(0, false)?, side(1, true)?);
        if first.heads != second.heads {
            return Err(unexpected("as many key heads as query heads", "fewer"));
        }
        Ok(match self.product_keys {
            Contracted::Columns => [first, second],
            Contracted::Rows => [second, first],
        })
    }
}

/// Whether a square matrix per head arrives as it is or transposed; nothing else will do.
fn is_transposed(matrices: &ArrayView3<'_, Element>) -> Result<bool, Refusal> {
    let (_, rows, columns) = matrices.dim();
    let follows = |upright: bool| {
        matrices.indexed_iter().all(|((h, r, c), element)| {
            let index = if upright {
                (h * rows + r) * columns + c
            } else {
                (h * columns + c) * rows + r
            };
            element.index as usize == index
        })
    };
    if follows(true) {
        Ok(false)
    } else if follows(false) {
        Ok(true)
    } else {
        Err(unexpected(
            "one square matrix per head",
            "heads or tokens mixed",
        ))
    }
}

/// Checks that the value product sums over the keys, and that the probabilities arrive unscaled.
fn check_contraction(
    probabilities: &Trace,
    keys: Contracted,
    contracted: Contracted,
) -> Result<(), Refusal> {
    let matrices = probabilities.matrices()?;
    if matrices.iter().any(|e| e.scale != 1.0 || e.offset != 0.0) {
        return Err(unexpected(
            "probabilities as they are",
            "scaled or shifted ones",
        ));
    }
    let sums_over_keys = (keys == contracted) != is_transposed(&matrices)?;
    if !sums_over_keys {
        return Err(unexpected(
            "values weighted by probabilities that add up to 1",
            "a sum over the queries",
        ));
    }
    Ok(())
}

/// For every input of the projection: the channel `head * head_dim + d` of the context it is, and
/// its scale.
fn projection_rows(
    mixed: &Trace,
    graph: &Graph,
    context: &str,
    upright: bool,
) -> Result<Vec<(usize, f32)>, Refusal> {
    let (_, rows, columns) = matrices_of(&graph.shape(context)?)?;
    let (tokens, head_dim) = if upright {
        (rows, columns)
    } else {
        (columns, rows)
    };
    let locate = |index: usize| {
        let (head, row, column) = (
            index / (rows * columns),
            index / columns % rows,
            index % columns,
        );
        let (token, d) = if upright {
            (row, column)
        } else {
            (column, row)
        };
        (token, head * head_dim + d)
    };
    let matrices = mixed.matrices()?;
    if matrices.dim().0 * matrices.dim().1 != tokens {
        return Err(unexpected("heads joined again", "another shape"));
    }
    let mut found = Vec::new();
    for (token, row) in matrices.rows().into_iter().enumerate() {
        for (channel, element) in row.iter().enumerate() {
            let fits = element.index != CONSTANT && element.offset == 0.0;
            let (from_token, from) = locate(element.index as usize);
            let place = (from, element.scale);
            if token == 0 {
                found.push(place);
            }
            if !fits || from_token != token || found[channel] != place {
                return Err(unexpected(
                    "each token's heads joined again",
                    "tokens mixed or shifted",
                ));
            }
        }
    }
    let mut channels: Vec<usize> = found.iter().map(|&(channel, _)| channel).collect();
    channels.sort_unstable();
    if channels
        .iter()
        .enumerate()
        .any(|(at, &channel)| at != channel)
    {
        return Err(unexpected("every channel once", "channels left out"));
    }
    Ok(found)
}
