//! Memory while training is a promise: an epoch allocates nothing, and what is live at any time
//! beyond the loaded model stays within the budget. Its own test binary, as it counts every
//! allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fledge::learner::{AdaptBlocks, Setup};
use fledge::vit::{Preprocessing, Weights, import};
use fledge::{LearnSettings, Learner, Progress, Stage};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grew(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts between the events of learning; allocates nothing itself.
struct Watch {
    /// Allocations made when each epoch began and when training ended.
    epochs: Mutex<([usize; 64], usize)>,
    /// Highest live bytes while training.
    peak: AtomicUsize,
}

impl Watch {
    fn new() -> Self {
        Self {
            epochs: Mutex::new(([0; 64], 0)),
            peak: AtomicUsize::new(0),
        }
    }

    fn mark(&self) {
        let mut epochs = self.epochs.lock().unwrap();
        let (marks, count) = &mut *epochs;
        if *count < marks.len() {
            marks[*count] = ALLOCATIONS.load(Ordering::Relaxed);
            *count += 1;
        }
        self.peak
            .fetch_max(PEAK.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Progress for Watch {
    fn begin(&self, stage: Stage, _: usize) {
        match stage {
            Stage::Epoch { number: 1, .. } => self.mark(),
            Stage::Epoch { .. } => self.mark(),
            _ => {}
        }
    }

    fn advance(&self, _: usize) {}

    fn finish(&self) {
        let trained = self.epochs.lock().unwrap().1 > 0;
        if trained {
            self.mark();
        } else {
            // The frozen prefix has run; from here on it is training.
            PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn warn(&self, _: &str) {}
}

fn small_vit(folder: &Path) -> Weights {
    let file = folder.join("small.weights");
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/timm_vit_opset14.onnx");
    import::import(&fixture, Preprocessing::HALF, &file).unwrap();
    Weights::open(&file).unwrap()
}

/// Striped pictures, `images` a class.
fn draw(folder: &Path, task: &str, classes: usize, images: u32) -> PathBuf {
    let task = folder.join(task);
    for class in 0..classes {
        let folder = task.join(format!("class{class}"));
        std::fs::create_dir_all(&folder).unwrap();
        for index in 0..images {
            let colour = [
                (class * 70) as u8,
                200 - (class * 50) as u8,
                (index * 9) as u8,
            ];
            let stripe = 3 + class as u32 * 2;
            image::RgbImage::from_fn(40, 40, |x, y| match (x + y + index) / stripe % 2 {
                0 => image::Rgb(colour),
                _ => image::Rgb([90, (y % 7) as u8, (index * 13) as u8]),
            })
            .save(folder.join(format!("{index}.png")))
            .unwrap();
        }
    }
    task
}

/// What learning one task after another showed: allocations in each epoch behind a task's first,
/// and the highest live bytes while training beyond those before learning.
fn learn(
    learner: &mut Learner,
    task: &Path,
    rank: Option<usize>,
    budget: usize,
    epochs: usize,
) -> (Vec<usize>, usize) {
    let mut settings = LearnSettings {
        budget,
        rank,
        ..LearnSettings::default()
    };
    (settings.fit.epochs, settings.fit.core_epochs) = (epochs, epochs);
    settings.fit.patience = epochs;
    let watch = Watch::new();
    let before = LIVE.load(Ordering::Relaxed);
    let report = learner.learn(task, &settings, &watch).unwrap();
    assert_eq!(report.epochs, epochs);
    let (marks, count) = *watch.epochs.lock().unwrap();
    // From the second epoch's start to the last one's.
    let later = marks[1..count - 1].windows(2).map(|pair| pair[1] - pair[0]);
    (later.collect(), watch.peak.load(Ordering::Relaxed) - before)
}

#[test]
fn an_epoch_allocates_nothing_and_training_stays_within_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let weights = small_vit(folder.path());
    let setup = Setup {
        resolution: 28,
        adapt_blocks: AdaptBlocks::All,
        prompts: 2,
        rank: 4,
        seed: 1,
        ..Setup::default()
    };
    for (threads, rank) in [(1, Some(4)), (2, Some(4)), (1, None), (2, None)] {
        let mut learner = Learner::new(weights.clone(), "small", &setup, threads).unwrap();
        for (task, classes) in [("first", 3), ("second", 4)] {
            let task = draw(folder.path(), task, classes, 14);
            let settings = LearnSettings::default();
            let plan = learner.plan(classes, 14 * classes, &settings).unwrap();
            let (allocations, peak) = learn(&mut learner, &task, rank, plan.bytes(), 4);
            eprintln!(
                "{threads} threads, rank {rank:?}: {allocations:?}, peak {peak} of {}",
                plan.bytes()
            );
            assert!(
                allocations.len() >= 2 && allocations.iter().all(|&n| n == 0),
                "{allocations:?}"
            );
            assert!(
                peak <= plan.bytes(),
                "{peak} bytes live, {} planned",
                plan.bytes()
            );
        }
    }
}
