//! The command line: parse ([`args`]), resolve ([`settings`]), run ([`run`](mod@run)), and show
//! ([`output`], [`progress`]). It computes nothing itself.

pub mod args;
pub mod config;
pub mod demo;
pub mod eval;
pub mod heap;
mod manual;
pub mod memory;
pub mod output;
pub mod progress;
pub mod run;
pub mod settings;
mod watch;

use anyhow::Context;
use args::{Arguments, Command, ConfigCommand, ModelCommand, StateCommand};
use config::{Config, Key};
use fledge::board::{Cooled, Machine};
use fledge::progress::Progress;
use output::emit;
use progress::Terminal;

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was asked for.
    Done,
    /// A usable part of it; what is missing was said on stderr.
    Partly,
}

/// Bad usage that the parser cannot tell: what a configuration file says, or leaves out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUsage(String);

impl BadUsage {
    pub fn new(told: impl Into<String>) -> Self {
        Self(told.into())
    }
}

/// Runs one command and writes its result to stdout.
pub fn run(arguments: Arguments) -> anyhow::Result<Outcome> {
    let machine = Machine::here();
    let config = Config::load(arguments.config.as_deref(), &machine)?;
    let terminal = Terminal::new();
    let cooled = config
        .get(Key::ThermalCeiling)
        .map(|ceiling| Cooled::new(&terminal, machine.thermometer(), ceiling));
    let progress: &dyn Progress = match &cooled {
        Some(cooled) => cooled,
        None => &terminal,
    };
    match arguments.command {
        Command::Model(ModelCommand::Get(get)) => {
            let settings = settings::ModelGet::resolve(get, &config)?;
            emit(&run::model_get(&settings, progress)?, false)
        }
        Command::Model(ModelCommand::Check(check)) => {
            emit(&run::model_check(&check.file, progress)?, check.json)
        }
        Command::Learn(learn) => {
            let json = learn.json;
            let settings = settings::Learn::resolve(learn, &config)?;
            let report = run::learn(&settings, progress)?;
            emit(&report, json).context("the task is learned and saved")
        }
        Command::Plan(plan) => {
            let json = plan.json;
            emit(&run::plan(&settings::Plan::resolve(plan, &config)?)?, json)
        }
        Command::Bench(bench) => {
            let json = bench.json;
            emit(
                &run::bench(&settings::Bench::resolve(bench, &config)?, progress)?,
                json,
            )
        }
        Command::Score(score) => {
            let json = score.json;
            let settings = settings::Score::resolve(score, &config)?;
            emit(&run::score(&settings, progress)?, json)
        }
        Command::Classify(classify) => {
            let json = classify.json;
            let settings = settings::Classify::resolve(classify, &config)?;
            emit(&run::classify(&settings, progress)?, json)
        }
        Command::Forget(forget) => {
            let json = forget.json;
            let settings = settings::Forget::resolve(forget, &config);
            let report = run::forget(&settings, progress)?;
            emit(&report, json).context("what was asked is forgotten, and that is saved")
        }
        Command::State(StateCommand::Show(show)) => {
            let state = config.state(show.state.state);
            emit(&run::state_show(&state)?, show.json)
        }
        Command::Watch(watch) => {
            let settings = settings::Watch::resolve(watch, &config)?;
            watch::run(&settings, &machine, &terminal)
        }
        Command::Config(ConfigCommand::Show(show)) => {
            emit(&output::ConfigReport::of(&config)?, show.json)
        }
        Command::Manual(manual) => manual::write(&manual.folder),
        Command::Eval(eval) => {
            let settings = settings::Eval::resolve(*eval, &config)?;
            eval::run(&settings, &terminal, progress)
        }
        Command::Demo(demo) => demo::run(&demo, &config, progress),
    }
}
