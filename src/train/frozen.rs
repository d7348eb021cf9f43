//! The whole model, frozen, through the trainer's own kernels: what an import is held to.

use super::block::{self, BlockShape};
use crate::kernels::gemm::Accuracy;
use crate::kernels::norm::layer_norm_forward;
use crate::vit::{Prefix, Weights};

/// Runs one image `[3, image, image]`, normalised, at the export's own size. Returns the residual
/// stream `[tokens, D]` in front of the first block and behind each, then the final norm's output.
///
/// # Panics
/// When `image` has another length.
pub fn forward(weights: &Weights, image: &[f32]) -> Vec<Vec<f32>> {
    let geometry = weights.geometry();
    let (side, d) = (geometry.image, geometry.dim);
    let tokens = geometry.tokens(side);
    let shape = BlockShape {
        images: 1,
        tokens,
        dim: d,
        heads: geometry.heads,
        hidden: geometry.hidden,
        rank: 0,
        norm_eps: geometry.norm_eps,
        activation: geometry.activation,
        accuracy: Accuracy::Full,
        mlp_rows: usize::MAX,
        mlp_columns: usize::MAX,
        attention_rows: usize::MAX,
    };
    let mut streams = Vec::with_capacity(geometry.depth + 2);
    Prefix::new(weights, side, 0)
        .and_then(|embedding| {
            let patches = patches(image, side, geometry.patch);
            embedding.run(&patches, |_, stream| streams.push(stream.to_vec()))
        })
        .expect("a model's own size is a multiple of its patch, and no block is run by tract");
    let mut scratch = vec![0.0; block::forward_scratch_len(&shape)];
    for index in 0..geometry.depth {
        let mut output = vec![0.0; tokens * d];
        let weights = weights.block(index);
        let input = &streams[index];
        block::forward(
            &shape,
            &weights,
            &[None; 3],
            input,
            &mut output,
            None,
            &mut scratch,
        );
        streams.push(output);
    }
    let mut normed = vec![0.0; tokens * d];
    let (mut mean, mut rstd) = (vec![0.0; tokens], vec![0.0; tokens]);
    let norm = weights.final_norm();
    layer_norm_forward(
        &streams[geometry.depth],
        norm.gain,
        norm.bias,
        geometry.norm_eps,
        &mut normed,
        &mut mean,
        &mut rstd,
    );
    streams.push(normed);
    streams
}

/// `[3, side, side]` as `[patches, 3 * patch * patch]`, rows in channel, row, column order.
fn patches(image: &[f32], side: usize, patch: usize) -> Vec<f32> {
    let grid = side / patch;
    let mut rows = Vec::with_capacity(image.len());
    for at in 0..grid * grid {
        let (top, left) = (at / grid * patch, at % grid * patch);
        for line in 0..3 * patch {
            let (channel, y) = (line / patch, top + line % patch);
            let start = (channel * side + y) * side + left;
            rows.extend_from_slice(&image[start..start + patch]);
        }
    }
    rows
}
