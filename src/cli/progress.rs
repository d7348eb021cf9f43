//! Progress as a bar on the terminal, and warnings as lines on stderr.

use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

use fledge::progress::{Progress, Stage};
use indicatif::{ProgressBar, ProgressStyle};

/// Shows one bar, on stderr. Where stderr is no terminal there is no bar, only the warnings.
#[derive(Debug, Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
}

impl Terminal {
    pub fn new() -> Self {
        Self::default()
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        // A bar that another thread left half drawn is still a bar.
        self.bar
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Progress goes to stderr, which indicatif leaves alone when it is not a terminal.
fn new_bar(stage: Stage, total: usize) -> ProgressBar {
    let (bar, template) = if total == 0 {
        (
            ProgressBar::new_spinner(),
            "  {msg:<28} {spinner} {elapsed}",
        )
    } else if stage == Stage::Download {
        (
            ProgressBar::new(total as u64),
            "  {msg:<28} {bar:28} {bytes}/{total_bytes} {eta:>4}",
        )
    } else {
        (
            ProgressBar::new(total as u64),
            "  {msg:<28} {bar:28} {pos:>5}/{len} {eta:>4}",
        )
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(stage.to_string());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Progress for Terminal {
    fn begin(&self, stage: Stage, total: usize) {
        let mut bar = self.bar();
        if let Some(ended) = bar.take() {
            ended.finish_and_clear();
        }
        *bar = Some(new_bar(stage, total));
    }

    fn advance(&self, steps: usize) {
        if let Some(bar) = self.bar().as_ref() {
            bar.inc(steps as u64);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }

    fn warn(&self, warning: &str) {
        // A closed stderr must not end the job.
        let line = || drop(writeln!(std::io::stderr(), "warning: {warning}"));
        match self.bar().as_ref() {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }
}

impl Drop for Terminal {
    /// A job that fails midway leaves no bar behind its error message.
    fn drop(&mut self) {
        self.finish();
    }
}
