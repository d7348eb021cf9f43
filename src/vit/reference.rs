//! The slow, obvious forward pass of a ViT, one image at a time: what the trainer's fast path is
//! held to, and what an import is compared with.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

use super::{Activation, BlockWeights, Geometry, NormWeights, Pixels, Weights, positions};
use crate::kernels::panels::Panels;

/// Runs the whole ViT on one image `[3, resolution, resolution]` that is already normalised.
///
/// Returns `depth + 2` tensors `[tokens, D]`: the residual stream in front of the first block,
/// behind every block, and the final norm's output.
///
/// # Panics
/// When `image` does not have that size or `resolution` is no multiple of the patch.
pub fn forward(weights: &Weights, image: &[f32], resolution: Pixels) -> Vec<Vec<f32>> {
    let g = weights.geometry();
    let mut stream = embed(weights, image, resolution);
    let mut boundaries = vec![flat(&stream)];
    for index in 0..g.depth {
        stream = block(g, &weights.block(index), stream);
        boundaries.push(flat(&stream));
    }
    boundaries.push(flat(&norm(&stream, weights.final_norm(), g.norm_eps)));
    boundaries
}

/// Class token, registers, patches plus positions.
fn embed(weights: &Weights, image: &[f32], resolution: Pixels) -> Array2<f32> {
    let g = weights.geometry();
    let e = weights.embedding();
    let (d, patch, grid) = (g.dim, g.patch, g.grid(resolution));
    assert_eq!(
        image.len(),
        3 * resolution * resolution,
        "not an RGB image of that size"
    );
    assert_eq!(
        grid * patch,
        resolution,
        "resolution must be a multiple of the patch"
    );
    let pixels = Array2::from_shape_fn((grid * grid, 3 * patch * patch), |(p, k)| {
        let (channel, y, x) = (k / (patch * patch), k / patch % patch, k % patch);
        let (row, column) = (p / grid * patch + y, p % grid * patch + x);
        image[(channel * resolution + row) * resolution + column]
    });
    let positions = positions::resize(e.positions, d, g.position_grid, grid);
    let patches = pixels.dot(&dense(e.patch_weight))
        + ArrayView1::from(e.patch_bias)
        + matrix(&positions, grid * grid, d);
    let mut tokens = Array2::zeros((g.tokens(resolution), d));
    tokens.row_mut(0).assign(&ArrayView1::from(e.class_token));
    tokens
        .slice_mut(s![1..=g.registers, ..])
        .assign(&matrix(e.registers, g.registers, d));
    tokens.slice_mut(s![1 + g.registers.., ..]).assign(&patches);
    tokens
}

fn block(g: &Geometry, w: &BlockWeights<'_>, x: Array2<f32>) -> Array2<f32> {
    let (d, heads, head_dim) = (g.dim, g.heads, g.head_dim());
    let qkv =
        norm(&x, w.norm1, g.norm_eps).dot(&dense(w.qkv_weight)) + ArrayView1::from(w.qkv_bias);
    let mut context = Array2::zeros(x.dim());
    for head in 0..heads {
        let part = |k: usize| {
            let first = k * d + head * head_dim;
            qkv.slice(s![.., first..first + head_dim])
        };
        let mut scores = part(0).dot(&part(1).t()) / (head_dim as f32).sqrt();
        for mut row in scores.rows_mut() {
            let largest = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|v| (v - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
        context
            .slice_mut(s![.., head * head_dim..(head + 1) * head_dim])
            .assign(&scores.dot(&part(2)));
    }
    let x = x + context.dot(&dense(w.proj_weight)) + ArrayView1::from(w.proj_bias);
    let hidden =
        norm(&x, w.norm2, g.norm_eps).dot(&dense(w.fc1_weight)) + ArrayView1::from(w.fc1_bias);
    let activated = match g.activation {
        Activation::Gelu => hidden.mapv(gelu),
        Activation::GeluTanh => hidden.mapv(gelu_tanh),
    };
    x + activated.dot(&dense(w.fc2_weight)) + ArrayView1::from(w.fc2_bias)
}

fn norm(x: &Array2<f32>, w: NormWeights<'_>, eps: f32) -> Array2<f32> {
    let mean = x.sum_axis(Axis(1)) / x.ncols() as f32;
    let centred = x - &mean.insert_axis(Axis(1));
    let variance: Array1<f32> = (&centred * &centred).sum_axis(Axis(1)) / x.ncols() as f32;
    let deviation = variance.mapv(|v| (v + eps).sqrt());
    centred / deviation.insert_axis(Axis(1)) * ArrayView1::from(w.gain) + ArrayView1::from(w.bias)
}

fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
}

fn gelu_tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    (0.5 * x * (1.0 + inner.tanh())) as f32
}

/// The function [`Activation`] names.
pub(super) fn activation(activation: Activation) -> fn(f32) -> f32 {
    match activation {
        Activation::Gelu => gelu,
        Activation::GeluTanh => gelu_tanh,
    }
}

/// The error function by its series `2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!` (Abramowitz
/// and Stegun 7.1.6), whose terms are all of one sign, so nothing cancels.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

fn dense(weight: Panels<'_>) -> Array2<f32> {
    Array2::from_shape_vec((weight.rows(), weight.cols()), weight.unpack())
        .expect("a matrix has as many elements as its sides say")
}

fn matrix(values: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), values).expect("weights fit their geometry")
}

fn flat(x: &Array2<f32>) -> Vec<f32> {
    x.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_agrees_with_its_tables() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
        ] {
            assert!((erf(x) - y).abs() < 1e-9, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + y).abs() < 1e-9, "erf(-{x}) = {}", erf(-x));
        }
        assert_eq!(erf(40.0), 1.0);
    }
}
