//! Saying "unknown": how far an image is from the nearest class, and how far is too far.

use serde::{Deserialize, Serialize};

use super::cholesky::dot;
use super::factor::packed_row;
use super::{Classifier, HeadError, Layout};

/// Values a sketch keeps.
const CAPACITY: usize = 128;
/// Below this many images nothing can be said about what is usual.
const FEWEST: u64 = 4;

/// Mahalanobis distance to the nearest component (Lee et al., arXiv 1807.03888), under the same
/// shrunk covariance that the classifier it was fitted with uses.
///
/// With c the centre and s_k the score of component k, the squared distance of x to mean k is
/// `(x - c)^T S^-1 (x - c) - 2 s_k`: one triangular solve a part, however many components.
#[derive(Debug, Clone, PartialEq)]
pub struct Mahalanobis {
    layout: Layout,
    /// Packed lower triangles of L, `S = variance L L^T`, `[parts, dim (dim + 1) / 2]`.
    factors: Vec<f32>,
    variances: Vec<f64>,
}

impl Mahalanobis {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            factors: vec![0.0; layout.parts * layout.packed()],
            variances: vec![1.0; layout.parts],
        }
    }

    pub(super) fn keep(&mut self, part: usize, l: &[f32], variance: f64) {
        let packed = self.layout.packed();
        let factor = &mut self.factors[part * packed..][..packed];
        for (i, row) in l.chunks_exact(self.layout.dim).enumerate() {
            factor[packed_row(i)..=packed_row(i) + i].copy_from_slice(&row[..=i]);
        }
        self.variances[part] = variance;
    }

    /// Squared distance to the nearest component over `parts * dim`: about 1 for an image like
    /// those learned. `features` is `[parts * dim]`.
    ///
    /// # Errors
    /// [`HeadError::Shape`] or [`HeadError::NotFinite`], as [`Classifier::scores`].
    pub fn distance(&self, classifier: &Classifier, features: &[f32]) -> Result<f32, HeadError> {
        classifier.check(features, classifier.classes().len())?;
        if classifier.layout() != self.layout {
            return Err(HeadError::Shape {
                what: "feature vector",
                expected: self.layout.width(),
                found: classifier.layout().width(),
            });
        }
        let (score, center) = classifier.nearest(features);
        let Layout { parts, dim } = self.layout;
        let deviation: Vec<f32> = features.iter().zip(center).map(|(x, c)| x - c).collect();
        let square: f64 = (0..parts)
            .map(|part| self.square(part, &deviation[self.layout.part(part)]))
            .sum();
        Ok(((square - 2.0 * score).max(0.0) / (parts * dim) as f64) as f32)
    }

    /// `d^T S^-1 d` of one part, `deviation` being d there.
    pub(super) fn square(&self, part: usize, deviation: &[f32]) -> f64 {
        let factor = &self.factors[part * self.layout.packed()..];
        let row = |i: usize| &factor[packed_row(i)..=packed_row(i) + i];
        square(row, self.variances[part], deviation)
    }
}

/// `d^T S^-1 d` with `S = variance L L^T`, `row(i)` being the i + 1 numbers of the i-th row of L.
pub(super) fn square<'l>(
    row: impl Fn(usize) -> &'l [f32],
    variance: f64,
    deviation: &[f32],
) -> f64 {
    let mut whitened = vec![0.0f32; deviation.len()];
    for (i, d) in deviation.iter().enumerate() {
        let (row, pivot) = row(i).split_at(i);
        whitened[i] = (d - dot(row, &whitened[..i])) / pivot[0];
    }
    let norm: f64 = whitened.iter().map(|v| f64::from(*v).powi(2)).sum();
    norm / variance
}

/// The distances of images that a head did not learn, however many tasks they came from, in bounded memory.
///
/// Sorted values with the number of observations each stands for. When the room runs out, two
/// neighbours become the larger one with both their counts, so the share of observations up to a
/// kept value stays what it was; pairs are chosen by their count relative to what lies above,
/// which keeps the upper tail, where thresholds are read, at full resolution.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f32, u32)>", into = "Vec<(f32, u32)>")]
pub struct Sketch {
    points: heapless::Vec<(f32, u32), CAPACITY>,
}

impl Sketch {
    /// Adds one distance.
    ///
    /// # Errors
    /// [`HeadError::NotFinite`] for a distance that is no number.
    pub fn add(&mut self, distance: f32) -> Result<(), HeadError> {
        if !distance.is_finite() {
            return Err(HeadError::NotFinite {
                image: 0,
                position: 0,
            });
        }
        if self.points.is_full() {
            self.merge_cheapest();
        }
        let at = self.points.partition_point(|p| p.0 < distance);
        // Room was made above, so the insertion cannot fail.
        let _ = self.points.insert(at, (distance, 1));
        Ok(())
    }

