//! Each command on the library: settings in, an answer out.

use std::path::Path;

use anyhow::bail;
use fledge::progress::Progress;

use super::demo::story::Board;
use super::output::{
    ClassifyReport, LearnReport, ModelCheckReport, ModelGetReport, ScoreReport, StateReport,
};
use super::settings;

pub fn model_get(_: &settings::ModelGet, _: &dyn Progress) -> anyhow::Result<ModelGetReport> {
    bail!("this build of fledge cannot import models")
}

pub fn model_check(_: &Path, _: &dyn Progress) -> anyhow::Result<ModelCheckReport> {
    bail!("this build of fledge cannot import models")
}

pub fn learn(_: &settings::Learn, _: &dyn Progress) -> anyhow::Result<LearnReport> {
    bail!("this build of fledge cannot learn")
}

pub fn score(_: &settings::Score, _: &dyn Progress) -> anyhow::Result<ScoreReport> {
    bail!("this build of fledge cannot classify")
}

pub fn classify(_: &settings::Classify, _: &dyn Progress) -> anyhow::Result<ClassifyReport> {
    bail!("this build of fledge cannot classify")
}

pub fn state_show(_: &Path) -> anyhow::Result<StateReport> {
    bail!("this build of fledge cannot read state files")
}

/// The machine fledge runs on.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;

impl Board for ThisMachine {
    fn get_model(
        &self,
        settings: &settings::ModelGet,
        progress: &dyn Progress,
    ) -> anyhow::Result<ModelGetReport> {
        model_get(settings, progress)
    }

    fn learn(
        &self,
        settings: &settings::Learn,
        progress: &dyn Progress,
    ) -> anyhow::Result<LearnReport> {
        learn(settings, progress)
    }

    fn score(
        &self,
        settings: &settings::Score,
        progress: &dyn Progress,
    ) -> anyhow::Result<ScoreReport> {
        score(settings, progress)
    }

    fn classify(
        &self,
        settings: &settings::Classify,
        progress: &dyn Progress,
    ) -> anyhow::Result<ClassifyReport> {
        classify(settings, progress)
    }
}
