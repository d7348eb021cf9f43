//! One pre-norm transformer block with low-rank adapters, forward and backward side by side.
//!
//! `x1 = x + attention(norm1(x)) W_proj`, `y = x1 + gelu(norm2(x1) W_1) W_2`, biases left out here.
//! An adapter adds `((h A) C) B^T` to the query, key or value of `h = norm1(x)` (FM-LoRA,
//! arXiv 2504.08823). The backward pass starts from the block's input and what [`Kept`] holds of the
//! forward pass, and recomputes the rest (gradient checkpointing, Chen et al., arXiv 1604.06174), the
//! MLP a tile at a time. Gradients of frozen matrices are never formed.
//!
//! Nothing here allocates: every buffer is carved from one scratch slice, in the order of
//! [`buffers`].

mod adapter;
mod kept;
mod scratch;

pub use adapter::{Adapter, AdapterGrad, Adapters};
pub use kept::Kept;
pub use scratch::{Buffer, buffers, forward_buffers, forward_scratch_len, scratch_len};

use adapter::{adapter_backward, adapter_forward};
use scratch::{carve, mlp_parts, split};

use std::ops::Range;

use crate::kernels::attention::{AttentionShape, attention_backward, attention_forward};
use crate::kernels::gelu::{gelu_backward, gelu_forward, gelu_tanh_backward, gelu_tanh_forward};
use crate::kernels::gemm::Accuracy;
use crate::kernels::linear::{add_bias, linear, product, product_backward};
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::kernels::norm::{layer_norm_backward, layer_norm_forward};
use crate::kernels::panels::{self, Panels};
use crate::vit::{Activation, BlockWeights};

/// Sizes of a micro-batch in one block, and of the tiles it is worked through in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockShape {
    pub images: usize,
    /// Tokens of one image, prompts included.
    pub tokens: usize,
    /// Model width D.
    pub dim: usize,
    /// Attention heads; divides `dim`.
    pub heads: usize,
    /// Width of the MLP between its two matrices.
    pub hidden: usize,
    /// Largest rank among the adapters; 0 without any.
    pub rank: usize,
    /// Added to the variance in both norms.
    pub norm_eps: f32,
    pub activation: Activation,
    /// Of the products with frozen matrices.
    pub accuracy: Accuracy,
    /// Rows, over all images, that pass through the MLP at a time; more than there are means all.
    pub mlp_rows: usize,
    /// Hidden columns computed at a time; more than `hidden` means all. Narrow columns read every
    /// weight once a row tile, short row tiles read all weights again for each.
    pub mlp_columns: usize,
    /// Rows of one head's probability matrix held at a time; more than `tokens` means all.
    pub attention_rows: usize,
}

impl BlockShape {
    /// Rows of the token matrix: `images * tokens`.
    pub fn rows(&self) -> usize {
        self.images * self.tokens
    }

    fn mlp_row_tile(&self) -> usize {
        self.mlp_rows.clamp(1, self.rows())
    }

    fn mlp_column_tile(&self) -> usize {
        let whole_panels = self
            .mlp_columns
            .max(1)
            .checked_next_multiple_of(panels::WIDTH);
        whole_panels.map_or(self.hidden, |columns| columns.min(self.hidden))
    }

    fn mlp_column_tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (hidden, tile) = (self.hidden, self.mlp_column_tile());
        (0..hidden)
            .step_by(tile)
            .map(move |first| first..hidden.min(first + tile))
    }

    fn attention(&self) -> AttentionShape {
        assert!(
            self.dim.is_multiple_of(self.heads),
            "the heads do not divide the model width"
        );
        AttentionShape {
            tokens: self.tokens,
            heads: self.heads,
            head_dim: self.dim / self.heads,
            tile: self.attention_rows.clamp(1, self.tokens),
        }
    }
}

/// What [`backward`] is asked for.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// For query, key and value; ignored where there is no adapter.
    pub adapters: [AdapterGrad<'a>; 3],
    /// Whether the gradient to the block's input is needed. Below the first adapted block nothing
    /// learns, unless prompts enter there.
    pub input: bool,
}

