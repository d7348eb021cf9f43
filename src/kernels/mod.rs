//! The arithmetic of a transformer block: each kernel's forward and backward side by side, over
//! slices with explicit sizes. Matrices are row-major `f32`, frozen ones
//! in [`panels`].

pub mod attention;
mod exp;
pub mod gelu;
pub mod gemm;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod panels;
pub mod pool;
mod simd;
pub mod softmax;
pub(crate) mod threads;
