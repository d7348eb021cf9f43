//! The temperature of the processor, and work that waits while it is above a ceiling.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{Progress, Stage};

/// Time between two looks at the sensors.
const INTERVAL: Duration = Duration::from_millis(500);

/// How far below the ceiling work goes on again, in degrees: without a gap, work would start and
/// stop at every step.
const GAP: f32 = 3.0;

/// Time between two sentences about the same pause.
const REMINDER: Duration = Duration::from_secs(60);

/// The kernel's thermal zones that tell of the processor.
#[derive(Debug, Clone, Default)]
pub struct Thermometer {
    /// Files that hold thousandths of a degree.
    sensors: Vec<PathBuf>,
}

impl Thermometer {
    /// The zones below `folder` that belong to the processor by their type; where no type says
    /// so, all of them. Zones of power chips are left out: some show a constant.
    pub(super) fn find(folder: &Path) -> Self {
        let mut zones: Vec<(String, PathBuf)> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with("thermal_zone")
            })
            .filter_map(|entry| {
                let kind = fs::read_to_string(entry.path().join("type")).ok()?;
                let kind = kind.trim().to_lowercase();
                (!kind.contains("pmic")).then(|| (kind, entry.path().join("temp")))
            })
            .collect();
        zones.sort();
        let of_processor = |kind: &str| {
            ["cpu", "soc", "x86_pkg"]
                .iter()
                .any(|part| kind.contains(part))
        };
        if zones.iter().any(|(kind, _)| of_processor(kind)) {
            zones.retain(|(kind, _)| of_processor(kind));
        }
        Self {
            sensors: zones.into_iter().map(|(_, path)| path).collect(),
        }
    }

    /// Degrees Celsius of the warmest sensor; `None` where there is none that answers.
    pub fn celsius(&self) -> Option<f32> {
        self.sensors
            .iter()
            // A sensor of a part that is switched off fails to answer.
            .filter_map(|sensor| fs::read_to_string(sensor).ok()?.trim().parse::<i32>().ok())
            .max()
            .map(|thousandths| thousandths as f32 / 1e3)
    }
}

/// A temperature above which work waits: 30 to 120 degrees Celsius.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling(f32);

impl Ceiling {
    pub fn celsius(self) -> f32 {
        self.0
    }
}

impl FromStr for Ceiling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<f32>() {
            Ok(celsius) if (30.0..=120.0).contains(&celsius) => Ok(Self(celsius)),
            _ => Err("expected degrees Celsius from 30 to 120".to_owned()),
        }
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A [`Progress`] under which work waits while the processor is above a ceiling. Work reports
/// each step it has done, on the thread that does it, and that is where it is made to wait; after
/// the last step of a stage there is nothing to wait with.
pub struct Cooled<'a> {
    progress: &'a dyn Progress,
    thermometer: Thermometer,
    ceiling: Ceiling,
    /// Steps of the current stage that are not done yet.
    left: AtomicUsize,
    looked: Mutex<Option<Instant>>,
    /// Whether it was said that no sensor answers.
    blind: AtomicBool,
    pause: fn(Duration),
}

impl fmt::Debug for Cooled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cooled")
            .field("thermometer", &self.thermometer)
            .field("ceiling", &self.ceiling)
            .finish_non_exhaustive()
    }
}

impl<'a> Cooled<'a> {
    pub fn new(progress: &'a dyn Progress, thermometer: Thermometer, ceiling: Ceiling) -> Self {
        Self {
            progress,
            thermometer,
            ceiling,
            left: AtomicUsize::new(0),
            looked: Mutex::new(None),
            blind: AtomicBool::new(false),
            pause: std::thread::sleep,
        }
    }

    /// Returns once the processor is below the ceiling; says so when it has to wait, and again
    /// every minute. `meanwhile` is called twice a second, and ends the wait by answering false.
    /// Where no sensor answers there is no wait, which is said once.
    pub fn wait(&self, mut meanwhile: impl FnMut() -> bool) {
        // Threads that arrive while another waits, wait here with it.
        let mut looked = self.looked.lock().unwrap_or_else(|e| e.into_inner());
        if looked.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        let Ceiling(ceiling) = self.ceiling;
        let mut bound = ceiling;
        let mut since_said = REMINDER;
        let mut now = self.thermometer.celsius();
        if now.is_none() && !self.blind.swap(true, Ordering::Relaxed) {
            self.progress.warn(&format!(
                "the thermal ceiling of {ceiling:.1} °C is not kept: no sensor of the kernel's \
                 thermal zones answers"
            ));
        }
        while let Some(celsius) = now.filter(|&now| now > bound) {
            if since_said >= REMINDER {
                self.progress.warn(&format!(
                    "the processor is at {celsius:.1} °C and the ceiling is {ceiling:.1} °C: \
                     waiting until it has cooled to {:.1} °C",
                    ceiling - GAP
                ));
                since_said = Duration::ZERO;
            }
            bound = ceiling - GAP;
            (self.pause)(INTERVAL);
            since_said += INTERVAL;
            if !meanwhile() {
                break;
            }
            now = self.thermometer.celsius();
        }
        *looked = Some(Instant::now());
    }
}

