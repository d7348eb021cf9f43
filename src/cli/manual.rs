//! The manual pages and completions that packages install, made from the command line's own
//! definition.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

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
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    write_pages(&command, &date(), &pages).with_context(written)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "fledge", &completions)
            .with_context(written)?;
    }
    Ok(Outcome::Done)
}

/// A page for `command` and for each of its subcommands.
fn write_pages(command: &clap::Command, date: &str, folder: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(subcommand, date, folder)?;
    }
    Man::new(command.clone())
        .date(date)
        .source(concat!("fledge ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands")
        .generate_to(folder)
        .map(drop)
}

/// The day of the source, as builds that can be repeated name it, or today.
fn date() -> String {
    let source = env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let time = source.unwrap_or_else(SystemTime::now);
    let mut day = humantime::format_rfc3339_seconds(time).to_string();
    day.truncate("2026-01-31".len());
    day
}
