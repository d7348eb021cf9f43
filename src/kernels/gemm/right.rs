//! The right side of a product in the orders it may come in.

use super::tile::PackFn;
use crate::kernels::panels;

/// Where the elements of B lie.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub data: *const f32,
    pub order: Order,
}

#[derive(Clone, Copy)]
pub(super) enum Order {
    /// Row-major: floats between one row and the next.
    Rows(usize),
    /// The transpose of a row-major matrix: floats between one column and the next.
    Columns(usize),
    /// [`Panels`](panels::Panels): floats between one panel and the next.
    Panels(usize),
    /// [`PanelsT`](panels::PanelsT): floats between one panel and the next.
    PanelsTransposed(usize),
}

impl Right {
    /// Offset of the element in row `p` and column `j`.
    pub fn offset(&self, p: usize, j: usize) -> usize {
        const WIDTH: usize = panels::WIDTH;
        match self.order {
            Order::Rows(stride) => p * stride + j,
            Order::Columns(stride) => p + j * stride,
            Order::Panels(stride) => j / WIDTH * stride + p * WIDTH + j % WIDTH,
            Order::PanelsTransposed(stride) => p / WIDTH * stride + j * WIDTH + p % WIDTH,
        }
    }

    /// # Safety
    /// The element is in bounds.
    pub unsafe fn at(&self, p: usize, j: usize) -> *const f32 {
        // SAFETY: in bounds by the contract.
        unsafe { self.data.add(self.offset(p, j)) }
    }

    /// Floats between one row and the next, where rows are contiguous for a tile.
    pub fn row_stride(&self) -> Option<usize> {
        match self.order {
            Order::Rows(stride) => Some(stride),
            Order::Panels(_) => Some(panels::WIDTH),
            Order::Columns(_) | Order::PanelsTransposed(_) => None,
        }
    }

    /// Packs rows `start..start + depth` of columns `col..col + cols`, see [`PackFn`].
    ///
    /// # Safety
    /// They are in bounds, the rows are not contiguous, and the contract of `pack` holds for `to`.
    pub unsafe fn pack_transposed(
        &self,
        pack: PackFn,
        (start, depth): (usize, usize),
        (col, cols): (usize, usize),
        to: *mut f32,
        width: usize,
    ) {
        let (stride, piece) = match self.order {
            Order::PanelsTransposed(_) => (panels::WIDTH, panels::WIDTH),
            Order::Rows(stride) | Order::Columns(stride) | Order::Panels(stride) => (stride, depth),
        };
        let (mut p, end) = (start, start + depth);
        while p < end {
            // Up to where the panel ends.
            let deep = (piece - p % piece).min(end - p);
            // SAFETY: the contract, for a part of the rows.
            unsafe {
                pack(
                    self.at(p, col),
                    stride,
                    deep,
                    cols,
                    to.add((p - start) * width),
                    width,
                );
            }
            p += deep;
        }
    }
}
