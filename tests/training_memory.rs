//! Memory while learning is a promise: whatever is live at any time of a whole `Learner::learn`,
//! beyond the loaded model, stays within the budget, and an epoch allocates nothing. So is what decoding a
//! picture takes. Their own test binary, as it counts every allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fledge::data::{Fault, Limits, SkipReason, Undecoded, decode};
use fledge::learner::{AdaptBlocks, LearnError, Setup};
use fledge::train::plan::{Budget, Turn};
use fledge::vit::{Preprocessing, Weights, import};
use fledge::{LearnReport, LearnSettings, Learner, Progress, Stage, state};

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
    /// Allocations made when each epoch began and when training ended, and whether a lesson began
    /// with it: M and N, then the bases.
    epochs: Mutex<([(usize, bool); 64], usize)>,
    /// Most bytes live while photos were encoded, while training, and after it.
    turns: Mutex<([usize; 3], usize)>,
}

impl Watch {
    fn new() -> Self {
        Self {
            epochs: Mutex::new(([(0, false); 64], 0)),
            turns: Mutex::new(([0; 3], 0)),
        }
    }

    /// Ends a turn.
    fn turn(&self) {
        let mut turns = self.turns.lock().unwrap();
        let (peaks, turn) = &mut *turns;
        peaks[*turn] = PEAK.load(Ordering::Relaxed);
        *turn += 1;
        PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn mark(&self, lesson_begins: bool) {
        let mut epochs = self.epochs.lock().unwrap();
        let (marks, count) = &mut *epochs;
        if *count < marks.len() {
            marks[*count] = (ALLOCATIONS.load(Ordering::Relaxed), lesson_begins);
            *count += 1;
        }
    }

    /// Allocations in each epoch behind the first, but what the next lesson took.
    fn later(&self) -> Vec<usize> {
        let (marks, count) = *self.epochs.lock().unwrap();
        let pairs = marks[1..count.max(2) - 1].windows(2);
        let within = pairs.filter(|pair| !pair[1].1);
        within.map(|pair| pair[1].0 - pair[0].0).collect()
    }
}

impl Progress for Watch {
    fn begin(&self, stage: Stage, _: usize) {
        if let Stage::Epoch { number, .. } = stage {
            self.mark(number == 1);
        }
    }

    fn advance(&self, _: usize) {}

    fn finish(&self) {
        if self.epochs.lock().unwrap().1 > 0 {
            self.mark(false);
        }
        self.turn();
    }

    fn warn(&self, _: &str) {}
}

/// Runs `work`, and returns the most bytes that were live during it beyond those at `base`; with a
/// watch, since its last turn ended.
fn peak_beyond<T>(base: usize, work: impl FnOnce() -> T) -> (T, usize) {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(base))
}

/// Tests take turns, as all of them count the same allocations.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
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
                (70 * class) as u8,
                200u8.wrapping_sub((50 * class) as u8),
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

fn setup(prompts: usize) -> Setup {
    Setup {
        resolution: 28,
        adapt_blocks: AdaptBlocks::Last(2),
        prompts,
        // So that bases are what takes most.
        rank: 16,
        seed: 1,
        ..Setup::default()
    }
}

fn settings(budget: usize, rank: Option<usize>, epochs: usize) -> LearnSettings {
    let mut settings = LearnSettings {
        budget: Budget::Fixed(budget),
        rank,
        ..LearnSettings::default()
    };
    settings.fit.set_epochs(epochs);
    settings
}

/// The smallest budget that a refusal names.
fn smallest(learner: &mut Learner, task: &Path) -> usize {
    let refused = learner.learn(task, &settings(1, None, 1), &Watch::new());
    match refused {
        Err(LearnError::Plan(error)) => error.smallest,
        other => panic!("a budget of one byte gave {other:?}"),
    }
}

fn learn(
    learner: &mut Learner,
    task: &Path,
    settings: &LearnSettings,
    onward: bool,
    watch: &Watch,
) -> LearnReport {
    let later = !learner.knowledge().tasks.is_empty();
    let report = learner.learn(task, settings, watch).unwrap();
    // A later task's M and N, and then the bases.
    let lessons = [1, 2][usize::from(later && onward)];
    assert_eq!(report.epochs, lessons * settings.fit.epochs);
    report
}

