//! Cost as work grows: 200 synthetic tasks on a small ViT. The state file and what of it is in memory
//! grow by a constant a task and class, and the hundredth task is learned in as many steps as the
//! second. Times are printed and drawn, not asserted: `cargo test --test growth -- --nocapture` says
//! where the picture is.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fledge::data::{PrefixCache, Rgb};
use fledge::learner::{AdaptBlocks, EncodedClass, EncodedTask, Setup};
use fledge::train::plan::Turn;
use fledge::vit::{Preprocessing, Weights, import};
use fledge::{LearnSettings, Learner, Progress, Stage, state};
use plotters::prelude::*;

const TASKS: usize = 200;
const CLASSES: usize = 2;
const IMAGES: usize = 6;

/// Counts trained images.
#[derive(Default)]
struct Steps(AtomicUsize);

impl Progress for Steps {
    fn begin(&self, _: Stage, _: usize) {}
    fn advance(&self, steps: usize) {
        self.0.fetch_add(steps, Ordering::Relaxed);
    }
    fn finish(&self) {}
    fn warn(&self, _: &str) {}
}

fn learner(folder: &Path) -> Learner {
    let file = folder.join("small.weights");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
    let export = fixtures.join("timm_vit_opset14.onnx");
    import::import(&export, Preprocessing::HALF, &file).unwrap();
    let setup = Setup {
        resolution: 28,
        adapt_blocks: AdaptBlocks::Last(1),
        rank: 4,
        seed: 1,
        ..Setup::default()
    };
    Learner::new(Weights::open(&file).unwrap(), "small", &setup, 2).unwrap()
}

/// The prefix's output for every image of every task: a pattern of the class with noise on it.
fn encoded(learner: &Learner) -> PrefixCache {
    let geometry = learner.weights().geometry();
    let tokens = geometry.tokens(28);
    let knowledge = learner.knowledge();
    let lower = knowledge
        .taps
        .iter()
        .filter(|&&tap| tap <= knowledge.first_adapted);
    let pooled = 2 * lower.count() * geometry.dim;
    let images = TASKS * CLASSES * IMAGES;
    let cache = PrefixCache::create(None, images, tokens, geometry.dim, pooled).unwrap();
    for image in 0..images {
        let class = image / IMAGES;
        let number = |k: usize| {
            let pattern = ((class * 7919 + k * 104_729) % 1009) as f32 / 1009.0 - 0.5;
            let noise = ((image * 31_337 + k * 7_127) % 997) as f32 / 997.0 - 0.5;
            pattern + 0.3 * noise
        };
        let stream: Vec<f32> = (0..tokens * geometry.dim).map(number).collect();
        let features: Vec<f32> = (0..pooled).map(number).collect();
        cache.write(image, &stream, &features).unwrap();
    }
    cache
}

/// Least milliseconds that preparing to classify took, and classifying a picture.
fn latency(learner: &Learner) -> (f64, f64) {
    let picture = Rgb::new(28, 28, (0..28 * 28 * 3).map(|k| k as u8).collect()).unwrap();
    let least = |work: &mut dyn FnMut()| {
        let times = (0..5).map(|_| {
            let start = Instant::now();
            work();
            1e3 * start.elapsed().as_secs_f64()
        });
        times.fold(f64::INFINITY, f64::min)
    };
    let prepare = least(&mut || drop(learner.recogniser().unwrap()));
    let recogniser = learner.recogniser().unwrap();
    let mut session = recogniser.session();
    let classify = least(&mut || {
        let picture = picture.clone();
        recogniser.classify_image(&mut session, picture).unwrap();
    });
    (prepare, classify)
}

/// One curve over the number of tasks learned.
struct Curve {
    title: &'static str,
    points: Vec<(f64, f64)>,
}

/// Draws the curves one below the other, each from zero.
fn draw(curves: &[Curve], file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (700, 220 * curves.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, curve) in root.split_evenly((curves.len(), 1)).iter().zip(curves) {
        let most = curve.points.iter().map(|point| point.1).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(curve.title, ("sans-serif", 16))
            .margin(10)
            .margin_right(20)
            .x_label_area_size(35)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..TASKS as f64, 0.0..1.1 * most)?;
        chart
            .configure_mesh()
            .x_desc("tasks learned")
            .y_labels(5)
            .light_line_style(TRANSPARENT)
            .draw()?;
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), BLACK))?;
    }
    root.present()?;
    Ok(())
}

