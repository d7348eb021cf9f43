//! Settings that are complete and checked before any work begins. What only the model or the
//! state file can decide stays an `Option` here and is resolved where those are read.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use fledge::LearnSettings;
use fledge::board::Ceiling;
use fledge::camera::Source;
use fledge::eval::{EvalSettings, Variant};
use fledge::learner::Setup;
use fledge::state;
use fledge::train::plan;
use fledge::vit::Preprocessing;

use super::BadUsage;
use super::args::{
    AdaptBlocks, BenchArguments, Budget, ClassifyArguments, EvalArguments, ForgetArguments,
    LearnArguments, ModelGetArguments, PlanArguments, Rank, ScoreArguments, WatchArguments,
};
use super::config::{Config, Key};

#[derive(Debug, Clone)]
pub struct ModelGet {
    pub home: PathBuf,
    /// `None` downloads the default model.
    pub from: Option<PathBuf>,
    /// `None` takes the file's.
    pub name: Option<String>,
    pub preprocessing: Option<Preprocessing>,
}

impl ModelGet {
    pub fn resolve(arguments: ModelGetArguments, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            home: config.home()?,
            from: arguments.from,
            name: arguments.name,
            preprocessing: arguments.normalise.map(Preprocessing::from),
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
    pub budget: plan::Budget,
    pub seed: u64,
    pub threads: NonZeroUsize,
    pub preferred: NewState,
}

/// What the configuration wants for a state file that is begun. One that exists keeps to what it
/// was begun with; only a flag that says otherwise is an error.
#[derive(Debug, Clone, Default)]
pub struct NewState {
    pub model: Option<String>,
    /// Pixels.
    pub resolution: Option<NonZeroUsize>,
    pub adapt_blocks: Option<AdaptBlocks>,
    pub prompts: Option<usize>,
}

impl NewState {
    fn of(config: &Config) -> Self {
        Self {
            model: config.get(Key::Model),
            resolution: config.get(Key::Resolution),
            adapt_blocks: config.get(Key::AdaptBlocks),
            prompts: config.get(Key::Prompts),
        }
    }
}

impl Learn {
    pub fn resolve(arguments: LearnArguments, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            home: config.home()?,
            task: task_folder(arguments.task)?,
            state: config.state(arguments.state.state),
            model: arguments.model,
            resolution: arguments.resolution,
            adapt_blocks: arguments.adapt_blocks,
            rank: rank(arguments.rank, config),
            prompts: arguments.prompts,
            epochs: arguments.epochs,
            instant: arguments.instant,
            budget: budget(arguments.budget, config),
            seed: arguments.seed,
            threads: threads(arguments.threads, config),
            preferred: NewState::of(config),
        })
    }

    /// Everything at its default that does not depend on the machine.
    pub fn defaults(task: &Path, state: &Path, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            home: config.home()?,
            task: task_folder(task.to_path_buf())?,
            state: state.to_path_buf(),
            model: None,
            resolution: None,
            adapt_blocks: None,
            rank: None,
            prompts: None,
            epochs: None,
            instant: false,
            budget: budget(None, config),
            seed: 1,
            threads: threads(None, config),
            preferred: NewState::default(),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub home: PathBuf,
    /// The state whose next task is planned; `None` plans a new one's first, made as these say.
    pub state: Option<PathBuf>,
    pub model: Option<String>,
    /// Pixels.
    pub resolution: Option<NonZeroUsize>,
    pub adapt_blocks: Option<AdaptBlocks>,
    pub prompts: Option<usize>,
    pub rank: Option<usize>,
    pub classes: usize,
    pub images: usize,
    pub budget: plan::Budget,
    pub threads: NonZeroUsize,
}

