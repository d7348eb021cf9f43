//! A benchmark run through the frozen prefix once, and the lessons of a sequence of tasks from it.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::listing::{BenchmarkError, Group, Images, Listing, Protocol};
use crate::Progress;
use crate::data::{PrefixCache, Skipped, split_class};
use crate::learner::{EncodedClass, EncodedTask, Learner};

/// Labelled images with the output of the frozen prefix for each.
#[derive(Debug)]
pub struct Benchmark {
    cache: PrefixCache,
    groups: Vec<Group>,
    /// Number of tasks that the classes of the only group are cut into, where the folders do not
    /// say what a task is.
    cut: Option<usize>,
    /// Whether every order draws the groups anew.
    drawn: bool,
    /// Files that are no images after all.
    pub unreadable: Vec<Skipped>,
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
    /// Runs every listed image through the learner's frozen prefix.
    ///
    /// # Errors
    /// When an image cannot be kept in the cache, or a class has none that can be decoded. Images
    /// that cannot be decoded are left out and named.
    pub fn encode(
        listing: &Listing,
        learner: &Learner,
        progress: &dyn Progress,
    ) -> Result<Self, BenchmarkError> {
        let (cache, unreadable) = learner.encode(&listing.paths, progress)?;
        let mut groups = listing.groups.clone();
        let readable = |record: usize| {
            unreadable
                .binary_search_by_key(&record, |bad| bad.0)
                .is_err()
        };
        for group in &mut groups {
            for images in group.train.iter_mut().chain(&mut group.test) {
                let records = std::mem::take(&mut images.records).into_iter();
                let kept = records.zip(std::mem::take(&mut images.paths));
                (images.records, images.paths) = kept.filter(|kept| readable(kept.0)).unzip();
            }
            for (part, images) in [("train", &group.train), ("test", &group.test)] {
                if let Some(empty) = images.iter().find(|images| images.records.is_empty()) {
                    return Err(BenchmarkError::Empty {
                        path: listing.path.join(part).join(&group.name),
                        class: empty.class.clone(),
                    });
                }
            }
        }
        Ok(Self {
            cache,
            groups,
            cut: listing.cut,
            drawn: listing.protocol == Protocol::ClassIncremental && !listing.ordered,
            unreadable: unreadable
                .into_iter()
                .map(|(_, error)| error.into())
                .collect(),
        })
    }

    pub fn cache(&self) -> &PrefixCache {
        &self.cache
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
        if self.drawn {
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
