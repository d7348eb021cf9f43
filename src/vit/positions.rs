//! Position embeddings for another grid than the one they were trained on.

/// Keys' cubic convolution parameter, as PyTorch chooses it (Keys, IEEE ASSP 29(6), 1981, uses
/// -0.5).
const A: f64 = -0.75;

/// Resizes a table `[from * from, dim]` of patch positions to `[to * to, dim]` as PyTorch's
/// `interpolate(mode="bicubic", align_corners=False, antialias=False)` with `size=(to, to)` does.
///
/// Sample `i` of the new grid lies at `(i + 0.5) * from / to - 0.5` of the old one; neighbours
/// beyond the edge repeat it.
///
/// # Panics
/// When `table` does not hold `from * from * dim` numbers.
pub fn resize(table: &[f32], dim: usize, from: usize, to: usize) -> Vec<f32> {
    assert_eq!(
        table.len(),
        from * from * dim,
        "not a table of {from} x {from} positions"
    );
    if from == to {
        return table.to_vec();
    }
    let taps: Vec<[(usize, f32); 4]> = (0..to).map(|i| cubic_taps(i, from, to)).collect();
    let mut resized = vec![0.0; to * to * dim];
    for (position, out) in resized.chunks_exact_mut(dim).enumerate() {
        for &(row, row_weight) in &taps[position / to] {
            for &(column, column_weight) in &taps[position % to] {
                let weight = row_weight * column_weight;
                let at = (row * from + column) * dim;
                for (out, value) in out.iter_mut().zip(&table[at..at + dim]) {
                    *out += weight * value;
                }
            }
        }
    }
    resized
}

/// The four old samples, with their weights, that make up new sample `i` along one axis.
fn cubic_taps(i: usize, from: usize, to: usize) -> [(usize, f32); 4] {
    let place = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let before = place.floor();
    let t = place - before;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let last = from as f64 - 1.0;
    std::array::from_fn(|k| {
        let sample = (before - 1.0 + k as f64).clamp(0.0, last);
        (sample as usize, weights[k] as f32)
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::resize;

    #[derive(Deserialize)]
    struct Case {
        dim: usize,
        from: usize,
        to: usize,
        table: Vec<f32>,
        resized: Vec<f32>,
    }

    /// Written by `tests/fixtures/onnx/positions.py` with PyTorch.
    const PYTORCH: &str = include_str!("../../tests/fixtures/onnx/positions.json");

    #[test]
    fn resized_positions_equal_those_of_pytorch() {
        let cases: Vec<Case> = serde_json::from_str(PYTORCH).unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let ours = resize(&case.table, case.dim, case.from, case.to);
            assert_eq!(ours.len(), case.resized.len());
            for (ours, theirs) in ours.iter().zip(&case.resized) {
                assert!(
                    (ours - theirs).abs() < 2e-6,
                    "{} to {}: {ours} and {theirs}",
                    case.from,
                    case.to
                );
            }
        }
    }

    #[test]
    fn the_stored_grid_comes_back_unchanged() {
        let table: Vec<f32> = (0..18).map(|k| k as f32).collect();
        assert_eq!(resize(&table, 2, 3, 3), table);
    }

    #[test]
    fn a_constant_table_stays_constant_at_any_size() {
        for to in 1..9 {
            let resized = resize(&[0.25; 5 * 5 * 3], 3, 5, to);
            assert!(resized.iter().all(|v| (v - 0.25).abs() < 1e-6));
        }
    }
}
