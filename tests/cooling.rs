//! Learning on a board that gets too warm, with a folder in place of the kernel's thermal zones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fledge::board::{Cooled, Machine};
use fledge::learner::{AdaptBlocks, Setup};
use fledge::vit::{Preprocessing, Weights, import};
use fledge::{LearnSettings, Learner, Progress, Stage};

/// A processor that is too warm whenever a stage begins, and cools as soon as somebody complains.
struct Processor {
    sensor: PathBuf,
    /// Each stage, with what was said in it.
    stages: Mutex<Vec<(Stage, Vec<String>)>>,
}

impl Processor {
    fn set(&self, thousandths: &str) {
        fs::write(&self.sensor, thousandths).unwrap();
    }
}

impl Progress for Processor {
    fn begin(&self, stage: Stage, _: usize) {
        self.stages.lock().unwrap().push((stage, Vec::new()));
        // Longer than sensors go without a look.
        std::thread::sleep(Duration::from_millis(600));
        self.set("85500\n");
    }

    fn advance(&self, _: usize) {}

    fn finish(&self) {}

    fn warn(&self, warning: &str) {
        let mut stages = self.stages.lock().unwrap();
        stages.last_mut().unwrap().1.push(warning.to_owned());
        self.set("70000\n");
    }
}

fn learner(folder: &Path) -> Learner {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/timm_vit_opset14.onnx");
    let file = folder.join("small.weights");
    import::import(&fixture, Preprocessing::HALF, &file).unwrap();
    let setup = Setup {
        resolution: 28,
        adapt_blocks: AdaptBlocks::Last(1),
        ..Setup::default()
    };
    Learner::new(Weights::open(&file).unwrap(), "small", &setup, 2).unwrap()
}

fn draw(task: &Path) {
    for (class, stripe) in [("robin", 5), ("tit", 8)] {
        fs::create_dir_all(task.join(class)).unwrap();
        for index in 0..12 {
            image::RgbImage::from_fn(40, 32, |x, y| match (x + index * 3) / stripe % 2 {
                0 => image::Rgb([220, 60, 30]),
                _ => image::Rgb([40, 40 + (y % 7) as u8, 40]),
            })
            .save(task.join(class).join(format!("{index}.png")))
            .unwrap();
        }
    }
}

#[test]
fn learning_waits_for_a_warm_processor_in_every_stage_and_then_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let zone = folder.path().join("sys/class/thermal/thermal_zone0");
    fs::create_dir_all(&zone).unwrap();
    fs::write(zone.join("type"), "cpu-thermal\n").unwrap();
    let processor = Processor {
        sensor: zone.join("temp"),
        stages: Mutex::default(),
    };
    let task = folder.path().join("birds");
    draw(&task);
    let mut learner = learner(folder.path());
    let mut settings = LearnSettings::default();
    settings.fit.set_epochs(2);

    let thermometer = Machine::at(folder.path()).thermometer();
    let cooled = Cooled::new(&processor, thermometer, "80".parse().unwrap());
    let report = learner.learn(&task, &settings, &cooled).unwrap();

    assert_eq!((report.images, report.epochs), (24, 2));
    let stages = processor.stages.into_inner().unwrap();
    let said = |wanted: fn(Stage) -> bool| {
        let of_kind = stages.iter().filter(|(stage, _)| wanted(*stage));
        of_kind.map(|(_, said)| said.len()).collect::<Vec<_>>()
    };
    assert_eq!(said(|s| matches!(s, Stage::Prefix)), [1], "{stages:?}");
    assert_eq!(
        said(|s| matches!(s, Stage::Epoch { .. })),
        [1, 1],
        "{stages:?}"
    );
    let sentences = stages.iter().flat_map(|(_, said)| said);
    for sentence in sentences {
        assert!(sentence.contains("85.5 °C") && sentence.contains("80.0 °C"));
    }
}
