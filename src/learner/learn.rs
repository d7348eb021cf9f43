//! Learning a task, from a folder of photos to new knowledge.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{EncodeError, Learner, now};
use crate::Progress;
use crate::data::{DEFAULT_FRACTION, FolderError, PrefixCache, Skipped, TaskFolder, split_class};
use crate::head::{ClassId, HeadError};
use crate::state::{Knowledge, TaskRecord};
use crate::train::fit::{FitSettings, Fitted, fit};
use crate::train::judge::{judge, learn_into};
use crate::train::stack::Phase;
use crate::train::trainer::{Encoded, Features, FitError, Trainer};
use crate::vit::PrefixError;

/// How to learn one task.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnSettings {
    /// Only the head learns; the features stay as they are.
    pub instant: bool,
    /// Rank of this task's M and N.
    pub task_rank: usize,
    pub fit: FitSettings,
    /// Share of each class that is held back from training.
    pub validation: f64,
}

impl Default for LearnSettings {
    fn default() -> Self {
        Self {
            instant: false,
            task_rank: 8,
            fit: FitSettings::default(),
            validation: DEFAULT_FRACTION,
        }
    }
}

/// What came of learning a task.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnReport {
    pub task: String,
    pub classes: Vec<String>,
    /// Images learned from, the held-back ones included.
    pub images: usize,
    /// Files that could not be used, each with the reason.
    pub skipped: Vec<Skipped>,
    pub epochs: usize,
    pub seconds: f64,
    /// Share of the training images whose class a head without the held-back ones names, 0 to 1.
    pub train_accuracy: f64,
    /// The same for the held-back images; `None` when every class has only one image.
    pub validation_accuracy: Option<f64>,
    /// Numbers the task added to the adapters.
    pub parameters_added: usize,
    /// Whether the gradient update was kept.
    pub adapted: bool,
}

/// A task could not be learned; what was known before is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(
        "none of the {} images in {} can be used; the first: {}", skipped.len(), path.display(), skipped[0]
    )]
    NothingUsable {
        path: PathBuf,
        skipped: Vec<Skipped>,
    },
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error(transparent)]
    Head(#[from] HeadError),
}

/// The usable images of a task, after decoding.
struct Task {
    folder: TaskFolder,
    cache: PrefixCache,
    /// Class of each record of the cache; records that were not written are in neither list below.
    labels: Vec<ClassId>,
    training: Vec<usize>,
    validation: Vec<usize>,
    skipped: Vec<Skipped>,
}

impl Learner {
    /// Learns the task in `folder`, one folder of images a class.
    ///
    /// # Errors
    /// When nothing in the folder is usable or a resource fails. Nothing is changed then.
    pub fn learn(
        &mut self,
        folder: &Path,
        settings: &LearnSettings,
        progress: &dyn Progress,
    ) -> Result<LearnReport, LearnError> {
        let start = Instant::now();
        let mut next = self.knowledge.clone();
        let task = self.encode(folder, &mut next, settings, progress)?;
        let mut report = self.learn_encoded(&task, &mut next, settings, progress)?;
        report.seconds = start.elapsed().as_secs_f64();
        self.knowledge = next;
        Ok(report)
    }

    /// Decodes the folder and runs the frozen prefix; new class names are added to `next`.
    fn encode(
        &self,
        path: &Path,
        next: &mut Knowledge,
        settings: &LearnSettings,
        progress: &dyn Progress,
    ) -> Result<Task, LearnError> {
        let mut folder = TaskFolder::scan(path)?;
        let mut skipped = std::mem::take(&mut folder.skipped);
        let encoder = self.encoder()?;
        let paths: Vec<PathBuf> = folder
            .classes
            .iter()
            .flat_map(|class| class.images.iter().cloned())
            .collect();
        let (cache, bad) = self.pool.install(|| encoder.run_all(&paths, progress))?;
        let mut usable = vec![true; paths.len()];
        for (index, error) in bad {
            usable[index] = false;
            skipped.push(error.into());
        }
        for lost in skipped.iter().filter(|s| s.reason.is_loss()) {
            progress.warn(&format!("skipped: {lost}"));
        }
        let (mut labels, mut training, mut validation) = (Vec::new(), Vec::new(), Vec::new());
        for class in &mut folder.classes {
            let first = labels.len();
            let records: Vec<usize> = (first..first + class.images.len())
                .filter(|&record| usable[record])
                .collect();
            let id = if records.is_empty() {
                ClassId::MAX
            } else {
                next.class_or_insert(&class.name)
            };
            labels.extend(std::iter::repeat_n(id, class.images.len()));
            let images: Vec<PathBuf> = records
                .iter()
                .map(|&record| paths[record].clone())
                .collect();
            if images.is_empty() {
                progress.warn(&format!(
                    "the class {:?} has no usable image and is not learned",
                    class.name
                ));
            }
            let split = split_class(&class.name, &images, settings.fit.seed, settings.validation);
            training.extend(split.training.iter().map(|&i| records[i]));
            validation.extend(split.validation.iter().map(|&i| records[i]));
            class.images = images;
        }
        folder.classes.retain(|class| !class.images.is_empty());
        if folder.classes.is_empty() {
            return Err(LearnError::NothingUsable {
                path: path.to_owned(),
                skipped,
            });
        }
        Ok(Task {
            folder,
            cache,
            labels,
            training,
            validation,
            skipped,
        })
    }

