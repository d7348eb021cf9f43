//! Linear discriminant analysis from sufficient statistics, in closed form.
//!
//! Per part, with S the within-component covariance shrunk towards its trace and mu_k the mean
//! of component k: `w_k = S^-1 (mu_k - c)` and `s_k(x) = w_k^T (x - c) - 1/2 w_k^T (mu_k - c)`.
//! The centre c, the average of the component means, changes every score by the same amount and
//! keeps the sums small. The scores of all parts are added (a block-diagonal covariance). A class
//! of several components scores as a mixture of them with equal weights, `logsumexp_k s_k - log K`,
//! so that every class has the same prior however many domains showed it; a pooled class
//! ([`Statistics::set_pooled`]) has one mean of all its images instead, and the spread between its
//! components counts as spread within the class.
//!
//! A mean over n images is off by some e, which takes `e^T S^-1 e / 2` from the score of its class on every
//! image, on average: `t / 2n`, t being what an image that was not learned is away from its class's mean,
//! squared. Beside classes of many images one of few would be named too seldom, so most of that is added
//! to its score again, and so is what [following features that moved](super::Component::drift) has
//! added to the error. Distances ([`Mahalanobis`]) go without.

use std::ops::Range;

use super::cholesky::dot;
use super::fit::{PartFit, PartScale, Workspace};
use super::{ClassId, HeadError, Layout, Mahalanobis, Shrinkage, Statistics, TaskId};

/// A fitted head: class scores are linear in the features (per component).
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    pub(super) layout: Layout,
    pub(super) shrinkage: Shrinkage,
    classes: Vec<ClassId>,
    /// First component of every class, and the number of components at the end.
    firsts: Vec<usize>,
    pub(super) components: Vec<(ClassId, TaskId)>,
    /// c, `[parts * dim]`
    pub(super) center: Vec<f32>,
    /// w, `[components, parts * dim]`
    pub(super) weights: Vec<f32>,
    /// `-1/2 w_k^T (mu_k - c)`, `[components, parts]`
    pub(super) offsets: Vec<f32>,
    /// What makes up for the error of the mean, `[components, parts]`
    pub(super) corrections: Vec<f32>,
    pub(super) outcomes: Vec<PartFit>,
}

impl Classifier {
    /// Fits the sum of several statistics, as if all their images had been learned into one.
    /// `shrinkage` may be a share s in 0..=1, which makes `(1 - s) S + s tr(S) / D I`.
    ///
    /// # Errors
    /// [`HeadError::Empty`] without a component, [`HeadError::Shape`] when layouts differ,
    /// [`HeadError::Shrinkage`].
    pub fn fit(
        sources: &[&Statistics],
        shrinkage: impl Into<Shrinkage>,
    ) -> Result<Self, HeadError> {
        let mut workspace = Workspace::default();
        let mut fitted = Self::unfitted(sources, shrinkage, &mut workspace)?;
        fitted.refit(sources, 0..fitted.layout.parts, &mut workspace)?;
        Ok(fitted)
    }

    pub(super) fn unfitted(
        sources: &[&Statistics],
        shrinkage: impl Into<Shrinkage>,
        workspace: &mut Workspace,
    ) -> Result<Self, HeadError> {
        let first = sources.first().ok_or(HeadError::Empty)?;
        let mut empty = Self::empty(first.layout());
        empty.start(sources, shrinkage, workspace)?;
        Ok(empty)
    }

    /// A head without classes, to be [started](Classifier::start).
    pub fn empty(layout: Layout) -> Self {
        Self {
            layout,
            shrinkage: Shrinkage::default(),
            classes: Vec::new(),
            firsts: Vec::new(),
            center: vec![0.0; layout.width()],
            weights: Vec::new(),
            offsets: Vec::new(),
            corrections: Vec::new(),
            outcomes: vec![PartFit::NearestMean; layout.parts],
            components: Vec::new(),
        }
    }

    /// Takes over the components of `sources`, to be fitted part by part with
    /// [`Classifier::refit`]. Allocates nothing once it has held as many.
    ///
    /// # Errors
    /// [`HeadError::Empty`] without a component, [`HeadError::Shrinkage`].
    pub fn start(
        &mut self,
        sources: &[&Statistics],
        shrinkage: impl Into<Shrinkage>,
        workspace: &mut Workspace,
    ) -> Result<(), HeadError> {
        workspace.gather(sources);
        if workspace.groups().next().is_none() {
            return Err(HeadError::Empty);
        }
        self.shrinkage = shrinkage.into();
        self.shrinkage.check()?;
        self.components.clear();
        self.components
            .extend(workspace.groups().map(|g| g[0].key()));
        self.classes.clear();
        self.classes.extend(self.components.iter().map(|c| c.0));
        self.classes.dedup();
        let components = &self.components;
        let first = |class: &ClassId| components.partition_point(|c| c.0 < *class);
        self.firsts.clear();
        self.firsts.extend(self.classes.iter().map(first));
        self.firsts.push(components.len());
        let (width, parts) = (self.layout.width(), self.layout.parts);
        self.weights.resize(components.len() * width, 0.0);
        self.offsets.resize(components.len() * parts, 0.0);
        self.corrections.resize(components.len() * parts, 0.0);
        Ok(())
    }

