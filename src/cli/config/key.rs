//! The keys of a configuration file. Each is a flag's long name with `_` for `-`, or an environment
//! variable's, and takes what the flag takes.

use std::path::Path;
use std::str::FromStr;

use fledge::Setup;
use fledge::board::Ceiling;
use fledge::camera::Source;
use fledge::train::plan::DEFAULT_BUDGET;
use fledge::vit::store::Description;

use crate::cli::args::{AdaptBlocks, Budget, MOST_PIXELS, MOST_THREADS, Rank, up_to};
use crate::cli::settings::cores;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Threads,
    Resolution,
    AdaptBlocks,
    Rank,
    Prompts,
    Budget,
    Camera,
    State,
    Home,
    Model,
    ThermalCeiling,
}

impl Key {
    pub const ALL: [Self; 11] = [
        Self::Threads,
        Self::Resolution,
        Self::AdaptBlocks,
        Self::Rank,
        Self::Prompts,
        Self::Budget,
        Self::Camera,
        Self::State,
        Self::Home,
        Self::Model,
        Self::ThermalCeiling,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Resolution => "resolution",
            Self::AdaptBlocks => "adapt_blocks",
            Self::Rank => "rank",
            Self::Prompts => "prompts",
            Self::Budget => "budget",
            Self::Camera => "camera",
            Self::State => "state",
            Self::Home => "home",
            Self::Model => "model",
            Self::ThermalCeiling => "thermal_ceiling",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    /// The name that `wrong` was probably meant to be.
    pub fn nearest(wrong: &str) -> Option<&'static str> {
        Self::ALL
            .into_iter()
            .map(|key| (strsim::jaro_winkler(wrong, key.name()), key.name()))
            .filter(|&(likeness, _)| likeness > 0.75)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name)
    }

    /// The environment variable that goes before a file.
    pub fn variable(self) -> Option<&'static str> {
        match self {
            Self::State => Some("FLEDGE_STATE"),
            Self::Home => Some("FLEDGE_HOME"),
            _ => None,
        }
    }

    /// Whether it says where files are, rather than what the machine can do.
    pub fn is_path(self) -> bool {
        matches!(self, Self::State | Self::Home)
    }

    /// What holds where nothing is said; the platform's folder for [`Key::Home`] is not known here.
    pub fn default(self) -> String {
        let setup = Setup::default();
        match self {
            Self::Threads => cores().to_string(),
            Self::Resolution => setup.resolution.to_string(),
            Self::AdaptBlocks => match setup.adapt_blocks {
                fledge::AdaptBlocks::All => "all".to_owned(),
                fledge::AdaptBlocks::Last(blocks) => blocks.to_string(),
            },
            Self::Rank => Rank::Auto.to_string(),
            Self::Prompts => setup.prompts.to_string(),
            Self::Budget => format!("{}MiB", DEFAULT_BUDGET >> 20),
            Self::State => "./learned.fledge".to_owned(),
            Self::Model => Description::default_model().name,
            Self::Camera | Self::Home | Self::ThermalCeiling => "none".to_owned(),
        }
    }

    /// Holds `text` to the rule of the flag; what is expected instead.
    pub fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Threads => up_to::<MOST_THREADS>(text).map(drop),
            Self::Resolution => up_to::<MOST_PIXELS>(text).map(drop),
            Self::Rank => is::<Rank>(text),
            Self::Prompts => match text.parse::<usize>() {
                Ok(0..=64) => Ok(()),
                _ => Err("expected a number from 0 to 64".to_owned()),
            },
            Self::AdaptBlocks => is::<AdaptBlocks>(text),
            Self::Budget => is::<Budget>(text),
            Self::Camera => is::<Source>(text),
            Self::ThermalCeiling => is::<Ceiling>(text),
            Self::State | Self::Home | Self::Model => match text {
                "" => Err("expected a name".to_owned()),
                _ => Ok(()),
            },
        }
    }

    /// `value` with a path in it that is relative taken from `folder`.
    pub fn relative_to(self, folder: &Path, value: String) -> String {
        let joined = |path: &str| folder.join(path).to_string_lossy().into_owned();
        match (self, value.strip_prefix("dir:")) {
            (Self::State | Self::Home, _) => joined(&value),
            (Self::Camera, Some(path)) => format!("dir:{}", joined(path)),
            _ => value,
        }
    }
}

fn is<T: FromStr<Err: ToString>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|e| e.to_string())
}
