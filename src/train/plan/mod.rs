//! What training a task takes, added up before anything is allocated, and how it is cut to fit a
//! budget.
//!
//! The budget covers everything beyond the frozen model, from the first photo to the saved state.
//! What is learned so far is there all the time; beside it, the frozen pass over the photos, the
//! training, and what follows it take their turns, so the largest of them counts.
//!
//! What can be cut: threads and photos of the frozen pass, images that train together,
//! inputs and insides of blocks that are kept rather than computed again, how inputs are stored, tiles of the MLP and of
//! attention, and workers that have buffers of their own. Of all plans that fit, the one that should
//! take the least time is chosen.

mod budget;
mod closing;
mod encoding;
mod process;
mod refusal;
#[cfg(test)]
mod tests;
mod training;

use serde::Serialize;

pub use budget::{Budget, DEFAULT_BUDGET};
pub use encoding::Encoding;
use process::blocks_in_turns;
pub use refusal::PlanError;
use training::{Candidate, buffers, candidates, cost};

use super::stack::{Precision, StackShape};
use super::stand_ins::StandIns;
use crate::data::TokenGrid;
use crate::vit::{Geometry, Pixels};

/// Bytes of an image in the lists that training draws from.
const IMAGE_BYTES: usize = 192;

/// Bytes of a thread of the pool beside its stack.
const THREAD_BYTES: usize = 8 << 10;

/// What is to be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    pub geometry: Geometry,
    pub resolution: Pixels,
    /// First adapted block, from 0; all behind it are adapted too.
    pub first_adapted: usize,
    /// Adapted projections in each of these blocks.
    pub projections: usize,
    /// Number m of prompt tokens.
    pub prompts: usize,
    /// Rank r of the bases.
    pub rank: usize,
    /// Taps of the head, ascending.
    pub taps: Vec<usize>,
    /// Classes the head knows in the end, each counted once for every task that taught it.
    pub classes: usize,
    /// Classes of the task.
    pub task_classes: usize,
    /// Images of the task.
    pub images: usize,
    /// Images of the largest class of any task.
    pub largest_class: usize,
    /// Bytes of what is known before: class means, tasks and names.
    pub known: usize,
    /// Those of them that the head has.
    pub known_head: usize,
    /// Images of a step.
    pub batch: usize,
    /// Threads to work with.
    pub threads: usize,
    /// Whether something was learned before.
    pub later: bool,
    /// Whether bases learn: a first task's do, and a later one's where there is room.
    pub bases: bool,
}

/// When a buffer is there. Those of different turns are never there together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Turn {
    Always,
    /// Photos are decoded and run through the frozen blocks.
    Encoding,
    /// Adapters are trained.
    Training,
    /// Statistics of old classes follow the features.
    Moving,
    /// The head is judged, and learns the task for good.
    Closing,
}

impl Turn {
    /// All but [`Turn::Always`].
    const TURNS: [Self; 4] = [Self::Encoding, Self::Training, Self::Moving, Self::Closing];

    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Encoding => "encoding",
            Self::Training => "training",
            Self::Moving => "moving",
            Self::Closing => "closing",
        }
    }
}

/// One buffer of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedBuffer {
    /// When it is there.
    pub turn: Turn,
    pub buffer: String,
    /// For people: dimensions and what is stored.
    pub shape: String,
    pub bytes: usize,
}

/// How a task is trained within a budget.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Bytes allowed.
    pub budget: usize,
    /// Stacks that run at the same time. Threads beyond them share the large products.
    pub workers: usize,
    pub stack: StackShape,
    /// Frozen blocks at either end that [take turns](crate::train::stack::Stack::in_turns) in memory.
    pub in_turns: usize,
    /// Whether bases learn, or only M and N.
    pub bases: bool,
    /// Classes the head knows in the end.
    pub classes: usize,
    /// How the photos are encoded.
    pub encoding: Encoding,
    pub buffers: Vec<PlannedBuffer>,
}

/// A size as it is given to `--budget`, rounded up to a tenth of a MiB.
pub fn mebibytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{}MiB", tenths / 10, tenths % 10)
}

impl Plan {
    /// Most bytes that are there at a time.
    pub fn bytes(&self) -> usize {
        let turns = Turn::TURNS.iter().map(|&turn| self.bytes_of(turn));
        self.bytes_of(Turn::Always) + turns.max().unwrap_or(0)
    }

    /// Bytes of a turn's own buffers.
    pub fn bytes_of(&self, turn: Turn) -> usize {
        bytes_of(&self.buffers, turn)
    }

