//! The rank of a task's M and N: given, or selected while they train.

use rand_chacha::ChaCha8Rng;

use super::adam::Adam;
use super::parameters::Parameters;
use crate::adapt::{Draw, RankChoice, RankSelector};

/// How the rank of a task's M and N comes about.
#[derive(Debug)]
pub enum TaskRank<'a> {
    Fixed(usize),
    /// Chosen while training; the selector learns from it.
    Selected(&'a mut RankSelector),
}

/// Epochs that selecting a rank takes at least: a brief pretraining, one with gates, one after.
pub(super) const SELECTION_EPOCHS: usize = 3;
/// Learning rate of the selector's weights.
const SELECTOR_RATE: f32 = 0.05;

/// A rank being selected: pretraining in the first epoch, gates in the second, and then the choice.
pub(super) struct Selection {
    selector: RankSelector,
    adam: Adam,
    difficulty: f64,
    draw: Draw,
    d_gates: Vec<f32>,
    d_weights: Vec<f32>,
    choice: Option<RankChoice>,
}

impl Selection {
    /// For a task whose rank `selector` is to choose.
    pub fn of(selector: &RankSelector) -> Self {
        let mut selector = selector.clone();
        let weights = selector.weights_mut().len();
        Self {
            adam: Adam::new(weights),
            difficulty: 0.0,
            draw: Draw::default(),
            d_gates: vec![0.0; selector.most()],
            d_weights: vec![0.0; weights],
            choice: None,
            selector,
        }
    }

    /// Whether the rank is still to be chosen.
    pub fn pending(&self) -> bool {
        self.choice.is_none()
    }

    fn warm(&self, epochs: usize) -> bool {
        epochs == 1 && self.pending()
    }

    /// Draws the gates of the coming step, where it is one of the warm epoch.
    pub fn open_gates(
        &mut self,
        epochs: usize,
        step: usize,
        steps_an_epoch: usize,
        parameters: &mut Parameters,
        rng: &mut ChaCha8Rng,
    ) {
        if self.warm(epochs) {
            let progress = (step % steps_an_epoch.max(1)) as f32 / steps_an_epoch.max(1) as f32;
            self.draw = self.selector.draw(self.difficulty as f32, progress, rng);
            self.selector.gates(&self.draw, parameters.gates_mut());
        }
    }

    /// Moves the selector's weights along the gradient of the step just made.
    pub fn learn(&mut self, epochs: usize, parameters: &Parameters, adapter_gradient: &[f32]) {
        if self.warm(epochs) {
            parameters.gate_gradient(adapter_gradient, &mut self.d_gates);
            let difficulty = self.difficulty as f32;
            self.selector
                .backward(&self.draw, difficulty, &self.d_gates, &mut self.d_weights);
            let weights = self.selector.weights_mut();
            self.adam
                .update(weights, &self.d_weights, |_| SELECTOR_RATE);
        }
    }

    /// Whether the rank was chosen just now. `epochs` counts the one that ended.
    pub fn after_epoch(
        &mut self,
        epochs: usize,
        loss: f64,
        parameters: &mut Parameters,
        adam: &mut Adam,
    ) -> bool {
        match epochs {
            1 if self.pending() => {
                self.difficulty = loss;
                false
            }
            2 if self.pending() => {
                self.end(self.difficulty, parameters, adam);
                true
            }
            _ => false,
        }
    }

    /// Chooses, and cuts M and N to the rank.
    pub fn end(&mut self, difficulty: f64, parameters: &mut Parameters, adam: &mut Adam) {
        let choice = self.selector.choose(difficulty);
        adam.keep(parameters.truncate(choice.rank));
        self.choice = Some(choice);
    }

    /// Hands what was learned about ranks back to the selector it came from.
    pub fn finish(self, rank: TaskRank<'_>) -> Option<RankChoice> {
        if let TaskRank::Selected(selector) = rank {
            *selector = self.selector;
        }
        self.choice
    }
}
