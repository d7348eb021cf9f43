//! Does a forward pass of ours compute what the original graph computes?

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tract_onnx::prelude::*;

use super::graph::Graph;
use super::{Boundaries, guarded};
use crate::vit::Pixels;

/// Largest accepted difference relative to the tensor's largest magnitude.
///
/// Correct imports measure from 3e-7 (the test models) to 3e-6 (the default model, 12 blocks),
/// which leaves room for deeper models and other processors' rounding. Mistakes made on purpose
/// in the default model measure 2e-3 (tanh for exact GELU), 4e-3 (queries of one block 1 % too
/// large), 1e-2 (eps ten times too large) and about 1 (heads miscounted, query for key).
pub const TOLERANCE: f32 = 1e-4;

/// How far two runs are apart at one boundary.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The original graph's name of the tensor.
    pub name: String,
    /// Largest absolute difference.
    pub absolute: f32,
    /// Root mean square of the original tensor.
    pub rms: f32,
    /// Largest magnitude in the original tensor.
    pub largest: f32,
}

impl Difference {
    /// The largest difference as a part of the tensor's largest magnitude. Not a number when
    /// either run produced one.
    pub fn relative(&self) -> f32 {
        if self.absolute == 0.0 {
            return 0.0;
        }
        self.absolute / self.largest
    }

    fn between(name: &str, ours: &[f32], theirs: &[f32]) -> Self {
        // f32::max would drop a NaN; it has to show.
        let larger = |a: f32, b: f32| if a >= b || a.is_nan() { a } else { b };
        let absolute = if ours.len() == theirs.len() {
            let gaps = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
            gaps.fold(0.0, larger)
        } else {
            f32::NAN
        };
        let squares: f64 = theirs.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        Self {
            name: name.to_owned(),
            absolute,
            rms: (squares / theirs.len().max(1) as f64).sqrt() as f32,
            largest: theirs.iter().map(|v| v.abs()).fold(0.0, larger),
        }
    }
}

/// Compares two runs boundary by boundary: the stream in front of the first block, behind every
/// block, and the final norm's output.
pub fn compare(boundaries: &Boundaries, ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> Vec<Difference> {
    let missing = Vec::new();
    boundaries
        .names()
        .enumerate()
        .map(|(k, name)| {
            let ours = ours.get(k).unwrap_or(&missing);
            let theirs = theirs.get(k).unwrap_or(&missing);
            Difference::between(name, ours, theirs)
        })
        .collect()
}

/// A deterministic image `[3, image, image]` with smooth shapes and noise, in the range of
/// normalised pixels.
pub fn probe_image(image: Pixels) -> Vec<f32> {
    let mut noise = ChaCha8Rng::seed_from_u64(20);
    (0..3 * image * image)
        .map(|at| {
            let (channel, y, x) = (at / (image * image), at / image % image, at % image);
            let wave = |t: usize, periods: f32| {
                (std::f32::consts::TAU * periods * t as f32 / image as f32).sin()
            };
            let shape = wave(x, 1.0 + channel as f32) * wave(y, 2.5);
            1.5 * shape + noise.random_range(-0.5..0.5)
        })
        .collect()
}

/// Runs the original graph with tract on one image, up to the final norm and no further.
pub(super) fn original(
    graph: Graph,
    boundaries: &Boundaries,
    image: &[f32],
) -> Result<Vec<Vec<f32>>, String> {
    let names: Vec<String> = boundaries.names().map(str::to_owned).collect();
    let side = graph.image;
    guarded(|| {
        let model = graph
            .into_model(&names)?
            .into_optimized()?
            .into_runnable()?;
        let input = Tensor::from_shape(&[1, 3, side, side], image)?;
        let outputs = model.run(tvec!(input.into_tvalue()))?;
        outputs
            .iter()
            .map(|output| Ok(output.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boundaries() -> Boundaries {
        Boundaries {
            image: "image".into(),
            stream: vec!["x".into()],
            norm: "norm".into(),
        }
    }

    #[test]
    fn a_difference_is_relative_to_the_largest_magnitude() {
        let theirs = [vec![0.0, -4.0], vec![3.0, 4.0]];
        let ours = [vec![0.5, -4.0], vec![3.0, 4.0]];
        let found = compare(&boundaries(), &ours, &theirs);
        assert_eq!((found[0].absolute, found[0].relative()), (0.5, 0.125));
        assert_eq!(found[1].relative(), 0.0);
        assert!((found[1].rms - 12.5f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn missing_and_undefined_numbers_are_never_close() {
        let theirs = [vec![1.0, 2.0], vec![1.0, f32::NAN]];
        let ours = [vec![1.0], vec![1.0, 1.0]];
        for difference in compare(&boundaries(), &ours, &theirs) {
            assert!(difference.relative().is_nan(), "{difference:?}");
        }
    }

    #[test]
    fn the_probe_image_is_the_same_every_time() {
        assert_eq!(probe_image(12), probe_image(12));
        assert!(probe_image(12).iter().all(|v| v.abs() <= 2.0));
    }
}