    /// The fastest plan within `budget` bytes. Bases of a later task learn on where that needs no
    /// rounding of what is kept; where it does, M and N learn alone.
    ///
    /// # Errors
    /// When even the smallest needs more.
    pub fn new(demand: &Demand, budget: usize) -> Result<Self, PlanError> {
        let whole = Self::fastest(demand, budget);
        if !demand.later || !demand.bases {
            return whole;
        }
        let exact = |plan: &Self| plan.stack.checkpoints == Precision::F32;
        whole.ok().filter(exact).map_or_else(
            || {
                let cores = Demand {
                    bases: false,
                    ..demand.clone()
                };
                Self::fastest(&cores, budget)
            },
            Ok,
        )
    }

    fn fastest(demand: &Demand, budget: usize) -> Result<Self, PlanError> {
        let always = demand.always();
        let closing = demand.closing();
        let refuse = || demand.refusal(budget, Self::smallest(demand));
        let room = budget
            .checked_sub(bytes_of(&always, Turn::Always))
            .ok_or_else(refuse)?;
        let encoding = demand.encoding(room).ok_or_else(refuse)?;
        let fits = |turn| bytes_of(&closing, turn) <= room;
        if !(fits(Turn::Moving) && fits(Turn::Closing)) {
            return Err(refuse());
        }
        // Whether the process can stay within a quarter more than the weights.
        let within = blocks_in_turns(demand, 1, budget).is_some();
        let mut best: Option<(f64, Candidate, Vec<PlannedBuffer>, usize)> = None;
        for candidate in candidates(demand) {
            let buffers = buffers(demand, &candidate);
            let cost = cost(demand, &candidate);
            let better = best.as_ref().is_none_or(|(least, ..)| cost < *least);
            let bytes = bytes_of(&buffers, Turn::Training);
            if better && bytes <= room {
                let turns = blocks_in_turns(demand, candidate.workers, budget - room + bytes);
                if turns.is_some() || !within {
                    best = Some((cost, candidate, buffers, turns.unwrap_or(0)));
                }
            }
        }
        let (_, candidate, training, in_turns) = best.ok_or_else(refuse)?;
        let encodes = demand.buffers_of(&encoding);
        Ok(Self {
            budget,
            workers: candidate.workers,
            stack: candidate.stack,
            in_turns,
            bases: demand.bases,
            classes: demand.classes,
            encoding,
            buffers: [always, encodes, training, closing].concat(),
        })
    }

    /// The fastest plan within `budget`. One that grows does so in steps of a sixteenth.
    ///
    /// # Errors
    /// When even the smallest needs more, what is known aside if the budget grows.
    pub fn allowed(demand: &Demand, budget: Budget) -> Result<Self, PlanError> {
        let plan = Self::new(demand, budget.bytes());
        if !budget.grows() || plan.as_ref().is_ok_and(|plan| plan.bases) {
            return plan;
        }
        let alone = Demand {
            known: 0,
            known_head: 0,
            classes: demand.task_classes,
            ..demand.clone()
        };
        let Ok(alone) = Self::new(&alone, budget.bytes()) else {
            return plan;
        };
        let least = plan
            .as_ref()
            .map_or_else(|error| error.smallest, |plan| plan.budget);
        std::iter::successors(Some(least), |bytes| bytes.checked_add(bytes / 16 + 1))
            .find_map(|bytes| {
                let plan = Self::new(demand, bytes).ok();
                plan.filter(|plan| plan.bases || !alone.bases)
            })
            .map_or(plan, Ok)
    }

    /// The fastest plan within `budget`, or where there is none, within as many bytes as it takes.
    pub fn within(demand: &Demand, budget: Budget) -> Self {
        Self::allowed(demand, budget)
            .or_else(|error| Self::new(demand, error.smallest))
            .expect("the smallest budget that fits, fits")
    }

    /// Bytes that the smallest plan takes.
    fn smallest(demand: &Demand) -> usize {
        let training = candidates(demand)
            .map(|candidate| bytes_of(&buffers(demand, &candidate), Turn::Training))
            .min();
        let closing = demand.closing();
        let turns = [
            training.unwrap_or(usize::MAX),
            demand.least_encoding(),
            bytes_of(&closing, Turn::Moving),
            bytes_of(&closing, Turn::Closing),
        ];
        let largest = turns.into_iter().max().unwrap_or(0);
        bytes_of(&demand.always(), Turn::Always).saturating_add(largest)
    }
}

fn bytes_of(buffers: &[PlannedBuffer], turn: Turn) -> usize {
    let of_turn = buffers.iter().filter(|buffer| buffer.turn == turn);
    of_turn.map(|buffer| buffer.bytes).sum()
}

impl Demand {
    /// Adapted blocks.
    pub fn blocks(&self) -> usize {
        self.geometry.depth - self.first_adapted
    }

    fn sites(&self) -> usize {
        self.blocks() * self.projections
    }

