//! How unfamiliar an image is, on a scale that stays put while the head grows.
//!
//! Distances of images that a head has not learned shrink with every task: its covariance rests on
//! more images and its background on more classes. A distance held against another head's is
//! therefore first put on that head's own scale: from it goes the distance that is usual there, and
//! what is left is counted in spreads. Both come from the statistics alone. The rows of a
//! component's factor, mixed by random signs, are as good as deviations of its images, and leaving
//! such an image out of the statistics and measuring it is a rank-one change with a closed form.
//! What these Gaussian stand-ins cannot tell, how much wilder real images are, the images of every
//! task say, each left out in the same way.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::cholesky::dot;
use super::factor::Rows;
use super::fit::{PartFit, Workspace, pooled_mean};
use super::{
    Classifier, HeadError, Mahalanobis, RelativeMahalanobis, Shrinkage, Sketch, Statistics,
};

/// Stand-ins that a scale is taken from, about.
const STAND_INS: usize = 128;
/// From so many classes on the relative distance finds unknown classes better.
const RELATIVE_FROM: usize = 3;

/// Novelty of a task's images, each to a head that did not learn it, by both distances.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Novelties {
    pub nearest: Sketch,
    /// Empty when fewer than three classes were known.
    pub relative: Sketch,
}

impl Novelties {
    /// Adds an image.
    ///
    /// # Errors
    /// [`HeadError::NotFinite`] for a novelty that is no number.
    pub fn add(&mut self, image: ImageNovelty) -> Result<(), HeadError> {
        self.nearest.add(image.nearest)?;
        image.relative.map_or(Ok(()), |it| self.relative.add(it))
    }
}

/// Novelty of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageNovelty {
    /// By the distance to the nearest class.
    pub nearest: f32,
    /// By the relative distance; none when fewer than three classes were known.
    pub relative: Option<f32>,
}

impl ImageNovelty {
    /// Each number of one and of another image put together.
    pub fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self {
            nearest: f(self.nearest, other.nearest),
            relative: self.relative.zip(other.relative).map(|(x, y)| f(x, y)),
        }
    }
}

/// What is usual for an image that was not learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    mean: f64,
    spread: f64,
}

/// Measures novelty against the head that [`Novelty::fit`] made along with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Novelty {
    nearest: Mahalanobis,
    relative: RelativeMahalanobis,
    /// Of the nearest and the relative distance; none when no class has two different images.
    scales: Option<[Scale; 2]>,
}

impl Novelty {
    /// Fits a classifier as [`Classifier::fit`] does, and the measure that belongs to it. The
    /// components need their factors; those without stay out of the scale.
    ///
    /// # Errors
    /// As [`Classifier::fit`].
    pub fn fit(
        sources: &[&Statistics],
        shrinkage: impl Into<Shrinkage>,
    ) -> Result<(Classifier, Self), HeadError> {
        let (classifier, nearest) = Classifier::fit_with_distances(sources, shrinkage)?;
        let relative = RelativeMahalanobis::fit(&classifier, sources)?;
        let mut fitted = Self {
            nearest,
            relative,
            scales: None,
        };
        fitted.scales = fitted.usual(&classifier, sources)?;
        Ok((classifier, fitted))
    }

    /// How much farther than usual an image is from everything learned, in spreads: about 0 for
    /// one like those learned. By the relative distance from three classes on, by the plain one
    /// below. `None` when the statistics cannot tell. `features` is `[parts * dim]`.
    ///
    /// # Errors
    /// As [`Mahalanobis::distance`].
    pub fn of(&self, classifier: &Classifier, features: &[f32]) -> Result<Option<f32>, HeadError> {
        if is_relative(classifier) {
            self.relative(classifier, features)
        } else {
            self.nearest(classifier, features)
        }
    }

