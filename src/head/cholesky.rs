//! Cholesky factorisation of a dense symmetric matrix, and solving with it.
//!
//! Blocked so that nearly all the arithmetic happens in [`matmul`] (Golub and Van Loan, Matrix
//! Computations, 4.2). Matrices are row-major; only the lower triangle is read or written.

use crate::kernels::matmul::{MatMut, MatRef, matmul};

const BLOCK: usize = 48;
/// Rows of `dim` floats in the buffer of [`factorise`].
pub(crate) const PANEL_ROWS: usize = BLOCK + 1;
/// A pivot that kept less than this fraction of its diagonal element is rounding noise.
const LEAST_PIVOT: f32 = 64.0 * f32::EPSILON;

/// The matrix has a direction of no, or less than no, variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotPositiveDefinite;

/// Replaces the lower triangle of `a` `[dim, dim]` by L with `L L^T = a`; the part above the
/// diagonal is scratch, and so is `buffer`. After a failure `a` is spoilt.
pub(super) fn factorise(
    a: &mut [f32],
    dim: usize,
    buffer: &mut Vec<f32>,
) -> Result<(), NotPositiveDefinite> {
    buffer.clear();
    buffer.resize(dim * PANEL_ROWS, 0.0);
    let (least, panel) = buffer.split_at_mut(dim);
    for (i, least) in least.iter_mut().enumerate() {
        *least = a[i * dim + i] * LEAST_PIVOT;
    }
    for first in (0..dim).step_by(BLOCK) {
        let next = dim.min(first + BLOCK);
        let width = next - first;
        // The block column: rows of the diagonal block make L's rows, the rest divide by them.
        for i in first..dim {
            let (above, row) = a.split_at_mut(i * dim);
            for j in first..next.min(i) {
                let pivot_row = &above[j * dim + first..=j * dim + j];
                let (known, pivot) = pivot_row.split_at(j - first);
                row[j] = (row[j] - dot(known, &row[first..j])) / pivot[0];
            }
            if i < next {
                let pivot = row[i] - dot(&row[first..i], &row[first..i]);
                if !pivot.is_finite() || pivot <= least[i] {
                    return Err(NotPositiveDefinite);
                }
                row[i] = pivot.sqrt();
            }
        }
        for (packed, row) in panel
            .chunks_exact_mut(width)
            .zip(a[next * dim..].chunks_exact(dim))
        {
            packed.copy_from_slice(&row[first..next]);
        }
        // What remains loses the product of the block column with itself, tile row by tile row.
        for top in (next..dim).step_by(BLOCK) {
            let bottom = dim.min(top + BLOCK);
            let left = &panel[(top - next) * width..];
            matmul(
                -1.0,
                MatRef::new(left, bottom - top, width),
                MatRef::new(panel, bottom - next, width).t(),
                1.0,
                MatMut::strided(&mut a[top * dim + next..], bottom - top, bottom - next, dim),
            );
        }
    }
    Ok(())
}

/// Solves `L L^T X = B` in place, `rhs` being B `[dim, columns]`.
pub(super) fn solve(l: &[f32], dim: usize, rhs: &mut [f32], columns: usize) {
    solve_lower(l, dim, dim, rhs, columns);
    for first in (0..dim).step_by(BLOCK).rev() {
        let next = dim.min(first + BLOCK);
        for i in (first..next).rev() {
            let (before, row) = rhs.split_at_mut(i * columns);
            let row = &mut row[..columns];
            let pivot = l[i * dim + i];
            row.iter_mut().for_each(|x| *x /= pivot);
            for j in first..i {
                subtract(&mut before[j * columns..][..columns], l[i * dim + j], row);
            }
        }
        let (above, block) = rhs.split_at_mut(first * columns);
        if first > 0 {
            matmul(
                -1.0,
                MatRef::strided(&l[first * dim..], next - first, first, dim).t(),
                MatRef::new(block, next - first, columns),
                1.0,
                MatMut::new(above, first, columns),
            );
        }
    }
}

/// The trace of `(L L^T)^-1`, which is the sum of the squares of L^-1, a few columns of it at a time.
/// `buffer` has room for `[dim, columns]`.
pub(super) fn inverse_trace(l: &[f32], dim: usize, buffer: &mut [f32], columns: usize) -> f64 {
    let mut trace = 0.0;
    for first in (0..dim).step_by(columns) {
        // Above row `first` these columns are zero.
        let (rows, columns) = (dim - first, columns.min(dim - first));
        let inverse = &mut buffer[..rows * columns];
        inverse.fill(0.0);
        (0..columns).for_each(|i| inverse[i * columns + i] = 1.0);
        solve_lower(&l[first * dim + first..], rows, dim, inverse, columns);
        trace += inverse.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    }
    trace
}

