//! `fledge watch`: a camera's pictures, one answer each, until it is told to stop. Made to be run
//! by a service manager: it says when it is ready, that it is alive, and ends cleanly.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use fledge::board::{Cooled, Machine};
use fledge::camera::{Camera, Frame, Next, Source};
use fledge::learner::Recogniser;
use fledge::progress::Progress;
use fledge::state::{self, Revision};
use sd_notify::NotifyState;
use serde::Serialize;

use super::Outcome;
use super::output::{Answer, percent, stdout_error};
use super::run::{named, open};
use super::settings;

/// Longest time without looking whether to stop.
const MOMENT: Duration = Duration::from_millis(200);

/// One line of output.
#[derive(Debug, Serialize)]
struct Sighting {
    /// When the picture was taken up, RFC 3339.
    time: String,
    /// Counted from 1.
    frame: usize,
    /// The file, for a camera that is a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(flatten)]
    answer: Answer,
    /// Milliseconds from the picture to the answer.
    ms: f64,
}

impl Sighting {
    fn line(&self, json: bool) -> anyhow::Result<String> {
        if json {
            return Ok(serde_json::to_string(self)?);
        }
        let told = match &self.answer {
            Answer::Named {
                label,
                probability: Some(probability),
                ..
            } => format!("{label} {}", percent(*probability)),
            Answer::Named { label, .. } => label.clone(),
            Answer::Unreadable { error } => format!("unusable: {error}"),
        };
        Ok(format!("{}  {told}", self.time))
    }
}

/// What the service manager, where there is one, is told.
struct Service {
    /// How often it wants to hear from us.
    alive: Option<Duration>,
    told: Instant,
}

impl Service {
    fn tell(states: &[NotifyState<'_>]) {
        // Without a service manager there is nobody to tell; one that cannot be told restarts us.
        let _ = sd_notify::notify(states);
    }

    fn ready() -> Self {
        Self::tell(&[NotifyState::Ready]);
        Self {
            // Half of the time after which the watchdog bites, as its manual recommends.
            alive: sd_notify::watchdog_enabled().map(|bite| bite / 2),
            told: Instant::now(),
        }
    }

    fn alive(&mut self) {
        if self.alive.is_some_and(|every| self.told.elapsed() >= every) {
            Self::tell(&[NotifyState::Watchdog]);
            self.told = Instant::now();
        }
    }
}

/// Watches until a signal, the end of the pictures, or as many frames as were asked for. What is learned or
/// forgotten meanwhile holds from the next picture on.
pub fn run(
    settings: &settings::Watch,
    machine: &Machine,
    progress: &dyn Progress,
) -> anyhow::Result<Outcome> {
    let stop = stop_on_signals()?;
    let cooled = settings
        .ceiling
        .map(|ceiling| Cooled::new(progress, machine.thermometer(), ceiling));
    let mut lookout = None;
    loop {
        let revision = state::revision(&settings.state)?;
        let learner = open(&settings.home, &settings.state, settings.threads, 1)?;
        let recogniser = learner.recogniser()?.rejecting(settings.reject)?;
        let lookout = match &mut lookout {
            Some(lookout) => lookout,
            None => lookout.insert(Lookout {
                settings,
                cooled: cooled.as_ref(),
                stop: &stop,
                camera: Camera::open(&settings.camera)?,
                waiting: None,
                service: Service::ready(),
                frames: 0,
                last: Instant::now(),
            }),
        };
        match lookout.watch(&recogniser, revision)? {
            Ended::Changed => progress.warn(&format!(
                "{} changed: what it holds now is what is known from here on",
                settings.state.display()
            )),
            Ended::Done => break,
        }
    }
    Service::tell(&[NotifyState::Stopping]);
    Ok(Outcome::Done)
}

enum Ended {
    /// There is nothing more to see, or nobody wants to.
    Done,
    /// The state file is another one than was read.
    Changed,
}

/// A camera, and how long and how often it is looked at.
struct Lookout<'a> {
    settings: &'a settings::Watch,
    cooled: Option<&'a Cooled<'a>>,
    stop: &'a AtomicBool,
    camera: Camera,
    /// A picture that came when the state file had changed.
    waiting: Option<Frame>,
    service: Service,
    /// Pictures so far.
    frames: usize,
    /// When the latest of them was taken up.
    last: Instant,
}

impl Lookout<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether the state file was replaced. One that went away is no reason to stop.
    fn changed(&self, revision: Revision) -> bool {
        state::revision(&self.settings.state)
            .is_ok_and(|now| now != revision && now != Revision::NONE)
    }

    fn watch(&mut self, recogniser: &Recogniser<'_>, revision: Revision) -> anyhow::Result<Ended> {
        let settings = self.settings;
        let mut session = recogniser.session();
        while !self.stopped() && settings.frames.is_none_or(|most| self.frames < most.get()) {
            self.service.alive();
            if let Some(cooled) = self.cooled {
                cooled.wait(|| {
                    self.service.alive();
                    !self.stop.load(Ordering::Relaxed)
                });
            }
            let waiting = self.waiting.take().map(|frame| Ok(Next::Frame(frame)));
            let frame = match waiting.unwrap_or_else(|| self.camera.next(MOMENT)) {
                Ok(Next::Frame(frame)) => frame,
                Ok(Next::Nothing) => {
                    if matches!(settings.camera, Source::Command(_))
                        && self.last.elapsed() > settings.patience
                    {
                        bail!(
                            "the camera sent no picture for {}; check its cable and its program, \
                             or raise --patience",
                            humantime::format_duration(settings.patience)
                        );
                    }
                    continue;
                }
                Ok(Next::End) => break,
                // Ctrl-C reaches the camera's program too.
                Err(_) if self.stopped() => break,
                Err(error) => return Err(error.into()),
            };
            if self.changed(revision) {
                self.waiting = Some(frame);
                return Ok(Ended::Changed);
            }
            self.last = Instant::now();
            self.frames += 1;
            let answer = match frame.decode(&recogniser.limits()) {
                Ok(image) => named(
                    &recogniser.classify_image(&mut session, image)?,
                    settings.top.get(),
                )?,
                Err(error) => Answer::Unreadable {
                    error: error.to_string(),
                },
            };
            let sighting = Sighting {
                time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
                frame: self.frames,
                image: match &frame {
                    Frame::File(path) => Some(path.to_string_lossy().into_owned()),
                    Frame::Jpeg(_) => None,
                },
                answer,
                ms: 1e3 * self.last.elapsed().as_secs_f64(),
            };
            say(&sighting.line(settings.json)?)?;
            while !self.stopped() && self.last.elapsed() < settings.every {
                self.service.alive();
                let left = settings.every.saturating_sub(self.last.elapsed());
                std::thread::sleep(left.min(MOMENT));
            }
        }
        Ok(Ended::Done)
    }
}

/// Whoever reads wants each answer when it is known.
fn say(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(stdout_error)
}

/// Set by SIGINT and SIGTERM.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .context("cannot listen for signals")?;
    }
    Ok(stop)
}
