//! Each command on the library: settings in, an answer out.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use fledge::data::{Skipped, TaskFolder};
use fledge::eval::PeakHeap;
use fledge::head::TaskId;
use fledge::learner::{AdaptBlocks, EncodeError, LearnError, Recognised, ScoreError, Setup};
use fledge::state::{self, Knowledge, Revision, StateError, TaskRecord};
use fledge::train::bench;
use fledge::train::plan::Plan;
use fledge::vit::store::{Description, ModelStore};
use fledge::{LearnSettings, Learner, Progress, Stage};

use super::demo::story::Board;
use super::heap::Counted;
use super::memory::{self, Work};
use super::output::{
    Answer, BenchReport, Candidate, ClassScore, ClassifiedImage, ClassifyReport, ForgetReport,
    LearnReport, ModelGetReport, PlanReport, ScoreReport, StateReport, TaskSummary,
};
use super::settings;

mod model;

pub use model::{model_check, model_get};

pub fn learn(settings: &settings::Learn, progress: &dyn Progress) -> anyhow::Result<LearnReport> {
    state::check_writable(&settings.state)?;
    let _claim = state::claim(&settings.state)?;
    let store = ModelStore::at(&settings.home);
    let threads = settings.threads.get();
    let work = Work::Learning {
        threads,
        budget: settings.budget,
    };
    let (mut learner, revision) = match state::open(&settings.state) {
        Ok((knowledge, revision)) => {
            refuse_changes(settings, &knowledge)?;
            let name = &knowledge.model.name;
            memory::foresee(work, &store.path(name)?, &settings.state)?;
            let weights = store.open(Some(name))?;
            (Learner::resume(weights, knowledge, threads)?, revision)
        }
        Err(StateError::Missing { .. }) => {
            let name = settings.model.clone();
            let name = name
                .or_else(|| settings.preferred.model.clone())
                .unwrap_or_else(|| Description::default_model().name);
            memory::foresee(work, &store.path(&name)?, &settings.state)?;
            let weights = store.open(Some(&name))?;
            let depth = weights.geometry().depth;
            let learner = Learner::new(weights, &name, &setup(settings, depth), threads)?;
            (learner, Revision::NONE)
        }
        Err(error) => return Err(error.into()),
    };
    let mut how = LearnSettings {
        instant: settings.instant,
        rank: settings.rank,
        ..LearnSettings::default()
    };
    how.budget = settings.budget;
    how.fit.seed = settings.seed;
    if let Some(epochs) = settings.epochs {
        how.fit.set_epochs(epochs.get());
    }
    let classes = TaskFolder::scan(&settings.task)
        .map_err(LearnError::from)?
        .classes;
    let images: Vec<usize> = classes.iter().map(|class| class.images.len()).collect();
    state::check_room(&settings.state, learner.state_growth(&images))?;
    let report = learner.learn(&settings.task, &how, progress)?;
    progress.begin(Stage::Save, 0);
    let (state_bytes, _) = state::write(&settings.state, learner.knowledge(), revision)?;
    progress.finish();
    Ok(LearnReport {
        task: report.task,
        classes: report.classes,
        images: report.images,
        skipped: losses(&report.skipped),
        epochs: report.epochs,
        seconds: report.seconds,
        train_accuracy: report.train_accuracy,
        validation_accuracy: report.validation_accuracy,
        parameters_added: report.parameters_added,
        rank: learner
            .knowledge()
            .tasks
            .last()
            .and_then(|task| rank_of(learner.knowledge(), task)),
        difficulty: report.choice.as_ref().map(|choice| choice.difficulty),
        rank_probabilities: report.choice.map(|choice| {
            let shares = choice.probabilities.into_iter();
            shares.map(|(rank, p)| (rank.to_string(), p)).collect()
        }),
        state_bytes,
        peak_heap_bytes: Counted.peak(),
    })
}

