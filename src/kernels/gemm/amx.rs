//! AMX: products with frozen matrices on the tile unit of recent server processors, which multiplies
//! bf16 and sums in f32.
//!
//! A float is exactly the sum of three bf16 numbers, the first eight bits of its mantissa, the next
//! eight and the last. Of the nine products of two such sums, the six that reach 2^-24 of the whole are
//! added up: what comes out is as near to the true product as f32 multiply-adds are (Henry, Tang and
//! Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", arXiv 1904.06376), at a sixth of the tile unit's rate, which is still more than
//! twice that of AVX-512. Half of that is lost to splitting and to fetching; `docs/performance.md` has
//! what is left. Training takes two parts of each factor, rounded to the nearest, and the three
//! products that reach 2^-16, at a third of the rate. An infinity comes out as NaN.

use super::block::parts;
use super::product::{Accuracy, Job};
use super::right::Order;
use super::{Kernel, avx512};
use crate::kernels::panels;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use unit::Shapes;

pub(super) use unit::is_available;

mod unit;

/// AVX-512 for everything but frozen matrices.
pub(super) static KERNEL: Kernel = Kernel {
    name: "amx",
    frozen: Some(columns),
    ..avx512::VECTORS_ONLY
};

/// Rows of a tile, and columns of C in one.
const SIDE: usize = 16;
/// Steps along k that a tile holds, in pairs.
const STEP: usize = 32;
/// Bytes of a tile, and bf16 numbers.
const TILE: usize = 1024;
const TILE_LEN: usize = TILE / 2;
/// A float as bf16 numbers, exactly.
const EXACT: usize = 3;
/// The same to 16 bits.
const TRAINING: usize = 2;
/// Most steps that a product runs before C is written.
const STEPS: usize = 12;
const DEPTH: usize = STEPS * STEP;
/// Steps of B that are split at a time: they stay in the first-level cache while A passes by.
const B_STEPS: usize = 3;
const B_DEPTH: usize = B_STEPS * STEP;
/// Most rows of A that are split at a time: they stay in the second-level cache.
const ROWS: usize = 320;

/// A step of one tile of rows of A, and of a panel of B, for floats of `parts` numbers.
const fn a_step(parts: usize) -> usize {
    parts * TILE_LEN
}

const fn b_step(parts: usize) -> usize {
    2 * parts * TILE_LEN
}

/// Cache lines of B asked for in a step, of the 64 that it has.
const LINES: usize = 24;
/// Two tiles of rows of A.
const fn pair_len(parts: usize) -> usize {
    STEPS * 2 * a_step(parts)
}

/// What a thread splits factors into, and adds up in.
#[repr(C, align(64))]
struct Scratch {
    /// `[pair of tiles of rows, step, one of the pair, part]` tiles.
    a: [MaybeUninit<u16>; ROWS / (2 * SIDE) * pair_len(EXACT)],
    /// `[step, part, half of the panel]` tiles, two rows of B side by side in one of a tile.
    b: [MaybeUninit<u16>; B_STEPS * b_step(EXACT)],
    /// A panel's columns of C, in rows of their own: those of a wide C would drive each other out of
    /// the first-level cache.
    c: [f32; ROWS * panels::WIDTH],
    /// Rows of B where its columns are contiguous.
    rows: [MaybeUninit<f32>; B_DEPTH * panels::WIDTH],
}

/// Bytes of stack in each thread that runs a product.
pub(super) const SCRATCH: usize = size_of::<Scratch>();

/// Some columns of C, the first of them the first of a panel; `alpha` is 1.
///
/// # Safety
/// [`is_available`] said so; the elements of A, of these columns of B and of C are in bounds, and
/// nothing else accesses C's.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn columns(job: &Job<'_>, columns: Range<usize>) {
    // SAFETY: the contract.
    unsafe {
        match job.accuracy {
            Accuracy::Full => columns_in::<EXACT>(job, columns),
            Accuracy::Training => columns_in::<TRAINING>(job, columns),
        }
    }
}

/// [`columns`] with floats of so many parts.
///
/// # Safety
/// As for [`columns`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn columns_in<const PARTS: usize>(job: &Job<'_>, columns: Range<usize>) {
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    for (row, rows) in parts(job.rows, ROWS) {
        // SAFETY: the contract.
        let _shapes = unsafe { Shapes::set() };
        for first in (0..job.inner).step_by(DEPTH) {
            let block = Block::<PARTS> {
                job,
                scratch,
                row,
                rows,
                first,
                depth: DEPTH.min(job.inner - first),
            };
            // SAFETY: the block lies inside the job's elements, these columns of C are ours.
            unsafe {
                block.split_left();
                for col in columns.clone().step_by(panels::WIDTH) {
                    block.multiply(col, panels::WIDTH.min(columns.end - col));
                }
            }
        }
    }
}

