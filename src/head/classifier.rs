//! Linear discriminant analysis from sufficient statistics, in closed form.
//!
//! Per part, with S the within-component covariance shrunk towards its trace and mu_k the mean
//! of component k: `w_k = S^-1 (mu_k - c)` and `s_k(x) = w_k^T (x - c) - 1/2 w_k^T (mu_k - c)`.
//! The centre c, the average of the component means, changes every score by the same amount and
//! keeps the sums small. The scores of all parts are added (a block-diagonal covariance). A class
//! of several components scores as a mixture of them with equal weights, `logsumexp_k s_k - log K`,
//! so that every class has the same prior however many domains showed it.

use std::ops::Range;

use super::cholesky;
use super::factor::packed_row;
use super::{ClassId, HeadError, Layout, Statistics, TaskId};

/// Right-hand sides solved at a time.
const COLUMNS: usize = 64;
/// Where shrinkage goes when none was asked for and the covariance is singular.
const FIRST_RAISE: f32 = 1e-3;
/// Variance below this share of the features' mean square is what f32 rounding makes by itself.
const ROUNDING_VARIANCE: f64 = 1e-12;

/// How the covariance of one part was obtained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PartFit {
    /// With the shrinkage asked for.
    AsAsked,
    /// The covariance was singular with the shrinkage asked for; this much was needed.
    Raised { shrinkage: f32 },
    /// No component varies (one image each, or identical ones): the nearest mean decides.
    NearestMean,
}

/// Buffers of a fit, kept between fits so that a refit allocates nothing.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The covariance of one part, then its Cholesky factor, `[dim, dim]`.
    matrix: Vec<f32>,
    /// `[dim, COLUMNS]`
    rhs: Vec<f32>,
    members: Vec<Member>,
}

/// A component of one of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    class: ClassId,
    task: TaskId,
    source: usize,
    index: usize,
}

impl Member {
    fn same_component(&self, other: &Self) -> bool {
        (self.class, self.task) == (other.class, other.task)
    }
}

/// A fitted head: class scores are linear in the features (per component).
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    layout: Layout,
    shrinkage: f32,
    classes: Vec<ClassId>,
    /// First component of every class, and the number of components at the end.
    firsts: Vec<usize>,
    components: Vec<(ClassId, TaskId)>,
    /// c, `[parts * dim]`
    center: Vec<f32>,
    /// w, `[components, parts * dim]`
    weights: Vec<f32>,
    /// `-1/2 w_k^T (mu_k - c)`, `[components, parts]`
    offsets: Vec<f32>,
    outcomes: Vec<PartFit>,
}

impl Classifier {
    /// Fits the sum of several statistics, as if all their images had been learned into one.
    /// `shrinkage` s in 0..=1 makes `(1 - s) S + s tr(S) / D I`; 0.1 is a good start.
    ///
    /// # Errors
    /// [`HeadError::Empty`] without a component, [`HeadError::Shape`] when layouts differ,
    /// [`HeadError::Shrinkage`].
    pub fn fit(sources: &[&Statistics], shrinkage: f32) -> Result<Self, HeadError> {
        let mut workspace = Workspace::default();
        workspace.gather(sources);
        let members = &workspace.members;
        let first = sources.first().ok_or(HeadError::Empty)?;
        if members.is_empty() {
            return Err(HeadError::Empty);
        }
        if !(0.0..=1.0).contains(&shrinkage) {
            return Err(HeadError::Shrinkage);
        }
        let layout = first.layout();
        let groups = members.chunk_by(Member::same_component);
        let components: Vec<_> = groups.map(|g| (g[0].class, g[0].task)).collect();
        let mut classes: Vec<ClassId> = components.iter().map(|c| c.0).collect();
        classes.dedup();
        let mut firsts: Vec<usize> = classes
            .iter()
            .map(|class| components.partition_point(|c| c.0 < *class))
            .collect();
        firsts.push(components.len());
        let mut fitted = Self {
            layout,
            shrinkage,
            classes,
            firsts,
            center: vec![0.0; layout.width()],
            weights: vec![0.0; components.len() * layout.width()],
            offsets: vec![0.0; components.len() * layout.parts],
            outcomes: vec![PartFit::AsAsked; layout.parts],
            components,
        };
        fitted.refit(sources, 0..layout.parts, &mut workspace)?;
        Ok(fitted)
    }