    /// Fits as [`Classifier::fit`] does and keeps the covariances, to measure distances with.
    ///
    /// # Errors
    /// As [`Classifier::fit`].
    pub fn fit_with_distances(
        sources: &[&Statistics],
        shrinkage: impl Into<Shrinkage>,
    ) -> Result<(Self, Mahalanobis), HeadError> {
        let mut workspace = Workspace::default();
        let mut fitted = Self::unfitted(sources, shrinkage, &mut workspace)?;
        let mut distances = Mahalanobis::new(fitted.layout);
        let parts = 0..fitted.layout.parts;
        fitted.refit_parts(sources, parts, &mut workspace, |part, factor, scale| {
            distances.keep(part, factor, scale.variance);
        })?;
        Ok((fitted, distances))
    }

    /// Fits only some parts again, after their features changed; the others keep their weights.
    /// Once the workspace has been used with this layout, nothing is allocated.
    ///
    /// # Errors
    /// [`HeadError::ComponentsChanged`] when the sources hold other components than those of the
    /// first fit, [`HeadError::Shape`] when a layout does not agree or a source lacks a part.
    pub fn refit(
        &mut self,
        sources: &[&Statistics],
        parts: Range<usize>,
        workspace: &mut Workspace,
    ) -> Result<(), HeadError> {
        self.refit_parts(sources, parts, workspace, |_, _, _| ())
    }

    /// `fitted` gets each part's number, the factor L of its covariance and its scales.
    pub(super) fn refit_parts(
        &mut self,
        sources: &[&Statistics],
        parts: Range<usize>,
        workspace: &mut Workspace,
        mut fitted: impl FnMut(usize, &[f32], PartScale),
    ) -> Result<(), HeadError> {
        for found in sources.iter().map(|s| s.layout()) {
            if found != self.layout {
                return Err(HeadError::Shape {
                    what: "feature layout",
                    expected: self.layout.width(),
                    found: found.width(),
                });
            }
        }
        for held in sources.iter().map(|s| s.held()) {
            if !parts.is_empty() && (parts.start < held.start || parts.end > held.end) {
                return Err(HeadError::Shape {
                    what: "range of parts in the statistics",
                    expected: parts.len(),
                    found: held.len(),
                });
            }
        }
        workspace.gather(sources);
        if !self.covers(workspace) {
            return Err(HeadError::ComponentsChanged);
        }
        for part in parts {
            let scale = self.fit_part(sources, part, workspace)?;
            fitted(part, &workspace.matrix, scale);
        }
        Ok(())
    }

    /// Whether the gathered sources hold the components of this classifier.
    pub(super) fn covers(&self, workspace: &Workspace) -> bool {
        let components = workspace.groups().map(|g| g[0].key());
        components.eq(self.components.iter().copied())
    }

    /// The classes in the order of the scores, ascending.
    pub fn classes(&self) -> &[ClassId] {
        &self.classes
    }

