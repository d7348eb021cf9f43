//! What training a task takes, added up before anything is allocated, and how it is cut to fit a
//! budget.
//!
//! The budget covers everything beyond the frozen model. What can be cut: images that run together,
//! inputs and insides of blocks that are kept rather than computed again, how inputs are stored, tiles of the MLP and of
//! attention, and workers that have buffers of their own. Of all plans that fit, the one that should
//! take the least time is chosen.

use serde::Serialize;

use super::block::Buffer;
use super::stack::{Phase, Precision, StackShape};
use crate::head;
use crate::vit::{Geometry, Pixels};

/// `learn` without `--budget`: 8 MiB.
pub const DEFAULT_BUDGET: usize = 8 << 20;

/// Bytes of an image in the lists that training draws from.
const IMAGE_BYTES: usize = 128;

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
    /// Classes the head knows in the end.
    pub classes: usize,
    /// Images of the task.
    pub images: usize,
    /// Images of a step.
    pub batch: usize,
    /// Threads to work with.
    pub threads: usize,
    /// What is learned: bases and prompts by a first task, cores and prompts by a later one.
    pub phase: Phase,
}

/// One buffer of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedBuffer {
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
    /// What is learned.
    pub phase: Phase,
    /// Classes the head knows in the end.
    pub classes: usize,
    pub buffers: Vec<PlannedBuffer>,
}

/// No plan fits the budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "training at {resolution} pixels with {blocks} adapted blocks, {prompts} prompts and rank {rank} does not fit {budget} bytes: \
     the smallest budget that would is {smallest} bytes ({}); raise --budget, or lower {}",
    mebibytes(*smallest), lower.join(", ")
)]
pub struct PlanError {
    pub budget: usize,
    /// The smallest budget that would do.
    pub smallest: usize,
    pub resolution: Pixels,
    pub blocks: usize,
    pub prompts: usize,
    pub rank: usize,
    /// Flags that would save most when lowered, the most effective first.
    pub lower: Vec<String>,
}

/// A size as it is given to `--budget`, rounded up to a tenth of a MiB.
pub fn mebibytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{}MiB", tenths / 10, tenths % 10)
}

impl Plan {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.bytes).sum()
    }

    /// The fastest plan within `budget` bytes.
    ///
    /// # Errors
    /// When even the smallest needs more.
    pub fn new(demand: &Demand, budget: usize) -> Result<Self, PlanError> {
        let mut best: Option<(f64, Self)> = None;
        let mut smallest = usize::MAX;
        for candidate in candidates(demand) {
            let buffers = buffers(demand, &candidate);
            let bytes: usize = buffers.iter().map(|buffer| buffer.bytes).sum();
            smallest = smallest.min(bytes);
            let cost = cost(demand, &candidate);
            if bytes <= budget && best.as_ref().is_none_or(|(least, _)| cost < *least) {
                let plan = Self {
                    budget,
                    workers: candidate.workers,
                    stack: candidate.stack,
                    phase: demand.phase,
                    classes: demand.classes,
                    buffers,
                };
                best = Some((cost, plan));
            }
        }
        best.map(|(_, plan)| plan)
            .ok_or_else(|| demand.refusal(budget, smallest))
    }

    /// The fastest plan within `budget` bytes, or where there is none, within as many as it takes.
    pub fn within(demand: &Demand, budget: usize) -> Self {
        let fits = |budget| Self::new(demand, budget);
        fits(budget)
            .or_else(|error| fits(error.smallest))
            .expect("the smallest budget that fits, fits")
    }

    /// Bytes that the smallest plan takes.
    fn smallest(demand: &Demand) -> usize {
        candidates(demand)
            .map(|candidate| {
                let buffers = buffers(demand, &candidate);
                buffers.iter().map(|buffer| buffer.bytes).sum()
            })
            .min()
            .unwrap_or(usize::MAX)
    }
}

impl Demand {
    /// Adapted blocks.
    pub fn blocks(&self) -> usize {
        self.geometry.depth - self.first_adapted
    }

