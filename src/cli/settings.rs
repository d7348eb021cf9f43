//! Settings that are complete and checked before any work begins. What only the model or the
//! state file can decide stays an `Option` here and is resolved where those are read.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fledge::state;
use fledge::vit::store::user_home;

use super::args::{
    AdaptBlocks, ClassifyArguments, ForgetArguments, LearnArguments, ModelGetArguments,
    ScoreArguments,
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
    pub rank: Option<usize>,
    pub epochs: Option<NonZeroUsize>,
    pub instant: bool,
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
            rank: arguments.rank,
            epochs: arguments.epochs,
            instant: arguments.instant,
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
            epochs: None,
            instant: false,
            seed: 1,
            threads: cores(),
        })
    }
}

#[derive(Debug, Clone)]
pub struct Score {
    pub home: PathBuf,
    pub task: PathBuf,
    pub state: PathBuf,
}

impl Score {
    pub fn resolve(arguments: ScoreArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            task: task_folder(arguments.task)?,
            state: arguments.state.state,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Classify {
    pub home: PathBuf,
    pub images: Vec<PathBuf>,
    pub state: PathBuf,
    pub top: NonZeroUsize,
}

impl Classify {
    pub fn resolve(arguments: ClassifyArguments) -> anyhow::Result<Self> {
        Ok(Self {
            home: user_home()?,
            images: arguments.images,
            state: arguments.state.state,
            top: arguments.top,
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