impl Plan {
    pub fn resolve(arguments: PlanArguments, config: &Config) -> anyhow::Result<Self> {
        let preferred = NewState::of(config);
        Ok(Self {
            home: config.home()?,
            state: arguments.state,
            model: arguments.model.or(preferred.model),
            resolution: arguments.resolution.or(preferred.resolution),
            adapt_blocks: arguments.adapt_blocks.or(preferred.adapt_blocks),
            prompts: arguments.prompts.or(preferred.prompts),
            rank: arguments.rank,
            classes: arguments.classes.get(),
            images: arguments.images.get(),
            budget: budget(arguments.budget, config),
            threads: threads(arguments.threads, config),
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
    pub fn resolve(arguments: BenchArguments, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            home: config.home()?,
            model: arguments.model.or_else(|| config.get(Key::Model)),
            threads: threads(arguments.threads, config),
            budget: budget(arguments.budget, config).bytes(),
            seconds: arguments.seconds.get(),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Score {
    pub home: PathBuf,
    pub threads: NonZeroUsize,
    pub task: PathBuf,
    pub state: PathBuf,
    /// Share of known images that may be called unknown; 0 calls none so.
    pub reject: f32,
}

impl Score {
    pub fn resolve(arguments: ScoreArguments, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            home: config.home()?,
            threads: threads(None, config),
            task: task_folder(arguments.task)?,
            state: config.state(arguments.state.state),
            reject: arguments.reject.reject,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Classify {
    pub home: PathBuf,
    pub threads: NonZeroUsize,
    pub images: Vec<PathBuf>,
    pub state: PathBuf,
    pub top: NonZeroUsize,
    /// Share of known images that may be called unknown; 0 calls none so.
    pub reject: f32,
}

impl Classify {
    pub fn resolve(arguments: ClassifyArguments, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            home: config.home()?,
            threads: threads(None, config),
            images: arguments.images,
            state: config.state(arguments.state.state),
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
    pub fn resolve(arguments: ForgetArguments, config: &Config) -> Self {
        Self {
            state: config.state(arguments.state.state),
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
    pub fn resolve(mut arguments: EvalArguments, config: &Config) -> anyhow::Result<Self> {
        arguments.data = task_folder(arguments.data)?;
        let json = arguments.json.clone().map(|out| match out {
            out if out.as_os_str() == "-" => Destination::Stdout,
            out => Destination::File(out),
        });
        if arguments.resume && json == Some(Destination::Stdout) {
            let told = "--resume goes on from a file; give --json the name of one";
            return Err(BadUsage::new(told).into());
        }
        Ok(Self {
            home: config.home()?,
            model: arguments.model.clone(),
            threads: threads(arguments.threads, config),
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
            seeds: arguments.seeds.get() as u64,
            order_seed: arguments.order_seed,
            variants: variants(arguments, depth),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Watch {
    pub home: PathBuf,
    pub threads: NonZeroUsize,
    pub camera: Source,
    pub state: PathBuf,
    pub top: NonZeroUsize,
    /// Share of known images that may be called unknown; 0 calls none so.
    pub reject: f32,
    /// Whether a state that cannot be used is waited for at the start, too.
    pub wait: bool,
    pub frames: Option<NonZeroUsize>,
    /// Least time between two pictures.
    pub every: Duration,
    /// Longest time without a picture from a camera program.
    pub patience: Duration,
    pub ceiling: Option<Ceiling>,
    pub json: bool,
}

impl Watch {
    pub fn resolve(arguments: WatchArguments, config: &Config) -> anyhow::Result<Self> {
        let camera = arguments.camera.or_else(|| config.get(Key::Camera));
        Ok(Self {
            home: config.home()?,
            threads: threads(None, config),
            camera: camera.ok_or_else(|| BadUsage::new(
                "no camera is configured; name one with --camera, or under camera in a configuration file",
            ))?,
            state: config.state(arguments.state.state),
            top: arguments.top,
            reject: arguments.reject.reject,
            wait: arguments.wait,
            frames: arguments.frames,
            every: arguments.every,
            patience: arguments.patience,
            ceiling: config.get(Key::ThermalCeiling),
            json: arguments.json,
        })
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
        settings.fit.set_epochs(epochs.get());
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
    vary(&mut variants, "hold", &arguments.hold, |v, &hold| {
        v.settings.fit.hold = hold;
    });
    vary(
        &mut variants,
        "later-blend",
        &arguments.later_blend,
        |v, &share| {
            v.settings.fit.later_blend = share;
        },
    );
    vary(&mut variants, "stand-ins", &arguments.stand_ins, |v, &n| {
        v.settings.stand_ins = n;
    });
    vary(&mut variants, "guard", &arguments.guard, |v, &guard| {
        v.settings.fit.guard = guard;
    });
    vary(
        &mut variants,
        "token-drop",
        &arguments.token_drop,
        |v, &share| {
            v.settings.fit.token_drop = share;
        },
    );
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
        for (at, value) in values.iter().enumerate() {
            // A value that is listed twice would be two variants of one name.
            let name = value.to_string();
            if values[..at].iter().any(|other| other.to_string() == name) {
                continue;
            }
            let mut variant = variant.clone();
            if values.len() > 1 {
                variant.name = format!("{} {what}={value}", variant.name);
            }
            set(&mut variant, value);
            variants.push(variant);
        }
    }
}

/// Rank of what a task adds: the flag's or the configured one; `None` chooses it while training.
fn rank(asked: Option<Rank>, config: &Config) -> Option<usize> {
    asked
        .or_else(|| config.get(Key::Rank))
        .and_then(Rank::fixed)
}

/// What training may take: the flag's bytes and no more, or the configured or default ones while what is known
/// leaves enough of them.
fn budget(asked: Option<Budget>, config: &Config) -> plan::Budget {
    match (asked, config.get(Key::Budget)) {
        (Some(Budget(bytes)), _) => plan::Budget::Fixed(bytes),
        (None, Some(Budget(bytes))) => plan::Budget::Growing(bytes),
        (None, None) => plan::Budget::default(),
    }
}

/// Threads to work with: the flag's, the configured number, or one a core.
pub fn threads(asked: Option<NonZeroUsize>, config: &Config) -> NonZeroUsize {
    asked
        .or_else(|| config.get(Key::Threads))
        .unwrap_or_else(cores)
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

pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
