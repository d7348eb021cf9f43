//! The register tiles of a block, over B in panels as it lies or over B packed.

use super::Kernel;
use super::right::{Order, Right};
use super::tile::Tile;
use crate::kernels::panels::WIDTH;
use std::ops::Range;

/// Tiles that ask for the next panel between them, a fourth of its rows each.
const TILES_AHEAD: usize = 4;

/// Columns that a tile asks for in [`WIDTH`] steps, one every four.
const COLUMNS_AHEAD: usize = WIDTH / 4;

/// Cuts `total` into as few parts of at most `most` as it takes, as even as can be: start and
/// length of each.
pub(super) fn parts(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = total.div_ceil(most);
    (0..count).map(move |i| {
        let (start, end) = (i * total / count, (i + 1) * total / count);
        (start, end - start)
    })
}

/// A block of A whose rows fit the second-level cache, and the columns of B beside it.
pub(super) struct Block<'a> {
    pub kernel: &'a Kernel,
    pub rows: usize,
    /// Rows of B, the first of them `first`.
    pub depth: usize,
    pub first: usize,
    pub columns: Range<usize>,
    pub a: *const f32,
    pub a_row: usize,
    pub a_col: usize,
    pub b: Right,
    pub from: *const f32,
    pub from_row: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub alpha: f32,
    pub beta: f32,
}

impl Block<'_> {
    /// # Safety
    /// The block's elements are in bounds, C's exclusive, and those of `packed` writable.
    pub unsafe fn multiply(&self, packed: *mut f32) {
        // SAFETY: the contract is the same.
        unsafe {
            match self.b.order {
                Order::Panels(_) => self.multiply_panels(),
                _ => self.multiply_packed(packed),
            }
        }
    }

    /// B in panels is read where it lies: all tiles of a panel's columns, while the panel is in a near
    /// cache, and then those of the next one, which the first [`TILES_AHEAD`] ask for.
    ///
    /// # Safety
    /// The block's elements are in bounds and C's exclusive; its columns start with a panel.
    unsafe fn multiply_panels(&self) {
        let kernel = self.kernel;
        let widest = kernel.lanes * kernel.vectors;
        let share = self.depth / 4 * WIDTH;
        for start in self.columns.clone().step_by(WIDTH) {
            let end = (start + WIDTH).min(self.columns.end);
            let next = self.next(end);
            let mut tiles = 0;
            for (row, rows) in parts(self.rows, kernel.rows) {
                for col in (start..end).step_by(widest) {
                    let cols = (end - col).min(widest);
                    // SAFETY: the tile lies inside the block, and panels are padded.
                    unsafe {
                        let tile = Tile {
                            b: self.b.at(self.first, col),
                            b_row: WIDTH,
                            ahead: next.wrapping_add(tiles.min(TILES_AHEAD) * share),
                            ahead_step: if tiles < TILES_AHEAD { WIDTH } else { 0 },
                            ..self.tile(row, col, cols)
                        };
                        (kernel.tile)(rows, cols.div_ceil(kernel.lanes), false)(&tile);
                    }
                    tiles += 1;
                }
            }
        }
    }

    /// Where the columns from `col` on begin, or the next block where there are none.
    fn next(&self, col: usize) -> *const f32 {
        self.b.data.wrapping_add(if col < self.columns.end {
            self.b.offset(self.first, col)
        } else {
            self.b.offset(self.first + self.depth, self.columns.start)
        })
    }

    /// B in any other order is packed, a tile's columns at a time, where more than one tile reads it.
    ///
    /// # Safety
    /// As [`Block::multiply`].
    unsafe fn multiply_packed(&self, packed: *mut f32) {
        let kernel = self.kernel;
        let widest = kernel.lanes * kernel.vectors;
        for col in self.columns.clone().step_by(widest) {
            let cols = (self.columns.end - col).min(widest);
            let vectors = cols.div_ceil(kernel.lanes);
            let width = vectors * kernel.lanes;
            // SAFETY: `col` is one of B's columns and `first` one of its rows.
            let b = unsafe { self.b.at(self.first, col) };
            let stride = self.b.row_stride();
            if stride.is_none() {
                // SAFETY: B's columns are contiguous here, or pieces of them; the panel holds
                // `depth * width` floats for every kernel.
                unsafe {
                    let (rows, cols) = ((self.first, self.depth), (col, cols));
                    self.b
                        .pack_transposed(kernel.pack_transposed, rows, cols, packed, width);
                }
            }
            // Rows that follow each other already, or that one tile reads once, are read where they
            // lie unless the last vector is short.
            let in_place = cols == width
                && stride.is_some_and(|stride| stride == width || self.rows <= kernel.rows);
            let next = self.next(col + widest);
            for (i, (row, rows)) in parts(self.rows, kernel.rows).enumerate() {
                let pack = i == 0 && !in_place && stride.is_some();
                // Pieces of a transposed panel lie far apart: the first tiles ask for the next ones, a column
                // of the panel every four steps.
                let (ahead_step, ahead_jump) = match self.b.order {
                    Order::PanelsTransposed(stride) if i * COLUMNS_AHEAD < widest => {
                        (WIDTH, stride.wrapping_sub(COLUMNS_AHEAD * WIDTH))
                    }
                    _ => (0, 0),
                };
                let (b, b_row) = match stride {
                    Some(stride) if pack || in_place => (b, stride),
                    _ => (packed.cast_const(), width),
                };
                // SAFETY: the tile lies inside the block; `packed` was filled by the transposing
                // pack or by the first tile of this column unless this tile does so.
                unsafe {
                    let tile = Tile {
                        b,
                        b_row,
                        packed,
                        ahead: next.wrapping_add(i * COLUMNS_AHEAD * WIDTH),
                        ahead_step,
                        ahead_jump,
                        ..self.tile(row, col, cols)
                    };
                    (kernel.tile)(rows, vectors, pack)(&tile);
                }
            }
        }
    }

    /// The tile at a row and column of the block, but for where its B lies.
    ///
    /// # Safety
    /// They are in bounds.
    unsafe fn tile(&self, row: usize, col: usize, cols: usize) -> Tile {
        // SAFETY: in bounds by the contract.
        unsafe {
            Tile {
                depth: self.depth,
                a: self.a.add(row * self.a_row),
                a_row: self.a_row,
                a_col: self.a_col,
                b: self.b.data,
                b_row: 0,
                cols,
                packed: std::ptr::null_mut(),
                ahead: self.b.data,
                ahead_step: 0,
                ahead_jump: 0,
                from: self.from.add(row * self.from_row + col),
                from_row: self.from_row,
                c: self.c.add(row * self.c_row + col),
                c_row: self.c_row,
                alpha: self.alpha,
                beta: self.beta,
            }
        }
    }
}