    fn sites(&self) -> usize {
        self.blocks() * self.projections
    }

    /// Numbers in the gradient of the adapters: A and B of every site, or the core; and prompts.
    fn gradient(&self) -> usize {
        let site = match self.phase {
            Phase::Bases => 2 * self.geometry.dim * self.rank,
            Phase::Cores => self.rank * self.rank,
        };
        self.sites() * site + self.prompts * self.geometry.dim
    }

    /// Numbers that the optimiser moves: A and B of every site, or M and N of at most rank r; and
    /// prompts.
    fn learned(&self) -> usize {
        let site = match self.phase {
            Phase::Bases => 2 * self.geometry.dim * self.rank,
            Phase::Cores => 2 * self.rank * self.rank,
        };
        self.sites() * site + self.prompts * self.geometry.dim
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

    fn refusal(&self, budget: usize, smallest: usize) -> PlanError {
        let patch = self.geometry.patch;
        let mut savings: Vec<(usize, String)> = [
            (self.resolution > patch).then(|| {
                let resolution = (self.resolution / 2).next_multiple_of(patch);
                let lowered = Self {
                    resolution,
                    ..self.clone()
                };
                (lowered, format!("--resolution (to {resolution})"))
            }),
            (self.blocks() > 1).then(|| {
                let blocks = self.blocks() / 2;
                let first_adapted = self.geometry.depth - blocks;
                let lowered = Self {
                    first_adapted,
                    ..self.clone()
                };
                (lowered, format!("--adapt-blocks (to {blocks})"))
            }),
            (self.rank > 1).then(|| {
                let rank = self.rank / 2;
                (
                    Self {
                        rank,
                        ..self.clone()
                    },
                    format!("--rank (to {rank})"),
                )
            }),
            (self.prompts > 0).then(|| {
                let prompts = self.prompts / 2;
                let lowered = Self {
                    prompts,
                    ..self.clone()
                };
                (lowered, format!("--prompts (to {prompts})"))
            }),
        ]
        .into_iter()
        .flatten()
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
            lower: savings.into_iter().map(|(_, flag)| flag).collect(),
        }
    }
}

struct Candidate {
    workers: usize,
    stack: StackShape,
}

fn candidates(demand: &Demand) -> impl Iterator<Item = Candidate> + use<'_> {
    let share = demand.batch.max(1);
    let workers = (1..=demand.threads.max(1)).rev();
    let images = [8, 4, 2, 1].into_iter().filter(move |&n| n <= share);
    workers
        .flat_map(move |workers| {
            images
                .clone()
                .filter(move |&images| images <= share.div_ceil(workers))
                .map(move |images| (workers, images))
        })
        .flat_map(move |(workers, images)| {
            let depth = demand.blocks();
            let intervals = [1, 2, 3, 4, 6].into_iter().filter(move |&n| n <= depth);
            let recomputed = intervals
                .flat_map(|every| [(every, Precision::F32, 0), (every, Precision::Bf16, 0)]);
            let kept = (1..=depth).map(|insides| (1, Precision::F32, insides));
            recomputed.chain(kept).flat_map(move |keep| {
                let (checkpoint_every, checkpoints, kept_insides) = keep;
                TILES
                    .into_iter()
                    .map(move |(mlp_rows, mlp_columns, attention_rows)| Candidate {
                        workers,
                        stack: StackShape {
                            images,
                            checkpoint_every,
                            checkpoints,
                            kept_insides,
                            mlp_rows,
                            mlp_columns,
                            attention_rows,
                            ..demand.stack()
                        },
                    })
            })
        })
}

/// Rows and columns of the MLP and queries of attention that are worked on together.
const TILES: [(usize, usize, usize); 7] = [
    (usize::MAX, usize::MAX, usize::MAX),
    (usize::MAX, 768, usize::MAX),
    (128, usize::MAX, 128),
    (usize::MAX, 384, 64),
    (64, 384, 64),
    (32, 192, 32),
    (16, 96, 16),
];