    fn learn_encoded(
        &self,
        task: &Task,
        next: &mut Knowledge,
        settings: &LearnSettings,
        progress: &dyn Progress,
    ) -> Result<LearnReport, LearnError> {
        let known = &self.knowledge;
        let encoded = Encoded {
            cache: &task.cache,
            labels: &task.labels,
            training: &task.training,
            validation: &task.validation,
        };
        let all: Vec<usize> = task
            .training
            .iter()
            .chain(&task.validation)
            .copied()
            .collect();
        let shape = self.stack_shape(settings.fit.micro_batch);
        let mut trainer = Trainer::new(
            &self.pool,
            &self.weights,
            &shape,
            &encoded,
            &known.adapters,
            settings.fit.batch,
        );
        let mut features = Features::new(task.cache.images(), trainer.width());
        trainer.refresh(&all, &known.adapters, &mut features)?;

        // The bases may move only while no statistics rest on the features they make.
        let phase = match known.tasks.is_empty() {
            true => Phase::Bases,
            false => Phase::Cores,
        };
        let mut fitted: Option<Fitted> = None;
        if !settings.instant && next.classes.len() > 1 {
            fitted = Some(fit(
                &mut trainer,
                &known.adapters,
                phase,
                settings.task_rank,
                &known.head,
                &mut features,
                &settings.fit,
                progress,
            )?);
            progress.finish();
        }
        let epochs = fitted.as_ref().map_or(0, |f| f.epochs);
        // The features must never get worse than the frozen model's: an update that does not help
        // on the held-back images is dropped.
        let kept = fitted
            .as_ref()
            .is_some_and(|f| f.improved && f.after.at_least(&f.before));
        let mut cores = Vec::new();
        let mut parameters_added = 0;
        if let Some(fitted) = &fitted {
            match phase {
                // Bases are kept in any case, for later cores to work in; with a core of zero
                // they change no feature.
                Phase::Bases => {
                    fitted.parameters.apply(&known.adapters, &mut next.adapters);
                    next.adapters.orthonormalise();
                    if !kept {
                        next.adapters.clear_cores();
                        next.adapters.prompts.clone_from(&known.adapters.prompts);
                    }
                    parameters_added = fitted.parameters.prompts_start();
                }
                Phase::Cores if kept => {
                    fitted.parameters.apply(&known.adapters, &mut next.adapters);
                    cores = fitted.parameters.task_cores();
                    parameters_added = fitted.parameters.prompts_start();
                }
                Phase::Cores => {}
            }
        } else if phase == Phase::Bases {
            let mut rng = ChaCha8Rng::seed_from_u64(settings.fit.seed);
            next.adapters.draw_output_bases(&mut rng);
        }
        trainer.refresh(&all, &next.adapters, &mut features)?;
        let (sum, tokens) = trainer.gram(&all, &next.adapters)?;
        next.adapters.remember(&sum, tokens);

        let judged = judge(&encoded, &known.head, &features, settings.fit.shrinkage)?;
        if let Some(temperature) = judged.temperature {
            next.calibration.add(temperature);
        }
        let task_id = known.next_task();
        learn_into(&mut next.head, &task.labels, &all, &features, task_id)?;
        let classes: Vec<(ClassId, u32)> = task
            .folder
            .classes
            .iter()
            .filter_map(|class| Some((next.class(&class.name)?, class.images.len() as u32)))
            .collect();
        next.tasks.push(TaskRecord {
            id: task_id,
            name: task.folder.name.clone(),
            classes,
            learned_at: now(),
            adapted: kept,
            rank: if cores.is_empty() {
                0
            } else {
                settings.task_rank
            },
            cores,
        });
        Ok(LearnReport {
            task: task.folder.name.clone(),
            classes: task
                .folder
                .classes
                .iter()
                .map(|class| class.name.clone())
                .collect(),
            images: all.len(),
            skipped: task.skipped.clone(),
            epochs,
            seconds: 0.0,
            train_accuracy: judged.train_accuracy,
            validation_accuracy: judged.validation_accuracy,
            parameters_added,
            adapted: kept,
        })
    }
}
