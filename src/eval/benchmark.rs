//! A benchmark: labelled images in folders, cut into tasks, run through the frozen prefix once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Progress;
use crate::data::{FolderError, PrefixCache, Skipped, TaskFolder, holds_images, split_class};
use crate::learner::{EncodeError, EncodedClass, EncodedTask, Learner};
use crate::vit::PrefixError;

/// How tasks follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Every task brings classes of its own; images are classified among all classes seen.
    ClassIncremental,
    /// Every task brings the same classes from another domain.
    DomainIncremental,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClassIncremental => "class-incremental",
            Self::DomainIncremental => "domain-incremental",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::ClassIncremental, Self::DomainIncremental]
            .into_iter()
            .find(|protocol| protocol.to_string() == name)
            .ok_or_else(|| "expected class-incremental or domain-incremental".to_owned())
    }
}

const LAYOUT: &str = "a benchmark folder holds train/<class> and test/<class> with images inside, \
                      or train/<group>/<class> and test/<group>/<class>, where a group is a task \
                      or a domain";

/// A folder is no benchmark, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BenchmarkError {
    #[error("{} cannot be listed: {source}; {LAYOUT}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("{} has classes and no groups, and this protocol needs one group a domain; {LAYOUT}", .0.display())]
    NoGroups(PathBuf),
    #[error("the order names {named:?}, but the groups in {} are {groups:?}: name each once", path.display())]
    Order {
        path: PathBuf,
        named: Vec<String>,
        groups: Vec<String>,
    },
    #[error("{tasks} tasks cannot be made of {classes} classes; choose 1 to {classes}")]
    Tasks { tasks: usize, classes: usize },
    #[error("{} is already cut into {groups} tasks by its folders; leave the number of tasks out or ask for {groups}", path.display())]
    Grouped { path: PathBuf, groups: usize },
    #[error("{} does not say how many tasks its {classes} classes make; choose 1 to {classes} with --tasks", path.display())]
    TasksMissing { path: PathBuf, classes: usize },
    #[error("the class {class:?} in {} has no image that can be read; add some, or take the class out of train and test", path.display())]
    Empty { path: PathBuf, class: String },
    #[error(
        "{} and {} do not hold the same classes: {untested:?} are in the first alone, {untrained:?} in the second; add what is missing or take them out",
        train.display(), test.display()
    )]
    Unmatched {
        train: PathBuf,
        test: PathBuf,
        untested: Vec<String>,
        untrained: Vec<String>,
    },
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
}

/// Images of one class, as records of the cache and with the names that decide the split.
#[derive(Debug)]
struct Images {
    class: String,
    records: Vec<usize>,
    paths: Vec<PathBuf>,
}

/// What is learned and asked together unless it is drawn anew for every order.
#[derive(Debug)]
struct Group {
    name: String,
    train: Vec<Images>,
    test: Vec<Images>,
}

/// Labelled images with the output of the frozen prefix for each.
#[derive(Debug)]
pub struct Benchmark {
    path: PathBuf,
    protocol: Protocol,
    cache: PrefixCache,
    groups: Vec<Group>,
    /// Number of tasks that the classes of the only group are cut into, where the folders do not
    /// say what a task is.
    cut: Option<usize>,
    /// Whether an order was given, which is not to be drawn then.
    ordered: bool,
    /// Tells its images from others.
    pub digest: u32,
    /// Files that could not be used.
    pub skipped: usize,
}

/// One task of a sequence: what to learn from, and the test images with the names of their classes.
#[derive(Debug)]
pub struct Lesson<'a> {
    pub task: EncodedTask<'a>,
    /// Records of the cache.
    pub test: Vec<usize>,
    /// Class of each test image.
    pub truth: Vec<&'a str>,
}

