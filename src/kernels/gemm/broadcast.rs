//! The register tile shared by the x86-64 kernels: a row of B in vectors, times one element of A
//! broadcast per row of the tile.

use super::tile::Tile;
use super::vector::{CACHE_LINE, Vector, begin, finish};
use crate::kernels::panels::WIDTH;
use std::arch::asm;

/// How many rows of B ahead of the products a packing tile asks for: enough to cover a trip to
/// the last-level cache at about ten cycles a row.
const ROWS_AHEAD: usize = 16;

/// One tile of C: `ROWS` rows (at most 14) by `VECTORS` vectors, the last of them possibly short.
///
/// The rows are spelled out and the pointers kept opaque because LLVM, given loops over rows,
/// keeps one pointer per row, runs out of general registers and spills accumulators.
///
/// # Safety
/// The contract of [`Tile`] for these sizes, and the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize, const PACK: bool>(
    t: &Tile,
) {
    let last = t.cols - (VECTORS - 1) * V::LANES;
    // SAFETY: the caller keeps `Tile`'s contract, so `depth` rows of A and B are readable and
    // `packed` has room; pointers past the last step are formed wrapping and never read, and
    // prefetches may go anywhere.
    unsafe {
        let mask = V::mask(last);
        let mut acc = begin::<V, ROWS, VECTORS>(t, last);
        let (mut b, mut packed) = (t.b, t.packed);
        let row = |r: usize| t.a.wrapping_add(r * t.a_row);
        let (mut a0, mut a3, mut a6, mut a9, mut a12) = (t.a, row(3), row(6), row(9), row(12));

        macro_rules! products {
            ($row:ident, $u:literal, $($r:literal: $a:ident + $offset:literal),*) => {
                $(if $r < ROWS {
                    let x = V::splat(*$a.add($offset * t.a_row + $u));
                    for v in 0..VECTORS {
                        acc[$r][v] = x.mul_add($row[v], acc[$r][v]);
                    }
                })*
            };
        }
        macro_rules! step {
            ($u:literal) => {
                let mut row = [V::splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    let from = b.wrapping_add(v * V::LANES);
                    row[v] = if PACK && v + 1 == VECTORS {
                        V::load_some(mask, from)
                    } else {
                        V::load(from)
                    };
                    if PACK {
                        row[v].store(packed.wrapping_add(v * V::LANES));
                        V::prefetch(from.wrapping_add(ROWS_AHEAD * t.b_row));
                    }
                }
                products!(
                    row, $u, 0: a0 + 0, 1: a0 + 1, 2: a0 + 2, 3: a3 + 0, 4: a3 + 1, 5: a3 + 2,
                    6: a6 + 0, 7: a6 + 1, 8: a6 + 2, 9: a9 + 0, 10: a9 + 1, 11: a9 + 2,
                    12: a12 + 0, 13: a12 + 1
                );
                b = b.wrapping_add(t.b_row);
                if PACK {
                    packed = packed.wrapping_add(VECTORS * V::LANES);
                }
            };
        }
        macro_rules! advance {
            ($by:expr, $($first:literal: $a:ident),*) => {
                $(if $first < ROWS {
                    $a = $a.wrapping_add($by);
                    asm!("/* {0} */", inout(reg) $a, options(pure, readonly, nostack, preserves_flags));
                })*
            };
        }
        let fours = if t.a_col == 1 { t.depth / 4 } else { 0 };
        let mut ahead = t.ahead;
        let mut left = fours;
        while left > 0 {
            let now = left.min(WIDTH / 4);
            for _ in 0..now {
                if !PACK {
                    V::prefetch(ahead);
                    V::prefetch(ahead.wrapping_add(CACHE_LINE));
                    ahead = ahead.wrapping_add(t.ahead_step);
                }
                step!(0);
                step!(1);
                step!(2);
                step!(3);
                advance!(4, 0: a0, 3: a3, 6: a6, 9: a9, 12: a12);
            }
            ahead = ahead.wrapping_add(t.ahead_jump);
            left -= now;
        }
        for _ in 4 * fours..t.depth {
            step!(0);
            advance!(t.a_col, 0: a0, 3: a3, 6: a6, 9: a9, 12: a12);
        }
        finish(acc, t, last);
    }
}
