//! Settings that are complete and checked before any work begins. What only the model or the
//! state file can decide stays an `Option` here and is resolved where those are read.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fledge::LearnSettings;
use fledge::eval::{EvalSettings, Variant};
use fledge::learner::Setup;
use fledge::state;
use fledge::train::plan::DEFAULT_BUDGET;
use fledge::vit::store::user_home;

use super::args::{
    AdaptBlocks, BenchArguments, ClassifyArguments, EvalArguments, ForgetArguments, LearnArguments,
    ModelGetArguments, PlanArguments, ScoreArguments,
};

#[derive(Debug, Clone)]
pub struct ModelGet {
    pub home: PathBuf,
    /// `None` downloads the default model.
    pub from: Option<PathBuf>,
}

impl ModelGet {
    pub fn resolve(arguments: ModelGetArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            from: arguments.from,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Learn {
    pub home: PathBuf,
    pub task: PathBuf,
    pub state: PathBuf,
    pub model: Option<String>,
    /// Pixels.
    pub resolution: Option<NonZeroUsize>,
    pub adapt_blocks: Option<AdaptBlocks>,
    /// `None` chooses it while training.
    pub rank: Option<usize>,
    pub prompts: Option<usize>,
    pub epochs: Option<NonZeroUsize>,
    pub instant: bool,
    /// Bytes.
    pub budget: usize,
    pub seed: u64,
    pub threads: NonZeroUsize,
}

impl Learn {
    pub fn resolve(arguments: LearnArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            task: task_folder(arguments.task)?,
            state: arguments.state.state,
            model: arguments.model,
            resolution: arguments.resolution,
            adapt_blocks: arguments.adapt_blocks,
            rank: arguments.rank.fixed(),
            prompts: arguments.prompts,
            epochs: arguments.epochs,
            instant: arguments.instant,
            budget: arguments.budget.0,
            seed: arguments.seed,
            threads: arguments.threads.unwrap_or_else(cores),
        })
    }

