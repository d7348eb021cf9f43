//! `fledge eval`: runs a comparison, keeps every finished run, and shows the figures.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use fledge::Progress;
use fledge::eval::{EvalReport, evaluate, plot};
use fledge::learner::Learner;
use fledge::vit::store::{Description, ModelStore};

use super::output::{Report, count, emit, skipped, told};
use super::progress::Terminal;
use super::settings::{Destination, Eval};
use super::{Outcome, heap};

pub fn run(
    settings: &Eval,
    terminal: &Terminal,
    progress: &dyn Progress,
) -> anyhow::Result<Outcome> {
    terminal.cancel_on_interrupt()?;
    let file = match &settings.json {
        Some(Destination::File(file)) => Some(file.as_path()),
        _ => None,
    };
    let (mut kept, earlier) = match file {
        Some(file) => {
            Kept::open(file, settings.resume).map(|(kept, earlier)| (Some(kept), earlier))?
        }
        None => (None, None),
    };
    let plotted = settings.plot.as_deref();
    plotted.map_or(Ok(()), check_picture)?;
    plotted.map_or(Ok(()), check_writable)?;
    if let (Some(report), Some(picture)) = (file, plotted)
        && whereabouts(report) == whereabouts(picture)
    {
        bail!(
            "the picture would be written over the report in {}; give --plot a file of its own",
            report.display()
        );
    }
    let name = settings
        .model
        .clone()
        .unwrap_or_else(|| Description::default_model().name);
    let weights = ModelStore::at(&settings.home).open(Some(&name))?;
    let depth = weights.geometry().depth;
    let comparison = settings.comparison(depth);
    let setup = &comparison.variants[0].setup;
    let mut learner = Learner::new(weights, &name, setup, settings.threads.get())?;
    let mut unwritten = None;
    let evaluated = evaluate(
        &mut learner,
        &comparison,
        earlier,
        Some(&heap::Counted),
        progress,
        &mut |report| {
            let Some(kept) = &mut kept else { return };
            unwritten = kept.write(report).err().map(|error| {
                progress.warn(&format!("{error:#}; trying again after the next run"));
                report.clone()
            });
        },
    );
    let report = match (evaluated, unwritten) {
        (Ok(report), _) => report,
        (Err(error), unwritten) => {
            let kept = kept.as_mut().zip(unwritten.as_ref());
            let written = kept.map_or(Ok(()), |(kept, report)| kept.write(report));
            return Err(together([error.into()].into_iter().chain(written.err())));
        }
    };
    if report.runs() == 0 {
        bail!("stopped before a first run was finished, so there is nothing to show or to keep");
    }
    // The figures are shown even where files fail, and files written where nothing can be shown.
    let kept = kept.as_mut().map_or(Ok(()), |kept| kept.write(&report));
    let drawn = plotted.map_or(Ok(()), |file| draw(file, &report));
    let shown = emit(
        &Comparison {
            report: &report,
            names: comparison
                .variants
                .iter()
                .map(|variant| variant.name.as_str())
                .collect(),
        },
        settings.json == Some(Destination::Stdout),
    );
    match kept
        .err()
        .into_iter()
        .chain(drawn.err())
        .collect::<Vec<_>>()
    {
        failed if failed.is_empty() => shown,
        failed => Err(together(failed.into_iter().chain(shown.err()))),
    }
}

/// Everything that failed, as one error.
fn together(errors: impl Iterator<Item = anyhow::Error>) -> anyhow::Error {
    let told: Vec<String> = errors.map(|error| told(&error)).collect();
    anyhow!(told.join("; and "))
}

fn draw(file: &Path, report: &EvalReport) -> anyhow::Result<()> {
    replace(file, plot(report)?.as_bytes())
        .map(drop)
        .with_context(|| format!("cannot write the picture to {}", file.display()))
}

/// A picture is only written over another one: a slip of the keyboard should not cost what was learned.
fn check_picture(file: &Path) -> anyhow::Result<()> {
    // What is missing, no regular file or not to be read is another matter.
    let Some(found) = file.metadata().ok().filter(fs::Metadata::is_file) else {
        return Ok(());
    };
    let mut begins = [0; 4];
    let svg = fs::File::open(file).and_then(|mut found| found.read_exact(&mut begins));
    if found.len() > 0 && (svg.is_err() || &begins != b"<svg") {
        bail!(
            "{} is there and is no picture of an evaluation; give --plot another name",
            file.display()
        );
    }
    Ok(())
}

