//! What the cutting of a product asks of an instruction set: tiles of C, and columns packed as rows.

/// One register tile of C and the strips of A and B it is the product of.
///
/// A tile function for `R` rows and `V` vectors of `L` lanes may be called when
/// - `(V - 1) * L < cols <= V * L`;
/// - `a + r * a_row + p * a_col` is readable for all `r < R`, `p < depth`;
/// - `b + p * b_row + j` is readable for all `p < depth` and `j < cols`, without packing for all
///   `j < V * L`;
/// - `c + r * c_row + j` is writable for all `r < R`, `j < cols`, and initialised where `alpha` is not
///   1 and `beta` not 0;
/// - `from + r * from_row + j` is readable for them where `alpha` is 1 and `beta` is not 0;
/// - `packed`, with packing, has room for `depth * V * L` floats: B's rows are left there, zero
///   past `cols`.
pub(super) struct Tile {
    pub depth: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_col: usize,
    pub b: *const f32,
    pub b_row: usize,
    pub cols: usize,
    pub packed: *mut f32,
    /// Any address: what to fetch while the tile is computed, two cache lines every four steps, and floats
    /// to go on by after these and, besides, after every [`WIDTH`] steps.
    pub ahead: *const f32,
    pub ahead_step: usize,
    pub ahead_jump: usize,
    /// What `beta` is multiplied with where `alpha` is 1: C itself, or a row for all its rows.
    pub from: *const f32,
    pub from_row: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub alpha: f32,
    pub beta: f32,
}

pub(super) type TileFn = unsafe fn(&Tile);

/// `(from, stride, depth, cols, to, width)`, see [`super::vector::pack_transposed`].
pub(super) type PackFn = unsafe fn(*const f32, usize, usize, usize, *mut f32, usize);