    /// Everything at its default.
    pub fn defaults(task: &Path, state: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            task: task_folder(task.to_path_buf())?,
            state: state.to_path_buf(),
            model: None,
            resolution: None,
            adapt_blocks: None,
            rank: None,
            prompts: None,
            epochs: None,
            instant: false,
            budget: DEFAULT_BUDGET,
            seed: 1,
            threads: cores(),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub home: PathBuf,
    pub model: Option<String>,
    /// Pixels.
    pub resolution: Option<NonZeroUsize>,
    pub adapt_blocks: Option<AdaptBlocks>,
    pub prompts: Option<usize>,
    pub rank: Option<usize>,
    pub classes: usize,
    pub images: usize,
    /// Bytes.
    pub budget: usize,
    pub threads: NonZeroUsize,
}

impl Plan {
    pub fn resolve(arguments: PlanArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            model: arguments.model,
            resolution: arguments.resolution,
            adapt_blocks: arguments.adapt_blocks,
            prompts: arguments.prompts,
            rank: arguments.rank,
            classes: arguments.classes.get(),
            images: arguments.images.get(),
            budget: arguments.budget.0,
            threads: arguments.threads.unwrap_or_else(cores),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Bench {
    pub home: PathBuf,
    pub model: Option<String>,
    pub threads: NonZeroUsize,
    /// Bytes.
    pub budget: usize,
    /// Of each measurement.
    pub seconds: usize,
}

impl Bench {
    pub fn resolve(arguments: BenchArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            model: arguments.model,
            threads: arguments.threads.unwrap_or_else(cores),
            budget: arguments.budget.0,
            seconds: arguments.seconds.get(),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Score {
    pub home: PathBuf,
    pub task: PathBuf,
    pub state: PathBuf,
    /// Share of known images that may be called unknown; 0 calls none so.
    pub reject: f32,
}

impl Score {
    pub fn resolve(arguments: ScoreArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            task: task_folder(arguments.task)?,
            state: arguments.state.state,
            reject: arguments.reject.reject,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Classify {
    pub home: PathBuf,
    pub images: Vec<PathBuf>,
    pub state: PathBuf,
    pub top: NonZeroUsize,
    /// Share of known images that may be called unknown; 0 calls none so.
    pub reject: f32,
}

impl Classify {
    pub fn resolve(arguments: ClassifyArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            images: arguments.images,
            state: arguments.state.state,
            top: arguments.top,
            reject: arguments.reject.reject,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Forget {
    pub state: PathBuf,
    pub what: state::Forget,
}

impl Forget {
    pub fn resolve(arguments: ForgetArguments) -> Self {
        Self {
            state: arguments.state.state,
            what: match arguments.task {
                Some(number) => state::Forget::Task(number.get() - 1),
                None => state::Forget::Classes(arguments.classes),
            },
        }
    }
}

/// Where the report of an evaluation goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    File(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Eval {
    pub home: PathBuf,
    pub model: Option<String>,
    pub threads: NonZeroUsize,
    /// What varies from method to method.
    arguments: EvalArguments,
    /// `None` prints a table.
    pub json: Option<Destination>,
    /// Where the picture goes, if one is wanted.
    pub plot: Option<PathBuf>,
    /// Whether to go on from the report that is there already.
    pub resume: bool,
}

impl Eval {
    pub fn resolve(mut arguments: EvalArguments) -> anyhow::Result<Self> {
        arguments.data = task_folder(arguments.data)?;
        let json = arguments.json.clone().map(|out| match out {
            out if out.as_os_str() == "-" => Destination::Stdout,
            out => Destination::File(out),
        });
        if arguments.resume && json == Some(Destination::Stdout) {
            bail!("--resume goes on from a file; give --json the name of one");
        }
        Ok(Self {
            home: user_home()?,
            model: arguments.model.clone(),
            threads: arguments.threads.unwrap_or_else(cores),
            json,
            plot: arguments.plot.clone(),
            resume: arguments.resume,
            arguments,
        })
    }

    /// What to compare, with a model of `depth` blocks.
    pub fn comparison(&self, depth: usize) -> EvalSettings {
        let arguments = &self.arguments;
        EvalSettings {
            protocol: arguments.protocol,
            data: arguments.data.clone(),
            tasks: arguments.tasks.map(NonZeroUsize::get),
            order: arguments.order.clone(),
            seeds: arguments.seeds.get(),
            order_seed: arguments.order_seed,
            variants: variants(arguments, depth),
        }
    }
}

/// Every method with every combination of what is varied, for a model of `depth` blocks.
fn variants(arguments: &EvalArguments, depth: usize) -> Vec<Variant> {
    let mut setup = Setup::for_depth(depth);
    setup.resolution = arguments
        .resolution
        .map_or(setup.resolution, NonZeroUsize::get);
    let mut settings = LearnSettings::default();
    if let Some(epochs) = arguments.epochs {
        settings.fit.epochs = epochs.get();
        settings.fit.core_epochs = epochs.get();
    }
    let mut variants: Vec<Variant> = Vec::new();
    for &method in &arguments.method {
        if variants.iter().any(|variant| variant.method == method) {
            continue;
        }
        variants.push(Variant {
            name: method.to_string(),
            method,
            setup: setup.clone(),
            settings: settings.clone(),
        });
    }
    vary(
        &mut variants,
        "blocks",
        &arguments.adapt_blocks,
        |v, blocks| {
            v.setup.adapt_blocks = (*blocks).into();
        },
    );
    vary(&mut variants, "rank", &arguments.rank, |v, rank| {
        v.settings.rank = rank.fixed();
    });
    vary(
        &mut variants,
        "prompts",
        &arguments.prompts,
        |v, &prompts| {
            v.setup.prompts = prompts;
        },
    );
    vary(&mut variants, "guard", &arguments.guard, |v, &guard| {
        v.settings.fit.guard = guard;
    });
    variants
}

/// Replaces every variant by one for each value; a single value needs no new name.
fn vary<T: std::fmt::Display>(
    variants: &mut Vec<Variant>,
    what: &str,
    values: &[T],
    set: impl Fn(&mut Variant, &T),
) {
    if values.is_empty() {
        return;
    }
    let bare = std::mem::take(variants);
    for variant in bare {
        for value in values {
            let mut variant = variant.clone();
            if values.len() > 1 {
                variant.name = format!("{} {what}={value}", variant.name);
            }
            set(&mut variant, value);
            variants.push(variant);
        }
    }
}

fn task_folder(folder: PathBuf) -> anyhow::Result<PathBuf> {
    match std::fs::metadata(&folder) {
        Ok(found) if found.is_dir() => Ok(folder),
        Ok(_) => bail!(
            "{} is a file; --task takes a folder with one folder of photos a class",
            folder.display()
        ),
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot open the task folder {}; check the path",
                folder.display()
            )
        }),
    }
}

fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
