//! What an evaluation found, as it is written to disk and read back to go on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::metrics::{Figures, deviation, mean};

/// One sequence of tasks learned by one method with one seed. Percentages are 0 to 100.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub seed: u64,
    /// Row t: accuracy on each task seen so far, right after learning task t.
    pub matrix: Vec<Vec<f64>>,
    /// Test images of each task.
    pub images: Vec<usize>,
    /// Numbers each task added to adapters, prompts and trained heads.
    pub parameters: Vec<usize>,
    /// Bytes each task added to what is kept.
    pub bytes: Vec<usize>,
    /// Rank of what each task added; `None` where it added nothing.
    pub ranks: Vec<Option<usize>>,
    /// Learning and classifying, without the frozen prefix, which all methods share.
    pub seconds: f64,
    /// Most heap bytes in use at once while learning, beyond what was in use before.
    pub peak_training_bytes: Option<usize>,
    /// Tells the settings, the order asked for and the images from others; `None` in reports of before.
    #[serde(default)]
    pub made_with: Option<String>,
}

impl Run {
    /// Whether it is what a run over `tasks` tasks leaves: a row a task that is one longer each,
    /// or a single one of all tasks, and every percentage one.
    fn is_sound(&self, tasks: usize) -> bool {
        let at_once = self.matrix.len() == 1;
        let whole = self.images.len() == tasks && (at_once || self.matrix.len() == tasks);
        let mut rows = self.matrix.iter().enumerate();
        whole
            && rows.all(|(task, row)| {
                row.len() == if at_once { tasks } else { task + 1 }
                    && row.iter().all(|percent| (0.0..=100.0).contains(percent))
            })
    }
}

/// A method over all its seeds: means, and sample deviations where a name ends in `_std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodReport {
    pub acc: f64,
    pub acc_std: f64,
    /// `None` for a method that learns everything at once.
    pub aaa: Option<f64>,
    pub aaa_std: Option<f64>,
    pub forgetting: f64,
    pub forgetting_std: f64,
    /// Mean over the seeds of the runs' matrices.
    pub matrix: Vec<Vec<f64>>,
    pub parameters_per_task: f64,
    pub bytes_per_task: f64,
    pub seconds: f64,
    pub peak_training_bytes: Option<usize>,
    /// What the means are over.
    pub runs: Vec<Run>,
}

impl MethodReport {
    /// The means over `runs`; `None` without any.
    pub fn of(runs: Vec<Run>) -> Option<Self> {
        let figures: Vec<Figures> = runs
            .iter()
            .map(|run| Figures::of(&run.matrix, &run.images))
            .collect();
        let acc: Vec<f64> = figures.iter().map(|f| f.acc).collect();
        let forgetting: Vec<f64> = figures.iter().map(|f| f.forgetting).collect();
        let aaa: Option<Vec<f64>> = figures.iter().map(|f| f.aaa).collect();
        let first = runs.first()?;
        let matrix = (0..first.matrix.len())
            .map(|t| {
                let width = first.matrix[t].len();
                (0..width)
                    .map(|k| {
                        let cells: Vec<f64> = runs
                            .iter()
                            .filter_map(|run| run.matrix.get(t)?.get(k).copied())
                            .collect();
                        mean(&cells)
                    })
                    .collect()
            })
            .collect();
        let per_task = |counts: fn(&Run) -> &Vec<usize>| {
            let all: Vec<f64> = runs
                .iter()
                .flat_map(|run| counts(run).iter().map(|&n| n as f64))
                .collect();
            mean(&all)
        };
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        Some(Self {
            acc: mean(&acc),
            acc_std: deviation(&acc),
            aaa: aaa.as_deref().map(mean),
            aaa_std: aaa.as_deref().map(deviation),
            forgetting: mean(&forgetting),
            forgetting_std: deviation(&forgetting),
            matrix,
            parameters_per_task: per_task(|run| &run.parameters),
            bytes_per_task: per_task(|run| &run.bytes),
            seconds: mean(&seconds),
            peak_training_bytes: runs.iter().filter_map(|run| run.peak_training_bytes).max(),
            runs,
        })
    }
}

/// Everything an evaluation was asked for and has found so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    pub protocol: String,
    /// The folder as it was given.
    pub data: String,
    pub tasks: usize,
    pub seeds: u64,
    pub order_seed: u64,
    /// Pixels.
    pub resolution: usize,
    pub model: String,
    /// What identifies the model's weights.
    pub model_hash: String,
    pub threads: usize,
    /// Whether every run that was asked for has finished.
    pub complete: bool,
    /// Files of the data that could not be used, each with why.
    #[serde(default)]
    pub skipped: Vec<String>,
    pub methods: BTreeMap<String, MethodReport>,
}

/// What tells one comparison from another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {theirs} and not {ours}")]
pub struct Difference {
    /// "tasks" or "model".
    pub what: &'static str,
    pub theirs: String,
    pub ours: String,
}

impl EvalReport {
    /// What keeps the runs in `self` from belonging to the same comparison as those of `other`
    /// would, if anything does.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let model = |report: &Self| format!("{} ({})", report.model, report.model_hash);
        let pairs = |report: &Self| {
            [
                ("protocol", report.protocol.clone()),
                ("data", report.data.clone()),
                ("tasks", report.tasks.to_string()),
                ("order seed", report.order_seed.to_string()),
                ("resolution", report.resolution.to_string()),
                ("model", model(report)),
                ("threads", report.threads.to_string()),
            ]
        };
        let mut both = pairs(self).into_iter().zip(pairs(other));
        let ((what, theirs), (_, ours)) = both.find(|(theirs, ours)| theirs != ours)?;
        Some(Difference { what, theirs, ours })
    }

    /// Whether its runs are what an evaluation leaves, as in what was not changed by hand.
    pub fn is_sound(&self) -> bool {
        self.methods.values().all(|method| {
            let seeds: BTreeSet<u64> = method.runs.iter().map(|run| run.seed).collect();
            seeds.len() == method.runs.len()
                && method.runs.iter().all(|run| run.is_sound(self.tasks))
        })
    }

    /// How many runs have finished.
    pub fn runs(&self) -> usize {
        self.methods.values().map(|method| method.runs.len()).sum()
    }

    /// The finished run of a method with a seed.
    pub fn run(&self, method: &str, seed: u64) -> Option<&Run> {
        let runs = &self.methods.get(method)?.runs;
        runs.iter().find(|run| run.seed == seed)
    }
}
