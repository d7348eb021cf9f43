//! Fisher information: how much the loss of a task minds each number that is learned.

use super::LearnError;
use super::encoded::Research;
use crate::adapt::Adapters;
use crate::head::Classifier;
use crate::train::features::Features;
use crate::train::judge::classes_in;
use crate::train::stack::Phase;
use crate::train::target::Target;
use crate::train::token_drop::TokenDrop;
use crate::train::trainer::Trainer;

/// Images that Fisher information is estimated from, at most.
const FISHER_IMAGES: usize = 64;

/// The mean over images of the squared gradient of cores and prompts, laid out as the gradient is:
/// the diagonal of their Fisher information at the labels (Kirkpatrick et al., arXiv 1612.00796).
pub(super) fn fisher(
    trainer: &mut Trainer<'_>,
    adapters: &Adapters,
    (head, temperature): (&Classifier, f32),
    images: &[usize],
    features: &Features,
) -> Result<Vec<f32>, LearnError> {
    let class: Vec<Option<usize>> = classes_in(head, trainer.encoded().labels).collect();
    let target = Target {
        head,
        class: &class,
        temperature,
        phase: Phase::Cores,
        dropped: TokenDrop::NONE,
        hold: None,
    };
    let mut fisher = vec![0.0; trainer.gradient_len(adapters, Phase::Cores)];
    let n = images.len().min(FISHER_IMAGES);
    for k in 0..n {
        let image = images[k * images.len() / n];
        let (_, gradient) = trainer.gradient(&[image], adapters, features, &target)?;
        for (sum, g) in fisher.iter_mut().zip(&*gradient) {
            *sum += g * g / n as f32;
        }
    }
    Ok(fisher)
}

/// Adds [`fisher`] of a task to that of the tasks before it: the part of prompts in `adapters`, that of cores
/// in `research` where it is asked for.
pub(super) fn remember_fisher(found: &[f32], adapters: &mut Adapters, research: &mut Research) {
    let prompts = adapters.prompt_fisher.len();
    let (cores, of_prompts) = found.split_at(found.len() - prompts);
    for (sum, f) in adapters.prompt_fisher.iter_mut().zip(of_prompts) {
        *sum += f;
    }
    if let Some(sum) = &mut research.fisher {
        sum.resize(cores.len(), 0.0);
        sum.iter_mut().zip(cores).for_each(|(sum, f)| *sum += f);
    }
}
