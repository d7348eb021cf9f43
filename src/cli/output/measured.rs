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
    /// Most bytes that are there at a time: what is always there, and the largest turn.
    pub bytes: usize,
    /// Threads that encode photos, how many each runs together, and the bytes that all decode in.
    pub encode_threads: usize,
    pub encode_together: usize,
    pub decode_window: usize,
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
    /// Frozen blocks at either end whose pages are given back while they wait.
    pub blocks_in_turns: usize,
    /// Whether bases learn, or only the M and N of a later task, as there is no room for more.
    pub bases_learn: bool,
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
            encode_threads: plan.encoding.threads,
            encode_together: plan.encoding.together,
            decode_window: plan.encoding.window,
            workers: plan.workers,
            micro_batch: plan.stack.images,
            checkpoint_every: plan.stack.checkpoint_every,
            checkpoints: match plan.stack.checkpoints {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
            },
            kept_insides: plan.stack.kept_insides,
            blocks_in_turns: plan.in_turns,
            bases_learn: plan.bases,
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
            "{:<8}  {:<name$}  {:<shape$}  {:>10}",
            "turn", "buffer", "shape", "bytes"
        )?;
        for turn in self.buffers.chunk_by(|a, b| a.turn == b.turn) {
            let mut sum = 0;
            for buffer in turn {
                writeln!(
                    out,
                    "{:<8}  {:<name$}  {:<shape$}  {:>10}",
                    buffer.turn.name(),
                    buffer.buffer,
                    buffer.shape,
                    buffer.bytes
                )?;
                sum += buffer.bytes;
            }
            let turn = turn[0].turn.name();
            writeln!(
                out,
                "{turn:<8}  {:<name$}  {:<shape$}  {sum:>10}",
                "all", ""
            )?;
        }
        let most = "always, and the largest turn";
        writeln!(out, "{most:<w$}  {:>10}", self.bytes, w = 12 + name + shape)?;
        let tile = |n: Option<usize>| n.map_or_else(|| "all".to_owned(), |n| n.to_string());
        writeln!(
            out,
            "of a budget of {} bytes ({}): {} to encode with {} together, and {} to decode in; \
             {} to train with {} at a time, the input of every {} kept as {}{}; \
             tiles: MLP {} rows by {} columns, attention {} queries{}",
            self.budget,
            mebibytes(self.budget),
            count(self.encode_threads, "thread", "threads"),
            count(self.encode_together, "image", "images"),
            mebibytes(self.decode_window),
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
            match self.blocks_in_turns {
                0 => String::new(),
                n => format!(
                    "; {} at either end in memory by turns",
                    count(n, "block", "blocks")
                ),
            },
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

#[cfg(test)]
mod tests {
    use fledge::train::plan::Turn;

    use super::super::shown::{fields, text};
    use super::*;

    fn planned() -> PlanReport {
        let buffer = |turn, name: &str, bytes| PlannedBuffer {
            turn,
            buffer: name.into(),
            shape: format!("[{}] f32", bytes / 4),
            bytes,
        };
        PlanReport {
            budget: 4 << 20,
            bytes: 3000,
            encode_threads: 2,
            encode_together: 1,
            decode_window: 1600,
            workers: 1,
            micro_batch: 4,
            checkpoint_every: 1,
            checkpoints: "f32",
            kept_insides: 0,
            blocks_in_turns: 0,
            bases_learn: true,
            mlp_rows: None,
            mlp_columns: Some(384),
            attention_rows: None,
            buffers: vec![
                buffer(Turn::Always, "bases", 1000),
                buffer(Turn::Encoding, "decode window", 1600),
                buffer(Turn::Training, "arena", 1200),
                buffer(Turn::Training, "gradient", 800),
            ],
        }
    }

    #[test]
    fn a_plan_answers_with_the_fields_of_the_contract() {
        let mut expected = [
            "budget",
            "bytes",
            "encode_threads",
            "encode_together",
            "decode_window",
            "workers",
            "micro_batch",
            "checkpoint_every",
            "checkpoints",
            "kept_insides",
            "blocks_in_turns",
            "bases_learn",
            "mlp_rows",
            "mlp_columns",
            "attention_rows",
            "buffers",
        ];
        expected.sort_unstable();
        assert_eq!(fields(&planned()), expected);
        let json = serde_json::to_value(planned()).unwrap();
        let first = json["buffers"][0].as_object().unwrap();
        let keys: Vec<&str> = first.keys().map(String::as_str).collect();
        assert_eq!(keys, ["buffer", "bytes", "shape", "turn"]);
        assert_eq!(first["turn"], "always");
    }

    #[test]
    fn a_plan_lists_its_turns_and_their_sums() {
        let shown = text(&planned());
        for line in ["training  arena", "training  all"] {
            assert!(shown.contains(line), "{line:?} is not in {shown}");
        }
        assert!(
            shown
                .lines()
                .any(|l| l.starts_with("training  all") && l.ends_with("2000"))
        );
        assert!(
            shown
                .lines()
                .any(|l| l.contains("largest turn") && l.ends_with("3000"))
        );
    }
}
