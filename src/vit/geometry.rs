//! The shape of a Vision Transformer: everything about it that is not a weight.

use serde::{Deserialize, Serialize};

/// Side of a square image, in pixels.
pub type Pixels = usize;

/// The non-linearity between the two MLP matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x Phi(x)` with the exact error function (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// The tanh approximation of GELU (same paper, section 2).
    GeluTanh,
}

/// Geometry of an imported ViT. Lengths are numbers of elements unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// Model width D.
    pub dim: usize,
    /// Number of blocks L.
    pub depth: usize,
    /// Attention heads; divides `dim`.
    pub heads: usize,
    /// Width of the MLP between its two matrices.
    pub hidden: usize,
    /// Side of a square patch, in pixels.
    pub patch: Pixels,
    /// Side of the square input the export was made for, in pixels.
    pub image: Pixels,
    /// Register tokens after the class token.
    pub registers: usize,
    /// Side of the stored position table, in patches.
    pub position_grid: usize,
    /// Added to the variance in every LayerNorm.
    pub norm_eps: f32,
    pub activation: Activation,
    /// Whether the export scales its branches; the scales are folded into the weights at import.
    pub layer_scale: bool,
}

impl Geometry {
    /// Patches along one side at `resolution` pixels.
    pub fn grid(&self, resolution: Pixels) -> usize {
        resolution / self.patch
    }

    /// Tokens of one image at `resolution`: class token, registers, patches (prompts come later).
    pub fn tokens(&self, resolution: Pixels) -> usize {
        1 + self.registers + self.grid(resolution).pow(2)
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }
}
