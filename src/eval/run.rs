//! Every method, every seed, every task.

use std::path::PathBuf;
use std::time::Instant;

use super::benchmark::{Benchmark, Lesson, joined};
use super::contender::Contender;
use super::lda::{PerTask, Sequential};
use super::linear::Linear;
use super::listing::{BenchmarkError, Listing, Protocol};
use super::method::{Method, Variant};
use super::report::{Difference, EvalReport, MethodReport, Run};
use crate::data::Skipped;
use crate::learner::{
    AdaptBlocks, LearnError, LearnSettings, Learner, Research, Setup, SetupError,
};
use crate::{Progress, Stage};

/// Exemplars a class that `replay` keeps.
const EXEMPLARS: usize = 5;

/// What to compare, on what.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSettings {
    pub protocol: Protocol,
    /// Folder with `train` and `test`.
    pub data: PathBuf,
    /// How many tasks to cut the classes into, where the folders do not say.
    pub tasks: Option<usize>,
    /// Names of the groups in the order they are learned; drawn, or sorted for domains, when
    /// empty.
    pub order: Vec<String>,
    /// Runs of each method.
    pub seeds: u64,
    /// Draws the order of the classes; the run with seed s uses this plus s.
    pub order_seed: u64,
    pub variants: Vec<Variant>,
}

/// An evaluation could not go on; runs that finished were handed over.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Benchmark(#[from] BenchmarkError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("{method}, seed {seed}, task {task}: {source}")]
    Learn {
        method: String,
        seed: u64,
        task: usize,
        source: Box<LearnError>,
    },
    #[error(
        "the runs to go on from belong to another comparison: their {0}; name another file for these"
    )]
    OtherComparison(Difference),
    #[error(
        "the runs of {method} to go on from were made with other settings, another --order or other images; name another file for these"
    )]
    OtherSettings { method: String },
}

/// Tells what a variant's runs were made with from anything else, seeds aside.
fn made_with(variant: &Variant, asked: &EvalSettings, images: u32) -> String {
    let setup = Setup {
        seed: 0,
        ..variant.setup.clone()
    };
    let all = format!(
        "{setup:?} {:?} {:?} {images:08x}",
        variant.settings, asked.order
    );
    format!("{:08x}", crc32fast::hash(all.as_bytes()))
}

