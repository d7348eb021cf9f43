//! The command line: parse ([`args`]), resolve ([`settings`]), run ([`run`](mod@run)), and show
//! ([`output`], [`progress`]). It computes nothing itself.

pub mod args;
pub mod demo;
pub mod eval;
pub mod heap;
pub mod output;
pub mod progress;
pub mod run;
pub mod settings;

use args::{Arguments, Command, ModelCommand, StateCommand};
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

/// Runs one command and writes its result to stdout.
pub fn run(arguments: Arguments) -> anyhow::Result<Outcome> {
    let progress = Terminal::new();
    match arguments.command {
        Command::Model(ModelCommand::Get(get)) => {
            let settings = settings::ModelGet::resolve(get)?;
            emit(&run::model_get(&settings, &progress)?, false)
        }
        Command::Model(ModelCommand::Check(check)) => {
            emit(&run::model_check(&check.file, &progress)?, check.json)
        }
        Command::Learn(learn) => {
            let json = learn.json;
            let settings = settings::Learn::resolve(learn)?;
            emit(&run::learn(&settings, &progress)?, json)
        }
        Command::Plan(plan) => {
            let json = plan.json;
            emit(&run::plan(&settings::Plan::resolve(plan)?)?, json)
        }
        Command::Bench(bench) => {
            let json = bench.json;
            emit(
                &run::bench(&settings::Bench::resolve(bench)?, &progress)?,
                json,
            )
        }
        Command::Score(score) => {
            let json = score.json;
            let settings = settings::Score::resolve(score)?;
            emit(&run::score(&settings, &progress)?, json)
        }
        Command::Classify(classify) => {
            let json = classify.json;
            let settings = settings::Classify::resolve(classify)?;
            emit(&run::classify(&settings, &progress)?, json)
        }
        Command::Forget(forget) => {
            let json = forget.json;
            emit(
                &run::forget(&settings::Forget::resolve(forget), &progress)?,
                json,
            )
        }
        Command::State(StateCommand::Show(show)) => {
            emit(&run::state_show(&show.state.state)?, show.json)
        }
        Command::Eval(eval) => {
            let settings = settings::Eval::resolve(eval)?;
            eval::run(&settings, &progress)
        }
        Command::Demo(demo) => demo::run(&demo, &progress),
    }
}
