//! `fledge eval`: runs a comparison, keeps every finished run, and shows the figures.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use fledge::eval::{EvalReport, evaluate, plot};
use fledge::learner::Learner;
use fledge::vit::store::{Description, ModelStore};

use super::output::{Report, emit};
use super::progress::Terminal;
use super::settings::{Destination, Eval};
use super::{Outcome, heap};

pub fn run(settings: &Eval, progress: &Terminal) -> anyhow::Result<Outcome> {
    progress.cancel_on_interrupt()?;
    let name = settings
        .model
        .clone()
        .unwrap_or_else(|| Description::default_model().name);
    let weights = ModelStore::at(&settings.home).open(Some(&name))?;
    let file = match &settings.json {
        Some(Destination::File(file)) => Some(file.as_path()),
        _ => None,
    };
    let earlier = match file {
        Some(file) if settings.resume && file.exists() => Some(read(file)?),
        _ => None,
    };
    let depth = weights.geometry().depth;
    let comparison = settings.comparison(depth);
    let setup = &comparison.variants[0].setup;
    let mut learner = Learner::new(weights, &name, setup, settings.threads.get())?;
    let mut kept = Ok(());
    let report = evaluate(
        &mut learner,
        &comparison,
        earlier,
        Some(&heap::Counted),
        progress,
        &mut |report| {
            if let (Some(file), Ok(())) = (file, &kept) {
                kept = write(file, report);
            }
        },
    )?;
    kept?;
    if let Some(file) = file {
        write(file, &report)?;
    }
    // The figures are shown even where the picture fails.
    let drawn = settings
        .plot
        .as_deref()
        .map_or(Ok(()), |file| draw(file, &report));
    let outcome = emit(
        &Comparison {
            report: &report,
            names: comparison
                .variants
                .iter()
                .map(|variant| variant.name.as_str())
                .collect(),
        },
        settings.json == Some(Destination::Stdout),
    )?;
    drawn.map(|()| outcome)
}

fn draw(file: &Path, report: &EvalReport) -> anyhow::Result<()> {
    fs::write(file, plot(report)?)
        .with_context(|| format!("cannot write the picture to {}", file.display()))
}

fn read(file: &Path) -> anyhow::Result<EvalReport> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is no report of an evaluation; leave --resume out or name another file",
            file.display()
        )
    })
}

/// Replaces the report in one step: an interruption leaves the one before.
fn write(file: &Path, report: &EvalReport) -> anyhow::Result<()> {
    let failed = || format!("cannot write the report to {}", file.display());
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // As any new file, where a temporary one would be for its owner alone.
    let mut temporary = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(failed)?;
    serde_json::to_writer_pretty(&mut temporary, report).with_context(failed)?;
    temporary.write_all(b"\n").with_context(failed)?;
    temporary.persist(file).with_context(failed)?;
    Ok(())
}

/// A report, and its methods in the order they were asked for.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Comparison<'a> {
    report: &'a EvalReport,
    #[serde(skip)]
    names: Vec<&'a str>,
}

impl Report for Comparison<'_> {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let report = self.report;
        writeln!(
            out,
            "{} on {}: {} tasks, {} at {} pixels, mean and deviation over seeds",
            report.protocol, report.data, report.tasks, report.model, report.resolution
        )?;
        let width = self.names.iter().map(|name| name.len()).max().unwrap_or(0);
        writeln!(
            out,
            "{:width$}  {:>13}  {:>13}  {:>10}  {:>12}  {:>12}  {:>8}  {:>5}",
            "method",
            "Acc %",
            "AAA %",
            "forgetting",
            "numbers/task",
            "bytes/task",
            "seconds",
            "seeds"
        )?;
        for &name in &self.names {
            let Some(method) = report.methods.get(name) else {
                continue;
            };
            let aaa = match (method.aaa, method.aaa_std) {
                (Some(aaa), Some(std)) => format!("{aaa:.2} ± {std:.2}"),
                _ => "-".to_owned(),
            };
            writeln!(
                out,
                "{name:width$}  {:>13}  {aaa:>13}  {:>10.2}  {:>12.0}  {:>12.0}  {:>8.1}  {:>5}",
                format!("{:.2} ± {:.2}", method.acc, method.acc_std),
                // Rounding leaves a negative nothing, which would read as a gain.
                (100.0 * method.forgetting).round() / 100.0 + 0.0,
                method.parameters_per_task,
                method.bytes_per_task,
                method.seconds,
                method.runs.len(),
            )?;
        }
        Ok(())
    }

    fn shortfalls(&self) -> Vec<String> {
        match self.report.complete {
            true => Vec::new(),
            false => vec![
                "stopped before every run was finished; --resume with the same --json file goes on"
                    .to_owned(),
            ],
        }
    }
}
