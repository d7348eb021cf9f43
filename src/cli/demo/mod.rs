//! `fledge demo`: the story of the robin and the sparrow, told with drawings.

mod anatomy;
mod bird;
mod brush;
mod draw;
mod perch;
mod scene;
mod species;
pub mod story;

use std::path::Path;

use anyhow::Context;
use fledge::progress::Progress;

use super::Outcome;
use super::args::DemoArguments;
use super::config::Config;
use super::run::ThisMachine;

/// Draws the birds, learns them in two tasks, and tells what happens.
pub fn run(
    arguments: &DemoArguments,
    config: &Config,
    progress: &dyn Progress,
) -> anyhow::Result<Outcome> {
    let mut out = std::io::stdout().lock();
    match &arguments.keep {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            let state = folder.join(story::STATE_FILE);
            anyhow::ensure!(
                !state.exists(),
                "{} is there already and the story starts from nothing; remove it or choose another folder",
                state.display()
            );
            tell(folder, config, progress, &mut out)?;
        }
        None => {
            let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
            tell(folder.path(), config, progress, &mut out)?;
        }
    }
    Ok(Outcome::Done)
}

fn tell(
    folder: &Path,
    config: &Config,
    progress: &dyn Progress,
    out: &mut dyn std::io::Write,
) -> anyhow::Result<()> {
    story::tell(&ThisMachine, folder, config, progress, out)
}
