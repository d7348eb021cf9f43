//! How far off following the features leaves a mean.
//!
//! A [transport](super::Transport) knows how images of the task at hand moved, and stand-ins for the old
//! classes; where an old class's own images went, it can only guess. Measured on development splits, where
//! these are at hand (`docs/method.md`): over ten tasks, the squared error of a class's mean is about a third
//! of the squared lengths, summed, of those parts of its moves that the classes do not share.

use super::fit::{PartScale, Workspace};
use super::reject::square;
use super::{Classifier, HeadError, Shrinkage, Statistics};

/// Share of a class's own part of a move that is expected to be wrong, squared.
const UNEXPLAINED: f64 = 1.0 / 3.0;

impl Statistics {
    /// Adds to the [drift](super::Component::drift) of every component what moving its mean to here from
    /// where it is in `before` is expected to have added to its error, distances being those of a head with
    /// this shrinkage. One part of the covariance is in memory at a time.
    ///
    /// # Errors
    /// As [`Classifier::fit`], and [`HeadError::ComponentsChanged`] when `before` holds other components.
    pub fn add_drift(
        &mut self,
        before: &Self,
        shrinkage: impl Into<Shrinkage>,
    ) -> Result<(), HeadError> {
        let keys =
            |s: &Self| -> Vec<_> { s.components.iter().map(|c| (c.class, c.task)).collect() };
        if keys(self) != keys(before) || self.layout != before.layout {
            return Err(HeadError::ComponentsChanged);
        }
        if self.components.is_empty() {
            return Ok(());
        }
        let Self { layout, .. } = *self;
        let mut workspace = Workspace::default();
        let mut classifier = Classifier::empty(layout);
        classifier.start(&[self], shrinkage, &mut workspace)?;
        let mut squares = vec![0.0f64; self.components.len()];
        let mut image = 0.0;
        let (mut shared, mut own) = (vec![0.0f32; layout.dim], vec![0.0f32; layout.dim]);
        for part in self.held.clone() {
            let mut scale = PartScale::default();
            let only = part..part + 1;
            classifier.refit_parts(&[self], only, &mut workspace, |_, _, s| scale = s)?;
            image += scale.image;
            let columns = layout.part(part);
            let moves = || {
                let pairs = self.components.iter().zip(&before.components);
                pairs.map(|(new, old)| (&new.mean[columns.clone()], &old.mean[columns.clone()]))
            };
            shared.fill(0.0);
            for (new, old) in moves() {
                let pairs = shared.iter_mut().zip(new.iter().zip(old));
                pairs.for_each(|(s, (new, old))| *s += (new - old) / squares.len() as f32);
            }
            for (square_of, (new, old)) in squares.iter_mut().zip(moves()) {
                let pairs = own.iter_mut().zip(new.iter().zip(old)).zip(&shared);
                pairs.for_each(|((own, (new, old)), shared)| *own = new - old - shared);
                if own.iter().any(|&d| d != 0.0) {
                    let row = |i: usize| &workspace.matrix[i * layout.dim..=i * layout.dim + i];
                    *square_of += square(row, scale.variance, &own);
                }
            }
        }
        for (component, square) in self.components.iter_mut().zip(squares) {
            let error = UNEXPLAINED * square / image;
            if error.is_finite() {
                component.drift += error as f32;
            }
        }
        Ok(())
    }
}