    /// Fits only some parts again, after their features changed; the others keep their weights.
    /// Once the workspace has been used with this layout, nothing is allocated.
    ///
    /// # Errors
    /// [`HeadError::ComponentsChanged`] when the sources hold other components than those of the
    /// first fit, [`HeadError::Shape`] when a layout or the range does not agree.
    pub fn refit(
        &mut self,
        sources: &[&Statistics],
        parts: Range<usize>,
        workspace: &mut Workspace,
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
        if parts.end > self.layout.parts {
            return Err(HeadError::Shape {
                what: "range of parts",
                expected: self.layout.parts,
                found: parts.end,
            });
        }
        workspace.gather(sources);
        let groups = workspace.members.chunk_by(Member::same_component);
        if !groups
            .map(|g| (g[0].class, g[0].task))
            .eq(self.components.iter().copied())
        {
            return Err(HeadError::ComponentsChanged);
        }
        for part in parts {
            self.fit_part(sources, part, workspace);
        }
        Ok(())
    }

    /// The classes in the order of the scores, ascending.
    pub fn classes(&self) -> &[ClassId] {
        &self.classes
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How each part was fitted.
    pub fn outcomes(&self) -> &[PartFit] {
        &self.outcomes
    }

    /// Bytes of the fitted numbers.
    pub fn bytes(&self) -> usize {
        4 * (self.center.len() + self.weights.len() + self.offsets.len())
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
                    (self.component_score(k, features) - total).exp()
                };
                let step = d_score * share as f32;
                for (d, w) in d_features.iter_mut().zip(self.weight(k)) {
                    *d += step * w;
                }
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
        for score in members.map(|k| self.component_score(k, features)) {
            if score > top {
                sum *= (top - score).exp();
                top = score;
            }
            sum += (score - top).exp();
        }
        top + (sum / count).ln()
    }

    fn component_score(&self, component: usize, features: &[f32]) -> f64 {
        let offsets = &self.offsets[component * self.layout.parts..];
        let dim = self.layout.dim;
        let weights = self.weight(component).chunks_exact(dim);
        let parts = features
            .chunks_exact(dim)
            .zip(self.center.chunks_exact(dim));
        weights
            .zip(parts)
            .zip(offsets)
            .map(|((w, (x, c)), &offset)| f64::from(centred_dot(w, x, c)) + f64::from(offset))
            .sum()
    }

    fn check(&self, features: &[f32], classes: usize) -> Result<(), HeadError> {
        self.check_len("feature vector", self.layout.width(), features.len())?;
        self.check_len("class scores", self.classes.len(), classes)?;
        self.layout.check(features).map(|_| ())
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

    fn fit_part(&mut self, sources: &[&Statistics], part: usize, workspace: &mut Workspace) {
        let dim = self.layout.dim;
        let range = self.layout.part(part);
        let width = self.layout.width();
        // The means go where the weights will be, and from there into the right-hand sides.
        self.center[range.clone()].fill(0.0);
        let share = 1.0 / self.components.len() as f32;
        let groups = workspace.members.chunk_by(Member::same_component);
        for (group, row) in groups.zip(self.weights.chunks_exact_mut(width)) {
            let mean = &mut row[range.clone()];
            pooled_mean(sources, group, range.clone(), mean);
            for (c, m) in self.center[range.clone()].iter_mut().zip(mean) {
                *c += share * *m;
            }
        }
        let center = &self.center[range.clone()];
        let means = || {
            self.weights
                .chunks_exact(width)
                .map(|row| &row[range.clone()])
        };
        let elements = (self.components.len() * dim) as f64;
        let square = |v: f32| f64::from(v).powi(2);
        let size: f64 = means().flatten().map(|&m| square(m)).sum::<f64>() / elements;
        let between: f64 = means()
            .flat_map(|mean| mean.iter().zip(center).map(|(m, c)| square(m - c)))
            .sum::<f64>()
            / elements;

        let images: u64 = sources.iter().map(|s| s.images()).sum();
        let freedom = images.saturating_sub(self.components.len() as u64).max(1) as f64;
        let mut shrinkage = self.shrinkage;
        let (outcome, variance) = loop {
            workspace.assemble(sources, self.layout, part, &self.weights);
            let diagonal = (0..dim).map(|i| f64::from(workspace.matrix[i * dim + i]));
            let variance = diagonal.sum::<f64>() / (dim as f64 * freedom);
            if !variance.is_finite() || variance <= (ROUNDING_VARIANCE * size).max(1e-30) {
                let scale = if between > 1e-30 { between } else { 1.0 };
                break (PartFit::NearestMean, scale);
            }
            // Divided by its average variance, the matrix has trace D whatever the features'
            // scale, and shrinking means adding s to the diagonal.
            let scale = (f64::from(1.0 - shrinkage) / (variance * freedom)) as f32;
            for (i, row) in workspace.matrix.chunks_exact_mut(dim).enumerate() {
                row[..=i].iter_mut().for_each(|v| *v *= scale);
                row[i] += shrinkage;
            }
            if cholesky::factorise(&mut workspace.matrix, dim).is_ok() {
                let outcome = if shrinkage == self.shrinkage {
                    PartFit::AsAsked
                } else {
                    PartFit::Raised { shrinkage }
                };
                break (outcome, variance);
            }
            if shrinkage == 1.0 {
                break (PartFit::NearestMean, variance);
            }
            shrinkage = (2.0 * shrinkage).clamp(FIRST_RAISE, 1.0);
        };
        self.outcomes[part] = outcome;
        self.solve_part(part, outcome, variance, workspace);
    }

    /// Turns the means in `weights` into `S^-1 (mean - center)` and sets the offsets.
    fn solve_part(
        &mut self,
        part: usize,
        outcome: PartFit,
        variance: f64,
        workspace: &mut Workspace,
    ) {
        let Layout { parts, dim } = self.layout;
        let width = self.layout.width();
        let range = self.layout.part(part);
        let center = &self.center[range.clone()];
        let blocks = self.weights.chunks_mut(COLUMNS * width);
        let offsets = self.offsets.chunks_mut(COLUMNS * parts);
        for (block, offsets) in blocks.zip(offsets) {
            let columns = block.len() / width;
            let rhs = &mut workspace.rhs[..dim * columns];
            for (k, row) in block.chunks_exact(width).enumerate() {
                for (d, (m, c)) in row[range.clone()].iter().zip(center).enumerate() {
                    rhs[d * columns + k] = m - c;
                }
            }
            if outcome != PartFit::NearestMean {
                cholesky::solve(&workspace.matrix, dim, rhs, columns);
            }
            for (k, row) in block.chunks_exact_mut(width).enumerate() {
                let mut product = 0.0f64;
                for (d, (w, c)) in row[range.clone()].iter_mut().zip(center).enumerate() {
                    let deviation = *w - c;
                    let weight = f64::from(rhs[d * columns + k]) / variance;
                    product += weight * f64::from(deviation);
                    *w = weight as f32;
                }
                offsets[k * parts + part] = (-0.5 * product) as f32;
            }
        }
    }
}

impl Workspace {
    /// Lists the components of all sources, those of the same class and task side by side.
    fn gather(&mut self, sources: &[&Statistics]) {
        self.members.clear();
        for (source, statistics) in sources.iter().enumerate() {
            for (index, component) in statistics.components().iter().enumerate() {
                self.members.push(Member {
                    class: component.class,
                    task: component.task,
                    source,
                    index,
                });
            }
        }
        self.members.sort_unstable();
    }