/// Runs every variant with every seed and reports on all of them. Runs that `earlier` holds already
/// are not repeated; `finished` is called after each new one, to keep it. When
/// [`Progress::cancelled`] says so, the evaluation ends after the task at hand; the run it belongs
/// to is dropped.
///
/// # Errors
/// When the data cannot be read, a setup does not fit the model, or learning fails.
pub fn evaluate(
    learner: &mut Learner,
    settings: &EvalSettings,
    earlier: Option<EvalReport>,
    peak_heap: Option<&dyn PeakHeap>,
    progress: &dyn Progress,
    finished: &mut dyn FnMut(&EvalReport),
) -> Result<EvalReport, EvalError> {
    // Before anything is computed: what cannot be run should be known at once.
    for Variant {
        setup, settings, ..
    } in &settings.variants
    {
        setup.demand(learner.weights().geometry(), 0, 0, 1, 1)?;
        settings.check(setup.rank)?;
    }
    let listing = Listing::scan(
        &settings.data,
        settings.protocol,
        settings.tasks,
        &settings.order,
    )?;
    let mut report = EvalReport {
        protocol: settings.protocol.to_string(),
        data: settings.data.display().to_string(),
        tasks: listing.tasks(),
        seeds: settings.seeds,
        order_seed: settings.order_seed,
        resolution: learner.knowledge().resolution,
        model: learner.knowledge().model.name.clone(),
        model_hash: learner.knowledge().model.hash.to_string(),
        threads: learner.pool().current_num_threads(),
        complete: false,
        skipped: Vec::new(),
        methods: Default::default(),
    };
    let mut lost: Vec<String> = listing.skipped.iter().map(Skipped::to_string).collect();
    if let Some(earlier) = earlier {
        if let Some(difference) = earlier.difference(&report) {
            return Err(EvalError::OtherComparison(difference));
        }
        report.methods = earlier.methods;
        lost.extend(earlier.skipped);
    }
    let images = listing.digest();
    for variant in &settings.variants {
        let made_with = made_with(variant, settings, images);
        let others = |run: &Run| run.made_with.as_ref().is_some_and(|run| *run != made_with);
        let method = report.methods.get(&variant.name);
        if method.is_some_and(|method| method.runs.iter().any(others)) {
            return Err(EvalError::OtherSettings {
                method: variant.name.clone(),
            });
        }
    }
    // What finished runs left out is said again, as there may be nothing to encode that would show it.
    leave_out(&mut report, lost, progress);
    let mut blocks: Vec<AdaptBlocks> = Vec::new();
    for variant in &settings.variants {
        if !blocks.contains(&variant.setup.adapt_blocks) {
            blocks.push(variant.setup.adapt_blocks);
        }
    }
    for adapt_blocks in blocks {
        let mut runs = Vec::new();
        for seed in 0..settings.seeds {
            for variant in &settings.variants {
                let here = variant.setup.adapt_blocks == adapt_blocks;
                if here && report.run(&variant.name, seed).is_none() {
                    runs.push((variant, seed));
                }
            }
        }
        let Some((first, _)) = runs.first() else {
            continue;
        };
        // The cache rests on the first adapted block, which is all that this setup decides.
        learner.start_over(&first.setup)?;
        let benchmark = Benchmark::encode(&listing, learner, progress)?;
        let lost = benchmark.unreadable.iter().map(Skipped::to_string);
        leave_out(&mut report, lost, progress);
        progress.begin(Stage::Evaluate, runs.len() * listing.tasks());
        for (variant, seed) in runs {
            let job = Job {
                benchmark: &benchmark,
                variant,
                seed,
                order: settings.order_seed.wrapping_add(seed),
            };
            let Some(mut run) = job.run(learner, peak_heap, progress)? else {
                progress.finish();
                return Ok(report);
            };
            run.made_with = Some(made_with(variant, settings, images));
            let mut runs = report
                .methods
                .remove(&variant.name)
                .map_or_else(Vec::new, |method| method.runs);
            runs.push(run);
            let method = MethodReport::of(runs);
            report
                .methods
                .extend(method.map(|method| (variant.name.clone(), method)));
            finished(&report);
        }
        progress.finish();
    }
    report.complete = true;
    Ok(report)
}

/// Reports each file that could not be used, and warns of it, once.
fn leave_out(
    report: &mut EvalReport,
    lost: impl IntoIterator<Item = String>,
    progress: &dyn Progress,
) {
    for file in lost {
        if !report.skipped.contains(&file) {
            progress.warn(&format!("skipped: {file}"));
            report.skipped.push(file);
        }
    }
}

/// Leaves the bases as they are and stand-ins out, for methods that bound drift in another way.
fn cores_alone(settings: &mut LearnSettings) {
    settings.fit.later_epochs = 0;
    settings.stand_ins = 0;
}

/// Measures the heap, where the program has an allocator that counts.
pub trait PeakHeap: Sync {
    /// Forgets the highest count so far.
    fn reset(&self);

    /// Bytes in use now.
    fn now(&self) -> usize;

    /// Most bytes in use at once since the last reset.
    fn peak(&self) -> usize;
}

/// One method with one seed.
struct Job<'a> {
    benchmark: &'a Benchmark,
    variant: &'a Variant,
    seed: u64,
    order: u64,
}