    /// The novelty beyond which an image is called unknown, from all tasks' images left out; see
    /// [`Sketch::threshold`].
    pub fn threshold<'a>(
        &self,
        classifier: &Classifier,
        tasks: impl Iterator<Item = &'a Novelties>,
        false_alarms: f32,
    ) -> f32 {
        let relative = is_relative(classifier);
        let sketches = tasks.map(|task| match relative {
            true => &task.relative,
            false => &task.nearest,
        });
        Sketch::threshold_of(sketches, false_alarms)
    }

    pub(super) fn nearest(
        &self,
        classifier: &Classifier,
        x: &[f32],
    ) -> Result<Option<f32>, HeadError> {
        let distance = self.nearest.distance(classifier, x)?;
        Ok(self.scales.map(|scales| scales[0].place(distance)))
    }

    pub(super) fn relative(
        &self,
        classifier: &Classifier,
        x: &[f32],
    ) -> Result<Option<f32>, HeadError> {
        let distance = self.relative.distance(classifier, x)?;
        Ok(self.scales.map(|scales| scales[1].place(distance)))
    }

    /// Both distances' scales, from stand-ins for images left out.
    fn usual(
        &self,
        classifier: &Classifier,
        sources: &[&Statistics],
    ) -> Result<Option<[Scale; 2]>, HeadError> {
        let mut workspace = Workspace::default();
        workspace.gather(sources);
        let mut scales = Scales::new();
        for part in 0..classifier.layout().parts {
            let measure = OfPart {
                novelty: self,
                part,
            };
            scales.add_part(classifier, sources, &workspace, part, &measure)?;
        }
        Ok(scales.finish())
    }

    /// See [`left_out`].
    #[cfg(test)]
    pub(super) fn left_out(
        &self,
        classifier: &Classifier,
        part: usize,
        deviation: &[f32],
        out: &LeftOut<'_>,
        scores: &mut [f32],
    ) -> Place {
        let measure = OfPart {
            novelty: self,
            part,
        };
        left_out(&measure, classifier, part, deviation, out, scores)
    }
}

/// What measures both distances in one part.
pub(super) trait Measure {
    /// `d^T S^-1 d` of a deviation d.
    fn square(&self, deviation: &[f32]) -> f64;

    /// `L^-1 v` in place, `L L^T = I + B^T S^-1 B`.
    fn whiten(&self, v: &mut [f32]);
}

/// A part of what is kept of all.
struct OfPart<'a> {
    novelty: &'a Novelty,
    part: usize,
}

impl Measure for OfPart<'_> {
    fn square(&self, deviation: &[f32]) -> f64 {
        self.novelty.nearest.square(self.part, deviation)
    }

    fn whiten(&self, v: &mut [f32]) {
        self.novelty.relative.whiten(self.part, v);
    }
}