impl Benchmark {
    /// Lists `path` and runs every image through the learner's frozen prefix. `order` names the
    /// groups in the order in which they are learned, or is empty.
    ///
    /// # Errors
    /// When the folders are not laid out as a benchmark, or an image cannot be kept in the cache.
    /// Images that cannot be decoded are left out and counted.
    pub fn open(
        path: &Path,
        protocol: Protocol,
        tasks: Option<usize>,
        order: &[String],
        learner: &Learner,
        progress: &dyn Progress,
    ) -> Result<Self, BenchmarkError> {
        let (train, test) = (path.join("train"), path.join("test"));
        let grouped = has_groups(&train)?;
        if !grouped && protocol == Protocol::DomainIncremental {
            return Err(BenchmarkError::NoGroups(path.to_owned()));
        }
        let mut names = if grouped {
            folders(&train)?
        } else {
            vec![String::new()]
        };
        if !order.is_empty() {
            let mut sorted = order.to_vec();
            sorted.sort();
            if !grouped || sorted != names {
                return Err(BenchmarkError::Order {
                    path: path.to_owned(),
                    named: order.to_vec(),
                    groups: names,
                });
            }
            names = order.to_vec();
        }
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut groups = Vec::new();
        let mut skipped: Vec<Skipped> = Vec::new();
        for name in names {
            groups.push(Group {
                train: list(&train.join(&name), &mut paths, &mut skipped)?,
                test: list(&test.join(&name), &mut paths, &mut skipped)?,
                name,
            });
        }
        groups.iter().try_for_each(|group| matched(path, group))?;
        let cut = match (grouped, tasks) {
            (true, Some(asked)) if asked != groups.len() => {
                return Err(BenchmarkError::Grouped {
                    path: path.to_owned(),
                    groups: groups.len(),
                });
            }
            (true, _) => None,
            (false, None) => {
                return Err(BenchmarkError::TasksMissing {
                    path: path.to_owned(),
                    classes: groups[0].train.len(),
                });
            }
            (false, Some(tasks)) if !(1..=groups[0].train.len()).contains(&tasks) => {
                return Err(BenchmarkError::Tasks {
                    tasks,
                    classes: groups[0].train.len(),
                });
            }
            (false, Some(tasks)) => Some(tasks),
        };
        let (cache, bad) = learner.encode(&paths, progress)?;
        for group in &mut groups {
            for images in group.train.iter_mut().chain(&mut group.test) {
                let usable = |record: &usize| bad.binary_search_by_key(record, |b| b.0).is_err();
                let kept = images.records.iter().zip(std::mem::take(&mut images.paths));
                let kept: Vec<(usize, PathBuf)> = kept
                    .map(|(&record, path)| (record, path))
                    .filter(|(record, _)| usable(record))
                    .collect();
                (images.records, images.paths) = kept.into_iter().unzip();
            }
            for (what, images) in [("train", &group.train), ("test", &group.test)] {
                if let Some(empty) = images.iter().find(|images| images.records.is_empty()) {
                    return Err(BenchmarkError::Empty {
                        path: path.join(what).join(&group.name),
                        class: empty.class.clone(),
                    });
                }
            }
        }
        let digest = digest(&paths);
        skipped.extend(bad.into_iter().map(|(_, error)| error.into()));
        for lost in &skipped {
            progress.warn(&format!("skipped: {lost}"));
        }
        Ok(Self {
            path: path.to_owned(),
            protocol,
            cache,
            groups,
            cut,
            ordered: !order.is_empty(),
            digest,
            skipped: skipped.len(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub fn cache(&self) -> &PrefixCache {
        &self.cache
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.cut.unwrap_or(self.groups.len())
    }

    /// The tasks in the order that `order` draws. `seed` and `validation` decide which training
    /// images are held back, class by class.
    ///
    /// Class-incremental tasks are shuffled: the classes, or the groups where the folders name the
    /// tasks. Domains are sorted by name. An order that was given is kept in any case.
    pub fn lessons(&self, order: u64, seed: u64, validation: f64) -> Vec<Lesson<'_>> {
        let mut rng = ChaCha8Rng::seed_from_u64(order);
        if let Some(tasks) = self.cut {
            let group = &self.groups[0];
            let mut classes: Vec<&Images> = group.train.iter().collect();
            classes.shuffle(&mut rng);
            let count = classes.len();
            return (0..tasks)
                .map(|task| {
                    let range = task * count / tasks..(task + 1) * count / tasks;
                    let classes = &classes[range];
                    let test = group
                        .test
                        .iter()
                        .filter(|images| classes.iter().any(|c| c.class == images.class));
                    let name = format!("task {}", task + 1);
                    self.lesson(name, classes.iter().copied(), test, seed, validation)
                })
                .collect();
        }
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        if self.protocol == Protocol::ClassIncremental && !self.ordered {
            groups.shuffle(&mut rng);
        }
        groups
            .into_iter()
            .map(|group| {
                let name = group.name.clone();
                self.lesson(
                    name,
                    group.train.iter(),
                    group.test.iter(),
                    seed,
                    validation,
                )
            })
            .collect()
    }

    fn lesson<'a>(
        &'a self,
        name: String,
        train: impl Iterator<Item = &'a Images>,
        test: impl Iterator<Item = &'a Images>,
        seed: u64,
        validation: f64,
    ) -> Lesson<'a> {
        let classes = train
            .map(|images| {
                let split = split_class(&images.class, &images.paths, seed, validation);
                let records = |part: &[usize]| part.iter().map(|&i| images.records[i]).collect();
                EncodedClass {
                    name: images.class.clone(),
                    training: records(&split.training),
                    validation: records(&split.validation),
                }
            })
            .collect();
        let (mut records, mut truth) = (Vec::new(), Vec::new());
        for images in test {
            records.extend_from_slice(&images.records);
            truth.resize(records.len(), images.class.as_str());
        }
        Lesson {
            task: EncodedTask {
                name,
                cache: &self.cache,
                classes,
            },
            test: records,
            truth,
        }
    }
}

/// All tasks of a sequence as one, for the method that learns them at once.
pub(super) fn joined<'a>(lessons: &[Lesson<'a>]) -> Option<EncodedTask<'a>> {
    let mut classes: Vec<EncodedClass> = Vec::new();
    for class in lessons.iter().flat_map(|lesson| &lesson.task.classes) {
        match classes.iter_mut().find(|known| known.name == class.name) {
            Some(known) => {
                known.training.extend_from_slice(&class.training);
                known.validation.extend_from_slice(&class.validation);
            }
            None => classes.push(class.clone()),
        }
    }
    lessons.first().map(|lesson| EncodedTask {
        name: "everything".to_owned(),
        cache: lesson.task.cache,
        classes,
    })
}