    /// The components behind the classes, sorted by class, then task.
    pub fn components(&self) -> &[(ClassId, TaskId)] {
        &self.components
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How each part was fitted.
    pub fn outcomes(&self) -> &[PartFit] {
        &self.outcomes
    }

    /// The best component's score and the centre it is relative to.
    pub(super) fn nearest(&self, features: &[f32]) -> (f64, &[f32]) {
        let scores = (0..self.components.len()).map(|k| self.component_score(k, features));
        (scores.fold(f64::NEG_INFINITY, f64::max), &self.center)
    }

    /// Class scores of one image: log-likelihoods up to a constant shared by all classes.
    /// `features` is `[parts * dim]`, `out` `[classes]`.
    ///
    /// # Errors
    /// [`HeadError::Shape`], or [`HeadError::NotFinite`] for a feature that is no number.
    pub fn scores(&self, features: &[f32], out: &mut [f32]) -> Result<(), HeadError> {
        self.check(features, out.len())?;
        for (class, score) in out.iter_mut().enumerate() {
            *score = self.class_score(class, features) as f32;
        }
        Ok(())
    }

    /// Gradient of the scores with respect to the features, weights held constant:
    /// adds `sum_c d_scores[c] d score_c / d features` to `d_features` `[parts * dim]`.
    ///
    /// # Errors
    /// As [`Classifier::scores`].
    pub fn backward(
        &self,
        features: &[f32],
        d_scores: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError> {
        self.check(features, d_scores.len())?;
        self.check_len("feature gradient", self.layout.width(), d_features.len())?;
        for (class, &d_score) in d_scores.iter().enumerate() {
            let members = self.firsts[class]..self.firsts[class + 1];
            let single = members.len() == 1;
            let total = self.class_score(class, features) + (members.len() as f64).ln();
            for k in members {
                // The share of a component in its class is the softmax over the class.
                let share = if single {
                    1.0
                } else {
                    (self.corrected_score(k, features) - total).exp()
                };
                let step = d_score * share as f32;
                for (d, w) in d_features.iter_mut().zip(self.weight(k)) {
                    *d += step * w;
                }
            }
        }
        Ok(())
    }

    /// What a movement of an image's features changes in the score of every component: scores are linear,
    /// so `out[k] = w_k^T moved`. `moved` is `[parts * dim]`, `out` `[components]`.
    ///
    /// # Errors
    /// As [`Classifier::scores`].
    pub fn component_changes(&self, moved: &[f32], out: &mut [f32]) -> Result<(), HeadError> {
        self.check_components(moved, out.len())?;
        for (component, change) in out.iter_mut().enumerate() {
            *change = dot(self.weight(component), moved);
        }
        Ok(())
    }

    /// Adds to `d_features` `[parts * dim]` what a gradient of [these changes](Self::component_changes),
    /// `d_changes` `[components]`, sends back: `sum_k d_changes[k] w_k`.
    ///
    /// # Errors
    /// As [`Classifier::scores`].
    pub fn component_changes_backward(
        &self,
        d_changes: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError> {
        self.check_components(d_features, d_changes.len())?;
        for (component, d_change) in d_changes.iter().enumerate() {
            for (d, w) in d_features.iter_mut().zip(self.weight(component)) {
                *d += d_change * w;
            }
        }
        Ok(())
    }

    fn weight(&self, component: usize) -> &[f32] {
        let width = self.layout.width();
        &self.weights[component * width..][..width]
    }

    pub(super) fn class_score(&self, class: usize, features: &[f32]) -> f64 {
        let members = self.firsts[class]..self.firsts[class + 1];
        let count = members.len() as f64;
        let (mut top, mut sum) = (f64::NEG_INFINITY, 0.0f64);
        for score in members.map(|k| self.corrected_score(k, features)) {
            if score > top {
                sum *= (top - score).exp();
                top = score;
            }
            sum += (score - top).exp();
        }
        top + (sum / count).ln()
    }

    /// `w_k^T (x - c)` of one part, `features` being that part alone.
    pub(super) fn projection(&self, component: usize, part: usize, features: &[f32]) -> f64 {
        let range = self.layout.part(part);
        let weight = &self.weight(component)[range.clone()];
        f64::from(centred_dot(weight, features, &self.center[range]))
    }

    /// `w_k^T d` of one part, `deviation` being d there.
    pub(super) fn slope(&self, component: usize, part: usize, deviation: &[f32]) -> f64 {
        f64::from(dot(
            &self.weight(component)[self.layout.part(part)],
            deviation,
        ))
    }

    /// `m_k^T S^-1 m_k` of one part, of the component's mean less the centre.
    pub(super) fn mean_square(&self, component: usize, part: usize) -> f64 {
        -2.0 * f64::from(self.offsets[component * self.layout.parts + part])
    }

    fn corrected_score(&self, component: usize, features: &[f32]) -> f64 {
        let parts = self.layout.parts;
        let corrections = &self.corrections[component * parts..][..parts];
        let correction: f64 = corrections.iter().map(|&c| f64::from(c)).sum();
        self.component_score(component, features) + correction
    }

    /// `-1/2 d^T S^-1 d` of the deviation from the component's mean, less what all components share.
    fn component_score(&self, component: usize, features: &[f32]) -> f64 {
        let offsets = &self.offsets[component * self.layout.parts..];
        let parts = features.chunks_exact(self.layout.dim).zip(offsets);
        parts
            .enumerate()
            .map(|(part, (x, &offset))| self.projection(component, part, x) + f64::from(offset))
            .sum()
    }

    pub(super) fn check(&self, features: &[f32], classes: usize) -> Result<(), HeadError> {
        self.check_len("feature vector", self.layout.width(), features.len())?;
        self.check_len("class scores", self.classes.len(), classes)?;
        self.layout.check(features).map(|_| ())
    }

    fn check_components(&self, features: &[f32], components: usize) -> Result<(), HeadError> {
        self.check_len("feature vector", self.layout.width(), features.len())?;
        self.check_len("component scores", self.components.len(), components)
    }

    fn check_len(
        &self,
        what: &'static str,
        expected: usize,
        found: usize,
    ) -> Result<(), HeadError> {
        if expected == found {
            Ok(())
        } else {
            Err(HeadError::Shape {
                what,
                expected,
                found,
            })
        }
    }
}

/// `w^T (x - c)` in eight interleaved sums.
fn centred_dot(w: &[f32], x: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (w8, x8, c8) = (w.chunks_exact(8), x.chunks_exact(8), c.chunks_exact(8));
    let tails = w8
        .remainder()
        .iter()
        .zip(x8.remainder())
        .zip(c8.remainder());
    let rest: f32 = tails.map(|((w, x), c)| w * (x - c)).sum();
    for ((w, x), c) in w8.zip(x8).zip(c8) {
        for lane in 0..8 {
            sums[lane] += w[lane] * (x[lane] - c[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest
}