/// Where an image is, in one part, that deviates by `deviation` from the mean of the others of its
/// component, once it is taken out. Adds the scores of all components to `scores`, where there are any.
///
/// With the image out, `S' = S - g d d^T` and the centred means are `m_j + a_j d`. All that is
/// needed of `S'^-1` follows from `q = d^T S^-1 d` and `P = W^T d` (Sherman and Morrison 1950),
/// and `I + B'^T S'^-1 B'` is a change of rank two of the factored `I + B^T S^-1 B` (Woodbury).
pub(super) fn left_out(
    measure: &dyn Measure,
    classifier: &Classifier,
    part: usize,
    deviation: &[f32],
    out: &LeftOut<'_>,
    scores: &mut [f32],
) -> Place {
    let (k, g) = (out.group, out.weight);
    let groups = classifier.components().len();
    let count = groups as f64;
    let q = measure.square(deviation);
    let t = 1.0 / (1.0 - g * q).max(1e-6);
    let a = |j: usize| out.share * (1.0 / count - if j == k { 1.0 } else { 0.0 });
    let p: Vec<f64> = (0..groups)
        .map(|j| classifier.slope(j, part, deviation))
        .collect();
    // m'_k^T S^-1 m'_j
    let gram = |j: usize| out.products[j] + a(j) * p[k] + a(k) * p[j] + a(k) * a(j) * q;
    let along = |j: usize| p[j] + a(j) * q;
    let step = g * t * (along(k) + q);
    let scale = count.sqrt();
    let y = |j: usize| gram(j) + along(j) + step * along(j);
    let score = y(k) - 0.5 * (gram(k) + g * t * along(k).powi(2));
    for (j, sum) in scores.iter_mut().enumerate() {
        // m'_j^T S^-1 m'_j
        let square = classifier.mean_square(j, part) + 2.0 * a(j) * p[j] + a(j).powi(2) * q;
        *sum += (y(j) - 0.5 * (square + g * t * along(j).powi(2))) as f32;
    }

    let whitened = |value: &dyn Fn(usize) -> f64| {
        let mut v: Vec<f32> = (0..groups).map(|j| value(j) as f32).collect();
        measure.whiten(&mut v);
        v
    };
    let (u, za, zp) = (
        whitened(&|j| y(j) / scale),
        whitened(&a),
        whitened(&|j| p[j]),
    );
    let product = |x: &[f32], y: &[f32]| f64::from(dot(x, y));
    let h = [
        product(&za, &za) - count * g,
        product(&za, &zp) + count,
        product(&zp, &zp) - count * q,
    ];
    let b = [product(&za, &u), product(&zp, &u)];
    let determinant = h[0] * h[2] - h[1] * h[1];
    let change = (h[2] * b[0] * b[0] - 2.0 * h[1] * b[0] * b[1] + h[0] * b[1] * b[1]) / determinant;
    Place {
        squares: [q * t + 2.0 * score, product(&u, &u) - change],
        score,
    }
}

/// Where an image is in relation to a head, in one part or in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// What less twice a component's score is the squared distance from it, nearest and relative.
    pub(super) squares: [f64; 2],
    /// Of the image's own component.
    pub(super) score: f64,
}

impl Place {
    /// Squared distances from the image's own component.
    pub(super) fn distances(&self) -> [f64; 2] {
        self.squares.map(|square| square - 2.0 * self.score)
    }
}

/// The scales of both distances, gathered part after part.
pub(super) struct Scales {
    /// None once a part could not tell.
    totals: Option<[Scale; 2]>,
}

impl Scales {
    pub(super) fn new() -> Self {
        Self {
            totals: Some([Scale::NOTHING; 2]),
        }
    }

    /// Adds one part, from stand-ins for images left out. `workspace` has gathered `sources`.
    pub(super) fn add_part(
        &mut self,
        classifier: &Classifier,
        sources: &[&Statistics],
        workspace: &Workspace,
        part: usize,
        measure: &dyn Measure,
    ) -> Result<(), HeadError> {
        let Some(totals) = &mut self.totals else {
            return Ok(());
        };
        let layout = classifier.layout();
        let groups = classifier.components().len();
        let weight = weight(classifier, sources, part);
        let each = STAND_INS.div_ceil(groups);
        let stride = groups.div_ceil(STAND_INS);
        let mut rows = Rows::new(layout.dim);
        let mut mean = vec![0.0f32; layout.dim];
        let mut deviation = vec![0.0f32; layout.dim];
        let mut rng = ChaCha8Rng::seed_from_u64(part as u64);
        let mut seen = [Moments::default(); 2];
        for (group, members) in workspace.groups().enumerate().step_by(stride) {
            let components = members.iter().map(|m| m.component(sources));
            pooled_mean(sources, members, layout.part(part), &mut mean);
            let products: Vec<f64> = (0..groups)
                .map(|j| classifier.projection(j, part, &mean))
                .collect();
            let count: f64 = components.clone().map(|c| f64::from(c.count)).sum();
            for component in components {
                let Some(factor) = &component.factor else {
                    continue;
                };
                rows.clear();
                factor.unpack(part, &mut rows)?;
                if rows.len() == 0 {
                    continue;
                }
                for _ in 0..each {
                    rows.mix(|| rng.random::<bool>(), &mut deviation);
                    // One of n - 1 equal shares of the scatter, which an image adds when it
                    // deviates from the mean of the others by a bit more.
                    let share = 1.0 / (f64::from(component.count) - 1.0).max(1.0);
                    let scale = (share * count / (count - 1.0)).sqrt() as f32;
                    deviation.iter_mut().for_each(|d| *d *= scale);
                    let out = LeftOut {
                        group,
                        products: &products,
                        share: 1.0 / count,
                        weight: weight * (count - 1.0) / count,
                    };
                    let place = left_out(measure, classifier, part, &deviation, &out, &mut []);
                    let distances = place.distances();
                    seen.iter_mut().zip(distances).for_each(|(s, d)| s.add(d));
                }
            }
        }
        let share = put_right(classifier, sources) / layout.width() as f64;
        for (total, seen) in totals.iter_mut().zip(seen) {
            let (Some(mean), Some(deviation)) = (seen.mean(), seen.deviation()) else {
                self.totals = None;
                return Ok(());
            };
            total.mean += share * mean;
            // Parts see the same image, so their spreads add up, not their variances.
            total.spread += share * deviation;
        }
        Ok(())
    }