/// The file that reports go to, locked: two evaluations that each write what they know of would undo each
/// other.
struct Kept {
    file: PathBuf,
    /// What lies at `file` now, or did before somebody else put another there.
    lock: fs::File,
}

impl Kept {
    /// Opens or makes `file`, and reads the report that is gone on from.
    fn open(file: &Path, resume: bool) -> anyhow::Result<(Self, Option<EvalReport>)> {
        check_writable(file)?;
        let kept = match file.metadata() {
            // A pipe or a device may wait for ever when opened.
            Ok(found) if !found.is_file() => bail!(
                "{} is there and is no file; give --json the name of a file, or - for stdout",
                file.display()
            ),
            Ok(_) => fs::File::open(file),
            Err(_) => fs::OpenOptions::new().append(true).create(true).open(file),
        };
        let lock = kept.with_context(|| format!("cannot open {}", file.display()))?;
        // Where a file system has no locks, that is left to chance.
        let taken = matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock));
        // Whoever was at work may have put another there in the meantime.
        let same = lock.metadata()?.ino() == fs::metadata(file)?.ino();
        if taken || !same {
            bail!(
                "another evaluation keeps its runs in {}; wait for it, or name another file",
                file.display()
            );
        }
        let file = file.to_owned();
        let kept = Self { file, lock };
        let earlier = earlier(&kept.file, resume)?;
        Ok((kept, earlier))
    }

    fn write(&mut self, report: &EvalReport) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        let failed = || format!("cannot write the report to {}", self.file.display());
        self.lock = replace(&self.file, &text).with_context(failed)?;
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Where no run was finished, what was made to be locked says nothing.
        if self.lock.metadata().is_ok_and(|made| made.len() == 0) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// The report in `file` that is gone on from. What is there already is never written over by
/// runs that did not go on from it.
fn earlier(file: &Path, resume: bool) -> anyhow::Result<Option<EvalReport>> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if text.is_empty() {
        return Ok(None);
    }
    let report: EvalReport = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is no report of an evaluation, and is left as it is; name another file",
            file.display()
        )
    })?;
    if !report.is_sound() {
        bail!(
            "{} has other accuracies than its tasks ask for, so it is no report of an evaluation, and is left as it is; name another file",
            file.display()
        );
    }
    match report.runs() {
        0 => Ok(None),
        _ if resume => Ok(Some(report)),
        runs => bail!(
            "{} holds {} already; add --resume to go on from there, or name another file",
            file.display(),
            count(runs, "finished run", "finished runs")
        ),
    }
}

/// The folder of a file.
fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What tells a file from others, whether it is there yet or not.
fn whereabouts(file: &Path) -> Option<PathBuf> {
    let there = || {
        Some(
            fs::canonicalize(folder_of(file))
                .ok()?
                .join(file.file_name()?),
        )
    };
    fs::canonicalize(file).ok().or_else(there)
}

/// Checks before hours of work that a file could be written.
fn check_writable(file: &Path) -> anyhow::Result<()> {
    match fs::metadata(file) {
        Ok(found) if found.is_dir() => {
            bail!("{} is a folder; name a file", file.display());
        }
        // A pipe or a device.
        Ok(found) if !found.is_file() => return Ok(()),
        _ => {}
    }
    tempfile::NamedTempFile::new_in(folder_of(file))
        .map(drop)
        // The name of the file that was tried says nothing.
        .map_err(|error| io::Error::from(error.kind()))
        .with_context(|| {
            format!(
                "cannot write to {}: choose a folder that is there and may be written to",
                file.display()
            )
        })
}

/// Replaces a file in one step: an interruption leaves the one before. Where `file` is a link, what it leads to is
/// replaced; into a pipe or a device is written. Returns what lies there now, locked if it was replaced.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<fs::File> {
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if file.metadata().is_ok_and(|found| !found.is_file()) {
        let mut there = fs::OpenOptions::new().write(true).open(file)?;
        there.write_all(bytes)?;
        return Ok(there);
    }
    // As any new file, where a temporary one would be for its owner alone.
    let mut temporary = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder_of(file))?;
    // Nobody else knows it yet; where a file system has no locks, that is left to chance.
    let _ = temporary.as_file().try_lock();
    temporary.write_all(bytes)?;
    // Or a power cut may leave an empty file in place of the one before.
    temporary.as_file().sync_all()?;
    Ok(temporary.persist(file)?)
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
        let mut shortfalls = skipped(self.report.skipped.len(), "used");
        if !self.report.complete {
            shortfalls.push(
                "stopped before every run was finished; --resume with the same --json file goes on"
                    .to_owned(),
            );
        }
        shortfalls
    }
}