/// Time of a step in units of one block's forward pass of one image. The constants are rough: they
/// only have to put plans in order.
fn cost(demand: &Demand, candidate: &Candidate) -> f64 {
    /// A block's backward pass, and what it computes again of the forward pass.
    const BACKWARD: f64 = 1.1;
    const AGAIN: f64 = 0.65;
    /// Rows at which reading and packing weights costs as much as the products.
    const PACKING_ROWS: f64 = 6.0;
    /// Share of a block that idle threads can help with.
    const SHARED: f64 = 0.75;
    let stack = &candidate.stack;
    let depth = demand.blocks() as f64;
    let segments = (depth / stack.checkpoint_every as f64).ceil();
    // The last segment's inputs are still there.
    let again = (segments - 1.0) * (stack.checkpoint_every as f64 - 1.0);
    let rows = (stack.images * stack.tokens()).min(stack.mlp_rows) as f64;
    let columns = demand.geometry.hidden.min(stack.mlp_columns) as f64;
    let tiles = 1.0 + PACKING_ROWS / rows + 24.0 / columns;
    let precision = match stack.checkpoints {
        Precision::F32 => 1.0,
        // Costs accuracy of the gradient, not only time: the last resort.
        Precision::Bf16 => 4.0,
    };
    let (workers, threads) = (candidate.workers as f64, demand.threads.max(1) as f64);
    let busy = workers * (1.0 + SHARED * (threads / workers - 1.0));
    let inside = (depth - stack.kept_insides as f64) * AGAIN;
    (depth * (1.0 + BACKWARD) + inside + again) * tiles * precision / busy
}

/// Everything a candidate holds at the same time.
fn buffers(demand: &Demand, candidate: &Candidate) -> Vec<PlannedBuffer> {
    let mut list = List::default();
    let (stack, workers) = (&candidate.stack, candidate.workers);
    let (dim, rank) = (demand.geometry.dim, demand.rank);
    let per_worker = |name: &str| match workers {
        1 => name.to_owned(),
        n => format!("{name}, of each of {n} workers"),
    };
    let (wide, narrow) = stack.buffers();
    for buffer in wide.iter().filter(|buffer| buffer.len() > 0) {
        let shape = format!("[{}, {}] f32", buffer.rows, buffer.cols);
        list.add(per_worker(buffer.name), shape, 4 * buffer.len() * workers);
    }
    if let Some(buffer) = narrow {
        let shape = format!("[{}, {}] bf16", buffer.rows, buffer.cols);
        list.add(per_worker(buffer.name), shape, 2 * buffer.len() * workers);
    }
    list.floats(
        per_worker("gradient of the adapters"),
        &[demand.gradient()],
        workers,
    );
    let width = demand.width();
    let name = per_worker("features of a micro-batch");
    list.floats(name, &[stack.images, width], workers);
    let name = per_worker("features that the blocks made, and their gradient");
    list.floats(name, &[2, stack.images, stack.features()], workers);
    let name = per_worker("feature gradient and scores of an image");
    list.floats(name, &[width + demand.classes], workers);

    let sites = demand.sites();
    list.floats("adapters: bases", &[sites, 2, dim, rank], 1);
    let name = "adapters: cores and drift guard, and as they were";
    list.floats(name, &[3, sites, 2, rank, rank], 1);
    if demand.prompts > 0 {
        list.floats("prompts, and as they were", &[3, demand.prompts, dim], 1);
    }
    let copies = match demand.phase {
        Phase::Bases => 1,
        // M and N, and their gradient.
        Phase::Cores => 2,
    };
    list.floats("what is learned", &[copies, demand.learned()], 1);
    list.floats("Adam moments", &[2, demand.learned()], 1);

    let parts = 2 * demand.taps.len();
    let packed = dim * (dim + 1) / 2;
    if demand.phase == Phase::Cores {
        list.floats("head: scatter of one part, known", &[packed], 1);
    }
    // Heads are fitted between steps, in memory of the first worker.
    let arena: usize = wide.iter().map(Buffer::len).sum();
    let gradient = demand.gradient();
    let name = "head: scatter of one part, half a task, beyond the gradient's memory";
    list.floats(name, &[packed.saturating_sub(gradient)], 1);
    let name = "head: covariance of one part, beyond the stack's memory";
    list.floats(name, &[(dim * dim).saturating_sub(arena)], 1);
    list.floats("head: solving", &[head::solver_floats(dim)], 1);
    list.floats("head: class means", &[demand.classes, width], 1);
    list.floats(
        "head: weights and offsets",
        &[demand.classes, width + parts],
        1,
    );
    list.floats("head: centre, and features of an image", &[2, width], 1);
    list.add(
        "lists and scores of images",
        format!(
            "[{}, {} bytes]",
            demand.images,
            IMAGE_BYTES + 4 * demand.classes
        ),
        demand.images * (IMAGE_BYTES + 4 * demand.classes),
    );
    list.add(
        per_worker("cache window"),
        "24 KiB".to_owned(),
        workers * (24 << 10),
    );
    list.0
}

