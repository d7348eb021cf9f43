//! Products of dense rows with a frozen weight matrix.

use super::gemm::Accuracy;
use super::matmul::{MatMut, MatRef, matmul_panels, matmul_panels_biased, matmul_panels_t};
use super::panels::{Panels, PanelsT};

/// `y = x W + bias`: x `[rows, in]`, W `[in, out]`, bias `[out]`, y `[rows, out]`.
pub fn linear(accuracy: Accuracy, x: &[f32], weight: Panels<'_>, bias: &[f32], y: &mut [f32]) {
    let (inner, out) = (weight.rows(), weight.cols());
    let rows = x.len() / inner;
    let x = MatRef::new(x, rows, inner);
    matmul_panels_biased(accuracy, x, weight, bias, MatMut::new(y, rows, out));
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
pub fn product(accuracy: Accuracy, x: &[f32], weight: Panels<'_>, beta: f32, y: &mut [f32]) {
    let (inner, out) = (weight.rows(), weight.cols());
    let rows = x.len() / inner;
    let x = MatRef::new(x, rows, inner);
    matmul_panels(accuracy, x, weight, beta, MatMut::new(y, rows, out));
}

/// `dx = dy W^T + beta dx`: dy `[rows, out]`, W `[in, out]`, dx `[rows, in]`. Carries the gradient of
/// [`product`] backward.
pub fn product_backward(
    accuracy: Accuracy,
    dy: &[f32],
    weight: PanelsT<'_>,
    beta: f32,
    dx: &mut [f32],
) {
    let (inner, out) = (weight.0.cols(), weight.0.rows());
    let rows = dy.len() / inner;
    let dy = MatRef::new(dy, rows, inner);
    matmul_panels_t(accuracy, dy, weight, beta, MatMut::new(dx, rows, out));
}
