//! What a task is taught in one go, for how long, how fast and how much of it is kept.

use super::selection::TaskRank;
use super::stack::Phase;
use crate::adapt::Adapters;
use crate::head::Shrinkage;

/// What is learned.
#[derive(Debug)]
pub enum Lesson<'a> {
    /// The bases of a first task.
    First,
    /// M and N of a later task.
    Cores(TaskRank<'a>),
    /// The bases in a later task, which go on from those before it, with the cores
    /// [absorbed](Adapters::absorb_cores).
    Onward(&'a Adapters),
}

impl Lesson<'_> {
    pub(super) fn phase(&self) -> Phase {
        match self {
            Self::First | Self::Onward(_) => Phase::Bases,
            Self::Cores(_) => Phase::Cores,
        }
    }
}

/// How a task is trained. The defaults and how they were found: `docs/method.md`.
#[derive(Debug, Clone, PartialEq)]
pub struct FitSettings {
    /// Of a first task.
    pub epochs: usize,
    /// Of a later task's M and N.
    pub core_epochs: usize,
    /// Of the bases in a later task, after its M and N: at most.
    pub later_epochs: usize,
    /// Steps that these come to, about. How far bases go is a matter of steps, not of epochs, and with it how
    /// far old classes move.
    pub later_steps: usize,
    /// Images a step.
    pub batch: usize,
    /// Share of an image's patch tokens that a [step leaves out](super::token_drop::TokenDrop), 0 to 1.
    pub token_drop: f32,
    /// Learning rate of the bases, in first and later tasks.
    pub rate: f32,
    /// Learning rate of the cores.
    pub core_rate: f32,
    /// Learning rate of prompts.
    pub prompt_rate: f32,
    /// How far a first task takes the weights from those before it to those it ends with, 0 to 1: a model
    /// between the two serves classes of neither better than both (Wortsman et al., arXiv 2109.01903).
    pub blend: f32,
    /// The same of the bases in the second task. In a later one it is this over the square root of the number
    /// of tasks before it: what each moves of old classes adds up (weights averaged as tasks come: Marouf et
    /// al., arXiv 2312.08977).
    pub later_blend: f32,
    /// Weight of the drift guard on cores and prompts while M and N learn.
    pub guard: f32,
    /// Weight of what [holds](super::objective::score_drift) old classes' scores while a later task's bases
    /// learn.
    pub hold: f32,
    /// Shrinkage of the head's covariance towards its trace, once trained.
    pub shrinkage: Shrinkage,
    /// The same while training: the heads of the halves rest on a few images a class, and a
    /// gradient through a barely shrunk inverse of their covariance chases its noise.
    pub training_shrinkage: f32,
    pub seed: u64,
}

impl Default for FitSettings {
    fn default() -> Self {
        Self {
            epochs: 15,
            core_epochs: 3,
            later_epochs: 10,
            later_steps: 120,
            batch: 16,
            token_drop: 0.5,
            rate: 5e-4,
            core_rate: 2e-4,
            prompt_rate: 5e-4,
            blend: 0.5,
            later_blend: 1.0,
            guard: 1.0,
            hold: 1.0,
            shrinkage: Shrinkage::Estimated,
            training_shrinkage: 0.4,
            seed: 0,
        }
    }
}

impl FitSettings {
    /// Sets how many epochs a first task takes, and the most of both lessons of a later one.
    pub fn set_epochs(&mut self, epochs: usize) {
        (self.epochs, self.core_epochs, self.later_epochs) = (epochs, epochs, epochs);
    }

    /// How far bases go that learn on after so many tasks.
    pub(super) fn onward_blend(&self, tasks: usize) -> f32 {
        self.later_blend / (tasks.max(1) as f32).sqrt()
    }

    /// Epochs of so many steps, and learning rate.
    pub(super) fn schedule(&self, lesson: &Lesson<'_>, steps_an_epoch: usize) -> (usize, f32) {
        let steps = steps_an_epoch.max(1);
        match lesson {
            Lesson::First => (self.epochs, self.rate),
            Lesson::Cores(_) => (self.core_epochs, self.core_rate),
            Lesson::Onward(_) => {
                let epochs = (self.later_steps + steps / 2) / steps;
                (self.later_epochs.min(epochs.max(1)), self.rate)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_tasks_are_learned_the_less_a_later_one_moves() {
        let settings = FitSettings {
            later_blend: 0.5,
            ..FitSettings::default()
        };
        let shares = [0, 1, 4, 16, 64].map(|tasks| settings.onward_blend(tasks));
        assert_eq!(shares, [0.5, 0.5, 0.25, 0.125, 0.0625]);
    }

    #[test]
    fn bases_learn_on_for_about_as_many_steps_however_large_a_task_is() {
        let settings = FitSettings {
            later_epochs: 10,
            later_steps: 120,
            ..FitSettings::default()
        };
        let before = Adapters::default();
        let epochs = |steps| settings.schedule(&Lesson::Onward(&before), steps).0;
        assert_eq!(
            [0, 1, 10, 12, 18, 34, 1000].map(epochs),
            [10, 10, 10, 10, 7, 4, 1]
        );
    }
}