/// The block's output: input, output `[images * tokens, D]`. Without adapters it is the frozen block.
/// What [`backward`] could use is left in `kept`, where that is given.
///
/// # Panics
/// When a slice does not have the length the shape says, or scratch is shorter than
/// [`forward_scratch_len`].
pub fn forward(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    adapters: &Adapters<'_>,
    input: &[f32],
    output: &mut [f32],
    kept: Option<&mut Kept<'_>>,
    scratch: &mut [f32],
) {
    let (rows, dim, tile) = (shape.rows(), shape.dim, shape.mlp_row_tile());
    assert_eq!(input.len(), rows * dim, "block input has the wrong length");
    assert_eq!(
        output.len(),
        rows * dim,
        "block output has the wrong length"
    );
    let [normed, qkv, workspace, low_rank, statistics] =
        carve(&forward_buffers(shape, kept.is_some()), scratch);
    let (mean, rstd) = statistics.split_at_mut(rows);
    let (qkv, mut kept) = match kept {
        Some(kept) => (&mut *kept.qkv, Some((&mut *kept.x1, &mut *kept.hidden))),
        None => (qkv, None),
    };

    norm1(shape, weights, input, normed, mean, rstd);
    project(shape, weights, adapters, normed, qkv, low_rank);
    let attended = normed;
    attend(shape, qkv, attended, workspace);

    let tiles = input.chunks(tile * dim).zip(attended.chunks(tile * dim));
    let tiles = tiles.zip(output.chunks_mut(tile * dim));
    for (row, ((x, attended), y)) in (0..).step_by(tile).zip(tiles) {
        let n = x.len() / dim;
        let (normed, rest) = workspace.split_at_mut(n * dim);
        // y holds x1 first; the MLP's output is added on top.
        residual(shape.accuracy, weights, x, attended, y);
        if let Some((x1, _)) = &mut kept {
            x1[row * dim..][..y.len()].copy_from_slice(y);
        }
        norm2(shape, weights, y, normed, &mut mean[..n], &mut rstd[..n]);
        add_bias(y, weights.fc2_bias);
        for columns in shape.mlp_column_tiles() {
            let (fc1, fc1_bias, fc2) = mlp_weights(weights, &columns);
            let hidden = &mut rest[..n * columns.len()];
            linear(shape.accuracy, normed, fc1, fc1_bias, hidden);
            if let Some((_, kept)) = &mut kept {
                let kept = &mut kept[row * shape.hidden..];
                kept::store_columns(hidden, kept, shape.hidden, &columns);
            }
            match shape.activation {
                Activation::Gelu => gelu_forward(hidden),
                Activation::GeluTanh => gelu_tanh_forward(hidden),
            }
            product(shape.accuracy, hidden, fc2, 1.0, y);
        }
    }
}

/// The gradients of [`forward`], from the block's input, the gradient of its output and what the same
/// pass left in `kept`, which is used up; without it everything is computed again.
///
/// input, gradient `[images * tokens, D]`. `gradient` is the output's on entry and the input's on
/// return, unspecified when [`Gradients::input`] is off. Adapter gradients are added to what
/// `gradients` holds.
///
/// # Panics
/// When a slice does not have the length the shape says, or scratch is shorter than [`scratch_len`].
#[expect(
    clippy::too_many_arguments,
    reason = "sizes and buffers of a kernel are explicit"
)]
pub fn backward(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    adapters: &Adapters<'_>,
    input: &[f32],
    gradient: &mut [f32],
    gradients: &mut Gradients<'_>,
    kept: Option<&mut Kept<'_>>,
    scratch: &mut [f32],
) {
    let (rows, dim) = (shape.rows(), shape.dim);
    assert_eq!(input.len(), rows * dim, "block input has the wrong length");
    assert_eq!(
        gradient.len(),
        rows * dim,
        "block gradient has the wrong length"
    );
    let [normed, qkv, attended, workspace, low_rank, statistics] =
        carve(&buffers(shape, kept.is_some()), scratch);
    let (statistics1, statistics2) = statistics.split_at_mut(2 * rows);
    let (mean, rstd) = statistics1.split_at_mut(rows);

    norm1(shape, weights, input, normed, mean, rstd);
    let (qkv, middle) = match kept {
        Some(kept) => (&mut *kept.qkv, Middle::Kept(kept.x1, kept.hidden)),
        None => {
            project(shape, weights, adapters, normed, qkv, low_rank);
            attend(shape, qkv, attended, workspace);
            (qkv, Middle::Input(input))
        }
    };

    mlp_backward(
        shape,
        weights,
        &middle,
        attended,
        gradient,
        workspace,
        statistics2,
    );
    let d_attended = attended;
    let image = shape.tokens * dim;
    for (qkv, d_attended) in qkv
        .chunks_exact_mut(3 * image)
        .zip(d_attended.chunks_exact(image))
    {
        attention_backward(&shape.attention(), qkv, d_attended, workspace);
    }
    let d_qkv = qkv;

    let d_normed = d_attended;
    if gradients.input {
        product_backward(shape.accuracy, d_qkv, weights.qkv_weight.t(), 0.0, d_normed);
    }
    for (index, (adapter, grad)) in adapters.iter().zip(&mut gradients.adapters).enumerate() {
        if let Some(adapter) = adapter {
            let d_out = MatRef::strided(&d_qkv[index * dim..], rows, dim, 3 * dim);
            let d_normed = gradients.input.then_some(&mut *d_normed);
            adapter_backward(adapter, normed, d_out, grad, d_normed, low_rank);
        }
    }
    if gradients.input {
        layer_norm_backward(d_normed, input, weights.norm1.gain, mean, rstd, gradient);
    }
}