/// Whether a folder in `train` holds folders in turn, and no image: a class may have one, too,
/// that other programs keep their previews in.
fn has_groups(train: &Path) -> Result<bool, BenchmarkError> {
    for name in folders(train)? {
        let folder = train.join(name);
        if !folders(&folder)?.is_empty() && !holds_images(&folder) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every class of `train` has to be asked about, and no other.
fn matched(path: &Path, group: &Group) -> Result<(), BenchmarkError> {
    let without = |classes: &[Images], others: &[Images]| -> Vec<String> {
        let unmatched = classes
            .iter()
            .filter(|class| others.iter().all(|other| other.class != class.class));
        unmatched.map(|class| class.class.clone()).collect()
    };
    let untested = without(&group.train, &group.test);
    let untrained = without(&group.test, &group.train);
    match untested.is_empty() && untrained.is_empty() {
        true => Ok(()),
        false => Err(BenchmarkError::Unmatched {
            train: path.join("train").join(&group.name),
            test: path.join("test").join(&group.name),
            untested,
            untrained,
        }),
    }
}

/// What tells these images from others: their names and lengths.
fn digest(paths: &[PathBuf]) -> u32 {
    let mut digest = crc32fast::Hasher::new();
    for path in paths {
        let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        digest.update(path.as_os_str().as_encoded_bytes());
        digest.update(&length.to_le_bytes());
    }
    digest.finalize()
}

/// Names of the folders in `path`, sorted.
fn folders(path: &Path) -> Result<Vec<String>, BenchmarkError> {
    let unreadable = |source| BenchmarkError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The classes in `folder`; their images are added to `paths`, whose positions are the records, and what cannot
/// be used to `skipped`.
fn list(
    folder: &Path,
    paths: &mut Vec<PathBuf>,
    skipped: &mut Vec<Skipped>,
) -> Result<Vec<Images>, BenchmarkError> {
    let scanned = TaskFolder::scan(folder)?;
    let losses = scanned.skipped.into_iter();
    skipped.extend(losses.filter(|skipped| skipped.reason.is_loss()));
    Ok(scanned
        .classes
        .into_iter()
        .map(|class| {
            let first = paths.len();
            paths.extend(class.images.iter().cloned());
            Images {
                class: class.name,
                records: (first..paths.len()).collect(),
                paths: class.images,
            }
        })
        .collect())
}