pub fn plan(settings: &settings::Plan) -> anyhow::Result<PlanReport> {
    let store = ModelStore::at(&settings.home);
    let how = LearnSettings {
        budget: settings.budget,
        ..LearnSettings::default()
    };
    if let Some(state) = &settings.state {
        let (knowledge, _) = state::open(state)?;
        let weights = store.open(Some(&knowledge.model.name))?;
        let learner = Learner::resume(weights, knowledge, settings.threads.get())?;
        let (images, classes) = (settings.images, settings.classes);
        // As even as they come.
        let counts = (0..classes).map(|class| (images + class) / classes);
        let plan = learner.plan(&counts.collect::<Vec<_>>(), &how)?;
        return Ok(PlanReport::from(&plan));
    }
    let weights = store.open(Some(&model_name(&settings.model)))?;
    let defaults = Setup::for_depth(weights.geometry().depth);
    let setup = Setup {
        resolution: settings.resolution.map_or(defaults.resolution, |r| r.get()),
        adapt_blocks: settings
            .adapt_blocks
            .map_or(defaults.adapt_blocks, AdaptBlocks::from),
        rank: settings.rank.unwrap_or(defaults.rank),
        prompts: settings.prompts.unwrap_or(defaults.prompts),
        ..defaults
    };
    let demand = setup.demand(
        weights.geometry(),
        settings.classes,
        settings.images,
        how.fit.batch,
        settings.threads.get(),
    )?;
    Ok(PlanReport::from(&Plan::allowed(&demand, how.budget)?))
}

pub fn bench(settings: &settings::Bench, progress: &dyn Progress) -> anyhow::Result<BenchReport> {
    let name = model_name(&settings.model);
    let weights = ModelStore::at(&settings.home).open(Some(&name))?;
    let mut threads = vec![1, settings.threads.get()];
    threads.dedup();
    let time = Duration::from_secs(settings.seconds as u64);
    let measured = bench::run(&weights, &threads, settings.budget, time, progress)?;
    Ok(BenchReport {
        model: name,
        budget: settings.budget,
        kernel: bench::kernel().to_owned(),
        measured,
    })
}

fn model_name(asked: &Option<String>) -> String {
    asked
        .clone()
        .unwrap_or_else(|| Description::default_model().name)
}

/// What was asked for, then what is configured, and the defaults for the rest.
fn setup(settings: &settings::Learn, depth: usize) -> Setup {
    let defaults = Setup::for_depth(depth);
    let preferred = &settings.preferred;
    Setup {
        resolution: settings
            .resolution
            .or(preferred.resolution)
            .map_or(defaults.resolution, |r| r.get()),
        adapt_blocks: settings
            .adapt_blocks
            .or(preferred.adapt_blocks)
            .map_or(defaults.adapt_blocks, AdaptBlocks::from),
        rank: settings.rank.unwrap_or(defaults.rank),
        prompts: settings
            .prompts
            .or(preferred.prompts)
            .unwrap_or(defaults.prompts),
        seed: settings.seed,
        ..defaults
    }
}

/// What a state file was started with holds for everything it learns later.
fn refuse_changes(settings: &settings::Learn, knowledge: &Knowledge) -> anyhow::Result<()> {
    let fixed = |what: &str, asked: String, is: String| {
        if asked == is {
            return Ok(());
        }
        bail!(
            "{} was started with {what} {is}, so it cannot go on with {asked}; leave the flag out, or start another file with --state",
            settings.state.display()
        )
    };
    if let Some(model) = &settings.model {
        fixed("the model", model.clone(), knowledge.model.name.clone())?;
    }
    if let Some(resolution) = settings.resolution {
        fixed(
            "resolution",
            resolution.to_string(),
            knowledge.resolution.to_string(),
        )?;
    }
    if let Some(rank) = settings.rank.filter(|&rank| rank > knowledge.adapters.rank) {
        bail!(
            "{} was started with bases of rank {}, so a task cannot add rank {rank}; choose up to {} or auto, or start another file with --state",
            settings.state.display(),
            knowledge.adapters.rank,
            knowledge.adapters.rank
        );
    }
    if let Some(prompts) = settings.prompts {
        let is = knowledge.adapters.prompts.len() / knowledge.adapters.dim.max(1);
        fixed("prompts", prompts.to_string(), is.to_string())?;
    }
    if let Some(asked) = settings.adapt_blocks {
        let is = knowledge.adapted_blocks();
        let asked = match asked.into() {
            AdaptBlocks::All => is + knowledge.first_adapted,
            AdaptBlocks::Last(n) => n,
        };
        fixed("adapted blocks", asked.to_string(), is.to_string())?;
    }
    Ok(())
}

