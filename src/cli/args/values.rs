//! What a word of the command line may be.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use fledge::vit::Preprocessing;

/// A path that the environment may give.
pub(super) fn file(name: OsString) -> Result<PathBuf, &'static str> {
    match name.is_empty() {
        true => Err("expected a file; unset the environment variable if it is empty"),
        false => Ok(name.into()),
    }
}

pub(super) fn rate(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.0..=1.0).contains(rate))
        .ok_or_else(|| "expected a rate from 0 to 1, such as 0.05".to_owned())
}

/// More than any board has, and as many as start in no time.
pub const MOST_THREADS: usize = 256;
/// Pixels. Attention takes memory by the fourth power of them.
pub const MOST_PIXELS: usize = 1024;
/// Beyond any use, and few enough to be counted with.
pub(super) const MOST_EPOCHS: usize = 10_000;
/// The same of runs of a method.
pub(super) const MOST_SEEDS: usize = 1000;
/// What a task has to learn from at most, to plan for it.
pub(super) const MOST_IMAGES: usize = 1 << 24;

/// A number from 1 to `MOST`.
pub fn up_to<const MOST: usize>(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|number: &NonZeroUsize| number.get() <= MOST)
        .ok_or_else(|| format!("expected a number from 1 to {MOST}"))
}

/// Rank of what a task adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Chosen while training.
    Auto,
    Fixed(usize),
}

impl Rank {
    /// `None` where it is to be chosen.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Fixed(rank) => Some(rank),
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(rank) => rank.fmt(f),
        }
    }
}

impl FromStr for Rank {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(rank @ 1..=64)) => Ok(Self::Fixed(rank)),
            _ => Err("expected \"auto\" or a rank from 1 to 64".to_owned()),
        }
    }
}

pub(super) fn finite(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|x: &f32| x.is_finite() && *x >= 0.0)
        .ok_or_else(|| "expected a number from 0 up".to_owned())
}

/// Which blocks get adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdaptBlocks {
    All,
    /// This many, counted from the last.
    Last(NonZeroUsize),
}

impl fmt::Display for AdaptBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Last(blocks) => blocks.fmt(f),
        }
    }
}

impl From<AdaptBlocks> for fledge::AdaptBlocks {
    fn from(asked: AdaptBlocks) -> Self {
        match asked {
            AdaptBlocks::All => Self::All,
            AdaptBlocks::Last(blocks) => Self::Last(blocks.get()),
        }
    }
}

impl FromStr for AdaptBlocks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse()
            .map(Self::Last)
            .map_err(|_| "expected \"all\" or a number of blocks from 1 up".to_owned())
    }
}

/// A size in bytes: a number alone, or with KiB, MiB, GiB, kB, MB or GB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(pub usize);

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let scale: f64 = match unit.trim() {
            "" | "B" => 1.0,
            "KiB" | "K" => 1024.0,
            "MiB" | "M" => 1024.0 * 1024.0,
            "GiB" | "G" => 1024.0 * 1024.0 * 1024.0,
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            _ => return Err("the unit is none of KiB, MiB, GiB, kB, MB and GB".to_owned()),
        };
        match number.parse::<f64>() {
            Ok(number) if number > 0.0 && number * scale <= 1e15 => {
                Ok(Self((number * scale).ceil() as usize))
            }
            _ => Err("expected a size such as 8MiB".to_owned()),
        }
    }
}

/// The usual ways of preprocessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Normalisation {
    Imagenet,
    Half,
}

impl From<Normalisation> for Preprocessing {
    fn from(normalisation: Normalisation) -> Self {
        match normalisation {
            Normalisation::Imagenet => Self::IMAGENET,
            Normalisation::Half => Self::HALF,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapted_blocks_are_a_count_or_all() {
        assert_eq!("all".parse(), Ok(AdaptBlocks::All));
        assert_eq!(
            "4".parse(),
            Ok(AdaptBlocks::Last(NonZeroUsize::new(4).unwrap()))
        );
        for wrong in ["0", "-1", "some", ""] {
            assert!(wrong.parse::<AdaptBlocks>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_rejection_rate_lies_between_0_and_1() {
        assert_eq!(rate("0"), Ok(0.0));
        assert_eq!(rate("0.05"), Ok(0.05));
        for wrong in ["-0.1", "5", "NaN", "some"] {
            assert!(rate(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_budget_is_a_number_of_bytes_with_or_without_a_unit() {
        for (text, bytes) in [
            ("4194304", 4 << 20),
            ("4MiB", 4 << 20),
            ("0.5 GiB", 512 << 20),
            ("9.5MB", 9_500_000),
            ("64KiB", 65536),
        ] {
            assert_eq!(text.parse(), Ok(Budget(bytes)), "{text}");
        }
        for wrong in ["", "MiB", "-4MiB", "4 mebibytes", "1e3", "0", "99999999GiB"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong:?}");
        }
    }
}