    /// Sums the sources' scatter of one part into the lower triangle of the matrix, with the
    /// spread between the means of a component that several sources hold (Chan et al. 1979).
    fn assemble(&mut self, sources: &[&Statistics], layout: Layout, part: usize, means: &[f32]) {
        let dim = layout.dim;
        self.matrix.clear();
        self.matrix.resize(dim * dim, 0.0);
        self.rhs.resize(dim * COLUMNS, 0.0);
        for source in sources {
            let packed = source.scatter(part);
            for (i, row) in self.matrix.chunks_exact_mut(dim).enumerate() {
                for (sum, term) in row[..=i].iter_mut().zip(&packed[packed_row(i)..]) {
                    *sum += term;
                }
            }
        }
        let groups = self.members.chunk_by(Member::same_component);
        for (group, row) in groups.zip(means.chunks_exact(layout.width())) {
            if group.len() < 2 {
                continue;
            }
            let mean = &row[layout.part(part)];
            for member in group {
                let component = &sources[member.source].components()[member.index];
                let deviation = &mut self.rhs[..dim];
                let own = &component.mean[layout.part(part)];
                for (d, (x, m)) in deviation.iter_mut().zip(own.iter().zip(mean)) {
                    *d = x - m;
                }
                for (i, row) in self.matrix.chunks_exact_mut(dim).enumerate() {
                    let weight = component.count as f32 * deviation[i];
                    for (sum, d) in row[..=i].iter_mut().zip(&*deviation) {
                        *sum += weight * d;
                    }
                }
            }
        }
    }
}

/// The mean of one part over every source's share of a component.
fn pooled_mean(sources: &[&Statistics], group: &[Member], range: Range<usize>, out: &mut [f32]) {
    let component = |m: &Member| &sources[m.source].components()[m.index];
    if let [only] = group {
        out.copy_from_slice(&component(only).mean[range]);
        return;
    }
    let images: f64 = group.iter().map(|m| f64::from(component(m).count)).sum();
    for (out, at) in out.iter_mut().zip(range) {
        let sum: f64 = group
            .iter()
            .map(|m| f64::from(component(m).count) * f64::from(component(m).mean[at]))
            .sum();
        *out = (sum / images) as f32;
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