/// Floats whose upper halves are bf16 numbers, and what is left when those are taken off. Where parts
/// are left out they are the nearest numbers, so that errors do not all point to zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split<const PARTS: usize>(x: __m512) -> (__m512i, __m512) {
    let mut bits = _mm512_castps_si512(x);
    if PARTS < EXACT {
        bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
    }
    let top = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    (bits, _mm512_sub_ps(x, _mm512_castsi512_ps(top)))
}

/// The numbers from 0 to 31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn ascending() -> __m512i {
    let words: [u16; 32] = std::array::from_fn(|i| i as u16);
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Lanes of a panel's two halves that `cols` columns fill.
fn mask(cols: usize) -> [u16; 2] {
    let all = (1_u64 << cols) - 1;
    [all as u16, (all >> SIDE) as u16]
}

/// A block of A, and the rows of B that it meets.
struct Block<'j, const PARTS: usize> {
    job: &'j Job<'j>,
    scratch: *mut Scratch,
    row: usize,
    rows: usize,
    first: usize,
    depth: usize,
}

impl<const PARTS: usize> Block<'_, PARTS> {
    fn ahead_step(&self) -> usize {
        match self.job.b.order {
            Order::PanelsTransposed(stride) => stride,
            _ => STEP * panels::WIDTH,
        }
    }

    /// Splits the block of A into tiles; what is past the last row or column is zero.
    ///
    /// # Safety
    /// The block's elements are in bounds, and its scratch is writable.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn split_left(&self) {
        let Job { a_row, a_col, .. } = *self.job;
        // Words 1, 3, 5, ... of two vectors.
        let tops = _mm512_slli_epi16::<1>(ascending());
        let tops = _mm512_add_epi16(tops, _mm512_set1_epi16(1));
        let a = self
            .job
            .a
            .wrapping_add(self.row * a_row + self.first * a_col);
        // SAFETY: a place in the scratch; nothing is read.
        let to: *mut u16 = unsafe { (&raw mut (*self.scratch).a).cast() };
        for row in 0..self.rows.next_multiple_of(SIDE) {
            for first in (0..self.depth).step_by(STEP) {
                let valid = if row < self.rows {
                    STEP.min(self.depth - first)
                } else {
                    0
                };
                // SAFETY: `valid` floats of this row are there, and no other is read.
                let (mut x, mut y) = unsafe {
                    let from = a.wrapping_add(row * a_row + first * a_col);
                    if valid == STEP && a_col == 1 {
                        (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(SIDE)))
                    } else {
                        let mut row = [0.0; STEP];
                        for (i, x) in row.iter_mut().enumerate().take(valid) {
                            *x = *from.add(i * a_col);
                        }
                        let half = row[SIDE..].as_ptr();
                        (_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(half))
                    }
                };
                let (tile, step) = (row / SIDE, first / STEP);
                let at = tile / 2 * pair_len(PARTS)
                    + (2 * step + tile % 2) * a_step(PARTS)
                    + row % SIDE * STEP;
                for part in 0..PARTS {
                    let ((x_bits, x_rest), (y_bits, y_rest)) =
                        (split::<PARTS>(x), split::<PARTS>(y));
                    let both = _mm512_permutex2var_epi16(x_bits, tops, y_bits);
                    // SAFETY: one row of a tile.
                    unsafe { _mm512_storeu_si512(to.add(at + part * TILE_LEN).cast(), both) };
                    (x, y) = (x_rest, y_rest);
                }
            }
        }
    }

    /// Computes the columns of C from `col` on, those of a panel.
    ///
    /// # Safety
    /// The block's elements and these of B and C are in bounds, A is split, and nothing else accesses
    /// these columns of C.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply(&self, col: usize, cols: usize) {
        let Job {
            c_row, from_row, ..
        } = *self.job;
        let c = self.job.c.wrapping_add(self.row * c_row + col);
        let (from, from_row, beta) = match self.first {
            0 => (
                self.job.from.wrapping_add(self.row * from_row + col),
                from_row,
                self.job.beta,
            ),
            _ => (c.cast_const(), c_row, 1.0),
        };
        let from_c = beta != 0.0;
        // SAFETY: the contract; `sums` has a row of a panel's width for each row of the tiles.
        unsafe {
            let sums: *mut f32 = (&raw mut (*self.scratch).c).cast();
            if from_c {
                let (mask, beta) = (mask(cols), _mm512_set1_ps(beta));
                for row in 0..self.rows {
                    for (half, &mask) in mask.iter().enumerate() {
                        let from = from.wrapping_add(row * from_row + half * SIDE);
                        let x = _mm512_maskz_loadu_ps(mask, from);
                        let to = sums.add(row * panels::WIDTH + half * SIDE);
                        _mm512_storeu_ps(to, _mm512_mul_ps(x, beta));
                    }
                }
            }
            for from in (0..self.depth).step_by(B_DEPTH) {
                let depth = B_DEPTH.min(self.depth - from);
                self.split_right((self.first + from, depth), (col, cols));
                let ahead = match from + B_DEPTH < self.depth {
                    true => self.job.b.offset(self.first + from + B_DEPTH, col),
                    false => self.job.b.offset(self.first, col + panels::WIDTH),
                };
                for row in (0..self.rows).step_by(2 * SIDE) {
                    let pair = self.rows - row > SIDE;
                    let a = (&raw const (*self.scratch).a).cast::<u16>();
                    let a =
                        a.add(row / (2 * SIDE) * pair_len(PARTS) + from / STEP * 2 * a_step(PARTS));
                    let sums = sums.add(row * panels::WIDTH);
                    let lines = (row / (2 * SIDE)).min(2) * LINES * 16;
                    let ahead = self.job.b.data.wrapping_add(ahead + lines);
                    self.tiles(
                        a,
                        depth.div_ceil(STEP),
                        sums,
                        from_c || from > 0,
                        pair,
                        ahead,
                    );
                }
            }
            let mask = mask(cols);
            for row in 0..self.rows {
                for (half, &mask) in mask.iter().enumerate() {
                    let x = _mm512_loadu_ps(sums.add(row * panels::WIDTH + half * SIDE));
                    let to = c.wrapping_add(row * c_row + half * SIDE);
                    _mm512_mask_storeu_ps(to, mask, x);
                }
            }
        }
    }

    /// Splits `depth` rows of B, from `first` on, of the panel that starts at `col`.
    ///
    /// # Safety
    /// They are in bounds, and the scratch is writable.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn split_right(&self, (first, depth): (usize, usize), (col, cols): (usize, usize)) {
        // SAFETY: the contract: `first` and `col` are B's. A panel is padded to its width.
        unsafe {
            let rows = match self.job.b.order {
                Order::Panels(_) => self.job.b.at(first, col),
                _ => {
                    let rows = (&raw mut (*self.scratch).rows).cast();
                    let pack = self.job.kernel.pack_transposed;
                    let (rows_of, cols_of) = ((first, depth), (col, cols));
                    self.job
                        .b
                        .pack_transposed(pack, rows_of, cols_of, rows, panels::WIDTH);
                    rows.cast_const()
                }
            };
            let to: *mut u16 = (&raw mut (*self.scratch).b).cast();
            for pair in 0..depth.div_ceil(STEP) * SIDE {
                let tile = pair / SIDE * b_step(PARTS) + pair % SIDE * STEP;
                for half in 0..2 {
                    let load = |row: usize| match row < depth {
                        true => _mm512_loadu_ps(rows.add(row * panels::WIDTH + half * SIDE)),
                        false => _mm512_setzero_ps(),
                    };
                    let (mut even, mut odd) = (load(2 * pair), load(2 * pair + 1));
                    for part in 0..PARTS {
                        let ((bits0, rest0), (bits1, rest1)) =
                            (split::<PARTS>(even), split::<PARTS>(odd));
                        let low = _mm512_srli_epi32::<16>(bits0);
                        let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, bits1);
                        let at = to.add(tile + (2 * part + half) * TILE_LEN);
                        _mm512_storeu_si512(at.cast(), both);
                        (even, odd) = (rest0, rest1);
                    }
                }
            }
        }
    }

    /// One or two tiles of rows of C by two of columns, `steps` steps along k.
    ///
    /// # Safety
    /// Both factors are split; `c` is writable for the tiles, rows of a panel's width, and initialised
    /// with `from_c`.
    unsafe fn tiles(
        &self,
        a: *const u16,
        steps: usize,
        c: *mut f32,
        from_c: bool,
        pair: bool,
        ahead: *const f32,
    ) {
        macro_rules! run {
            ($products:ident, $($rows:literal: $c:literal, $sum0:literal $sum1:literal, $a:literal),*) => {
                asm!(
                    "test {from_c:e}, {from_c:e} /* {c1} */",
                    "jz 2f",
                    $(
                        concat!("tileloadd ", $sum0, ", [", $c, " + {c_row}]"),
                        concat!("tileloadd ", $sum1, ", [", $c, " + {c_row} + 64]"),
                    )*
                    "jmp 3f",
                    "2:",
                    $(concat!("tilezero ", $sum0), concat!("tilezero ", $sum1),)*
                    "3:",
                    run!(@$products $($rows: $sum0 $sum1, $a),*),
                    "add {ahead}, {ahead_step}",
                    "add {a}, {step}",
                    "add {b}, {step}",
                    "dec {steps}",
                    "jnz 3b",
                    $(
                        concat!("tilestored [", $c, " + {c_row}], ", $sum0),
                        concat!("tilestored [", $c, " + {c_row} + 64], ", $sum1),
                    )*
                    from_c = in(reg) u32::from(from_c),
                    steps = inout(reg) steps => _,
                    a = inout(reg) a => _,
                    ahead = inout(reg) ahead => _,
                    ahead_step = in(reg) 4 * self.ahead_step(),
                    b = inout(reg) (&raw const (*self.scratch).b) => _,
                    c0 = in(reg) c,
                    c1 = in(reg) c.wrapping_add(SIDE * panels::WIDTH),
                    c_row = in(reg) 4 * panels::WIDTH,
                    row = in(reg) 64_usize,
                    step = const 2 * 2 * PARTS * TILE_LEN,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
            // High part of B by all three of A, middle part by two, low part by the high one.
            (@exact $($tiles:tt)*) => {
                concat!(
                    run!(@right "0"),
                    run!(@product "0" "0", $($tiles)*),
                    run!(@product "1024" "256", $($tiles)*),
                    run!(@product "2048" "512", $($tiles)*),
                    run!(@right "2048"),
                    run!(@product "1024" "768", $($tiles)*),
                    run!(@product "0" "1024", $($tiles)*),
                    run!(@right "4096"),
                    run!(@product "0" "1280", $($tiles)*),
                )
            };
            // High part of B by both of A, low part by the high one.
            (@training $($tiles:tt)*) => {
                concat!(
                    run!(@right "0"),
                    run!(@product "0" "0", $($tiles)*),
                    run!(@fetch "256"),
                    run!(@product "1024" "512", $($tiles)*),
                    run!(@fetch "768"),
                    run!(@right "2048"),
                    run!(@product "0" "1024", $($tiles)*),
                    run!(@fetch "1280"),
                )
            };
            (@right $part:literal) => {
                concat!(
                    "tileloadd tmm6, [{b} + {row} + ", $part, "]\n",
                    "tileloadd tmm7, [{b} + {row} + 1024 + ", $part, "]\n",
                )
            };
            (@fetch $ahead:literal) => {
                concat!(
                    "prefetcht1 [{ahead} + ", $ahead, "]\n",
                    "prefetcht1 [{ahead} + ", $ahead, " + 64]\n",
                    "prefetcht1 [{ahead} + ", $ahead, " + 128]\n",
                    "prefetcht1 [{ahead} + ", $ahead, " + 192]\n",
                )
            };
            (@product $part:literal $ahead:literal, $($rows:literal: $sum0:literal $sum1:literal, $a:literal),*) => {
                concat!(
                    $("tileloadd tmm", $rows, ", [{a} + {row} + ", $a, " + ", $part, "]\n",)*
                    $(
                        "tdpbf16ps ", $sum0, ", tmm", $rows, ", tmm6\n",
                        "tdpbf16ps ", $sum1, ", tmm", $rows, ", tmm7\n",
                    )*
                    run!(@fetch $ahead)
                )
            };
        }
        // SAFETY: the contract; the registers have the shapes of these tiles.
        unsafe {
            match (PARTS, pair) {
                (EXACT, true) => {
                    run!(exact, "4": "{c0}", "tmm0" "tmm1", "0", "5": "{c1}", "tmm2" "tmm3", "3072");
                }
                (EXACT, false) => run!(exact, "4": "{c0}", "tmm0" "tmm1", "0"),
                (_, true) => {
                    run!(training, "4": "{c0}", "tmm0" "tmm1", "0", "5": "{c1}", "tmm2" "tmm3", "2048");
                }
                (_, false) => run!(training, "4": "{c0}", "tmm0" "tmm1", "0"),
            }
        }
    }
}