/// What was learned, to be used on `at_once` images together, and the bytes that decoding each may take.
pub fn open(
    home: &Path,
    state: &Path,
    threads: NonZeroUsize,
    at_once: usize,
) -> anyhow::Result<(Learner, usize)> {
    let threads = threads.get();
    let work = Work::Using { threads, at_once };
    let store = ModelStore::at(home);
    let imported = store.list()?.into_iter();
    let models: Vec<_> = imported.flat_map(|name| store.path(&name)).collect();
    memory::foresee_reading(work, &models, state)?;
    let (knowledge, _) = state::read::<Knowledge>(state)?;
    let name = &knowledge.model.name;
    let left = memory::foresee(work, &store.path(name)?, state)?;
    let weights = store.open(Some(name))?;
    let learner = Learner::resume(weights, knowledge, threads)?;
    Ok((learner, memory::for_a_picture(left, at_once)))
}

/// Files that were meant as images and could not be used.
fn losses(skipped: &[Skipped]) -> usize {
    skipped.iter().filter(|s| s.reason.is_loss()).count()
}

pub fn score(settings: &settings::Score, progress: &dyn Progress) -> anyhow::Result<ScoreReport> {
    let threads = settings.threads;
    let (learner, room) = open(&settings.home, &settings.state, threads, threads.get())?;
    let recogniser = learner.recogniser()?.rejecting(settings.reject)?;
    let report = recogniser
        .decoding_within(room)
        .score(&settings.task, progress)?;
    for lost in report.skipped.iter().filter(|s| s.reason.is_loss()) {
        progress.warn(&format!("skipped: {lost}"));
    }
    let per_class: BTreeMap<String, ClassScore> = report
        .per_class
        .iter()
        .map(|class| {
            let score = ClassScore {
                images: class.images,
                accuracy: (class.known && class.images > 0)
                    .then(|| class.right as f64 / class.images as f64),
                unknown: class.unknown,
            };
            (class.class.clone(), score)
        })
        .collect();
    Ok(ScoreReport {
        images: report.images(),
        accuracy: report.accuracy(),
        unknown: report.unknown(),
        open_set_accuracy: report.open_set_accuracy(),
        reject: settings.reject,
        per_class,
        ms_per_image: report.ms_per_image,
        skipped: losses(&report.skipped),
    })
}

pub fn classify(
    settings: &settings::Classify,
    progress: &dyn Progress,
) -> anyhow::Result<ClassifyReport> {
    let (learner, room) = open(&settings.home, &settings.state, settings.threads, 1)?;
    let recogniser = learner.recogniser()?.rejecting(settings.reject)?;
    let recogniser = recogniser.decoding_within(room);
    let mut session = recogniser.session();
    progress.begin(Stage::Score, settings.images.len());
    let mut images = Vec::with_capacity(settings.images.len());
    for image in &settings.images {
        let answer = match recogniser.classify(&mut session, image) {
            Ok(recognised) => named(&recognised, settings.top.get())?,
            Err(ScoreError::Encode(EncodeError::Decode(error))) => Answer::Unreadable {
                error: error.to_string(),
            },
            Err(error) => return Err(error.into()),
        };
        images.push(ClassifiedImage {
            image: image.clone(),
            answer,
        });
        progress.advance(1);
    }
    progress.finish();
    Ok(ClassifyReport { images })
}

