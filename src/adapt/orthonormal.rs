//! Orthonormal columns: the QR factorisation that bases are kept in.

/// Modified Gram-Schmidt, twice for accuracy: replaces `x` `[rows, cols]` by Q and returns R
/// `[cols, cols]`. A column that depends on earlier ones gets a zero in R and is completed from
/// the unit vectors, so that Q is orthonormal even for a zero matrix.
pub(super) fn orthonormalise_columns(x: &mut [f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut q: Vec<Vec<f64>> = Vec::with_capacity(cols);
    let mut r = vec![0.0f32; cols * cols];
    for j in 0..cols {
        let mut column: Vec<f64> = (0..rows).map(|i| f64::from(x[i * cols + j])).collect();
        let before = norm(&column);
        for (i, basis) in q.iter().enumerate() {
            r[i * cols + j] = project_out(&mut column, basis) as f32;
        }
        for (i, basis) in q.iter().enumerate() {
            r[i * cols + j] += project_out(&mut column, basis) as f32;
        }
        let after = norm(&column);
        if after > 1e-6 * before && after > 0.0 {
            r[j * cols + j] = after as f32;
        } else {
            column = completion(&q, rows);
        }
        let scale = norm(&column).recip();
        column.iter_mut().for_each(|v| *v *= scale);
        q.push(column);
    }
    for (j, column) in q.iter().enumerate() {
        for (i, &v) in column.iter().enumerate() {
            x[i * cols + j] = v as f32;
        }
    }
    r
}

/// A vector outside the span of `q`: the unit vector with most left after projection.
fn completion(q: &[Vec<f64>], rows: usize) -> Vec<f64> {
    (0..=q.len())
        .map(|k| {
            let mut unit = vec![0.0; rows];
            unit[k % rows] = 1.0;
            for basis in q.iter().chain(q) {
                project_out(&mut unit, basis);
            }
            unit
        })
        .max_by(|a, b| norm(a).total_cmp(&norm(b)))
        .unwrap_or_else(|| vec![1.0; rows])
}

fn project_out(v: &mut [f64], basis: &[f64]) -> f64 {
    let along: f64 = v.iter().zip(basis).map(|(a, b)| a * b).sum();
    v.iter_mut().zip(basis).for_each(|(a, b)| *a -= along * b);
    along
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|a| a * a).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Some columns of small whole numbers, so that dependent ones are among them.
    fn columns() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
        (1usize..=4, 0usize..=6).prop_flat_map(|(cols, more)| {
            let rows = cols + more;
            let number = (-2i8..=2).prop_map(f32::from);
            let numbers = proptest::collection::vec(number, rows * cols);
            (Just(rows), Just(cols), numbers)
        })
    }

    proptest! {
        #[test]
        fn q_is_orthonormal_r_is_triangular_and_their_product_is_x((rows, cols, x) in columns()) {
            let mut q = x.clone();
            let r = orthonormalise_columns(&mut q, rows, cols);
            for i in 0..cols {
                for j in 0..cols {
                    let dot: f32 = (0..rows).map(|k| q[k * cols + i] * q[k * cols + j]).sum();
                    let expected = f32::from(u8::from(i == j));
                    prop_assert!((dot - expected).abs() < 1e-5, "columns {i} and {j}: {dot}");
                    prop_assert!(i <= j || r[i * cols + j] == 0.0);
                }
            }
            for k in 0..rows {
                for j in 0..cols {
                    let product: f32 = (0..cols).map(|i| q[k * cols + i] * r[i * cols + j]).sum();
                    prop_assert!((product - x[k * cols + j]).abs() < 1e-5);
                }
            }
        }
    }
}