#[test]
fn two_hundred_tasks_cost_a_constant_each() {
    let folder = tempfile::tempdir().unwrap();
    let mut learner = learner(folder.path());
    let cache = encoded(&learner);
    let mut settings = LearnSettings {
        rank: Some(4),
        ..LearnSettings::default()
    };
    settings.fit.set_epochs(1);
    let known = |learner: &Learner| {
        let plan = learner.plan(&[IMAGES; CLASSES], &settings).unwrap();
        plan.bytes_of(Turn::Always)
    };
    let (mut bytes, mut steps) = (
        vec![state::encode(learner.knowledge()).unwrap().len()],
        Vec::new(),
    );
    let mut memory = vec![known(&learner)];
    let mut curves = [
        "milliseconds to learn the task",
        "bytes of the state file",
        "milliseconds to classify a picture",
    ]
    .map(|title| Curve {
        title,
        points: Vec::new(),
    });
    eprintln!("task  learn ms  state bytes  added  in memory  prepare ms  classify ms");
    for task in 0..TASKS {
        let classes = (0..CLASSES).map(|class| {
            let first = (task * CLASSES + class) * IMAGES;
            EncodedClass {
                name: format!("class {:04}", task * CLASSES + class),
                training: (first..first + IMAGES - 2).collect(),
                validation: (first + IMAGES - 2..first + IMAGES).collect(),
            }
        });
        let task = EncodedTask {
            name: format!("task {task:04}"),
            cache: &cache,
            classes: classes.collect(),
        };
        let counted = Steps::default();
        let foreseen = learner.state_growth(&[IMAGES; CLASSES]) as usize;
        let start = Instant::now();
        learner.learn_encoded(&task, &settings, &counted).unwrap();
        let learned = start.elapsed();
        steps.push(counted.0.load(Ordering::Relaxed));
        bytes.push(state::encode(learner.knowledge()).unwrap().len());
        memory.push(known(&learner));
        let done = steps.len();
        let added = bytes[done] - bytes[done - 1];
        assert!(
            foreseen <= added && foreseen * 4 >= added * 3,
            "task {done} adds {added} bytes of {foreseen} foreseen"
        );
        let learned = 1e3 * learned.as_secs_f64();
        curves[0].points.push((done as f64, learned));
        curves[1].points.push((done as f64, bytes[done] as f64));
        if done % 20 == 0 || done == 2 {
            let (prepare, classify) = latency(&learner);
            curves[2].points.push((done as f64, classify));
            eprintln!(
                "{done:>4}  {learned:>8.1}  {:>11}  {:>5}  {:>9}  {prepare:>10.2}  {classify:>11.3}",
                bytes[done], added, memory[done],
            );
        }
    }
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("growth.svg");
    draw(&curves, &picture).unwrap();
    eprintln!("drawn as {}", picture.display());
    assert_eq!(
        steps[99], steps[1],
        "the hundredth task takes other steps than the second"
    );
    let added: Vec<usize> = bytes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // A task whose update is kept adds its cores, another does not; names and numbers are as long.
    let (least, most) = (
        added[1..].iter().min().unwrap(),
        added[1..].iter().max().unwrap(),
    );
    let of = |range: std::ops::Range<usize>| {
        let tasks = range.len() as f64;
        added[range].iter().sum::<usize>() as f64 / tasks
    };
    assert!(
        *most < least + least / 2,
        "a task adds {least} to {most} bytes"
    );
    let (early, late) = (of(1..50), of(150..200));
    assert!(
        (late - early).abs() < 0.05 * early,
        "{early} bytes a task early, {late} late"
    );
    // Means, names and numbers; scatter and factors wait on disk.
    let grown = |range: std::ops::Range<usize>| {
        (memory[range.end] - memory[range.start]) as f64 / range.len() as f64
    };
    let (early, late) = (grown(1..50), grown(150..200));
    assert!(
        (late - early).abs() < 0.05 * early,
        "{early} bytes of memory a task early, {late} late"
    );
}
