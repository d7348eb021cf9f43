//! The story of the robin and the sparrow: two tasks, one after the other, and a look back.

use std::fmt;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use fledge::learner::DEFAULT_FALSE_ALARMS;
use fledge::progress::Progress;

use super::draw::draw_set;
use super::species::{FIRST_TASK, SECOND_TASK, Species};
use crate::cli::config::Config;
use crate::cli::output::{
    Answer, ClassifyReport, LearnReport, ModelGetReport, ScoreReport, count, percent, size,
    stdout_error,
};
use crate::cli::settings;

/// The state file of the story, inside its folder.
pub const STATE_FILE: &str = "birds.fledge";

/// Drawings of each species to learn from, and others to be asked about.
const TO_LEARN: u32 = 16;
const TO_ASK: u32 = 8;

/// Seeds of the drawings: the birds to be asked about are none of those learned from.
const LEARN_SEED: u64 = 1;
const ASK_SEED: u64 = 2;

/// What the story needs of a machine: the commands that a reader would type.
pub trait Board {
    fn get_model(
        &self,
        settings: &settings::ModelGet,
        progress: &dyn Progress,
    ) -> anyhow::Result<ModelGetReport>;
    fn learn(
        &self,
        settings: &settings::Learn,
        progress: &dyn Progress,
    ) -> anyhow::Result<LearnReport>;
    fn score(
        &self,
        settings: &settings::Score,
        progress: &dyn Progress,
    ) -> anyhow::Result<ScoreReport>;
    fn classify(
        &self,
        settings: &settings::Classify,
        progress: &dyn Progress,
    ) -> anyhow::Result<ClassifyReport>;
}

/// Tells the story; drawings and state file go into `folder`.
pub fn tell(
    board: &dyn Board,
    folder: &Path,
    config: &Config,
    progress: &dyn Progress,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let first = Day::draw(folder, "first", &FIRST_TASK)?;
    let second = Day::draw(folder, "second", &SECOND_TASK)?;
    let mut story = Story {
        board,
        state: folder.join(STATE_FILE),
        config,
        progress,
        out,
    };
    story.say("The story of the robin and the sparrow\n")?;
    story.say(
        "All of it happens on this machine. The birds are drawings, not photos: fledge has just",
    )?;
    story.say("drawn them itself, each in its own pose, place and light.\n")?;
    story.get_eyes()?;
    let before = story.first_day(&first, &second.unseen("sparrow"))?;
    story.second_day(&second)?;
    story.look_back(&first, &before)?;
    story.say(&format!(
        "\nThe end, after {:.0} seconds.",
        begun.elapsed().as_secs_f64()
    ))?;
    story.say("Now try your own photos, one folder a class:  fledge learn --task my-photos/")
}

/// One day's species and where their drawings are.
struct Day {
    names: Vec<&'static str>,
    to_learn: PathBuf,
    to_ask: PathBuf,
}

impl Day {
    fn draw(folder: &Path, day: &str, species: &[Species]) -> anyhow::Result<Self> {
        let folder = folder.join(day);
        let (to_learn, to_ask) = (folder.join("learn"), folder.join("ask"));
        draw_set(&to_learn, species, TO_LEARN, LEARN_SEED)?;
        draw_set(&to_ask, species, TO_ASK, ASK_SEED)?;
        Ok(Self {
            names: species.iter().map(|bird| bird.name).collect(),
            to_learn,
            to_ask,
        })
    }

    /// The first drawing of a species that is not learned from.
    fn unseen(&self, name: &str) -> PathBuf {
        self.to_ask.join(name).join(format!("{name}-00.jpg"))
    }
}

/// How many drawings were named rightly, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Right {
    right: usize,
    of: usize,
}

impl Right {
    fn of(accuracy: Option<f64>, images: usize) -> Self {
        Self {
            right: (accuracy.unwrap_or(0.0) * images as f64).round() as usize,
            of: images,
        }
    }
}

struct Story<'a> {
    board: &'a dyn Board,
    state: PathBuf,
    config: &'a Config,
    progress: &'a dyn Progress,
    out: &'a mut dyn Write,
}