pub fn named(recognised: &Recognised, top: usize) -> anyhow::Result<Answer> {
    let best = recognised
        .guesses
        .first()
        .context("the state file knows no class; learn a task first")?;
    let top = recognised
        .guesses
        .iter()
        .take(top)
        .map(|guess| Candidate {
            label: guess.class.clone(),
            probability: guess.probability.into(),
        })
        .collect();
    Ok(match recognised.unknown {
        true => Answer::unknown(top),
        false => Answer::named(best.class.clone(), best.probability.into(), top),
    })
}

pub fn forget(
    settings: &settings::Forget,
    progress: &dyn Progress,
) -> anyhow::Result<ForgetReport> {
    let _claim = state::claim(&settings.state)?;
    let (mut knowledge, revision) = state::read::<Knowledge>(&settings.state)?;
    let forgotten = knowledge.forget(&settings.what)?;
    progress.begin(Stage::Save, 0);
    let (state_bytes, _) = state::write(&settings.state, &knowledge, revision)?;
    progress.finish();
    Ok(ForgetReport {
        classes: forgotten.classes,
        still_known: forgotten.still_known,
        tasks: forgotten.tasks.into_iter().map(task_number).collect(),
        images: forgotten.images,
        state_bytes,
    })
}

/// Tasks are counted from 1 where people see them.
fn task_number(id: TaskId) -> u64 {
    u64::from(id) + 1
}

pub fn state_show(path: &Path) -> anyhow::Result<StateReport> {
    let (knowledge, _) = state::read::<Knowledge>(path)?;
    let bytes = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    let tasks = knowledge.tasks.iter().map(|task| {
        let date = UNIX_EPOCH.checked_add(Duration::from_secs(task.learned_at));
        TaskSummary {
            task: task_number(task.id),
            name: task.name.clone(),
            classes: task
                .classes
                .iter()
                .filter_map(|taught| knowledge.classes.get(taught.class as usize).cloned())
                .collect(),
            images: task.images() as usize,
            rank: rank_of(&knowledge, task),
            date: date.map_or_else(String::new, |date| {
                humantime::format_rfc3339_seconds(date).to_string()
            }),
            bytes: knowledge.task_bytes(task) as u64,
        }
    });
    Ok(StateReport {
        state: path.to_owned(),
        bytes,
        model: knowledge.model.name.clone(),
        model_hash: knowledge.model.hash.to_string(),
        resolution: knowledge.resolution,
        adapt_blocks: knowledge.adapted_blocks(),
        tasks: tasks.collect(),
    })
}

/// Rank of what a task added to each adapted matrix; `None` where nothing was kept of it.
fn rank_of(knowledge: &Knowledge, task: &TaskRecord) -> Option<usize> {
    task.adapted.then_some(match task.rank {
        // The task that made the bases.
        0 => knowledge.adapters.rank,
        rank => rank,
    })
}

/// The machine fledge runs on.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;

impl Board for ThisMachine {
    fn get_model(
        &self,
        settings: &settings::ModelGet,
        progress: &dyn Progress,
    ) -> anyhow::Result<ModelGetReport> {
        model_get(settings, progress)
    }

    fn learn(
        &self,
        settings: &settings::Learn,
        progress: &dyn Progress,
    ) -> anyhow::Result<LearnReport> {
        learn(settings, progress)
    }

    fn score(
        &self,
        settings: &settings::Score,
        progress: &dyn Progress,
    ) -> anyhow::Result<ScoreReport> {
        score(settings, progress)
    }

    fn classify(
        &self,
        settings: &settings::Classify,
        progress: &dyn Progress,
    ) -> anyhow::Result<ClassifyReport> {
        classify(settings, progress)
    }
}