    /// Distances added.
    pub fn len(&self) -> u64 {
        self.points.iter().map(|p| u64::from(p.1)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The distance beyond which an image is called unknown, so that a known one is with
    /// probability `false_alarms` at most.
    ///
    /// The quantile is the conservative one of conformal prediction (Vovk et al. 2005), the
    /// `ceil((n + 1) (1 - a))`-th smallest of n. Where n is too small to have it, the upper half
    /// is continued as an exponential tail; with fewer than four distances, or `false_alarms` of
    /// 0 or no number, nothing is unknown (infinity).
    pub fn threshold(&self, false_alarms: f32) -> f32 {
        Self::threshold_of([self], false_alarms)
    }

    /// The threshold over several sketches together.
    pub fn threshold_of<'a>(
        sketches: impl IntoIterator<Item = &'a Self>,
        false_alarms: f32,
    ) -> f32 {
        let mut points: Vec<(f32, u32)> = sketches
            .into_iter()
            .flat_map(|sketch| sketch.points.iter().copied())
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let n: u64 = points.iter().map(|p| u64::from(p.1)).sum();
        if n < FEWEST || false_alarms.is_nan() || false_alarms <= 0.0 {
            return f32::INFINITY;
        }
        let share = f64::from(false_alarms.min(1.0));
        let rank = ((n + 1) as f64 * (1.0 - share)).ceil() as u64;
        if rank <= n {
            return ranked(&points, rank.max(1));
        }
        let (median, top) = (ranked(&points, n.div_ceil(2)), ranked(&points, n));
        // A share 1 / (n + 1) lies beyond the largest: so many halvings past the median.
        let halvings = ((n + 1) as f64 / 2.0).log2();
        let wanted = (0.5 / share).log2();
        let distance = f64::from(median) + f64::from(top - median) * wanted / halvings;
        distance as f32
    }

    fn merge_cheapest(&mut self) {
        let mut above = self.len();
        let (mut best, mut least) = (0, f64::INFINITY);
        for (at, pair) in self.points.windows(2).enumerate() {
            let both = u64::from(pair[0].1) + u64::from(pair[1].1);
            above -= u64::from(pair[0].1);
            let cost = both as f64 / above as f64;
            // Among equals the lowest pair goes first: it matters least.
            if cost < least {
                (best, least) = (at, cost);
            }
        }
        if best + 1 < self.points.len() {
            let (_, count) = self.points.remove(best);
            let point = &mut self.points[best];
            point.1 = point.1.saturating_add(count);
        }
    }
}

/// The smallest kept value that at least `rank` observations do not exceed.
fn ranked(points: &[(f32, u32)], rank: u64) -> f32 {
    let mut below = 0;
    for &(value, count) in points {
        below += u64::from(count);
        if below >= rank {
            return value;
        }
    }
    f32::INFINITY
}

impl From<Sketch> for Vec<(f32, u32)> {
    fn from(sketch: Sketch) -> Self {
        sketch.points.to_vec()
    }
}

impl TryFrom<Vec<(f32, u32)>> for Sketch {
    type Error = HeadError;

    fn try_from(points: Vec<(f32, u32)>) -> Result<Self, HeadError> {
        let usable = points.iter().all(|p| p.0.is_finite() && p.1 > 0);
        match heapless::Vec::from_slice(&points) {
            Ok(points) if usable && points.is_sorted_by_key(|p| p.0) => Ok(Self { points }),
            _ => Err(HeadError::Damaged("the sketch of distances")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(values: impl IntoIterator<Item = f32>) -> Sketch {
        let mut sketch = Sketch::default();
        values.into_iter().for_each(|v| sketch.add(v).unwrap());
        sketch
    }

    #[test]
    fn few_values_give_the_conservative_quantile() {
        let hundred = sketch((1..=100u8).rev().map(f32::from));
        // ceil(101 * 0.95) = 96
        assert_eq!(hundred.threshold(0.05), 96.0);
        assert_eq!(hundred.threshold(1.0), 1.0);
        assert_eq!(hundred.threshold(0.0), f32::INFINITY);
        assert_eq!(hundred.threshold(f32::NAN), f32::INFINITY);
    }

    #[test]
    fn too_few_values_reach_beyond_the_largest_or_reject_nothing() {
        let nine = sketch((1..=9u8).map(f32::from));
        let threshold = nine.threshold(0.05);
        assert!(threshold > 9.0 && threshold < 12.0, "{threshold}");
        assert!(nine.threshold(0.01) > threshold);
        assert_eq!(sketch([1.0, 2.0, 3.0]).threshold(0.05), f32::INFINITY);
        assert_eq!(sketch([2.0; 5]).threshold(0.05), 2.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_long_stream_keeps_its_upper_quantiles(seed in any::<u64>(), n in 1000usize..4000, sorted in any::<bool>()) {
            use rand::{RngExt, SeedableRng};
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut values: Vec<f32> = (0..n).map(|_| -rng.random_range(1e-6f32..1.0).ln()).collect();
            if sorted {
                values.sort_by(f32::total_cmp);
            }
            let kept = sketch(values.iter().copied());
            prop_assert_eq!(kept.len(), n as u64);
            for share in [0.01f32, 0.05, 0.2] {
                let threshold = kept.threshold(share);
                let beyond = values.iter().filter(|&&v| v > threshold).count() as f32 / n as f32;
                prop_assert!((beyond / share - 1.0).abs() < 0.4, "{beyond} beyond {threshold} instead of {share}");
            }
        }
    }

    #[test]
    fn a_sketch_survives_its_file_format_and_damage_is_refused() {
        let kept = sketch((0..300u16).map(f32::from));
        let bytes = postcard::to_allocvec(&kept).unwrap();
        assert_eq!(postcard::from_bytes::<Sketch>(&bytes).unwrap(), kept);
        for damaged in [
            vec![(2.0f32, 1u32), (1.0, 1)],
            vec![(f32::NAN, 1)],
            vec![(1.0, 0)],
            vec![(1.0, 1); 129],
        ] {
            let bytes = postcard::to_allocvec(&damaged).unwrap();
            assert!(postcard::from_bytes::<Sketch>(&bytes).is_err());
        }
        assert!(sketch([]).add(f32::NAN).is_err());
    }
}
