//! A whole product: what callers ask for, cut into columns for threads and into cache blocks.

use super::Kernel;
use super::block::{Block, parts};
use super::right::{Order, Right};
use crate::kernels::matmul::{MatMut, MatRef};
use crate::kernels::panels::{Panels, PanelsT, WIDTH};
use crate::kernels::threads;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Floats in the packed panel: 512 rows of two AVX-512 vectors.
const PANEL: usize = 512 * 32;

/// Fewest floats of B taken to come from memory rather than a cache, and most rows of A that do
/// not hide its latency.
const STREAMED_SIZE: usize = 256 * 384;
const STREAMED_ROWS: usize = 160;

/// Fewest multiply-adds that pay for waking another thread: some tens of microseconds.
const SHARED_PRODUCTS: usize = 4 << 20;

#[repr(align(64))]
struct Panel(MaybeUninit<[f32; PANEL]>);

/// Bytes of stack a product takes at most, in each thread that runs one.
pub const fn scratch_bytes() -> usize {
    #[cfg(target_arch = "x86_64")]
    if super::amx::SCRATCH > size_of::<Panel>() {
        return super::amx::SCRATCH;
    }
    size_of::<Panel>()
}

/// How near a product with a frozen matrix has to come to the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accuracy {
    /// As near as multiply-adds of f32.
    Full,
    /// As near as factors of 16 bits allow, with sums in f32, where that is faster: an error of 1e-5
    /// of the terms' norm at most, far below what a gradient varies by from one batch to the next.
    Training,
}

impl Kernel {
    /// `C = alpha A B + beta C` with A `[m, k]`, B `[k, n]`, C `[m, n]`; with `beta` 0, C is not
    /// read.
    ///
    /// # Panics
    /// When the shapes do not agree.
    pub fn multiply(&self, alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
        assert!(
            a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
            "matrix shapes do not agree"
        );
        if a.rows == 0 || b.cols == 0 {
            return;
        }
        if a.cols == 0 {
            return scale(beta, c);
        }
        let streamed = b.col_stride == 1
            && alpha == 1.0
            && a.rows <= STREAMED_ROWS
            && b.rows * b.cols >= STREAMED_SIZE;
        let depth = if streamed {
            self.streamed_depth
        } else {
            self.depth
        };
        let right = Right {
            data: b.data.as_ptr(),
            order: if b.col_stride == 1 {
                Order::Rows(b.row_stride)
            } else {
                Order::Columns(b.col_stride)
            },
        };
        let job = Job {
            depth,
            alpha,
            ..self.job(a, right, beta, c)
        };
        job.run(b.cols);
    }

    /// `C = A B + beta C` with A `[m, k]`, B `[k, n]` in panels, C `[m, n]`; with `beta` 0, C is not
    /// read.
    ///
    /// # Panics
    /// When the shapes do not agree.
    pub fn multiply_panels(
        &self,
        accuracy: Accuracy,
        a: MatRef<'_>,
        b: Panels<'_>,
        beta: f32,
        c: MatMut<'_>,
    ) {
        let right = Right {
            data: b.data().as_ptr(),
            order: Order::Panels(b.stride()),
        };
        let shape = (b.rows(), b.cols());
        self.multiply_frozen(accuracy, a, right, shape, Start::C(beta), c);
    }

    /// `C = A B + bias` with A `[m, k]`, B `[k, n]` in panels, bias `[n]` on every row, C `[m, n]`.
    ///
    /// # Panics
    /// When the shapes do not agree.
    pub fn multiply_panels_biased(
        &self,
        accuracy: Accuracy,
        a: MatRef<'_>,
        b: Panels<'_>,
        bias: &[f32],
        c: MatMut<'_>,
    ) {
        let right = Right {
            data: b.data().as_ptr(),
            order: Order::Panels(b.stride()),
        };
        let shape = (b.rows(), b.cols());
        self.multiply_frozen(accuracy, a, right, shape, Start::Bias(bias), c);
    }

    /// `C = A B^T + beta C` with A `[m, k]`, B `[n, k]` in panels, C `[m, n]`; with `beta` 0, C is not
    /// read.
    ///
    /// # Panics
    /// When the shapes do not agree.
    pub fn multiply_panels_t(
        &self,
        accuracy: Accuracy,
        a: MatRef<'_>,
        b: PanelsT<'_>,
        beta: f32,
        c: MatMut<'_>,
    ) {
        let PanelsT(b) = b;
        let right = Right {
            data: b.data().as_ptr(),
            order: Order::PanelsTransposed(b.stride()),
        };
        let shape = (b.cols(), b.rows());
        self.multiply_frozen(accuracy, a, right, shape, Start::C(beta), c);
    }

