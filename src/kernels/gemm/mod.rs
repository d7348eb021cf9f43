//! `f32` matrix products by hand-written register tiles, one file per instruction set, chosen once at
//! run time. Threads of a pool take columns of large ones.
//!
//! The loops are those of Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (2008), with what frozen weights and short products allow left out. A is read in
//! place: a tile touches a dozen rows, each a stream of its own. A frozen B lies in panels and is read
//! in place, too, each panel asked for while the one before is multiplied. Of any other B one panel is
//! copied at a time, [`scratch_bytes`] on the caller's stack: the first tile of a column of tiles
//! stores the vectors of B it loads anyway, and the others read that copy. A transposed B is packed
//! before the first tile. Nothing is allocated on the heap.
//!
//! Frozen matrices go through the tile unit where there is one (`amx.rs`).
//!
//! An element of C sums over k in order, started from C itself where `alpha` is 1, so a row of the
//! result is the same to the bit whatever rows are multiplied beside it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
#[cfg(target_arch = "x86_64")]
mod broadcast;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod right;
#[cfg(test)]
mod tests;
mod tile;
mod vector;

use product::ColumnsFn;
use std::sync::OnceLock;
use tile::{PackFn, TileFn};

pub use product::{Accuracy, scratch_bytes};

/// The register tiles of one instruction set and the cache blocks that suit it.
///
/// A value exists only for instruction sets this machine has: it is had from [`Kernel::chosen`]
/// or [`Kernel::available`].
#[derive(Debug)]
pub struct Kernel {
    name: &'static str,
    /// Floats in a vector.
    lanes: usize,
    /// Rows of C in the tallest tile.
    rows: usize,
    /// Vectors in a row of the widest tile.
    vectors: usize,
    /// Most steps along k before C is written.
    depth: usize,
    /// The same where a few rows of A meet a B that comes from memory: so few rows of B that the
    /// hardware recognises each as a stream and fetches ahead.
    streamed_depth: usize,
    /// The same where B lies in panels: so many rows of one stay in a near cache.
    panel_depth: usize,
    /// Most rows of A that stay in the second-level cache while B passes by.
    block_rows: usize,
    tile: fn(rows: usize, vectors: usize, pack: bool) -> TileFn,
    pack_transposed: PackFn,
    /// What runs products with frozen matrices, where something is faster than the tiles.
    frozen: Option<ColumnsFn>,
}

impl Kernel {
    /// The instruction set: `amx`, `avx512`, `avx2` or `neon`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The fastest kernel this machine can run; none where there is no hand-written one.
    pub fn chosen() -> Option<&'static Self> {
        static CHOSEN: OnceLock<Option<&'static Kernel>> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::available().next())
    }

    /// The kernels this machine can run, fastest first.
    pub fn available() -> impl Iterator<Item = &'static Self> {
        #[cfg(target_arch = "x86_64")]
        let known = [
            amx::is_available().then_some(&amx::KERNEL),
            is_x86_feature_detected!("avx512f").then_some(&avx512::KERNEL),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(&avx2::KERNEL),
        ];
        #[cfg(target_arch = "aarch64")]
        let known = [std::arch::is_aarch64_feature_detected!("neon").then_some(&neon::KERNEL)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let known = [None];
        known.into_iter().flatten()
    }
}