impl Story<'_> {
    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.out, "{line}")
            .and_then(|()| self.out.flush())
            .map_err(stdout_error)
    }

    fn get_eyes(&mut self) -> anyhow::Result<()> {
        let settings = settings::ModelGet {
            home: self.config.home()?,
            from: None,
            name: None,
            preprocessing: None,
        };
        let model = self.board.get_model(&settings, self.progress)?;
        self.progress.finish();
        let news = if model.imported {
            "fetched and checked just now"
        } else {
            "here already"
        };
        self.say(&format!(
            "Eyes: {}, a vision model that somebody else trained ({}, {news}). It stays as it is.\n",
            model.model,
            size(model.bytes)
        ))
    }

    fn first_day(&mut self, day: &Day, sparrow: &Path) -> anyhow::Result<ScoreReport> {
        self.say(&format!(
            "Day one. fledge meets the {}.",
            listed(&day.names)
        ))?;
        self.learn(day)?;
        let score = self.score(day)?;
        self.tell_score("It is asked about new drawings of them", &score)?;
        let lands = "A sparrow lands. Nobody has told fledge of sparrows";
        let told = match self.ask(sparrow)? {
            Told::Named(guess) => format!("  {lands}, so its best guess is: {guess}.\n"),
            Told::Unknown(nearest) => {
                format!("  {lands}. It says: unknown, and that a {nearest} comes nearest.\n")
            }
        };
        self.say(&told)?;
        Ok(score)
    }

    fn second_day(&mut self, day: &Day) -> anyhow::Result<()> {
        self.say(&format!(
            "Day two. fledge meets the {}.",
            listed(&day.names)
        ))?;
        self.say("The drawings of day one are not shown again.")?;
        let learned = self.learn(day)?;
        let score = self.score(day)?;
        self.tell_score("It is asked about new drawings of them", &score)?;
        let told = self.ask(&day.unseen("sparrow"))?;
        self.say(&format!("  The same sparrow again. fledge says: {told}."))?;
        self.say(&format!(
            "  All this new knowledge took {}; the state file is {} now.\n",
            count(learned.parameters_added, "new number", "new numbers"),
            size(learned.state_bytes)
        ))
    }

    fn look_back(&mut self, first: &Day, before: &ScoreReport) -> anyhow::Result<()> {
        self.say(
            "And the robin? Learning something new is how networks usually forget something old.",
        )?;
        let told = self.ask(&first.unseen("robin"))?;
        self.say(&format!("  Shown a robin, fledge says: {told}."))?;
        let after = self.score(first)?;
        self.say(&format!(
            "  The birds of day one, with {} names to choose from now:",
            FIRST_TASK.len() + SECOND_TASK.len()
        ))?;
        for name in &first.names {
            let (Some(then), Some(now)) = (before.per_class.get(*name), after.per_class.get(*name))
            else {
                continue;
            };
            let (then, now) = (
                Right::of(then.accuracy, then.images),
                Right::of(now.accuracy, now.images),
            );
            self.say(&format!(
                "    {name:<12} {} of {} right on day one, {} of {} now",
                then.right, then.of, now.right, now.of
            ))?;
        }
        self.say(&format!(
            "  {}",
            verdict(
                Right::of(before.accuracy, before.images),
                Right::of(after.accuracy, after.images)
            )
        ))
    }

    fn learn(&mut self, day: &Day) -> anyhow::Result<LearnReport> {
        let settings = settings::Learn::defaults(&day.to_learn, &self.state, self.config)?;
        let learned = self.board.learn(&settings, self.progress)?;
        self.progress.finish();
        self.say(&format!(
            "  It learned from {} in {:.0} seconds.",
            count(learned.images, "drawing", "drawings"),
            learned.seconds
        ))?;
        Ok(learned)
    }

    fn score(&mut self, day: &Day) -> anyhow::Result<ScoreReport> {
        let settings = settings::Score {
            home: self.config.home()?,
            threads: settings::threads(None, self.config),
            task: day.to_ask.clone(),
            state: self.state.clone(),
            reject: 0.0,
        };
        let score = self.board.score(&settings, self.progress)?;
        self.progress.finish();
        Ok(score)
    }

    fn tell_score(&mut self, what: &str, score: &ScoreReport) -> anyhow::Result<()> {
        let Right { right, of } = Right::of(score.accuracy, score.images);
        self.say(&format!("  {what}: {right} of {of} right."))
    }

    /// What fledge says to one drawing.
    fn ask(&mut self, drawing: &Path) -> anyhow::Result<Told> {
        let settings = settings::Classify {
            home: self.config.home()?,
            threads: settings::threads(None, self.config),
            images: vec![drawing.to_path_buf()],
            state: self.state.clone(),
            top: NonZeroUsize::MIN,
            reject: DEFAULT_FALSE_ALARMS,
        };
        let report = self.board.classify(&settings, self.progress)?;
        self.progress.finish();
        match report.images.into_iter().next().map(|image| image.answer) {
            Some(Answer::Named {
                label,
                probability,
                top,
                ..
            }) => Ok(match probability {
                Some(probability) => Told::Named(format!("{label} ({})", percent(probability))),
                None => Told::Unknown(top.first().map_or(label, |nearest| nearest.label.clone())),
            }),
            Some(Answer::Unreadable { error }) => Err(anyhow::Error::msg(error))
                .with_context(|| format!("cannot classify {}", drawing.display())),
            None => anyhow::bail!("classifying {} gave no answer", drawing.display()),
        }
    }
}

/// The answer to one drawing.
enum Told {
    /// A name and its probability.
    Named(String),
    /// Nothing known; this name comes nearest.
    Unknown(String),
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(guess) => f.write_str(guess),
            Self::Unknown(nearest) => write!(f, "unknown (nearest: {nearest})"),
        }
    }
}

/// What the numbers say about forgetting.
fn verdict(before: Right, after: Right) -> String {
    let of = after.of;
    match before.right.saturating_sub(after.right) {
        0 => format!(
            "Together: {} of {of} then, {} of {of} now. Nothing was forgotten.",
            before.right, after.right
        ),
        lost => format!(
            "Together: {} of {of} then, {} of {of} now: {lost} fewer.",
            before.right, after.right
        ),
    }
}

/// "robin, wren and sparrow".
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests;
