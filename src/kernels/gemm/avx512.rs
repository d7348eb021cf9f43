//! AVX-512: tiles of 14 rows by 2 vectors of 16, which leaves 4 of the 32 registers for a row of
//! B and the broadcast elements of A.

use super::tile::{Tile, TileFn};
use super::vector::{Vector, pack_transposed};
use super::{Kernel, broadcast};
use std::arch::x86_64::*;

pub(super) static KERNEL: Kernel = VECTORS_ONLY;

pub(super) const VECTORS_ONLY: Kernel = Kernel {
    name: "avx512",
    lanes: 16,
    rows: ROWS,
    vectors: VECTORS,
    depth: 512,
    streamed_depth: 48,
    panel_depth: 512,
    block_rows: 512,
    tile: |rows, vectors, pack| TILES[usize::from(pack)][vectors - 1][rows - 1],
    pack_transposed: pack,
    frozen: None,
};

const ROWS: usize = 14;
const VECTORS: usize = 2;

macro_rules! tiles {
    ($vectors:literal, $pack:literal, $($rows:literal)*) => {
        [$(tile::<$rows, $vectors, $pack>),*]
    };
}

/// By packing, vectors and rows.
static TILES: [[[TileFn; ROWS]; VECTORS]; 2] = [
    [
        tiles!(1, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        tiles!(2, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    ],
    [
        tiles!(1, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        tiles!(2, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    ],
];

#[target_feature(enable = "avx512f")]
unsafe fn tile<const ROWS: usize, const VECTORS: usize, const PACK: bool>(t: &Tile) {
    // SAFETY: the caller keeps `Tile`'s contract; AVX-512F is enabled on this function.
    unsafe { broadcast::tile::<__m512, ROWS, VECTORS, PACK>(t) }
}

#[target_feature(enable = "avx512f")]
unsafe fn pack(
    from: *const f32,
    stride: usize,
    depth: usize,
    cols: usize,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: the caller keeps the contract of `pack_transposed`; AVX-512F is enabled here.
    unsafe { pack_transposed::<__m512>(from, stride, depth, cols, to, width) }
}

// SAFETY of every block below: the trait's contract gives the instruction set and the memory.
impl Vector for __m512 {
    const LANES: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn mask(lanes: usize) -> __mmask16 {
        (0xffff_u32 >> (16 - lanes)) as __mmask16
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_some(mask: __mmask16, from: *const f32) -> Self {
        // SAFETY: see above; lanes that are masked off are not accessed.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, mask: __mmask16, to: *mut f32) {
        // SAFETY: see above; lanes that are masked off are not accessed.
        unsafe { _mm512_mask_storeu_ps(to, mask, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(self, by) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(self, by, plus) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    /// Four columns of the block at a time: memory operands gather four rows into the quarters
    /// of a register without the one shuffle port, which is left with two rounds of in-lane
    /// interleaving.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: the contract gives 16 by 16 floats on both sides.
        unsafe {
            for col in (0..16).step_by(4) {
                let quarters = |r: usize| {
                    let at = from.add(r * stride + col);
                    let x = _mm512_castps128_ps512(_mm_loadu_ps(at));
                    let x = _mm512_insertf32x4::<1>(x, _mm_loadu_ps(at.add(4 * stride)));
                    let x = _mm512_insertf32x4::<2>(x, _mm_loadu_ps(at.add(8 * stride)));
                    _mm512_insertf32x4::<3>(x, _mm_loadu_ps(at.add(12 * stride)))
                };
                let (r0, r1, r2, r3) = (quarters(0), quarters(1), quarters(2), quarters(3));
                let low = |x, y| _mm512_castps_pd(_mm512_unpacklo_ps(x, y));
                let high = |x, y| _mm512_castps_pd(_mm512_unpackhi_ps(x, y));
                let (l01, l23, h01, h23) = (low(r0, r1), low(r2, r3), high(r0, r1), high(r2, r3));
                for (i, x) in [
                    _mm512_unpacklo_pd(l01, l23),
                    _mm512_unpackhi_pd(l01, l23),
                    _mm512_unpacklo_pd(h01, h23),
                    _mm512_unpackhi_pd(h01, h23),
                ]
                .into_iter()
                .enumerate()
                {
                    _mm512_storeu_ps(to.add((col + i) * width), _mm512_castpd_ps(x));
                }
            }
        }
    }
}
