//! NEON: tiles of 8 rows by 2 vectors of 4. Four steps along k take one vector of each row of A,
//! whose lanes multiply the rows of B: 16 loads to 64 products, in 26 of the 32 registers.

use super::Kernel;
use super::tile::{Tile, TileFn};
use super::vector::{CACHE_LINE, Vector, begin, finish, pack_transposed};
use crate::kernels::panels::WIDTH;
use std::arch::aarch64::*;
use std::arch::asm;

pub(super) static KERNEL: Kernel = Kernel {
    name: "neon",
    lanes: 4,
    rows: ROWS,
    vectors: VECTORS,
    depth: 384,
    streamed_depth: 384,
    panel_depth: 128,
    block_rows: 128,
    tile: |rows, vectors, pack| TILES[usize::from(pack)][vectors - 1][rows - 1],
    pack_transposed: pack,
    frozen: None,
};

const ROWS: usize = 8;
const VECTORS: usize = 2;

/// How many rows of B ahead of the products a packing tile asks for.
const ROWS_AHEAD: usize = 8;

macro_rules! tiles {
    ($vectors:literal, $pack:literal, $($rows:literal)*) => {
        [$(tile::<$rows, $vectors, $pack>),*]
    };
}

/// By packing, vectors and rows.
static TILES: [[[TileFn; ROWS]; VECTORS]; 2] = [
    [
        tiles!(1, false, 1 2 3 4 5 6 7 8),
        tiles!(2, false, 1 2 3 4 5 6 7 8),
    ],
    [
        tiles!(1, true, 1 2 3 4 5 6 7 8),
        tiles!(2, true, 1 2 3 4 5 6 7 8),
    ],
];

#[target_feature(enable = "neon")]
unsafe fn pack(
    from: *const f32,
    stride: usize,
    depth: usize,
    cols: usize,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: the caller keeps the contract of `pack_transposed`; NEON is enabled here.
    unsafe { pack_transposed::<float32x4_t>(from, stride, depth, cols, to, width) }
}

/// One tile of C, see [`Tile`].
#[target_feature(enable = "neon")]
unsafe fn tile<const ROWS: usize, const VECTORS: usize, const PACK: bool>(t: &Tile) {
    let last = t.cols - (VECTORS - 1) * 4;
    // SAFETY: the caller keeps `Tile`'s contract, so `depth` rows of A and B are readable, four
    // steps at once only where A's rows are contiguous, and `packed` has room; pointers past the
    // last step are formed wrapping and never read, and prefetches may go anywhere.
    unsafe {
        let zero = vdupq_n_f32(0.0);
        let mut acc = begin::<float32x4_t, ROWS, VECTORS>(t, last);
        let (mut a, mut b, mut packed) = (t.a, t.b, t.packed);
        macro_rules! row_of_b {
            () => {{
                let mut row = [zero; VECTORS];
                for v in 0..VECTORS {
                    let from = b.wrapping_add(4 * v);
                    row[v] = if PACK && v + 1 == VECTORS {
                        float32x4_t::load_some(last, from)
                    } else {
                        vld1q_f32(from)
                    };
                    if PACK {
                        vst1q_f32(packed.wrapping_add(4 * v), row[v]);
                    }
                }
                if PACK {
                    float32x4_t::prefetch(b.wrapping_add(ROWS_AHEAD * t.b_row));
                    packed = packed.wrapping_add(4 * VECTORS);
                }
                b = b.wrapping_add(t.b_row);
                row
            }};
        }
        macro_rules! products {
            ($strips:ident, $row:ident, $lane:literal) => {
                for r in 0..ROWS {
                    for v in 0..VECTORS {
                        acc[r][v] = vfmaq_laneq_f32::<$lane>(acc[r][v], $row[v], $strips[r]);
                    }
                }
            };
        }
        let fours = if t.a_col == 1 { t.depth / 4 } else { 0 };
        let (mut ahead, mut left) = (t.ahead, fours);
        while left > 0 {
            let now = left.min(WIDTH / 4);
            for _ in 0..now {
                if !PACK {
                    float32x4_t::prefetch(ahead);
                    float32x4_t::prefetch(ahead.wrapping_add(CACHE_LINE));
                    ahead = ahead.wrapping_add(t.ahead_step);
                }
                let mut strips = [zero; ROWS];
                for r in 0..ROWS {
                    strips[r] = vld1q_f32(a.wrapping_add(r * t.a_row));
                }
                let row = row_of_b!();
                products!(strips, row, 0);
                let row = row_of_b!();
                products!(strips, row, 1);
                let row = row_of_b!();
                products!(strips, row, 2);
                let row = row_of_b!();
                products!(strips, row, 3);
                a = a.wrapping_add(4);
            }
            ahead = ahead.wrapping_add(t.ahead_jump);
            left -= now;
        }
        for _ in 4 * fours..t.depth {
            let row = row_of_b!();
            for r in 0..ROWS {
                let x = *a.wrapping_add(r * t.a_row);
                for v in 0..VECTORS {
                    acc[r][v] = vfmaq_n_f32(acc[r][v], row[v], x);
                }
            }
            a = a.wrapping_add(t.a_col);
        }
        finish(acc, t, last);
    }
}

// SAFETY of every block below: the trait's contract gives the instruction set and the memory.
impl Vector for float32x4_t {
    const LANES: usize = 4;
    /// NEON has no masked access: the number of lanes, moved one by one.
    type Mask = usize;

    #[inline(always)]
    unsafe fn mask(lanes: usize) -> usize {
        lanes
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_some(lanes: usize, from: *const f32) -> Self {
        // SAFETY: see above; only the selected lanes are read.
        unsafe {
            if lanes == 4 {
                return vld1q_f32(from);
            }
            let mut x = [0.0; 4];
            for (i, x) in x.iter_mut().enumerate().take(lanes) {
                *x = *from.add(i);
            }
            vld1q_f32(x.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, lanes: usize, to: *mut f32) {
        // SAFETY: see above; only the selected lanes are written.
        unsafe {
            let mut x = [0.0; 4];
            vst1q_f32(x.as_mut_ptr(), self);
            for (i, x) in x.iter().enumerate().take(lanes) {
                *to.add(i) = *x;
            }
        }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Self) -> Self {
        // SAFETY: see above.
        unsafe { vmulq_f32(self, by) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: see above.
        unsafe { vfmaq_f32(plus, self, by) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, width: usize) {
        // SAFETY: the contract gives 4 by 4 floats on both sides.
        unsafe {
            let row = |r: usize| vld1q_f32(from.add(r * stride));
            let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
            let pair = |x| vreinterpretq_f64_f32(x);
            let (e01, e23) = (pair(vtrn1q_f32(r0, r1)), pair(vtrn1q_f32(r2, r3)));
            let (o01, o23) = (pair(vtrn2q_f32(r0, r1)), pair(vtrn2q_f32(r2, r3)));
            for (i, x) in [
                vtrn1q_f64(e01, e23),
                vtrn1q_f64(o01, o23),
                vtrn2q_f64(e01, e23),
                vtrn2q_f64(o01, o23),
            ]
            .into_iter()
            .enumerate()
            {
                vst1q_f32(to.add(i * width), vreinterpretq_f32_f64(x));
            }
        }
    }
}
