//! What tiles ask of an instruction set's vector register.

use super::tile::Tile;

/// A vector register of `f32` lanes.
///
/// # Safety
/// Methods may only be called where the instruction set of the implementing type is available;
/// they are inlined into functions that enable it. Pointers must be good for the lanes the method
/// names, with no alignment asked.
pub(super) trait Vector: Copy {
    const LANES: usize;
    /// Selects the first so many lanes.
    type Mask: Copy;

    /// `lanes` is in `1..=LANES`.
    unsafe fn mask(lanes: usize) -> Self::Mask;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The selected lanes from memory, zero elsewhere; no other memory is read.
    unsafe fn load_some(mask: Self::Mask, from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Writes the selected lanes; no other memory is written.
    unsafe fn store_some(self, mask: Self::Mask, to: *mut f32);
    unsafe fn mul(self, by: Self) -> Self;
    /// `self * by + plus`, rounded once.
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    /// Asks for the cache line at `at`, which may be any address.
    unsafe fn prefetch(at: *const f32);
    /// Transposes a square block of `LANES` rows, `stride` and `width` floats apart.
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, width: usize);
}

/// Floats in a cache line.
pub(super) const CACHE_LINE: usize = 16;

/// Copies the transpose of `cols` rows of `depth` floats, `stride` apart, to `depth` rows of
/// `width` floats, zero past `cols`. `width` is a number of whole vectors, enough for `cols`.
///
/// # Safety
/// `from` is good for those reads and `to` for `depth * width` writes; the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn pack_transposed<V: Vector>(
    from: *const f32,
    stride: usize,
    depth: usize,
    cols: usize,
    to: *mut f32,
    width: usize,
) {
    for j in (0..width).step_by(V::LANES) {
        let valid = cols.saturating_sub(j).min(V::LANES);
        for p in (0..depth).step_by(V::LANES) {
            let deep = (depth - p).min(V::LANES);
            // SAFETY: a whole block is moved only where whole, an edge element by element.
            unsafe {
                let from = from.wrapping_add(j * stride + p);
                let to = to.add(p * width + j);
                if valid == V::LANES && deep == V::LANES {
                    V::transpose(from, stride, to, width);
                } else {
                    for d in 0..deep {
                        for c in 0..V::LANES {
                            let x = if c < valid {
                                *from.add(c * stride + d)
                            } else {
                                0.0
                            };
                            *to.add(d * width + c) = x;
                        }
                    }
                }
            }
        }
    }
}

/// The sums a tile starts from: zero, or `beta` times `from` where `alpha` is 1.
///
/// Starting from C makes a sum over k the same to the bit however it is cut into steps.
///
/// # Safety
/// The contract of [`Tile`] for these sizes, the last vector being `last` lanes wide; the
/// instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn begin<V: Vector, const ROWS: usize, const VECTORS: usize>(
    t: &Tile,
    last: usize,
) -> [[V; VECTORS]; ROWS] {
    // SAFETY: `from` is in bounds by the contract, and read only where `beta` says it is initialised.
    unsafe {
        let mut acc = [[V::splat(0.0); VECTORS]; ROWS];
        if t.alpha == 1.0 && t.beta != 0.0 {
            let (mask, beta) = (V::mask(last), V::splat(t.beta));
            for (r, row) in acc.iter_mut().enumerate() {
                for (v, x) in row.iter_mut().enumerate() {
                    let from = t.from.add(r * t.from_row + v * V::LANES);
                    let old = if v + 1 < VECTORS {
                        V::load(from)
                    } else {
                        V::load_some(mask, from)
                    };
                    *x = old.mul(beta);
                }
            }
        }
        acc
    }
}

/// Writes a tile that [`begin`] began.
///
/// # Safety
/// As [`begin`].
#[inline(always)]
pub(super) unsafe fn finish<V: Vector, const ROWS: usize, const VECTORS: usize>(
    acc: [[V; VECTORS]; ROWS],
    t: &Tile,
    last: usize,
) {
    // SAFETY: C is in bounds by the contract, and read only where `beta` says it is initialised.
    unsafe {
        let mask = V::mask(last);
        let (alpha, beta) = (V::splat(t.alpha), V::splat(t.beta));
        for (r, row) in acc.into_iter().enumerate() {
            for (v, x) in row.into_iter().enumerate() {
                let c = t.c.add(r * t.c_row + v * V::LANES);
                let whole = v + 1 < VECTORS || last == V::LANES;
                let x = if t.alpha == 1.0 {
                    x
                } else if t.beta == 0.0 {
                    x.mul(alpha)
                } else {
                    V::load_some(if whole { V::mask(V::LANES) } else { mask }, c)
                        .mul_add(beta, x.mul(alpha))
                };
                if whole {
                    x.store(c);
                } else {
                    x.store_some(mask, c);
                }
            }
        }
    }
}
