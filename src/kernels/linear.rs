//! Products of dense rows with a frozen weight matrix.

use super::matmul::{MatMut, MatRef, matmul};

/// `y = x W + bias`: x `[rows, in]`, W `[in, out]`, bias `[out]`, y `[rows, out]`.
pub fn linear(x: &[f32], weight: MatRef<'_>, bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        row.copy_from_slice(bias);
    }
    product(x, weight, 1.0, y);
}

/// `y += bias` on every row: y `[rows, out]`, bias `[out]`.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        for (y, bias) in row.iter_mut().zip(bias) {
            *y += bias;
        }
    }
}

/// `y = x W + beta y`: x `[rows, in]`, W `[in, out]`, y `[rows, out]`.
///
/// With the transpose of a layer's weight it carries that layer's gradient backward.
pub fn product(x: &[f32], weight: MatRef<'_>, beta: f32, y: &mut [f32]) {
    let (inner, out) = (weight.rows(), weight.cols());
    let rows = x.len() / inner;
    let x = MatRef::new(x, rows, inner);
    matmul(1.0, x, weight, beta, MatMut::new(y, rows, out));
}
