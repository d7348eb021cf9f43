//! Relative Mahalanobis distance: what speaks against the nearest class and not for "none".
//!
//! Ren et al., arXiv 2106.09022: the squared distance to the nearest component under the shared
//! covariance S, minus the one to the centre under the covariance of everything,
//! `T = S + B B^T` with the columns of B the deviations of the K means from the centre over
//! `sqrt(K)`. By the Woodbury identity the two agree outside the span of the means, and with
//! `u = B^T S^-1 (x - c)` the difference is `u^T (I + B^T S^-1 B)^-1 u - 2 s_k`: the scores and a
//! K x K factor a part are all it needs.

use super::cholesky::{self, dot};
use super::factor::packed_row;
use super::fit::pooled_mean;
use super::{Classifier, HeadError, Statistics, Workspace};

/// Fitted to a classifier, to be used with that classifier only.
///
/// On the photo tasks (known and unknown classes from held-out folds of the training folders) it
/// finds unknown classes better than the plain distance where many classes are known, and about
/// as well where five or six are. With one component every image is at the same distance: use
/// [`Mahalanobis`](super::Mahalanobis) for one or two classes.
#[derive(Debug, Clone, PartialEq)]
pub struct RelativeMahalanobis {
    components: usize,
    /// Packed lower triangles of L, `L L^T = I + B^T S^-1 B`, `[parts, K (K + 1) / 2]`.
    factors: Vec<f32>,
}

impl RelativeMahalanobis {
    /// Fits to the statistics that `classifier` was fitted from.
    ///
    /// # Errors
    /// [`HeadError::ComponentsChanged`] when they hold other components, [`HeadError::Shape`]
    /// when they lack a part.
    pub fn fit(classifier: &Classifier, sources: &[&Statistics]) -> Result<Self, HeadError> {
        let layout = classifier.layout();
        let mut workspace = Workspace::default();
        workspace.gather(sources);
        if !classifier.covers(&workspace) {
            return Err(HeadError::ComponentsChanged);
        }
        for (layout_found, held) in sources.iter().map(|s| (s.layout(), s.held())) {
            if layout_found != layout || held != (0..layout.parts) {
                return Err(HeadError::Shape {
                    what: "statistics of all parts",
                    expected: layout.width(),
                    found: held.len() * layout_found.dim,
                });
            }
        }
        let count = workspace.groups().count();
        let mut factors = Vec::with_capacity(layout.parts * packed_row(count));
        let mut matrix = vec![0.0f32; count * count];
        for part in 0..layout.parts {
            factor(classifier, sources, &workspace, part, &mut matrix);
            for (i, row) in matrix.chunks_exact(count).enumerate() {
                factors.extend_from_slice(&row[..=i]);
            }
        }
        Ok(Self {
            components: count,
            factors,
        })
    }

    /// The relative squared distance over `parts * dim`; the larger, the less known. It is
    /// negative for an image of a known class. `features` is `[parts * dim]`.
    ///
    /// # Errors
    /// [`HeadError::Shape`] or [`HeadError::NotFinite`], as [`Classifier::scores`];
    /// [`HeadError::ComponentsChanged`] for another classifier's components.
    pub fn distance(&self, classifier: &Classifier, features: &[f32]) -> Result<f32, HeadError> {
        classifier.check(features, classifier.classes().len())?;
        let layout = classifier.layout();
        let packed = packed_row(self.components);
        if classifier.components().len() != self.components
            || self.factors.len() != layout.parts * packed
        {
            return Err(HeadError::ComponentsChanged);
        }
        let scale = (self.components as f64).sqrt();
        let mut whitened = vec![0.0f32; self.components];
        let mut square = 0.0f64;
        for (part, x) in features.chunks_exact(layout.dim).enumerate() {
            for (i, u) in whitened.iter_mut().enumerate() {
                *u = (classifier.projection(i, part, x) / scale) as f32;
            }
            self.whiten(part, &mut whitened);
            square += whitened.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        }
        let (score, _) = classifier.nearest(features);
        Ok(((square - 2.0 * score) / layout.width() as f64) as f32)
    }

    /// `L^-1 v` of one part, in place; `v` is `[K]`.
    pub(super) fn whiten(&self, part: usize, v: &mut [f32]) {
        let factor = &self.factors[part * packed_row(self.components)..];
        whiten(|i| &factor[packed_row(i)..=packed_row(i) + i], v);
    }
}

/// `L^-1 v` in place, `row(i)` being the i + 1 numbers of the i-th row of L.
pub(super) fn whiten<'l>(row: impl Fn(usize) -> &'l [f32], v: &mut [f32]) {
    for i in 0..v.len() {
        let (row, pivot) = row(i).split_at(i);
        v[i] = (v[i] - dot(row, &v[..i])) / pivot[0];
    }
}

/// Writes L of one part, `L L^T = I + B^T S^-1 B`, into the lower triangle of `matrix` `[K, K]`;
/// `workspace` has gathered `sources`.
pub(super) fn factor(
    classifier: &Classifier,
    sources: &[&Statistics],
    workspace: &Workspace,
    part: usize,
    matrix: &mut [f32],
) {
    let layout = classifier.layout();
    let count = classifier.components().len();
    let mut mean = vec![0.0f32; layout.dim];
    for (i, group) in workspace.groups().enumerate() {
        pooled_mean(sources, group, layout.part(part), &mut mean);
        for j in 0..=i {
            let product = classifier.projection(j, part, &mean) / count as f64;
            matrix[i * count + j] = product as f32 + if i == j { 1.0 } else { 0.0 };
        }
    }
    if cholesky::factorise(matrix, count, &mut Vec::new()).is_err() {
        // In exact arithmetic every eigenvalue is at least 1. Where rounding
        // spoils that, the identity stands in: it makes the distance an upper bound.
        for (i, row) in matrix.chunks_exact_mut(count).enumerate() {
            row[..i].fill(0.0);
            row[i] = 1.0;
        }
    }
}
