//! The manual pages and completions that packages install, made from the command line's own
//! definition.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Outcome;
use super::args::Arguments;

/// Writes `man/*.1` and `completions/{fledge.bash,_fledge,fledge.fish}` below `folder`.
pub fn write(folder: &Path) -> anyhow::Result<Outcome> {
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&pages, &completions] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let written = || format!("cannot write below {}", folder.display());
    let command = Arguments::command();
    clap_mangen::generate_to(command.clone(), &pages).with_context(written)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "fledge", &completions)
            .with_context(written)?;
    }
    Ok(Outcome::Done)
}
