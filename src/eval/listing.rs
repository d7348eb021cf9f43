//! A benchmark folder as it lies there: its classes, groups and images, before any is looked at.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::data::{FolderError, Skipped, TaskFolder, holds_images};
use crate::learner::EncodeError;

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
        "{} and {} do not hold the same folders: {untested:?} are in the first alone, {untrained:?} in the second; add what is missing or take them out",
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
}

/// Images of one class, as records of the cache and with the names that decide the split.
#[derive(Debug, Clone)]
pub(super) struct Images {
    pub class: String,
    pub records: Vec<usize>,
    pub paths: Vec<PathBuf>,
}

/// What is learned and asked together unless it is drawn anew for every order.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub name: String,
    pub train: Vec<Images>,
    pub test: Vec<Images>,
}

/// What a benchmark folder holds, in the order in which groups are learned.
#[derive(Debug)]
pub struct Listing {
    pub(super) path: PathBuf,
    pub(super) protocol: Protocol,
    pub(super) groups: Vec<Group>,
    /// Every image; records are positions in it.
    pub(super) paths: Vec<PathBuf>,
    /// Number of tasks that the classes of the only group are cut into, where the folders do not
    /// say what a task is.
    pub(super) cut: Option<usize>,
    /// Whether an order was given, which is not to be drawn then.
    pub(super) ordered: bool,
    /// What may have been meant as an image and is not used.
    pub skipped: Vec<Skipped>,
}

impl Listing {
    /// Lists `path`. `tasks` says how many tasks to make where the folders do not; `order` names the
    /// groups in the order in which they are learned, or is empty.
    ///
    /// # Errors
    /// When a folder cannot be read, the folders are not laid out as a benchmark, train and test
    /// differ, or `tasks` or `order` do not fit them.
    pub fn scan(
        path: &Path,
        protocol: Protocol,
        tasks: Option<usize>,
        order: &[String],
    ) -> Result<Self, BenchmarkError> {
        let (train, test) = (path.join("train"), path.join("test"));
        let grouped = has_groups(&train)?;
        if !grouped && protocol == Protocol::DomainIncremental {
            return Err(BenchmarkError::NoGroups(path.to_owned()));
        }
        let mut names = if grouped {
            let (trained, tested) = (folders(&train)?, folders(&test)?);
            matched((&train, &trained), (&test, &tested))?;
            trained
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
        let (mut paths, mut skipped) = (Vec::new(), Vec::new());
        let mut groups = Vec::new();
        for name in names {
            let (train, test) = (train.join(&name), test.join(&name));
            let trained = list(&train, &mut paths, &mut skipped)?;
            let tested = list(&test, &mut paths, &mut skipped)?;
            let classes = |images: &[Images]| -> Vec<String> {
                images.iter().map(|images| images.class.clone()).collect()
            };
            matched((&train, &classes(&trained)), (&test, &classes(&tested)))?;
            groups.push(Group {
                name,
                train: trained,
                test: tested,
            });
        }
        let classes = groups[0].train.len();
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
                    classes,
                });
            }
            (false, Some(tasks)) if !(1..=classes).contains(&tasks) => {
                return Err(BenchmarkError::Tasks { tasks, classes });
            }
            (false, Some(tasks)) => Some(tasks),
        };
        Ok(Self {
            path: path.to_owned(),
            protocol,
            groups,
            paths,
            cut,
            ordered: !order.is_empty(),
            skipped,
        })
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.cut.unwrap_or(self.groups.len())
    }

    /// What tells these images from others: their names and lengths.
    pub fn digest(&self) -> u32 {
        let mut digest = crc32fast::Hasher::new();
        for path in &self.paths {
            let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            digest.update(path.as_os_str().as_encoded_bytes());
            digest.update(&length.to_le_bytes());
        }
        digest.finalize()
    }
}

/// Whether a folder in `train` holds folders of images in turn, and no image: a class may have a
/// folder, too, that other programs keep their previews in.
fn has_groups(train: &Path) -> Result<bool, BenchmarkError> {
    for name in folders(train)? {
        let folder = train.join(name);
        let inner = folders(&folder)?;
        if !holds_images(&folder) && inner.iter().any(|inner| holds_images(&folder.join(inner))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is in `train` has to be asked about, and nothing else.
fn matched(train: (&Path, &[String]), test: (&Path, &[String])) -> Result<(), BenchmarkError> {
    let without = |names: &[String], others: &[String]| -> Vec<String> {
        let alone = names.iter().filter(|name| !others.contains(name));
        alone.cloned().collect()
    };
    let untested = without(train.1, test.1);
    let untrained = without(test.1, train.1);
    match untested.is_empty() && untrained.is_empty() {
        true => Ok(()),
        false => Err(BenchmarkError::Unmatched {
            train: train.0.to_owned(),
            test: test.0.to_owned(),
            untested,
            untrained,
        }),
    }
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