/// `z = norm1(input) A` for each adapted projection, one `[images * tokens, rank]` after the other
/// in z: what a change of that adapter's core is multiplied with.
///
/// # Panics
/// When a slice does not have the length the shape says, or scratch is shorter than the output of norm1
/// and its statistics, which is part of everything that [`forward`] and [`backward`] work in.
pub fn adapter_input(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    adapters: &Adapters<'_>,
    input: &[f32],
    z: &mut [f32],
    scratch: &mut [f32],
) {
    let (rows, dim) = (shape.rows(), shape.dim);
    let [normed, mean, rstd] = split(scratch, [rows * dim, rows, rows]);
    norm1(shape, weights, input, normed, mean, rstd);
    let mut rest = z;
    for adapter in adapters.iter().flatten() {
        let (z, remaining) = rest.split_at_mut(rows * adapter.rank);
        let a = MatRef::new(adapter.a, dim, adapter.rank);
        let h = MatRef::new(normed, rows, dim);
        matmul(1.0, h, a, 0.0, MatMut::new(z, rows, adapter.rank));
        rest = remaining;
    }
    assert!(rest.is_empty(), "z is longer than the adapters' ranks say");
}

/// `normed = norm1(x)`: x, normed `[rows, D]`; mean, rstd `[rows]`.
fn norm1(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    x: &[f32],
    normed: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let norm = weights.norm1;
    layer_norm_forward(x, norm.gain, norm.bias, shape.norm_eps, normed, mean, rstd);
}

/// `normed = norm2(x1)`: x1, normed `[rows, D]`; mean, rstd `[rows]`.
fn norm2(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    x1: &[f32],
    normed: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let norm = weights.norm2;
    layer_norm_forward(x1, norm.gain, norm.bias, shape.norm_eps, normed, mean, rstd);
}

/// `qkv = h W + bias`, and `((h A) C) B^T` on top where there is an adapter: normed `[rows, D]`, qkv
/// `[rows, 3 D]`, low_rank `[2 rows, rank]`.
fn project(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    adapters: &Adapters<'_>,
    normed: &[f32],
    qkv: &mut [f32],
    low_rank: &mut [f32],
) {
    let (rows, dim) = (shape.rows(), shape.dim);
    linear(
        shape.accuracy,
        normed,
        weights.qkv_weight,
        weights.qkv_bias,
        qkv,
    );
    for (index, adapter) in adapters.iter().enumerate() {
        if let Some(adapter) = adapter {
            let out = MatMut::strided(&mut qkv[index * dim..], rows, dim, 3 * dim);
            adapter_forward(adapter, normed, out, low_rank);
        }
    }
}

/// Attention of every image: qkv `[rows, 3 D]`, attended `[rows, D]`.
fn attend(shape: &BlockShape, qkv: &[f32], attended: &mut [f32], workspace: &mut [f32]) {
    let image = shape.tokens * shape.dim;
    let images = qkv.chunks_exact(3 * image);
    for (qkv, attended) in images.zip(attended.chunks_exact_mut(image)) {
        attention_forward(&shape.attention(), qkv, attended, workspace);
    }
}