#[test]
fn learning_stays_within_its_budget_and_an_epoch_allocates_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let weights = small_vit(folder.path());
    let tasks: Vec<(PathBuf, usize)> = [("first", 3), ("second", 4), ("third", 2)]
        .map(|(name, classes)| (draw(folder.path(), name, classes, 14), classes))
        .into();
    for (threads, rank, prompts) in [(1, Some(4), 0), (2, Some(4), 8), (1, None, 8), (2, None, 0)] {
        for generous in [false, true] {
            let base = LIVE.load(Ordering::Relaxed);
            let new = || Learner::new(weights.clone(), "small", &setup(prompts), threads).unwrap();
            let mut learner = new();
            for (task, classes) in &tasks {
                let smallest = smallest(&mut learner, task);
                let budget = if generous { 2 * smallest } else { smallest };
                let settings = settings(budget, rank, 4);
                let plan = learner.plan(&vec![14; *classes], &settings).unwrap();
                assert!(plan.bytes() <= budget);
                let watch = Watch::new();
                let (_, last) = peak_beyond(base, || {
                    learn(&mut learner, task, &settings, plan.bases, &watch)
                });
                let allocations = watch.later();
                let ([encoding, training, _], turns) = *watch.turns.lock().unwrap();
                assert_eq!(turns, 2);
                let peaks = [encoding - base, training - base, last];
                let of = |turn| plan.bytes_of(Turn::Always) + plan.bytes_of(turn);
                // Training ends with the features as they are then, in the same memory.
                let last_turns = [Turn::Training, Turn::Moving, Turn::Closing].map(of);
                let after = last_turns.into_iter().max().unwrap();
                let planned = [of(Turn::Encoding), of(Turn::Training), after];
                eprintln!(
                    "{threads} threads, rank {rank:?}, {prompts} prompts, {}: {allocations:?}, \
                     peaks {peaks:?} of {planned:?} of {budget}",
                    task.file_name().unwrap().display()
                );
                assert!(
                    allocations.len() >= 2 && allocations.iter().all(|&n| n == 0),
                    "{allocations:?}"
                );
                for (peak, planned) in peaks.into_iter().zip(planned) {
                    assert!(
                        peak <= planned && planned <= budget,
                        "{peak} bytes live, {planned} planned, {budget} allowed"
                    );
                }
            }
        }
    }
}

#[test]
fn a_state_is_read_learned_on_and_saved_within_the_budget() {
    let _alone = alone();
    // What prompts mind is measured last, beside the head as it was and as it will be.
    for prompts in [0, 8] {
        state_within_budget(prompts);
    }
}

fn state_within_budget(prompts: usize) {
    let folder = tempfile::tempdir().unwrap();
    let weights = small_vit(folder.path());
    let file = folder.path().join("a.fledge");
    let mut learner = Learner::new(weights.clone(), "small", &setup(prompts), 1).unwrap();
    let roomy = settings(8 << 20, None, 1);
    for (name, classes) in [("many", 9), ("more", 8)] {
        let task = draw(folder.path(), name, classes, 30);
        learner.learn(&task, &roomy, &Watch::new()).unwrap();
    }
    let (bytes, _) = state::write(&file, learner.knowledge(), state::Revision::NONE).unwrap();
    drop(learner);
    let task = draw(folder.path(), "last", 2, 8);
    let base = LIVE.load(Ordering::Relaxed);
    let ((budget, revision), peak) = peak_beyond(base, || {
        let (knowledge, revision) = state::open(&file).unwrap();
        let mut learner = Learner::resume(weights.clone(), knowledge, 1).unwrap();
        let budget = smallest(&mut learner, &task);
        learner
            .learn(&task, &settings(budget, None, 2), &Watch::new())
            .unwrap();
        let saved = state::write(&file, learner.knowledge(), revision).unwrap();
        (budget, saved.1)
    });
    eprintln!("{prompts} prompts, a state of {bytes} bytes, peak {peak} of {budget}");
    assert!(peak <= budget, "{peak} bytes live, {budget} allowed");
    // What went from file to file is whole.
    let (knowledge, read) = state::open(&file).unwrap();
    assert_eq!(read, revision);
    assert_eq!(knowledge, state::read(&file).unwrap().0);
    assert_eq!(knowledge.classes.len(), 9);
}

