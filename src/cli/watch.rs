//! `fledge watch`: a camera's pictures, one answer each, until it is told to stop. Made to be run
//! by a service manager: it says when it is ready, that it is alive, and ends cleanly.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use fledge::board::{Cooled, Machine};
use fledge::camera::{Camera, Frame, Next, Source};
use fledge::progress::Progress;
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

/// Watches until a signal, the end of the pictures, or as many frames as were asked for.
pub fn run(
    settings: &settings::Watch,
    machine: &Machine,
    progress: &dyn Progress,
) -> anyhow::Result<Outcome> {
    let stop = stop_on_signals()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let learner = open(&settings.home, &settings.state, settings.threads, 1)?;
    let recogniser = learner.recogniser()?.rejecting(settings.reject)?;
    let mut session = recogniser.session();
    let cooled = settings
        .ceiling
        .map(|ceiling| Cooled::new(progress, machine.thermometer(), ceiling));
    let mut camera = Camera::open(&settings.camera)?;
    let mut service = Service::ready();
    let (mut frames, mut last) = (0, Instant::now());
    while !stopped() && settings.frames.is_none_or(|most| frames < most.get()) {
        service.alive();
        if let Some(cooled) = &cooled {
            cooled.wait(|| {
                service.alive();
                !stopped()
            });
        }
        let frame = match camera.next(MOMENT) {
            Ok(Next::Frame(frame)) => frame,
            Ok(Next::Nothing) => {
                if matches!(settings.camera, Source::Command(_))
                    && last.elapsed() > settings.patience
                {
                    bail!(
                        "the camera sent no picture for {}; check its cable and its program, or \
                         raise --patience",
                        humantime::format_duration(settings.patience)
                    );
                }
                continue;
            }
            Ok(Next::End) => break,
            // Ctrl-C reaches the camera's program too.
            Err(_) if stopped() => break,
            Err(error) => return Err(error.into()),
        };
        last = Instant::now();
        frames += 1;
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
            frame: frames,
            image: match &frame {
                Frame::File(path) => Some(path.to_string_lossy().into_owned()),
                Frame::Jpeg(_) => None,
            },
            answer,
            ms: 1e3 * last.elapsed().as_secs_f64(),
        };
        say(&sighting.line(settings.json)?)?;
        while !stopped() && last.elapsed() < settings.every {
            service.alive();
            std::thread::sleep(settings.every.saturating_sub(last.elapsed()).min(MOMENT));
        }
    }
    Service::tell(&[NotifyState::Stopping]);
    Ok(Outcome::Done)
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
