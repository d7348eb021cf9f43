//! The command `fledge`: reads the command line, hands it to [`cli`], and turns the outcome into
//! an exit code: 0 when everything asked for was done, 2 for bad usage, 1 otherwise.

#![forbid(unsafe_code)]

mod cli;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::memory::keep_one_heap_under_a_limit();
    let arguments = cli::args::Arguments::parse_from(cli::args::as_called(std::env::args_os()));
    match cli::run(arguments) {
        Ok(cli::Outcome::Done) => ExitCode::SUCCESS,
        Ok(cli::Outcome::Partly) => ExitCode::FAILURE,
        // Whoever was reading has read enough: `fledge score … | head -1` is no failure.
        Err(error) if error.is::<cli::output::OutputClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr leaves nowhere to complain; the exit code still tells.
            let told = cli::output::told(&error);
            let _ = writeln!(
                std::io::stderr(),
                "error: {}",
                cli::output::printable(&told)
            );
            match error.is::<cli::BadUsage>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}