    fn multiply_frozen(
        &self,
        accuracy: Accuracy,
        a: MatRef<'_>,
        right: Right,
        (inner, cols): (usize, usize),
        start: Start<'_>,
        mut c: MatMut<'_>,
    ) {
        assert!(
            a.cols == inner && a.rows == c.rows && cols == c.cols,
            "matrix shapes do not agree"
        );
        if a.rows == 0 || cols == 0 {
            return;
        }
        let (beta, bias) = match start {
            Start::C(beta) => (beta, None),
            Start::Bias(bias) => (1.0, Some(bias)),
        };
        if inner == 0 {
            if let Some(bias) = bias {
                c.fill_rows(bias);
                return;
            }
            return scale(beta, c);
        }
        let mut job = self.job(a, right, beta, c);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), cols, "matrix shapes do not agree");
            (job.from, job.from_row) = (bias.as_ptr(), 0);
        }
        if let Order::Panels(_) = right.order {
            job.depth = self.panel_depth;
        }
        job.accuracy = accuracy;
        job.serial = self.frozen.unwrap_or(job.serial);
        job.run(cols);
    }

    /// `C = A B + beta C`, the shapes being checked.
    fn job(&self, a: MatRef<'_>, b: Right, beta: f32, c: MatMut<'_>) -> Job<'_> {
        let (row, c) = (c.row_stride, c.data.as_mut_ptr());
        Job {
            kernel: self,
            depth: self.depth,
            rows: a.rows,
            inner: a.cols,
            a: a.data.as_ptr(),
            a_row: a.row_stride,
            a_col: a.col_stride,
            b,
            from: c,
            from_row: row,
            c,
            c_row: row,
            alpha: 1.0,
            beta,
            accuracy: Accuracy::Full,
            // SAFETY: the contracts are the same.
            serial: |job, columns| unsafe { job.blocks(columns) },
        }
    }
}

/// What the sums of a product start from.
#[derive(Clone, Copy)]
enum Start<'a> {
    /// So many times what C holds.
    C(f32),
    /// The same row for all.
    Bias(&'a [f32]),
}

/// A whole product, of which threads take columns.
#[derive(Clone, Copy)]
pub(super) struct Job<'k> {
    pub kernel: &'k Kernel,
    depth: usize,
    pub rows: usize,
    pub inner: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_col: usize,
    pub b: Right,
    pub from: *const f32,
    pub from_row: usize,
    pub c: *mut f32,
    pub c_row: usize,
    alpha: f32,
    pub beta: f32,
    /// Of products that `serial` has a choice in.
    pub accuracy: Accuracy,
    serial: ColumnsFn,
}

/// Computes some columns of a job on one thread, see [`Job::columns`].
pub(super) type ColumnsFn = unsafe fn(&Job<'_>, Range<usize>);

// SAFETY: A and B are only read, and every thread writes columns of C that no other has.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    /// Computes all `cols` columns of C. The caller still holds the views that the job was made of.
    fn run(&self, cols: usize) {
        let threads = if self.rows * self.inner * cols < SHARED_PRODUCTS {
            1
        } else {
            threads::at_hand()
        };
        // SAFETY: the views hold their last element, so every element of the product; C is
        // borrowed exclusively and cannot overlap A or B, and a kernel exists only where its
        // instruction set does.
        unsafe { self.columns(0..cols, threads) }
    }

    /// Computes some columns of C, halved between threads. An element is the sum of the same terms
    /// in the same order however many threads there are.
    ///
    /// # Safety
    /// The elements of A, of these columns of B and of C are in bounds; nothing else accesses C's.
    unsafe fn columns(&self, columns: Range<usize>, threads: usize) {
        let panels = columns.len().div_ceil(WIDTH);
        if threads > 1 && panels > 1 {
            let left = threads / 2;
            let middle = columns.start + panels * left / threads * WIDTH;
            // SAFETY: as for this call; the two sides have no column in common.
            threads::join(
                || unsafe { self.columns(columns.start..middle, left) },
                || unsafe { self.columns(middle..columns.end, threads - left) },
            );
            return;
        }
        if !columns.is_empty() {
            // SAFETY: the contract of this function.
            unsafe { (self.serial)(self, columns) }
        }
    }

    /// [`Job::columns`] on one thread, in blocks of register tiles.
    ///
    /// # Safety
    /// As for [`Job::columns`].
    unsafe fn blocks(&self, columns: Range<usize>) {
        let mut panel = Panel(MaybeUninit::uninit());
        for (row, rows) in parts(self.rows, self.kernel.block_rows) {
            for (p, depth) in parts(self.inner, self.depth) {
                // SAFETY: the contract of this function, for a block inside its elements.
                unsafe {
                    let c = self.c.add(row * self.c_row);
                    let (from, from_row, beta) = match p {
                        0 => (self.from.add(row * self.from_row), self.from_row, self.beta),
                        _ => (c.cast_const(), self.c_row, 1.0),
                    };
                    let block = Block {
                        kernel: self.kernel,
                        rows,
                        depth,
                        first: p,
                        columns: columns.clone(),
                        a: self.a.add(row * self.a_row + p * self.a_col),
                        a_row: self.a_row,
                        a_col: self.a_col,
                        b: self.b,
                        from,
                        from_row,
                        c,
                        c_row: self.c_row,
                        alpha: self.alpha,
                        beta,
                    };
                    block.multiply(panel.0.as_mut_ptr().cast());
                }
            }
        }
    }
}

fn scale(beta: f32, c: MatMut<'_>) {
    for row in c.data.chunks_mut(c.row_stride).take(c.rows) {
        for x in &mut row[..c.cols] {
            *x = if beta == 0.0 { 0.0 } else { beta * *x };
        }
    }
}
