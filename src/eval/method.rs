//! The methods that can be compared, by name.

use std::fmt;
use std::str::FromStr;

use crate::learner::{LearnSettings, Setup};

/// A way to learn a sequence of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// What `fledge learn` does.
    FmLora,
    /// The same head and taps on the frozen features.
    Frozen,
    /// One task of everything.
    Joint,
    /// Adapters and a linear head trained on one task after another, nothing kept apart.
    Finetune,
    /// A fresh pair A, B every task, summed (Hu et al., arXiv 2106.09685), linear head.
    Lora,
    /// Directions of earlier tasks kept, their magnitudes learned on (SD-LoRA, Wu et al., arXiv
    /// 2501.13198), linear head.
    SdLora,
    /// FM-LoRA as published (arXiv 2504.08823): linear head, cross-entropy over the task's own
    /// classes, logits joined, prompts that keep learning.
    FmLoraPublished,
    /// Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796) on the cores in place
    /// of the Gram guard.
    Regularised,
    /// A few exemplars a class, kept as tokens, rehearsed with every task.
    Replay,
    /// Adapters of its own for every task; the head decides which to use.
    PerTask,
}

impl Method {
    pub const ALL: [Self; 10] = [
        Self::FmLora,
        Self::Frozen,
        Self::Joint,
        Self::Finetune,
        Self::Lora,
        Self::SdLora,
        Self::FmLoraPublished,
        Self::Regularised,
        Self::Replay,
        Self::PerTask,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::FmLora => "fm-lora",
            Self::Frozen => "frozen",
            Self::Joint => "joint",
            Self::Finetune => "finetune",
            Self::Lora => "lora",
            Self::SdLora => "sd-lora",
            Self::FmLoraPublished => "fm-lora-published",
            Self::Regularised => "regularised",
            Self::Replay => "replay",
            Self::PerTask => "per-task",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No method has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no method {0:?}; the methods are {methods}", methods = Method::ALL.map(Method::name).join(", "))]
pub struct UnknownMethod(pub String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| UnknownMethod(name.to_owned()))
    }
}

/// A method with everything that can be varied about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Names it in the report; the method's own name unless something is varied.
    pub name: String,
    pub method: Method,
    pub setup: Setup,
    pub settings: LearnSettings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_name() {
        for method in Method::ALL {
            assert_eq!(method.name().parse(), Ok(method));
        }
        let error = "loar".parse::<Method>().unwrap_err().to_string();
        assert!(
            error.contains("loar") && error.contains("sd-lora"),
            "{error}"
        );
    }
}
