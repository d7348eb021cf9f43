//! Answers about memory and speed.

use std::io::{self, Write};

use fledge::train::bench::Measured;
use fledge::train::plan::{Plan, PlannedBuffer, mebibytes};
use fledge::train::stack::Precision;
use serde::Serialize;

use super::{Report, count};

/// `plan`.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// Bytes allowed.
    pub budget: usize,
    /// Bytes of all buffers.
    pub bytes: usize,
    /// Stacks that run at the same time.
    pub workers: usize,
    /// Images that run through a block together.
    pub micro_batch: usize,
    /// Blocks between two inputs that are kept.
    pub checkpoint_every: usize,
    /// How these are stored: `f32` or `bf16`.
    pub checkpoints: &'static str,
    /// Blocks, counted from the last, whose insides are kept too.
    pub kept_insides: usize,
    /// Rows of the MLP worked on together; none means all. The same for its hidden columns and for
    /// the queries of attention.
    pub mlp_rows: Option<usize>,
    pub mlp_columns: Option<usize>,
    pub attention_rows: Option<usize>,
    pub buffers: Vec<PlannedBuffer>,
}

impl From<&Plan> for PlanReport {
    fn from(plan: &Plan) -> Self {
        let tile = |n: usize| (n != usize::MAX).then_some(n);
        Self {
            budget: plan.budget,
            bytes: plan.bytes(),
            workers: plan.workers,
            micro_batch: plan.stack.images,
            checkpoint_every: plan.stack.checkpoint_every,
            checkpoints: match plan.stack.checkpoints {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
            },
            kept_insides: plan.stack.kept_insides,
            mlp_rows: tile(plan.stack.mlp_rows),
            mlp_columns: tile(plan.stack.mlp_columns),
            attention_rows: tile(plan.stack.attention_rows),
            buffers: plan.buffers.clone(),
        }
    }
}

impl Report for PlanReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let widest =
            |of: fn(&PlannedBuffer) -> usize| self.buffers.iter().map(of).max().unwrap_or(0);
        let name = widest(|b| b.buffer.chars().count());
        let shape = widest(|b| b.shape.chars().count());
        writeln!(
            out,
            "{:<name$}  {:<shape$}  {:>10}",
            "buffer", "shape", "bytes"
        )?;
        for buffer in &self.buffers {
            writeln!(
                out,
                "{:<name$}  {:<shape$}  {:>10}",
                buffer.buffer, buffer.shape, buffer.bytes
            )?;
        }
        writeln!(out, "{:<name$}  {:<shape$}  {:>10}", "all", "", self.bytes)?;
        let tile = |n: Option<usize>| n.map_or_else(|| "all".to_owned(), |n| n.to_string());
        writeln!(
            out,
            "of a budget of {} bytes ({}): {} with {} at a time, the input of every {} kept as {}{}; \
             tiles: MLP {} rows by {} columns, attention {} queries",
            self.budget,
            mebibytes(self.budget),
            count(self.workers, "worker", "workers"),
            count(self.micro_batch, "image", "images"),
            match self.checkpoint_every {
                1 => "block".to_owned(),
                n => format!("{n}th block"),
            },
            self.checkpoints,
            match self.kept_insides {
                0 => String::new(),
                n => format!(
                    ", and the insides of the last {}",
                    count(n, "block", "blocks")
                ),
            },
            tile(self.mlp_rows),
            tile(self.mlp_columns),
            tile(self.attention_rows),
        )
    }
}

/// `bench`.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    pub model: String,
    /// The matrix kernel in use.
    pub kernel: String,
    /// Bytes that training steps kept to.
    pub budget: usize,
    pub measured: Vec<Measured>,
}

impl Report for BenchReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{}, kernel {}, budget {}",
            self.model,
            self.kernel,
            mebibytes(self.budget)
        )?;
        let name = self
            .measured
            .iter()
            .map(|m| m.what.len())
            .max()
            .unwrap_or(0);
        writeln!(
            out,
            "{:<name$}  {:>6}  {:>7}  {:>9}  {:>9}  {:>8}",
            "", "pixels", "threads", "ms", "least ms", "GFLOP/s"
        )?;
        self.measured.iter().try_for_each(|m| {
            writeln!(
                out,
                "{:<name$}  {:>6}  {:>7}  {:>9.3}  {:>9.3}  {:>8.1}",
                m.what, m.resolution, m.threads, m.ms, m.least_ms, m.gflops
            )
        })
    }
}
