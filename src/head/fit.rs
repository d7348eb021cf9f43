//! The closed form itself: one part's covariance, its shrinkage, and the solves.

use std::ops::Range;

use super::cholesky;
use super::{ClassId, Classifier, Component, HeadError, Layout, Statistics, TaskId};

/// Right-hand sides solved at a time.
const COLUMNS: usize = 32;
/// Where shrinkage goes when there is none and the covariance is singular.
const FIRST_RAISE: f32 = 1e-3;
/// Variance below this share of the features' mean square is what f32 rounding makes by itself.
const ROUNDING_VARIANCE: f64 = 1e-12;

/// How much of what few images take from the scores of their class is given back to it. All of it would make
/// up for it on average, but these scores also vary more, and the largest wins: chosen on development splits,
/// `docs/method.md`.
const GIVEN_BACK: f64 = 0.75;
/// Images that a single one counts for there: its scores vary most.
const FEWEST: f64 = 1.25;

/// How the covariance of one part was obtained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PartFit {
    /// With the shrinkage asked for, or estimated where that was asked for.
    AsAsked { shrinkage: f32 },
    /// The covariance was singular with the shrinkage asked for; this much was needed.
    Raised { shrinkage: f32 },
    /// No component varies (one image each, or identical ones): the nearest mean decides.
    NearestMean,
}

/// The scales of one part's covariance.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PartScale {
    /// What `L L^T` is to be multiplied by.
    pub(super) variance: f64,
    /// `E d^T S^-1 d` of an image that was not learned, d being its deviation from its component's mean; 0
    /// when no component varies.
    pub(super) image: f64,
}

/// Buffers of a fit, kept between fits so that a refit allocates nothing.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The covariance of one part, then its Cholesky factor, `[dim, dim]`.
    pub(super) matrix: Vec<f32>,
    /// `[dim, COLUMNS]`
    rhs: Vec<f32>,
    panel: Vec<f32>,
    members: Vec<Member>,
}

/// Floats that learning and fitting one part take, beside the statistics and the covariance:
/// right-hand sides, the panel of the factorisation, rows and a tile of a Gram product, means in
/// f64 and the features of an image.
pub(crate) const fn solver_floats(dim: usize) -> usize {
    dim * (COLUMNS + cholesky::PANEL_ROWS + 2 * super::factor::TILE + 1 + 2 + 1)
}

/// A component of one of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) class: ClassId,
    pub(super) task: TaskId,
    source: usize,
    index: usize,
}

impl Member {
    pub(super) fn key(&self) -> (ClassId, TaskId) {
        (self.class, self.task)
    }

