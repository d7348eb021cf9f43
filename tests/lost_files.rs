//! What training keeps in unnamed files may be lost: a failing card, a full disk. Learning then fails,
//! and the learner knows what it knew before or says that it cannot be used. Its own test binary, as
//! it spoils every unnamed file of the process.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use fledge::learner::{AdaptBlocks, Setup};
use fledge::vit::{Preprocessing, Weights, import};
use fledge::{LearnSettings, Learner, Progress, Silent, Stage, state};

/// Cuts every file that has no name any more.
fn lose_unnamed_files() -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let links = open.filter_map(|entry| Some(entry.ok()?.path()));
    let unnamed = links.filter(|link| {
        fs::read_link(link).is_ok_and(|to| to.to_string_lossy().ends_with(" (deleted)"))
    });
    let files = unnamed.filter_map(|link| File::options().write(true).open(link).ok());
    files
        .map(|file| file.set_len(0))
        .filter(Result::is_ok)
        .count()
}

/// Loses the files when an epoch begins.
struct Loses(usize);

impl Progress for Loses {
    fn begin(&self, stage: Stage, _: usize) {
        if matches!(stage, Stage::Epoch { number, .. } if number == self.0) {
            assert!(lose_unnamed_files() > 0);
        }
    }

    fn advance(&self, _: usize) {}
    fn finish(&self) {}
    fn warn(&self, _: &str) {}
}

fn draw(folder: &Path, task: &str, shade: u8) -> PathBuf {
    let task = folder.join(task);
    for class in 0..3u8 {
        let folder = task.join(format!("{shade}-{class}"));
        fs::create_dir_all(&folder).unwrap();
        for index in 0..10u8 {
            image::RgbImage::from_fn(40, 40, |x, y| match (x + y) / (3 + u32::from(class)) % 2 {
                0 => image::Rgb([class * 70, shade, index * 9]),
                _ => image::Rgb([90, (y % 7) as u8, index * 13]),
            })
            .save(folder.join(format!("{index}.png")))
            .unwrap();
        }
    }
    task
}

#[test]
fn a_learner_whose_files_are_lost_knows_what_it_knew_or_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.weights");
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/timm_vit_opset14.onnx");
    import::import(&fixture, Preprocessing::HALF, &file).unwrap();
    let weights = Weights::open(&file).unwrap();
    let setup = Setup {
        resolution: 28,
        adapt_blocks: AdaptBlocks::Last(2),
        prompts: 2,
        rank: 4,
        ..Setup::default()
    };
    let mut learner = Learner::new(weights.clone(), "small", &setup, 2).unwrap();
    let mut settings = LearnSettings::default();
    settings.fit.set_epochs(3);
    let (first, second) = (draw(folder.path(), "a", 200), draw(folder.path(), "b", 90));

    // The first task: the bases waited in a lost file, and nothing rests on them.
    let lost = learner.learn(&first, &settings, &Loses(2));
    assert!(lost.is_err(), "{lost:?}");
    assert!(learner.knowledge().tasks.is_empty());
    let rank = learner.knowledge().adapters.rank;
    for site in &learner.knowledge().adapters.sites {
        // They change nothing, as at the start.
        assert!(site.b.iter().all(|&b| b == 0.0) && site.a.iter().any(|&a| a != 0.0));
        assert!(site.core.iter().step_by(rank + 1).all(|&c| c == 1.0));
    }
    learner.learn(&first, &settings, &Silent).unwrap();

    // A later one: the adapters are as they were, and the head, whose scatter is gone, says so.
    let saved = folder.path().join("a.fledge");
    let (_, revision) = state::write(&saved, learner.knowledge(), state::Revision::NONE).unwrap();
    let before = learner.knowledge().adapters.clone();
    let lost = learner.learn(&second, &settings, &Loses(2));
    assert!(lost.is_err(), "{lost:?}");
    assert_eq!(learner.knowledge().adapters, before);
    let error = learner.recogniser().unwrap_err().to_string();
    assert!(error.contains("waits on disk"), "{error}");
    assert!(learner.learn(&second, &settings, &Silent).is_err());
    assert!(state::write(&saved, learner.knowledge(), revision).is_err());

    // The state file is what it was.
    let (knowledge, _) = state::open(&saved).unwrap();
    let mut learner = Learner::resume(weights, knowledge, 2).unwrap();
    learner.learn(&second, &settings, &Silent).unwrap();
    assert_eq!(learner.knowledge().tasks.len(), 2);
}