impl Progress for Cooled<'_> {
    fn begin(&self, stage: Stage, total: usize) {
        self.left.store(total, Ordering::Relaxed);
        self.progress.begin(stage, total);
    }

    fn advance(&self, steps: usize) {
        self.progress.advance(steps);
        let less = |left: usize| Some(left.saturating_sub(steps));
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if left.is_ok_and(|left| left > steps) {
            self.wait(|| true);
        }
    }

    fn finish(&self) {
        self.progress.finish();
    }

    fn warn(&self, warning: &str) {
        self.progress.warn(warning);
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(root: &Path, number: usize, kind: &str, temp: &str) -> PathBuf {
        let folder = root.join(format!("thermal_zone{number}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("type"), format!("{kind}\n")).unwrap();
        fs::write(folder.join("temp"), format!("{temp}\n")).unwrap();
        folder.join("temp")
    }

    #[test]
    fn the_warmest_sensor_of_the_processor_counts() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Thermometer::find(root.path()).celsius(), None);
        zone(root.path(), 0, "AO-therm", "91000");
        zone(root.path(), 1, "PMIC-Die", "100000");
        assert_eq!(Thermometer::find(root.path()).celsius(), Some(91.0));
        zone(root.path(), 2, "CPU-therm", "41500");
        zone(root.path(), 3, "soc-thermal", "43000");
        zone(root.path(), 4, "cpu-off", "");
        assert_eq!(Thermometer::find(root.path()).celsius(), Some(43.0));
    }

    #[test]
    fn a_ceiling_is_a_temperature_a_processor_can_have() {
        assert_eq!("80".parse(), Ok(Ceiling(80.0)));
        for wrong in ["29.9", "121", "warm", "NaN", ""] {
            assert!(wrong.parse::<Ceiling>().is_err(), "{wrong}");
        }
    }

    #[derive(Default)]
    struct Told {
        warnings: Mutex<Vec<String>>,
        steps: AtomicUsize,
    }

    impl Progress for Told {
        fn begin(&self, _: Stage, _: usize) {}
        fn advance(&self, steps: usize) {
            self.steps.fetch_add(steps, Ordering::Relaxed);
        }
        fn finish(&self) {}
        fn warn(&self, warning: &str) {
            self.warnings.lock().unwrap().push(warning.to_owned());
        }
        fn cancelled(&self) -> bool {
            true
        }
    }

    #[test]
    fn work_under_a_ceiling_can_be_cancelled() {
        let told = Told::default();
        assert!(Cooled::new(&told, Thermometer::default(), Ceiling(50.0)).cancelled());
    }

    #[test]
    fn a_ceiling_that_cannot_be_kept_is_said_once() {
        let told = Told::default();
        let mut cooled = Cooled::new(&told, Thermometer::default(), Ceiling(50.0));
        cooled.pause = |_| unreachable!("there is nothing to wait for");
        for _ in 0..3 {
            *cooled.looked.lock().unwrap() = None;
            cooled.wait(|| true);
        }
        let warnings = told.warnings.lock().unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("50.0 °C is not kept"), "{warnings:?}");
    }

    #[test]
    fn work_waits_above_the_ceiling_until_the_processor_has_cooled() {
        let root = tempfile::tempdir().unwrap();
        let sensor = zone(root.path(), 0, "cpu-thermal", "80100");
        let told = Told::default();
        let mut cooled = Cooled::new(&told, Thermometer::find(root.path()), Ceiling(80.0));
        cooled.pause = |_| {};
        let mut waits = 0;
        cooled.wait(|| {
            waits += 1;
            let celsius = ["79000", "77500", "76900"][waits - 1];
            fs::write(&sensor, celsius).unwrap();
            true
        });
        assert_eq!(waits, 3, "below the ceiling is not yet cool");
        let warnings = told.warnings.lock().unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("80.1") && warnings[0].contains("77.0"));
    }

    #[test]
    fn work_goes_on_below_the_ceiling_without_sensors_and_when_it_is_ended() {
        let root = tempfile::tempdir().unwrap();
        let told = Told::default();
        let never = |cooled: &Cooled<'_>| cooled.wait(|| unreachable!("it is cool"));
        never(&Cooled::new(&told, Thermometer::default(), Ceiling(50.0)));
        zone(root.path(), 0, "cpu-thermal", "80000");
        let cooled = |celsius| {
            let mut cooled = Cooled::new(&told, Thermometer::find(root.path()), Ceiling(celsius));
            cooled.pause = |_| {};
            cooled
        };
        never(&cooled(80.0));
        let cooled = cooled(60.0);
        let mut asked = 0;
        cooled.wait(|| {
            asked += 1;
            asked < 5
        });
        assert_eq!(asked, 5);
    }

    #[test]
    fn work_waits_between_steps_and_not_after_the_last() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), 0, "cpu-thermal", "90000");
        let told = Told::default();
        let mut cooled = Cooled::new(&told, Thermometer::find(root.path()), Ceiling(80.0));
        cooled.pause = |_| panic!("it waits");
        cooled.begin(Stage::Score, 4);
        let first = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cooled.advance(1)));
        assert!(first.is_err(), "three steps are left");
        cooled.advance(3);
        assert_eq!(told.steps.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_long_wait_is_said_again_every_minute() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), 0, "cpu-thermal", "90000");
        let told = Told::default();
        let mut cooled = Cooled::new(&told, Thermometer::find(root.path()), Ceiling(80.0));
        cooled.pause = |_| {};
        let mut left = 250;
        cooled.wait(|| {
            left -= 1;
            left > 0
        });
        assert_eq!(told.warnings.lock().unwrap().len(), 3);
    }
}
