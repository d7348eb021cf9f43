//! Matrix products over strided views.

use super::gemm::{Accuracy, Kernel};
use super::panels::{self, Panels, PanelsT};

/// A read-only matrix: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// A writable matrix with contiguous rows: element `(i, j)` is `data[i * row_stride + j]`.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A block of a wider row-major matrix whose rows lie `row_stride` apart.
    ///
    /// # Panics
    /// When the last element lies outside `data` or `row_stride < cols`.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            row_stride >= cols && fits(data.len(), rows, cols, row_stride),
            "matrix outside its slice"
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transpose, without moving data.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the columns.
    fn columns_of(self, first: usize, cols: usize) -> Self {
        Self {
            data: &self.data[first * self.col_stride..],
            cols,
            ..self
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }
}

impl<'a> MatMut<'a> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A block of a wider row-major matrix whose rows lie `row_stride` apart.
    ///
    /// # Panics
    /// When the last element lies outside `data` or `row_stride < cols`.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            row_stride >= cols && fits(data.len(), rows, cols, row_stride),
            "matrix outside its slice"
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
        }
    }

    /// Makes every row a copy of `row`.
    ///
    /// # Panics
    /// When it has another length than a row.
    pub(super) fn fill_rows(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.cols, "matrix shapes do not agree");
        for to in self.data.chunks_mut(self.row_stride).take(self.rows) {
            to[..self.cols].copy_from_slice(row);
        }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    let needed = |rows: usize| (rows - 1).checked_mul(row_stride)?.checked_add(cols);
    rows == 0 || cols == 0 || needed(rows).is_some_and(|needed| needed <= len)
}

/// `C = alpha A B + beta C` with A `[m, k]`, B `[k, n]`, C `[m, n]`; with `beta` 0, C is not read.
///
/// Runs the hand-written kernel of [`gemm`](super::gemm) for this machine, or the matrixmultiply
/// crate's where there is none.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    match Kernel::chosen() {
        Some(kernel) => kernel.multiply(alpha, a, b, beta, c),
        None => matmul_portable(alpha, a, b, beta, c),
    }
}

/// `C = A B + beta C` with A `[m, k]`, B `[k, n]` in panels, C `[m, n]`; with `beta` 0, C is not read.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul_panels(accuracy: Accuracy, a: MatRef<'_>, b: Panels<'_>, beta: f32, c: MatMut<'_>) {
    match Kernel::chosen() {
        Some(kernel) => kernel.multiply_panels(accuracy, a, b, beta, c),
        None => matmul_panels_portable(a, b, beta, c),
    }
}

/// `C = A B + bias` with A `[m, k]`, B `[k, n]` in panels, bias `[n]` on every row, C `[m, n]`, which
/// is not read.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul_panels_biased(
    accuracy: Accuracy,
    a: MatRef<'_>,
    b: Panels<'_>,
    bias: &[f32],
    mut c: MatMut<'_>,
) {
    match Kernel::chosen() {
        Some(kernel) => kernel.multiply_panels_biased(accuracy, a, b, bias, c),
        None => {
            c.fill_rows(bias);
            matmul_panels_portable(a, b, 1.0, c);
        }
    }
}

/// `C = A B^T + beta C` with A `[m, k]`, B `[n, k]` in panels, C `[m, n]`; with `beta` 0, C is not
/// read.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul_panels_t(
    accuracy: Accuracy,
    a: MatRef<'_>,
    b: PanelsT<'_>,
    beta: f32,
    c: MatMut<'_>,
) {
    match Kernel::chosen() {
        Some(kernel) => kernel.multiply_panels_t(accuracy, a, b, beta, c),
        None => matmul_panels_t_portable(a, b, beta, c),
    }
}

/// [`matmul_panels`] by the matrixmultiply crate, a panel at a time.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul_panels_portable(a: MatRef<'_>, b: Panels<'_>, beta: f32, c: MatMut<'_>) {
    assert_eq!(b.cols(), c.cols, "matrix shapes do not agree");
    if c.rows == 0 {
        return;
    }
    for (first, panel) in b.iter() {
        let cols = (b.cols() - first).min(panels::WIDTH);
        let panel = MatRef::strided(panel, b.rows(), cols, panels::WIDTH);
        let columns = MatMut::strided(&mut c.data[first..], c.rows, cols, c.row_stride);
        matmul_portable(1.0, a, panel, beta, columns);
    }
}

/// [`matmul_panels_t`] by the matrixmultiply crate, a panel at a time.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul_panels_t_portable(a: MatRef<'_>, b: PanelsT<'_>, beta: f32, c: MatMut<'_>) {
    let PanelsT(b) = b;
    assert_eq!(a.cols, b.cols(), "matrix shapes do not agree");
    if a.rows == 0 {
        return;
    }
    if a.cols == 0 {
        return matmul_portable(1.0, a, MatRef::new(&[], 0, c.cols), beta, c);
    }
    for (first, panel) in b.iter() {
        let cols = (b.cols() - first).min(panels::WIDTH);
        let panel = MatRef::strided(panel, b.rows(), cols, panels::WIDTH);
        let beta = if first == 0 { beta } else { 1.0 };
        let all = MatMut::strided(c.data, c.rows, c.cols, c.row_stride);
        matmul_portable(1.0, a.columns_of(first, cols), panel.t(), beta, all);
    }
}

/// [`matmul`] by the matrixmultiply crate, which knows most architectures.
///
/// # Panics
/// When the shapes do not agree.
pub fn matmul_portable(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, c: MatMut<'_>) {
    assert!(
        a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
        "matrix shapes do not agree"
    );
    // SAFETY: the constructors checked that every element of the three views lies inside its
    // slice; C is borrowed exclusively, so it cannot overlap A or B.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.cols,
            b.cols,
            alpha,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            beta,
            c.data.as_mut_ptr(),
            c.row_stride as isize,
            1,
        );
    }
}