    pub(super) fn component<'s>(&self, sources: &[&'s Statistics]) -> &'s Component {
        &sources[self.source].components()[self.index]
    }

    /// Which of the sources it is in.
    pub(super) fn source(&self) -> usize {
        self.source
    }

    fn same_component(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Classifier {
    /// Sets centre, weights and offsets of one part from the sources in the workspace.
    /// Leaves in the workspace the factor L of the covariance over its variance.
    pub(super) fn fit_part(
        &mut self,
        sources: &[&Statistics],
        part: usize,
        workspace: &mut Workspace,
    ) -> Result<PartScale, HeadError> {
        let dim = self.layout.dim;
        let range = self.layout.part(part);
        let width = self.layout.width();
        // The means go where the weights will be, and from there into the right-hand sides.
        self.center[range.clone()].fill(0.0);
        let share = 1.0 / self.components.len() as f32;
        let groups = workspace.groups();
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
        let mut raised = None;
        let mut image = 0.0;
        let (outcome, variance) = loop {
            workspace.assemble(sources, self.layout, part, &self.weights)?;
            let diagonal = (0..dim).map(|i| f64::from(workspace.matrix[i * dim + i]));
            let variance = diagonal.sum::<f64>() / (dim as f64 * freedom);
            if !variance.is_finite() || variance <= (ROUNDING_VARIANCE * size).max(1e-30) {
                let scale = if between > 1e-30 { between } else { 1.0 };
                break (PartFit::NearestMean, scale);
            }
            let shrinkage =
                raised.unwrap_or_else(|| self.shrinkage.share(&workspace.matrix, dim, freedom));
            // Divided by its average variance, the matrix has trace D whatever the features'
            // scale, and shrinking means adding s to the diagonal.
            let scale = (f64::from(1.0 - shrinkage) / (variance * freedom)) as f32;
            for (i, row) in workspace.matrix.chunks_exact_mut(dim).enumerate() {
                row[..=i].iter_mut().for_each(|v| *v *= scale);
                row[i] += shrinkage;
            }
            if cholesky::factorise(&mut workspace.matrix, dim, &mut workspace.panel).is_ok() {
                let outcome = match raised {
                    None => PartFit::AsAsked { shrinkage },
                    Some(_) => PartFit::Raised { shrinkage },
                };
                image = workspace.unlearned_square(dim, shrinkage, freedom);
                break (outcome, variance);
            }
            if shrinkage == 1.0 {
                image = dim as f64;
                break (PartFit::NearestMean, variance);
            }
            raised = Some((2.0 * shrinkage).clamp(FIRST_RAISE, 1.0));
        };
        if outcome == PartFit::NearestMean {
            workspace.matrix.fill(0.0);
            (0..dim).for_each(|i| workspace.matrix[i * dim + i] = 1.0);
        }
        self.outcomes[part] = outcome;
        self.solve_part(part, variance, workspace);
        let errors = workspace.mean_errors(sources);
        let corrections = self.corrections.iter_mut().skip(part);
        for (correction, error) in corrections.step_by(self.layout.parts).zip(errors) {
            *correction = (0.5 * image * error) as f32;
        }
        Ok(PartScale { variance, image })
    }

    /// Turns the means in `weights` into `S^-1 (mean - center)` and sets the offsets.
    fn solve_part(&mut self, part: usize, variance: f64, workspace: &mut Workspace) {
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
            cholesky::solve(&workspace.matrix, dim, rhs, columns);
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
    /// Works in `memory`, and returns what it worked in before.
    pub fn swap_matrix(&mut self, memory: Vec<f32>) -> Vec<f32> {
        std::mem::replace(&mut self.matrix, memory)
    }

    /// Sources of every component, in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = &[Member]> {
        self.members.chunk_by(Member::same_component)
    }

    /// What is given back of the squared error that the mean of every component is expected to have, as a share
    /// of an image's squared distance: that of so many images, and that of having been moved.
    ///
    /// The images are those of the whole class: the score of a class of several components is near the largest
    /// of theirs, which makes up for the fewer images of each.
    fn mean_errors(&self, sources: &[&Statistics]) -> impl Iterator<Item = f64> {
        let count = |m: &Member| f64::from(m.component(sources).count);
        let classes = self.members.chunk_by(|a, b| a.class == b.class);
        classes.flat_map(move |class| {
            let all: f64 = class.iter().map(count).sum();
            let groups = class.chunk_by(Member::same_component);
            groups.map(move |group| {
                let images = group.iter().map(count).sum::<f64>().max(1.0);
                let moved = |m| (count(m) / images).powi(2) * f64::from(m.component(sources).drift);
                GIVEN_BACK / all.max(FEWEST) + group.iter().map(moved).sum::<f64>()
            })
        })
    }

    /// [`PartScale::image`], S being the covariance over its variance, whose factor is in the matrix.
    ///
    /// Over the images that were learned the average is `q = tr(S^-1 V)`, V being what S was shrunk from:
    /// too little, as S knows them. Leaving an image out of S, in which its outer product weighs g, makes
    /// of its own q `q / (1 - g q)` (Sherman and Morrison 1950). At most `D / s`, as S is no less than `s I`.
    fn unlearned_square(&mut self, dim: usize, shrinkage: f32, freedom: f64) -> f64 {
        let size = dim as f64;
        let kept = f64::from(1.0 - shrinkage);
        if kept <= 0.0 {
            return size;
        }
        let trace = cholesky::inverse_trace(&self.matrix, dim, &mut self.rhs, COLUMNS);
        // S = (1 - s) V + s I
        let learned = (size - f64::from(shrinkage) * trace) / kept;
        let left = (1.0 - kept / freedom * learned).max(1.0 / freedom.max(size));
        let most = size / f64::from(shrinkage.max(f32::EPSILON));
        (learned / left).clamp(0.0, most)
    }

    /// Lists the components of all sources, those that are fitted as one side by side: of the same
    /// class and task, or of a class that a source pools, which then counts as task 0.
    pub(super) fn gather(&mut self, sources: &[&Statistics]) {
        self.members.clear();
        let pooled = |class| sources.iter().any(|source| source.is_pooled(class));
        for (source, statistics) in sources.iter().enumerate() {
            for (index, component) in statistics.components().iter().enumerate() {
                self.members.push(Member {
                    class: component.class,
                    task: if pooled(component.class) {
                        0
                    } else {
                        component.task
                    },
                    source,
                    index,
                });
            }
        }
        self.members.sort_unstable();
    }

    /// Sums the sources' scatter of one part into the lower triangle of the matrix, with the
    /// spread between the means of a component that several sources hold (Chan et al. 1979).
    fn assemble(
        &mut self,
        sources: &[&Statistics],
        layout: Layout,
        part: usize,
        means: &[f32],
    ) -> Result<(), HeadError> {
        let dim = layout.dim;
        self.matrix.clear();
        self.matrix.resize(dim * dim, 0.0);
        self.rhs.resize(dim * COLUMNS, 0.0);
        for source in sources {
            let (mut i, mut j) = (0, 0);
            source.each_scatter(part, |mut terms| {
                while !terms.is_empty() {
                    // As much of a row as there is.
                    let (now, later) = terms.split_at(terms.len().min(i + 1 - j));
                    let row = &mut self.matrix[i * dim + j..][..now.len()];
                    row.iter_mut().zip(now).for_each(|(sum, term)| *sum += term);
                    terms = later;
                    j += now.len();
                    if j > i {
                        (i, j) = (i + 1, 0);
                    }
                }
            })?;
        }
        let groups = self.members.chunk_by(Member::same_component);
        for (group, row) in groups.zip(means.chunks_exact(layout.width())) {
            if group.len() < 2 {
                continue;
            }
            let mean = &row[layout.part(part)];
            for member in group {
                let component = member.component(sources);
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
        Ok(())
    }
}

/// The mean of one part over every source's share of a component.
pub(super) fn pooled_mean(
    sources: &[&Statistics],
    group: &[Member],
    range: Range<usize>,
    out: &mut [f32],
) {
    let component = |m: &Member| m.component(sources);
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
