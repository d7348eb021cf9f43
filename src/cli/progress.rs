//! Progress as a bar on the terminal, and warnings as lines on stderr.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fledge::progress::{Progress, Stage};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::SIGINT;
use signal_hook::flag::{register, register_conditional_default};

use super::output::printable;

/// Shows one bar, on stderr. Where stderr is no terminal there is no bar, only the warnings.
#[derive(Debug, Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
    /// Set by Ctrl-C, once [`Terminal::cancel_on_interrupt`] was called.
    interrupted: Arc<AtomicBool>,
}

impl Terminal {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on the first Ctrl-C asks the job to end when what it has finished is safe; the
    /// second ends the program at once.
    ///
    /// # Errors
    /// When the signal cannot be caught.
    pub fn cancel_on_interrupt(&self) -> io::Result<()> {
        let flag = &self.interrupted;
        // In this order: the second one finds the flag that the first one set.
        register_conditional_default(SIGINT, Arc::clone(flag))?;
        register(SIGINT, Arc::clone(flag))?;
        Ok(())
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        // A bar that another thread left half drawn is still a bar.
        self.bar
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

const UNKNOWN_TOTAL: &str = "  {msg:<28} {spinner} {elapsed}";
const BYTES: &str = "  {msg:<28} {bar:28} {bytes}/{total_bytes} {eta:>4}";
const STEPS: &str = "  {msg:<28} {bar:28} {pos:>5}/{len} {eta:>4}";

/// Progress goes to stderr, which indicatif leaves alone when it is not a terminal.
fn new_bar(stage: Stage, total: usize) -> ProgressBar {
    let template = match (stage, total) {
        (_, 0) => UNKNOWN_TOTAL,
        (Stage::Download, _) => BYTES,
        _ => STEPS,
    };
    let bar = match total {
        0 => ProgressBar::new_spinner(),
        _ => ProgressBar::new(total as u64),
    };
    // A template that does not parse would leave indicatif's own style; a test holds that they do.
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
        let warning = printable(warning);
        let line = || drop(writeln!(std::io::stderr(), "warning: {warning}"));
        match self.bar().as_ref() {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }

    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Drop for Terminal {
    /// A job that fails midway leaves no bar behind its error message.
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_parses() {
        for template in [UNKNOWN_TOTAL, BYTES, STEPS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn steps_of_all_threads_add_up_and_a_new_stage_starts_at_none() {
        let terminal = Terminal::new();
        terminal.begin(Stage::Prefix, 40);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| terminal.advance(1)));
            }
        });
        let position = || terminal.bar().as_ref().map(ProgressBar::position);
        assert_eq!(position(), Some(40));
        terminal.begin(Stage::Save, 1);
        assert_eq!(position(), Some(0));
        terminal.finish();
        assert_eq!(position(), None);
    }
}
