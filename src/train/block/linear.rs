//! Products with a frozen weight matrix, on dense rows.

use crate::kernels::matmul::{MatMut, MatRef, matmul};

/// `y = x W + bias`: x `[rows, in]`, W `[in, out]`, bias `[out]`, y `[rows, out]`.
pub(super) fn linear(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        row.copy_from_slice(bias);
    }
    add_product(x, weight, y, weight.len() / bias.len());
}

/// `y += bias` on every row: y `[rows, out]`, bias `[out]`.
pub(super) fn add_bias(y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        for (y, bias) in row.iter_mut().zip(bias) {
            *y += bias;
        }
    }
}

/// `y = x W`: x `[rows, inner]`, W `[inner, out]`, y `[rows, out]`.
pub(super) fn product(x: &[f32], weight: &[f32], y: &mut [f32], inner: usize) {
    dense_matmul(x, weight, 0.0, y, inner);
}

/// `y += x W`, with the shapes of [`product`].
pub(super) fn add_product(x: &[f32], weight: &[f32], y: &mut [f32], inner: usize) {
    dense_matmul(x, weight, 1.0, y, inner);
}

fn dense_matmul(x: &[f32], weight: &[f32], beta: f32, y: &mut [f32], inner: usize) {
    let (rows, out) = (x.len() / inner, weight.len() / inner);
    let x = MatRef::new(x, rows, inner);
    let weight = MatRef::new(weight, inner, out);
    matmul(1.0, x, weight, beta, MatMut::new(y, rows, out));
}

/// `x = y W^T`: y `[rows, out]`, W `[in, out]`, x `[rows, in]`.
pub(super) fn product_transposed(y: &[f32], weight: &[f32], x: &mut [f32], out: usize) {
    let (rows, inputs) = (y.len() / out, weight.len() / out);
    let y = MatRef::new(y, rows, out);
    let weight = MatRef::new(weight, inputs, out);
    matmul(1.0, y, weight.t(), 0.0, MatMut::new(x, rows, inputs));
}
