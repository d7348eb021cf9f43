//! `fledge watch`: a camera's pictures, one answer each, until it is told to stop. Made to be run
//! by a service manager: it says when it is ready, that it is alive, and ends cleanly.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use fledge::board::{Cooled, Machine};
use fledge::camera::{Camera, Frame, Next, Source};
use fledge::head::HeadError;
use fledge::learner::{Learner, Recogniser};
use fledge::progress::Progress;
use fledge::state::{self, Revision};
use sd_notify::NotifyState;
use serde::Serialize;

use super::Outcome;
use super::output::{Answer, OutputClosed, percent, printable, stdout_error, told};
use super::run::{named, open};
use super::settings;

/// Longest time without looking whether to stop.
const MOMENT: Duration = Duration::from_millis(200);

/// After which time a state file that could not be used is looked at again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

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
        // A name with a line break is still one line.
        let told = told.replace('\n', "\\n");
        Ok(format!("{}  {}", self.time, printable(&told)))
    }
}

/// What the service manager, where there is one, is told.
struct Service {
    /// How often it wants to hear from us.
    alive: Option<Duration>,
    told: Instant,
    ready: bool,
}

impl Service {
    fn tell(states: &[NotifyState<'_>]) {
        // Without a service manager there is nobody to tell; one that cannot be told restarts us.
        let _ = sd_notify::notify(states);
    }

    fn new() -> Self {
        Self {
            // Half of the time after which the watchdog bites, as its manual recommends.
            alive: sd_notify::watchdog_enabled().map(|bite| bite / 2),
            told: Instant::now(),
            ready: false,
        }
    }

    fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            Self::tell(&[NotifyState::Ready]);
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
    let mut lookout = Lookout {
        settings,
        cooled: cooled.as_ref(),
        stop: &stop,
        waiting: None,
        service: Service::new(),
        frames: 0,
        answers: 0,
        last: Instant::now(),
        closed: None,
    };
    let mut camera = None;
    let mut warned = None;
    loop {
        let (revision, learner, room) = match known(settings) {
            Ok(known) => known,
            Err(error) => {
                if camera.is_none() && !settings.wait {
                    return Err(error);
                }
                // What a stream showed then is not what there is to see once it goes on.
                lookout
                    .waiting
                    .take_if(|frame| matches!(frame, Frame::Jpeg(_)));
                lookout.service.ready();
                let error = told(&error);
                if warned.as_ref() != Some(&error) {
                    progress.warn(&format!("{error}; no answers until that changes"));
                    warned = Some(error);
                }
                match lookout.pause(TRY_AGAIN) {
                    true => continue,
                    false => break,
                }
            }
        };
        warned = None;
        let recogniser = learner.recogniser()?.rejecting(settings.reject)?;
        let recogniser = recogniser.decoding_within(room);
        let camera = match &mut camera {
            Some(camera) => camera,
            None => camera.insert(Camera::open(&settings.camera)?),
        };
        lookout.service.ready();
        lookout.last = Instant::now();
        match lookout.watch(camera, &recogniser, revision)? {
            Ended::Changed => progress.warn(&format!(
                "{} changed: what it holds now is what is known from here on",
                settings.state.display()
            )),
            Ended::Done => break,
        }
    }
    Service::tell(&[NotifyState::Stopping]);
    match (lookout.shortfall(), lookout.closed) {
        (Some(shortfall), _) => bail!(shortfall),
        (None, Some(closed)) => Err(closed),
        (None, None) => Ok(Outcome::Done),
    }
}

/// What was learned, where that is anything, and the bytes that decoding a picture may take.
fn known(settings: &settings::Watch) -> anyhow::Result<(Revision, Learner, usize)> {
    // Read first: what changes meanwhile is another revision.
    let revision = state::revision(&settings.state)?;
    let (learner, room) = open(&settings.home, &settings.state, settings.threads, 1)?;
    match learner.knowledge().classes.is_empty() {
        true => Err(HeadError::Empty.into()),
        false => Ok((revision, learner, room)),
    }
}

enum Ended {
    /// There is nothing more to see, or nobody wants to.
    Done,
    /// The state file is another one than was read.
    Changed,
}

/// How long and how often a camera is looked at.
struct Lookout<'a> {
    settings: &'a settings::Watch,
    cooled: Option<&'a Cooled<'a>>,
    stop: &'a AtomicBool,
    /// A picture that came when the state file had changed.
    waiting: Option<Frame>,
    service: Service,
    /// Pictures so far.
    frames: usize,
    /// Those that could be used.
    answers: usize,
    /// When the latest of them was taken up, or since when there could be one.
    last: Instant,
    /// Nobody reads the answers any more.
    closed: Option<anyhow::Error>,
}

impl Lookout<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wants_more(&self) -> bool {
        let most = self.settings.frames;
        !self.stopped() && most.is_none_or(|most| self.frames < most.get())
    }

    /// Whether the state file was replaced. One that went away is no reason to stop.
    fn changed(&self, revision: Revision) -> bool {
        state::revision(&self.settings.state)
            .is_ok_and(|now| now != revision && now != Revision::NONE)
    }

    /// Waits, and tells whether it is to go on after that.
    fn pause(&mut self, time: Duration) -> bool {
        let start = Instant::now();
        while self.wants_more() && start.elapsed() < time {
            self.service.alive();
            let left = time.saturating_sub(start.elapsed());
            std::thread::sleep(left.min(MOMENT));
        }
        self.wants_more()
    }

    /// What is missing where nobody stopped it.
    fn shortfall(&self) -> Option<String> {
        let asked = self.settings.frames.map_or(0, NonZeroUsize::get);
        match self.frames {
            _ if self.stopped() => None,
            seen if seen < asked && self.closed.is_some() => Some(format!(
                "standard output was closed after {seen} of {asked} pictures"
            )),
            seen if seen < asked => Some(format!(
                "the camera's pictures ended after {seen} of {asked}"
            )),
            _ if self.answers == 0 => {
                Some("none of the camera's pictures could be used".to_owned())
            }
            _ => None,
        }
    }

    fn watch(
        &mut self,
        camera: &mut Camera,
        recogniser: &Recogniser<'_>,
        revision: Revision,
    ) -> anyhow::Result<Ended> {
        let settings = self.settings;
        let mut session = recogniser.session();
        while self.wants_more() {
            self.service.alive();
            if let Some(cooled) = self.cooled {
                cooled.wait(|| {
                    self.service.alive();
                    !self.stop.load(Ordering::Relaxed)
                });
            }
            let waiting = self.waiting.take().map(|frame| Ok(Next::Frame(frame)));
            let frame = match waiting.unwrap_or_else(|| camera.next(MOMENT)) {
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
                // A service manager's signal reaches the camera's program too.
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
            self.answers += usize::from(matches!(sighting.answer, Answer::Named { .. }));
            match say(&sighting.line(settings.json)?) {
                Err(error) if error.is::<OutputClosed>() => {
                    self.closed = Some(error);
                    return Ok(Ended::Done);
                }
                said => said?,
            }
            self.pause(settings.every.saturating_sub(self.last.elapsed()));
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

/// Set by SIGINT and SIGTERM. A second one ends the program at once: it may wait for a reader.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the second one finds the flag that the first one set.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot listen for signals")?;
    }
    Ok(stop)
}
