//! Learning a task, from a folder of photos to new knowledge.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{EncodeError, EncodedClass, EncodedTask, Learner, SetupError};
use crate::Progress;
use crate::adapt::RankChoice;
use crate::data::{DEFAULT_FRACTION, FolderError, Skipped, TaskFolder, split_class};
use crate::head::HeadError;
use crate::train::lesson::FitSettings;
use crate::train::plan::{Budget, PlanError, mebibytes};
use crate::train::stand_ins::StandIns;
use crate::train::trainer::FitError;
use crate::vit::PrefixError;

/// How to learn one task.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnSettings {
    /// Only the head learns; the features stay as they are.
    pub instant: bool,
    /// Rank of a later task's M and N; `None` selects it while training.
    pub rank: Option<usize>,
    pub fit: FitSettings,
    /// Whether the statistics of earlier classes are moved along with the features.
    pub transport: bool,
    /// Most images that stand in for those of earlier classes: their scores are held on them, and they show how
    /// features move.
    pub stand_ins: usize,
    /// Share of each class that is held back from training.
    pub validation: f64,
    /// Most bytes that learning may take beyond the frozen model. Tasks that are encoded already
    /// are trained with as many as it takes.
    pub budget: Budget,
}

impl Default for LearnSettings {
    fn default() -> Self {
        Self {
            instant: false,
            rank: None,
            fit: FitSettings::default(),
            transport: true,
            stand_ins: StandIns::MOST,
            validation: DEFAULT_FRACTION,
            budget: Budget::default(),
        }
    }
}

impl LearnSettings {
    /// # Errors
    /// When bases of rank `limit` have no room for the rank that a task is to add.
    pub(crate) fn check(&self, limit: usize) -> Result<(), SetupError> {
        match self.rank {
            Some(asked) if !(1..=limit).contains(&asked) => {
                Err(SetupError::TaskRank { asked, limit })
            }
            _ => Ok(()),
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
    /// How the rank was chosen, where it was.
    pub choice: Option<RankChoice>,
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
    Plan(#[from] PlanError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Fit(#[from] FitError),
    #[error(transparent)]
    Head(#[from] HeadError),
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
        settings.check(self.knowledge.adapters.rank)?;
        let mut folder = TaskFolder::scan(folder)?;
        let mut skipped = std::mem::take(&mut folder.skipped);
        // Before the images are looked at: what does not fit should be known at once.
        let counts = folder.classes.iter().map(|class| class.images.len());
        let plan = self.plan(&counts.collect::<Vec<_>>(), settings)?;
        if !settings.instant && !plan.bases {
            progress.warn(&format!(
                "{} are too little for the bases to learn on: M and N learn alone, which gains less; raise --budget",
                mebibytes(plan.budget)
            ));
        }
        for class in &folder.classes {
            let alike = |known: &&String| {
                **known != class.name && known.to_lowercase() == class.name.to_lowercase()
            };
            if let Some(known) = self.knowledge.classes.iter().find(alike) {
                progress.warn(&format!(
                    "{:?} is another class than {known:?}, which is known: rename its folder if it should not be",
                    class.name
                ));
            }
        }
        self.knowledge.head.shelve().map_err(FitError::from)?;
        let paths: Vec<PathBuf> = folder
            .classes
            .iter()
            .flat_map(|class| class.images.iter().cloned())
            .collect();
        let (cache, bad) = self.encode_within(&paths, &plan.encoding, progress)?;
        // The frozen part has done its work; training needs the rest.
        self.weights.release_below(self.knowledge.first_adapted);
        let mut usable = vec![true; paths.len()];
        for (index, error) in bad {
            usable[index] = false;
            skipped.push(error.into());
        }
        for lost in skipped.iter().filter(|s| s.reason.is_loss()) {
            progress.warn(&format!("skipped: {lost}"));
        }
        drop(paths);
        let classes = usable_classes(&folder, &usable, settings, progress);
        if classes.is_empty() {
            return Err(LearnError::NothingUsable {
                path: folder.path,
                skipped,
            });
        }
        drop(folder.classes);
        let task = EncodedTask {
            name: folder.name,
            cache: &cache,
            classes,
        };
        let mut report = self.learn_encoded(&task, settings, progress)?;
        report.skipped = skipped;
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }
}

/// The classes that have a usable image, split into training and held-back ones. Records of the
/// cache are in the order of the folder's images.
fn usable_classes(
    folder: &TaskFolder,
    usable: &[bool],
    settings: &LearnSettings,
    progress: &dyn Progress,
) -> Vec<EncodedClass> {
    let mut classes = Vec::new();
    let mut first = 0;
    for class in &folder.classes {
        let (records, images): (Vec<usize>, Vec<PathBuf>) = class
            .images
            .iter()
            .enumerate()
            .map(|(index, path)| (first + index, path.clone()))
            .filter(|&(record, _)| usable[record])
            .unzip();
        first += class.images.len();
        if records.is_empty() {
            progress.warn(&format!(
                "the class {:?} has no usable image and is not learned",
                class.name
            ));
            continue;
        }
        let split = split_class(&class.name, &images, settings.fit.seed, settings.validation);
        classes.push(EncodedClass {
            name: class.name.clone(),
            training: split.training.iter().map(|&i| records[i]).collect(),
            validation: split.validation.iter().map(|&i| records[i]).collect(),
        });
    }
    classes
}