#[derive(Default)]
struct List(Vec<PlannedBuffer>);

impl List {
    fn add(&mut self, buffer: impl Into<String>, shape: String, bytes: usize) {
        self.0.push(PlannedBuffer {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vit::Activation;

    const MIB: usize = 1 << 20;

    /// The default model's blocks, learning with 8 prompts at rank 16.
    fn demand(resolution: Pixels, adapted: usize, threads: usize) -> Demand {
        Demand {
            geometry: Geometry {
                dim: 384,
                depth: 12,
                heads: 6,
                hidden: 1536,
                patch: 14,
                image: 224,
                registers: 0,
                position_grid: 37,
                norm_eps: 1e-6,
                activation: Activation::Gelu,
                layer_scale: true,
            },
            resolution,
            first_adapted: 12 - adapted,
            projections: 2,
            prompts: 8,
            rank: 16,
            taps: vec![6, 8, 10, 11, 12],
            classes: 10,
            images: 200,
            batch: 16,
            threads,
            phase: Phase::Bases,
        }
    }

    #[test]
    fn the_promised_settings_fit_their_budgets_without_rounding_what_is_kept() {
        for (resolution, adapted, budget) in [(112, 4, 4), (112, 12, 8), (224, 4, 8), (224, 12, 16)]
        {
            for threads in [1, 2, 4] {
                for phase in [Phase::Bases, Phase::Cores] {
                    let demand = Demand {
                        phase,
                        ..demand(resolution, adapted, threads)
                    };
                    let plan = Plan::new(&demand, budget * MIB).unwrap();
                    assert!(plan.bytes() <= budget * MIB);
                    assert_eq!(plan.stack.checkpoints, Precision::F32, "{demand:?}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_names_the_smallest_budget_and_that_one_is_enough() {
        let demand = demand(224, 12, 2);
        let error = Plan::new(&demand, MIB).unwrap_err();
        assert!(Plan::new(&demand, error.smallest).is_ok());
        assert_eq!(
            Plan::new(&demand, error.smallest - 1).unwrap_err().smallest,
            error.smallest
        );
        let text = error.to_string();
        for word in [
            "--budget",
            "--resolution (to 112)",
            "--adapt-blocks (to 6)",
            "--rank (to 8)",
        ] {
            assert!(text.contains(word), "{word} is not in {text:?}");
        }
    }

    #[test]
    fn a_larger_budget_buys_workers_before_anything_else() {
        let demand = demand(112, 4, 2);
        let small = Plan::new(&demand, 4 * MIB).unwrap();
        let large = Plan::new(&demand, 64 * MIB).unwrap();
        assert!(small.bytes() < large.bytes());
        assert_eq!((large.workers, large.stack.checkpoint_every), (2, 1));
        assert_eq!(large.stack.mlp_rows, usize::MAX);
    }
}