/// Solves `L X = B` in place, `rhs` being B `[dim, columns]`, and L's rows `stride` apart.
fn solve_lower(l: &[f32], dim: usize, stride: usize, rhs: &mut [f32], columns: usize) {
    for first in (0..dim).step_by(BLOCK) {
        let next = dim.min(first + BLOCK);
        for i in first..next {
            let (before, row) = rhs.split_at_mut(i * columns);
            let row = &mut row[..columns];
            for j in first..i {
                subtract(row, l[i * stride + j], &before[j * columns..][..columns]);
            }
            let pivot = l[i * stride + i];
            row.iter_mut().for_each(|x| *x /= pivot);
        }
        if next < dim {
            let (block, below) = rhs.split_at_mut(next * columns);
            matmul(
                -1.0,
                MatRef::strided(
                    &l[next * stride + first..],
                    dim - next,
                    next - first,
                    stride,
                ),
                MatRef::new(&block[first * columns..], next - first, columns),
                1.0,
                MatMut::new(below, dim - next, columns),
            );
        }
    }
}

fn subtract(target: &mut [f32], factor: f32, row: &[f32]) {
    for (t, x) in target.iter_mut().zip(row) {
        *t -= factor * x;
    }
}

/// Inner product in eight interleaved sums, which vectorises and rounds less than one.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8
        .remainder()
        .iter()
        .zip(b8.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a8.zip(b8) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// `G^T G + ridge I` of a random G `[rank, dim]`.
    fn random_matrix(seed: u64, rank: usize, dim: usize, ridge: f32) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let g: Vec<f32> = (0..rank * dim)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let mut a: Vec<f32> = (0..dim * dim)
            .map(|at| if at / dim == at % dim { ridge } else { 0.0 })
            .collect();
        let view = MatRef::new(&g, rank, dim);
        matmul(1.0, view.t(), view, 1.0, MatMut::new(&mut a, dim, dim));
        a
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_trace_of_the_inverse_is_that_of_its_solved_columns(
            seed in any::<u64>(), dim in 1usize..200, columns in 1usize..40,
        ) {
            let mut l = random_matrix(seed, dim, dim, 1.0);
            factorise(&mut l, dim, &mut Vec::new()).unwrap();
            let mut inverse = vec![0.0; dim * dim];
            (0..dim).for_each(|i| inverse[i * dim + i] = 1.0);
            solve(&l, dim, &mut inverse, dim);
            let expected: f64 = (0..dim).map(|i| f64::from(inverse[i * dim + i])).sum();
            let trace = inverse_trace(&l, dim, &mut vec![f32::NAN; dim * columns], columns);
            prop_assert!((trace - expected).abs() < 1e-3 * expected, "{trace} instead of {expected}");
        }

        #[test]
        fn a_solution_multiplied_back_gives_the_right_hand_sides(
            seed in any::<u64>(), dim in 1usize..200, columns in 1usize..20,
        ) {
            let a = random_matrix(seed, dim, dim, 1.0);
            let mut l = a.clone();
            // What lies above the diagonal must not matter.
            for (i, row) in l.chunks_exact_mut(dim).enumerate() {
                row[i + 1..].fill(f32::NAN);
            }
            factorise(&mut l, dim, &mut Vec::new()).unwrap();
            let truth = random_matrix(!seed, 3, dim.max(columns), 0.0);
            let truth = &truth[..dim * columns];
            let mut x = vec![0.0; dim * columns];
            matmul(1.0, MatRef::new(&a, dim, dim), MatRef::new(truth, dim, columns), 0.0, MatMut::new(&mut x, dim, columns));
            solve(&l, dim, &mut x, columns);
            for (x, t) in x.iter().zip(truth) {
                prop_assert!((x - t).abs() < 2e-3, "{x} instead of {t}");
            }
        }

        #[test]
        fn a_matrix_of_half_the_rank_is_refused(seed in any::<u64>(), dim in 2usize..150) {
            let mut a = random_matrix(seed, dim / 2, dim, 0.0);
            prop_assert_eq!(factorise(&mut a, dim, &mut Vec::new()), Err(NotPositiveDefinite));
        }
    }

    #[test]
    fn zeros_and_nan_are_refused() {
        assert_eq!(
            factorise(&mut [0.0; 9], 3, &mut Vec::new()),
            Err(NotPositiveDefinite)
        );
        assert_eq!(
            factorise(&mut [f32::NAN; 9], 3, &mut Vec::new()),
            Err(NotPositiveDefinite)
        );
    }
}