#[test]
fn a_budget_one_byte_below_the_smallest_is_refused_and_names_what_to_lower() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let weights = small_vit(folder.path());
    let task = draw(folder.path(), "first", 3, 14);
    let mut learner = Learner::new(weights, "small", &setup(2), 2).unwrap();
    let smallest = smallest(&mut learner, &task);
    let refused = learner.learn(&task, &settings(smallest - 1, None, 1), &Watch::new());
    let Err(LearnError::Plan(error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.smallest, smallest);
    assert!(error.to_string().contains("--budget"), "{error}");
    assert!(learner.knowledge().tasks.is_empty());
    learner
        .learn(&task, &settings(smallest, None, 1), &Watch::new())
        .unwrap();
}

#[test]
fn photos_from_a_phone_are_learned_within_the_budget_and_what_does_not_fit_is_named() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let weights = small_vit(folder.path());
    let task = draw(folder.path(), "first", 2, 6);
    let photo = |seed: u32| {
        image::RgbImage::from_fn(2000, 1500, |x, y| {
            image::Rgb([(x / 8 + seed) as u8, (y / 6) as u8, ((x + y) / 16) as u8])
        })
    };
    for k in 0..4 {
        photo(k)
            .save(task.join("class0").join(format!("photo{k}.jpg")))
            .unwrap();
    }
    photo(9)
        .save(task.join("class1").join("large.png"))
        .unwrap();
    let base = LIVE.load(Ordering::Relaxed);
    let mut learner = Learner::new(weights, "small", &setup(0), 2).unwrap();
    let budget = smallest(&mut learner, &task) + (256 << 10);
    let settings = settings(budget, None, 1);
    let plan = learner.plan(&[10, 7], &settings).unwrap();
    assert!(plan.bytes_of(Turn::Encoding) > plan.encoding.window);
    let (report, peak) = peak_beyond(base, || learner.learn(&task, &settings, &Watch::new()));
    let report = report.unwrap();
    assert!(peak <= budget, "{peak} bytes live, {budget} allowed");
    assert_eq!(report.images, 16);
    let [skipped] = &report.skipped[..] else {
        panic!("{:?}", report.skipped);
    };
    assert!(skipped.path.ends_with("class1/large.png"));
    assert!(
        matches!(
            skipped.reason,
            SkipReason::Fault(Fault::BeyondBudget { .. })
        ),
        "{skipped}"
    );
    assert!(skipped.to_string().contains("--budget"), "{skipped}");
}

#[test]
fn decoding_takes_no_more_than_is_foreseen_and_is_refused_where_there_is_less() {
    use image::{DynamicImage, ImageFormat, Rgba};
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // Transparent here and there, and hard to pack.
    let picture = image::RgbaImage::from_fn(401, 307, |x, y| {
        let noise = (x.wrapping_mul(2654435761) ^ y.wrapping_mul(40503 * x + 7)) >> 7;
        Rgba([
            noise as u8,
            (x / 2) as u8,
            (y / 2) as u8,
            255 - (x % 3) as u8,
        ])
    });
    let picture = DynamicImage::from(picture);
    let kinds: [DynamicImage; 6] = [
        picture.to_rgb8().into(),
        picture.to_rgba8().into(),
        picture.to_luma8().into(),
        picture.to_luma_alpha8().into(),
        picture.to_rgb16().into(),
        picture.to_rgba16().into(),
    ];
    let formats = [
        ImageFormat::Png,
        ImageFormat::Tiff,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Pnm,
        ImageFormat::Jpeg,
    ];
    let mut written = 0;
    for format in formats {
        for picture in &kinds {
            let file = folder.path().join("picture");
            let kind = picture.color();
            if picture.save_with_format(&file, format).is_err() {
                continue;
            }
            written += 1;
            let mut limits = Limits::default();
            // To be scaled to nothing, so that decoding is all.
            let foreseen = Undecoded::open(&file, &limits).unwrap().memory(0);
            let base = LIVE.load(Ordering::Relaxed);
            let (decoded, peak) = peak_beyond(base, || decode(&file, &limits));
            assert!(decoded.is_ok(), "{format:?} {kind:?}");
            assert!(
                peak <= foreseen,
                "{format:?} {kind:?}: {peak} of {foreseen}"
            );
            limits.max_memory = peak / 2;
            let refused = decode(&file, &limits).unwrap_err();
            assert!(
                matches!(refused.fault, Fault::BeyondMemory { left, .. } if left == peak / 2),
                "{format:?} {kind:?}: {refused}"
            );
        }
    }
    assert!(written >= 20, "{written}");
}