    /// Numbers in M and N of every site, of at most rank r, and prompts.
    fn cores(&self) -> usize {
        self.sites() * 2 * self.rank * self.rank + self.prompts * self.geometry.dim
    }

    /// Numbers that the optimiser moves last, and of their gradient: A and B of every site and prompts,
    /// or M and N.
    fn learned(&self) -> usize {
        match self.bases {
            true => {
                self.sites() * 2 * self.geometry.dim * self.rank + self.prompts * self.geometry.dim
            }
            false => self.cores(),
        }
    }

    /// Numbers that are there while M and N learn, beyond what the optimiser of the bases takes when
    /// they do: M and N, their gradient and moments, and cores and prompts as they were.
    fn beyond_bases(&self) -> usize {
        let before =
            2 * self.sites() * self.rank * self.rank + 2 * self.prompts * self.geometry.dim;
        (4 * self.cores() + before).saturating_sub(2 * self.learned())
    }

    /// What is there all the time.
    fn always(&self) -> Vec<PlannedBuffer> {
        let mut list = List::of(Turn::Always);
        let (dim, rank, sites) = (self.geometry.dim, self.rank, self.sites());
        // Those that the blocks see, and those that training started from.
        let copies = 2;
        list.floats("adapters: bases", &[sites, 2, dim, rank], 1);
        let name = "adapters: cores and drift guard, and as they were";
        list.floats(name, &[copies, sites, 2, rank, rank], 1);
        if self.prompts > 0 {
            let name = "prompts and their guard, and as they were";
            list.floats(name, &[copies, 2, self.prompts, dim], 1);
        }
        list.add(
            "queues of threads",
            format!("[{}, {THREAD_BYTES} bytes]", self.threads),
            self.threads * THREAD_BYTES,
        );
        let shape = format!("{} bytes", self.known);
        list.add("known: class means, tasks and names", shape, self.known);
        list.add(
            "lists of images",
            format!("[{}, {IMAGE_BYTES} bytes]", self.images),
            self.images * IMAGE_BYTES,
        );
        list.1
    }

    /// What is there from the end of the frozen pass on.
    fn after_encoding(&self, list: &mut List) {
        let mean = self.token_grid().bytes();
        list.add(
            "mean tokens of the task's classes",
            format!("[{}, {mean} bytes]", self.task_classes),
            self.task_classes * mean,
        );
        if self.later {
            if self.bases {
                let (dim, rank, sites) = (self.geometry.dim, self.rank, self.sites());
                let name = "adapters: bases as they were, to hold to and to go back to";
                list.floats(name, &[sites, 2, dim, rank], 1);
            }
            let old = self.classes.saturating_sub(self.task_classes);
            let count = StandIns::count(old, self.images, StandIns::MOST);
            list.add(
                "stand-ins for images of old classes",
                format!("[{count}]"),
                StandIns::bytes(count),
            );
        }
    }

    fn token_grid(&self) -> TokenGrid {
        let side = self.geometry.grid(self.resolution);
        TokenGrid::new(self.geometry.dim, 1 + self.geometry.registers, side)
    }

    /// Features of one image.
    fn width(&self) -> usize {
        2 * self.taps.len() * self.geometry.dim
    }

    /// The adapted blocks for one image at a time, with everything kept and nothing tiled.
    pub fn stack(&self) -> StackShape {
        StackShape {
            blocks: self.first_adapted..self.geometry.depth,
            cached_tokens: self.geometry.tokens(self.resolution),
            prompts: self.prompts,
            taps: self
                .taps
                .iter()
                .copied()
                .filter(|&tap| tap > self.first_adapted)
                .collect(),
            rank: self.rank,
            images: 1,
            mlp_rows: usize::MAX,
            mlp_columns: usize::MAX,
            attention_rows: usize::MAX,
            checkpoint_every: 1,
            checkpoints: Precision::F32,
            kept_insides: 0,
            geometry: self.geometry.clone(),
        }
    }
}

/// Buffers of one turn.
struct List(Turn, Vec<PlannedBuffer>);

impl List {
    fn of(turn: Turn) -> Self {
        Self(turn, Vec::new())
    }

    fn add(&mut self, buffer: impl Into<String>, shape: String, bytes: usize) {
        self.1.push(PlannedBuffer {
            turn: self.0,
            buffer: buffer.into(),
            shape,
            bytes,
        });
    }

    /// `copies` buffers of `shape` f32.
    fn floats(&mut self, buffer: impl Into<String>, shape: &[usize], copies: usize) {
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        let bytes = 4 * shape.iter().product::<usize>() * copies;
        self.add(buffer, format!("[{}] f32", sizes.join(", ")), bytes);
    }
}
