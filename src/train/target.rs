//! What a batch is trained towards.

use super::features::Features;
use super::stack::Phase;
use super::token_drop::TokenDrop;
use crate::head::{Classifier, HeadError};

/// A head that training sends its gradient through.
pub trait Scorer: Sync {
    /// Scores in one image's answer.
    fn classes(&self) -> usize;

    /// Scores of one image: `features` is `[F]`, `scores` `[classes]`.
    ///
    /// # Errors
    /// When a length does not fit or a feature is not a finite number.
    fn scores(&self, features: &[f32], scores: &mut [f32]) -> Result<(), HeadError>;

    /// Adds to `d_features` `[F]` what `d_scores` `[classes]` sends back through the scores.
    ///
    /// # Errors
    /// As [`Scorer::scores`].
    fn backward(
        &self,
        features: &[f32],
        d_scores: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError>;
}

impl Scorer for Classifier {
    fn classes(&self) -> usize {
        Classifier::classes(self).len()
    }

    fn scores(&self, features: &[f32], scores: &mut [f32]) -> Result<(), HeadError> {
        Classifier::scores(self, features, scores)
    }

    fn backward(
        &self,
        features: &[f32],
        d_scores: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError> {
        Classifier::backward(self, features, d_scores, d_features)
    }
}

/// What a batch is trained towards.
pub struct Target<'a> {
    pub head: &'a dyn Scorer,
    /// Index into the head's classes of each image's class, where the head knows it.
    pub class: &'a [Option<usize>],
    pub temperature: f32,
    pub phase: Phase,
    /// Patch tokens that this step leaves out.
    pub dropped: TokenDrop,
    /// What holds old classes' scores to those before the task, if anything does.
    pub hold: Option<Hold<'a>>,
}

/// Holds [the scores](super::objective::score_drift) of stand-ins to those of the weights before the task,
/// or where there are none, the scores of all images.
#[derive(Debug, Clone, Copy)]
pub struct Hold<'a> {
    pub head: &'a Classifier,
    /// What those weights make of the same tokens of every image held.
    pub before: &'a Features,
    pub weight: f32,
}
