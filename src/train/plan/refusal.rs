//! What is said where no plan fits the budget.

use super::{Demand, Plan, mebibytes};
use crate::vit::Pixels;

/// No plan fits the budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "learning at {resolution} pixels with {blocks} adapted blocks, {prompts} prompts and rank {rank}{} does not fit {budget} bytes: \
     the smallest budget that would is {smallest} bytes ({}); raise --budget{}",
    if *fixed { ", as the state file has it," } else { "" }, mebibytes(*smallest), or_lower(lower)
)]
pub struct PlanError {
    pub budget: usize,
    /// The smallest budget that would do.
    pub smallest: usize,
    pub resolution: Pixels,
    pub blocks: usize,
    pub prompts: usize,
    pub rank: usize,
    /// Whether the tasks learned before settled these four.
    pub fixed: bool,
    /// Flags that would save most when lowered, the most effective first. None in a later task.
    pub lower: Vec<String>,
}

fn or_lower(flags: &[String]) -> String {
    match flags {
        [] => String::new(),
        flags => format!(", or lower {}", flags.join(", ")),
    }
}

impl Demand {
    pub(super) fn refusal(&self, budget: usize, smallest: usize) -> PlanError {
        let mut savings: Vec<(usize, String)> = self
            .lowered()
            .into_iter()
            .map(|(lowered, flag)| (smallest.saturating_sub(Plan::smallest(&lowered)), flag))
            .filter(|&(saved, _)| saved > 0)
            .collect();
        savings.sort_by_key(|&(saved, _)| std::cmp::Reverse(saved));
        PlanError {
            budget,
            smallest,
            resolution: self.resolution,
            blocks: self.blocks(),
            prompts: self.prompts,
            rank: self.rank,
            fixed: self.later,
            lower: savings.into_iter().map(|(_, flag)| flag).collect(),
        }
    }

    /// The demand with one setting halved, for each that is still open, and the flag that does it.
    fn lowered(&self) -> Vec<(Self, String)> {
        let mut all = Vec::new();
        if self.later {
            return all;
        }
        let mut lower = |flag: String, set: &dyn Fn(&mut Self)| {
            let mut lowered = self.clone();
            set(&mut lowered);
            all.push((lowered, flag));
        };
        let patch = self.geometry.patch;
        if self.resolution > patch {
            let resolution = (self.resolution / 2).next_multiple_of(patch);
            lower(format!("--resolution (to {resolution})"), &|demand| {
                demand.resolution = resolution;
            });
        }
        if self.blocks() > 1 {
            let blocks = self.blocks() / 2;
            lower(format!("--adapt-blocks (to {blocks})"), &|demand| {
                demand.first_adapted = demand.geometry.depth - blocks;
            });
        }
        if self.rank > 1 {
            let rank = self.rank / 2;
            lower(format!("--rank (to {rank})"), &|demand| demand.rank = rank);
        }
        if self.prompts > 0 {
            let prompts = self.prompts / 2;
            lower(format!("--prompts (to {prompts})"), &|demand| {
                demand.prompts = prompts;
            });
        }
        all
    }
}