impl Job<'_> {
    /// `None` when it was cancelled.
    fn run(
        &self,
        learner: &mut Learner,
        peak_heap: Option<&dyn PeakHeap>,
        progress: &dyn Progress,
    ) -> Result<Option<Run>, EvalError> {
        let start = Instant::now();
        let lessons =
            self.benchmark
                .lessons(self.order, self.seed, self.variant.settings.validation);
        let mut setup = self.variant.setup.clone();
        setup.seed = self.seed;
        if self.variant.method == Method::Frozen {
            setup.prompts = 0;
        }
        learner.start_over(&setup)?;
        let mut run = Run {
            seed: self.seed,
            matrix: Vec::new(),
            images: lessons.iter().map(|lesson| lesson.test.len()).collect(),
            parameters: Vec::new(),
            bytes: Vec::new(),
            ranks: Vec::new(),
            seconds: 0.0,
            peak_training_bytes: None,
            made_with: None,
        };
        let mut contender = self.contender(learner, setup);
        let at_once = joined(&lessons).filter(|_| self.variant.method == Method::Joint);
        let tasks: Vec<_> = match &at_once {
            Some(everything) => vec![everything],
            None => lessons.iter().map(|lesson| &lesson.task).collect(),
        };
        for (index, task) in tasks.into_iter().enumerate() {
            if progress.cancelled() {
                return Ok(None);
            }
            let failed = |error| EvalError::Learn {
                method: self.variant.name.clone(),
                seed: self.seed,
                task: index + 1,
                source: Box::new(error),
            };
            let before = peak_heap.map(|heap| {
                heap.reset();
                heap.now()
            });
            let learned = contender.learn(task).map_err(failed)?;
            if let (Some(heap), Some(before)) = (peak_heap, before) {
                let peak = heap.peak().saturating_sub(before);
                run.peak_training_bytes = run.peak_training_bytes.max(Some(peak));
            }
            run.parameters.push(learned.parameters);
            run.bytes.push(learned.bytes);
            run.ranks.push(learned.rank);
            let seen = if at_once.is_some() {
                &lessons[..]
            } else {
                &lessons[..=index]
            };
            run.matrix
                .push(accuracies(contender.as_mut(), seen).map_err(failed)?);
            progress.advance(if at_once.is_some() { lessons.len() } else { 1 });
        }
        run.seconds = start.elapsed().as_secs_f64();
        Ok(Some(run))
    }

    fn contender<'l>(
        &'l self,
        learner: &'l mut Learner,
        setup: crate::learner::Setup,
    ) -> Box<dyn Contender + 'l> {
        let cache = self.benchmark.cache();
        let mut settings = self.variant.settings.clone();
        settings.fit.seed = self.seed;
        let mut research = Research::default();
        let mut exemplars = 0;
        match self.variant.method {
            Method::PerTask => return Box::new(PerTask::new(learner, cache, setup, settings)),
            Method::Finetune | Method::Lora | Method::SdLora | Method::FmLoraPublished => {
                let style = self.variant.method;
                return Box::new(Linear::new(learner, cache, style, &settings));
            }
            Method::Frozen => settings.instant = true,
            Method::Regularised => {
                research.fisher = Some(Vec::new());
                cores_alone(&mut settings);
            }
            Method::Replay => {
                exemplars = EXEMPLARS;
                cores_alone(&mut settings);
            }
            // Nothing comes after it that a blend with the frozen weights would serve.
            Method::Joint => settings.fit.blend = 1.0,
            Method::FmLora => {}
        }
        Box::new(Sequential::new(
            learner, cache, settings, research, exemplars,
        ))
    }
}

/// Percent right of each lesson's test images.
fn accuracies(
    contender: &mut dyn Contender,
    lessons: &[Lesson<'_>],
) -> Result<Vec<f64>, LearnError> {
    let records: Vec<usize> = lessons
        .iter()
        .flat_map(|lesson| lesson.test.iter().copied())
        .collect();
    let answers = contender.classify(&records)?;
    let mut answers = answers.iter();
    Ok(lessons
        .iter()
        .map(|lesson| {
            let named = answers.by_ref().take(lesson.truth.len());
            let right = lesson.truth.iter().zip(named).filter(|(t, a)| t == a);
            100.0 * right.count() as f64 / lesson.truth.len().max(1) as f64
        })
        .collect())
}
