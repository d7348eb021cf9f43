//! The ways to train that there are: what each holds, and about how long it takes.

use super::{Demand, List, PlannedBuffer, Turn};
use crate::head;
use crate::train::block::Buffer;
use crate::train::stack::{Precision, StackShape};

/// A way to train.
pub(super) struct Candidate {
    pub workers: usize,
    pub stack: StackShape,
}

pub(super) fn candidates(demand: &Demand) -> impl Iterator<Item = Candidate> + use<'_> {
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
            let recomputed = intervals.flat_map(|every| {
                let kept = [Precision::F32, Precision::Bf16].into_iter();
                kept.flat_map(move |precision| [0, 1].map(|insides| (every, precision, insides)))
            });
            let kept = (2..=depth).map(|insides| (1, Precision::F32, insides));
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
pub(super) fn cost(demand: &Demand, candidate: &Candidate) -> f64 {
    /// A block's backward pass, and what it computes again of the forward pass.
    const BACKWARD: f64 = 1.1;
    const AGAIN: f64 = 0.65;
    /// Rows at which reading and packing weights costs as much as the products.
    const PACKING_ROWS: f64 = 6.0;
    /// Share of a block that idle threads can help with.
    const SHARED: f64 = 0.4;
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

/// Everything a candidate holds at the same time while training, beside what is always there.
pub(super) fn buffers(demand: &Demand, candidate: &Candidate) -> Vec<PlannedBuffer> {
    let mut list = List::of(Turn::Training);
    demand.after_encoding(&mut list);
    let (stack, workers) = (&candidate.stack, candidate.workers);
    let dim = demand.geometry.dim;
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
        &[demand.learned()],
        workers,
    );
    let width = demand.width();
    let name = per_worker("features of a micro-batch");
    list.floats(name, &[stack.images, width], workers);
    let name = per_worker("features that the blocks made, and their gradient");
    list.floats(name, &[2, stack.images, stack.features()], workers);
    let name = per_worker("feature gradient and scores of an image, now and before");
    list.floats(name, &[width + 2 * demand.classes], workers);

    let kept = stack.cached_tokens * size_of::<usize>();
    list.add(
        per_worker("tokens that take part"),
        format!("[{}] indices", stack.cached_tokens),
        kept * workers,
    );
    if demand.later {
        let name = "M and N while they learn, beyond what bases take";
        list.floats(name, &[demand.beyond_bases()], 1);
    }
    list.floats("Adam moments", &[2, demand.learned()], 1);
    if demand.prompts > 0 {
        // What prompts mind is measured once the task is learned: the head is there as it will be, and Adam is
        // not, but for sums as long as the gradient.
        let adam = 4 * (2 * demand.learned()).saturating_sub(demand.cores());
        let head = demand.new_head_bytes().saturating_sub(adam);
        let name = "class means as they will be, beyond Adam's memory";
        list.add(name, format!("{head} bytes"), head);
    }

    let parts = 2 * demand.taps.len();
    let packed = dim * (dim + 1) / 2;
    // Heads are fitted between steps, in memory of the first worker.
    let arena: usize = wide.iter().map(Buffer::len).sum();
    let gradient = demand.learned();
    let name = "head: scatter of one part, half a task, beyond the gradient's memory";
    list.floats(name, &[packed.saturating_sub(gradient)], 1);
    let name = "head: covariance of one part, beyond the stack's memory";
    list.floats(name, &[(dim * dim).saturating_sub(arena)], 1);
    list.floats("head: solving", &[head::solver_floats(dim)], 1);
    let name = "head: class means of half a task";
    list.floats(name, &[demand.task_classes, width], 1);
    list.floats(
        "head: weights and offsets",
        &[demand.classes, width + 2 * parts],
        1,
    );
    list.floats("head: centre, and features of an image", &[2, width], 1);
    list.floats("scores of images", &[demand.images, demand.classes], 1);
    list.add(
        per_worker("cache window"),
        "24 KiB".to_owned(),
        workers * (24 << 10),
    );
    list.1
}
