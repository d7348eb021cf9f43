//! AVX2 with FMA: tiles of 6 rows by 2 vectors of 8, twelve of the 16 registers.

use super::tile::{Tile, TileFn};
use super::vector::{Vector, pack_transposed};
use super::{Kernel, broadcast};
use std::arch::x86_64::*;

pub(super) static KERNEL: Kernel = Kernel {
    name: "avx2",
    lanes: 8,
    rows: ROWS,
    vectors: VECTORS,
    depth: 384,
    streamed_depth: 48,
    panel_depth: 384,
    block_rows: 192,
    tile: |rows, vectors, pack| TILES[usize::from(pack)][vectors - 1][rows - 1],
    pack_transposed: pack,
    frozen: None,
};

const ROWS: usize = 6;
const VECTORS: usize = 2;

macro_rules! tiles {
    ($vectors:literal, $pack:literal, $($rows:literal)*) => {
        [$(tile::<$rows, $vectors, $pack>),*]
    };
}

/// By packing, vectors and rows.
static TILES: [[[TileFn; ROWS]; VECTORS]; 2] = [
    [tiles!(1, false, 1 2 3 4 5 6), tiles!(2, false, 1 2 3 4 5 6)],
    [tiles!(1, true, 1 2 3 4 5 6), tiles!(2, true, 1 2 3 4 5 6)],
];

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const ROWS: usize, const VECTORS: usize, const PACK: bool>(t: &Tile) {
    // SAFETY: the caller keeps `Tile`'s contract; AVX2 and FMA are enabled on this function.
    unsafe { broadcast::tile::<__m256, ROWS, VECTORS, PACK>(t) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn pack(
    from: *const f32,
    stride: usize,
    depth: usize,
    cols: usize,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: the caller keeps the contract of `pack_transposed`; AVX2 and FMA are enabled here.
    unsafe { pack_transposed::<__m256>(from, stride, depth, cols, to, width) }
}

// SAFETY of every block below: the trait's contract gives the instruction set and the memory.
impl Vector for __m256 {
    const LANES: usize = 8;
    type Mask = __m256i;

    #[inline(always)]
    unsafe fn mask(lanes: usize) -> __m256i {
        // SAFETY: see above.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), lane)
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_some(mask: __m256i, from: *const f32) -> Self {
        // SAFETY: see above; lanes that are masked off are not accessed.
        unsafe { _mm256_maskload_ps(from, mask) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, mask: __m256i, to: *mut f32) {
        // SAFETY: see above; lanes that are masked off are not accessed.
        unsafe { _mm256_maskstore_ps(to, mask, self) }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(self, by) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(self, by, plus) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    /// As for AVX-512, with two rows to a register.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: the contract gives 8 by 8 floats on both sides.
        unsafe {
            for col in [0, 4] {
                let halves = |r: usize| {
                    let at = from.add(r * stride + col);
                    let x = _mm256_castps128_ps256(_mm_loadu_ps(at));
                    _mm256_insertf128_ps::<1>(x, _mm_loadu_ps(at.add(4 * stride)))
                };
                let (r0, r1, r2, r3) = (halves(0), halves(1), halves(2), halves(3));
                let low = |x, y| _mm256_castps_pd(_mm256_unpacklo_ps(x, y));
                let high = |x, y| _mm256_castps_pd(_mm256_unpackhi_ps(x, y));
                let (l01, l23, h01, h23) = (low(r0, r1), low(r2, r3), high(r0, r1), high(r2, r3));
                for (i, x) in [
                    _mm256_unpacklo_pd(l01, l23),
                    _mm256_unpackhi_pd(l01, l23),
                    _mm256_unpacklo_pd(h01, h23),
                    _mm256_unpackhi_pd(h01, h23),
                ]
                .into_iter()
                .enumerate()
                {
                    _mm256_storeu_ps(to.add((col + i) * width), _mm256_castpd_ps(x));
                }
            }
        }
    }
}