/// `x1 = x + attended W_proj + bias`: x, attended, x1 `[rows, D]`.
fn residual(
    accuracy: Accuracy,
    weights: &BlockWeights<'_>,
    x: &[f32],
    attended: &[f32],
    x1: &mut [f32],
) {
    x1.copy_from_slice(x);
    add_bias(x1, weights.proj_bias);
    product(accuracy, attended, weights.proj_weight, 1.0, x1);
}

/// The MLP's weights of some hidden columns: fc1 `[D, columns]` and its bias, fc2 `[columns, D]`.
fn mlp_weights<'w>(
    weights: &BlockWeights<'w>,
    columns: &Range<usize>,
) -> (Panels<'w>, &'w [f32], Panels<'w>) {
    let fc1 = weights.fc1_weight.columns_of(columns.clone());
    let fc2 = weights.fc2_weight.rows_of(columns.clone());
    (fc1, &weights.fc1_bias[columns.clone()], fc2)
}

/// What [`mlp_backward`] starts from.
enum Middle<'a> {
    /// The block's input `[rows, D]`, with which the attention output makes `x1`.
    Input(&'a [f32]),
    /// `x1` `[rows, D]`, and the hidden layer in front of its activation `[rows, hidden]`.
    Kept(&'a [f32], &'a [f32]),
}

/// From the output's gradient to that of `x1`, in place, and on to the attention output's, which
/// `attended` holds in the end: attended, gradient `[rows, D]`; statistics `[2, tile]`.
///
/// One tile of rows goes all the way before the next, and the hidden layer is walked through a tile
/// of columns at a time, so that it never exists as a whole.
fn mlp_backward(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    middle: &Middle<'_>,
    attended: &mut [f32],
    gradient: &mut [f32],
    workspace: &mut [f32],
    statistics: &mut [f32],
) {
    let (dim, tile) = (shape.dim, shape.mlp_row_tile());
    let tiles = attended
        .chunks_mut(tile * dim)
        .zip(gradient.chunks_mut(tile * dim));
    for (row, (attended, d)) in (0..).step_by(tile).zip(tiles) {
        let n = d.len() / dim;
        let of_tile = row * dim..(row + n) * dim;
        let (mean, rstd) = statistics[..2 * n].split_at_mut(n);
        let widest = shape.mlp_column_tile();
        let [x1, normed, hidden, d_hidden] = split(
            workspace,
            mlp_parts(shape, n, widest, matches!(middle, Middle::Kept(..))),
        );
        let x1 = match middle {
            Middle::Input(x) => {
                residual(shape.accuracy, weights, &x[of_tile], attended, x1);
                &*x1
            }
            Middle::Kept(kept, _) => &kept[of_tile],
        };
        norm2(shape, weights, x1, normed, mean, rstd);
        let d_normed = attended;
        for columns in shape.mlp_column_tiles() {
            let (fc1, fc1_bias, fc2) = mlp_weights(weights, &columns);
            let d_hidden = &mut d_hidden[..n * columns.len()];
            let hidden = match middle {
                Middle::Kept(_, kept) if columns.len() == shape.hidden => {
                    &kept[row * shape.hidden..][..n * shape.hidden]
                }
                Middle::Kept(_, kept) => {
                    let hidden = &mut hidden[..n * columns.len()];
                    let kept = &kept[row * shape.hidden..][..n * shape.hidden];
                    kept::load_columns(kept, shape.hidden, &columns, hidden);
                    &*hidden
                }
                Middle::Input(_) => {
                    let hidden = &mut hidden[..n * columns.len()];
                    linear(shape.accuracy, normed, fc1, fc1_bias, hidden);
                    &*hidden
                }
            };
            product_backward(shape.accuracy, d, fc2.t(), 0.0, d_hidden);
            match shape.activation {
                Activation::Gelu => gelu_backward(hidden, d_hidden),
                Activation::GeluTanh => gelu_tanh_backward(hidden, d_hidden),
            }
            let beta = if columns.start == 0 { 0.0 } else { 1.0 };
            product_backward(shape.accuracy, d_hidden, fc1.t(), beta, d_normed);
        }
        layer_norm_backward(d_normed, x1, weights.norm2.gain, mean, rstd, d);
        let d_attended = d_normed;
        product_backward(shape.accuracy, d, weights.proj_weight.t(), 0.0, d_attended);
    }
}