    /// Of the nearest and the relative distance; none when no class has two different images.
    pub(super) fn finish(self) -> Option<[Scale; 2]> {
        self.totals.filter(|totals| {
            totals
                .iter()
                .all(|s| s.mean.is_finite() && s.spread.is_finite() && s.spread > 0.0)
        })
    }
}

/// Degrees of freedom of the covariance.
fn freedom(classifier: &Classifier, sources: &[&Statistics]) -> f64 {
    let images: u64 = sources.iter().map(|s| s.images()).sum();
    let groups = classifier.components().len() as u64;
    images.saturating_sub(groups).max(1) as f64
}

/// What squared distances from [`left_out`] are to be multiplied with: the covariance is the scatter over its
/// degrees of freedom, and the image takes one of these along. With one degree
/// of freedom nothing would be left to measure with, so at least half stays.
pub(super) fn put_right(classifier: &Classifier, sources: &[&Statistics]) -> f64 {
    let freedom = freedom(classifier, sources);
    (1.0 - 1.0 / freedom).max(0.5)
}

/// What the outer product of a deviation weighs in the covariance of a part.
pub(super) fn weight(classifier: &Classifier, sources: &[&Statistics], part: usize) -> f64 {
    let kept = match classifier.outcomes()[part] {
        PartFit::AsAsked { shrinkage } | PartFit::Raised { shrinkage } => {
            1.0 - f64::from(shrinkage)
        }
        PartFit::NearestMean => 0.0,
    };
    kept / freedom(classifier, sources)
}

/// The relative distance says nothing below three classes.
pub(super) fn is_relative(classifier: &Classifier) -> bool {
    classifier.classes().len() >= RELATIVE_FROM
}

/// Where an image stood before it was taken out.
pub(super) struct LeftOut<'a> {
    /// Its component.
    pub(super) group: usize,
    /// `m_k^T S^-1 m_j` of that component k with every j.
    pub(super) products: &'a [f64],
    /// Its share of the component's images.
    pub(super) share: f64,
    /// What its deviation's outer product weighed in the covariance.
    pub(super) weight: f64,
}

impl Scale {
    const NOTHING: Self = Self {
        mean: 0.0,
        spread: 0.0,
    };

    pub(super) fn place(&self, distance: f32) -> f32 {
        ((f64::from(distance) - self.mean) / self.spread) as f32
    }
}

/// Running mean and variance.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    fn deviation(&self) -> Option<f64> {
        let mean = self.mean()?;
        Some((self.squares / self.count - mean * mean).max(0.0).sqrt())
    }
}
