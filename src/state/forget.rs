//! Forgetting a class or a task.
//!
//! The head forgets exactly: its statistics become those of a head that never saw what went, up
//! to rounding. Adapters are shared by all tasks and cannot be unlearned image by image. What one
//! task added to the cores is taken out again as soon as no later task is left whose statistics
//! were taken with it; bases, prompts, the drift guard's Gram matrices and the temperature stay as
//! long as anything is known, and start anew when nothing is.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Knowledge, TaskRecord};
use crate::head::{Calibration, ClassId, HeadError, TaskId};

/// What to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forget {
    /// Classes by name, whatever tasks taught them.
    Classes(Vec<String>),
    /// Everything that one task taught.
    Task(TaskId),
}

/// What was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Names that are no longer known.
    pub classes: Vec<String>,
    /// Names that the forgotten task taught and other tasks did too.
    pub still_known: Vec<String>,
    /// Tasks of which nothing is left.
    pub tasks: Vec<TaskId>,
    /// Images whose features left the statistics.
    pub images: u64,
}

/// Nothing was forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForgetError {
    #[error(
        "no class named {name:?} has been learned{}; `fledge state show` lists the classes",
        nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
    )]
    UnknownClass {
        name: String,
        /// The known name that is most like it, if one is.
        nearest: Option<String>,
    },
    #[error(
        "there is no task {}; `fledge state show` lists the tasks with their numbers", u64::from(*.0) + 1
    )]
    UnknownTask(TaskId),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("the state is damaged ({0}); restore it from a copy")]
    Damaged(&'static str),
}

impl Knowledge {
    /// Forgets classes or a task.
    ///
    /// # Errors
    /// When a class or the task is not known, or the state is damaged; nothing is changed then.
    pub fn forget(&mut self, what: &Forget) -> Result<Forgotten, ForgetError> {
        self.check_removable()?;
        let mut next = self.clone();
        let forgotten = match what {
            Forget::Classes(names) => next.forget_classes(names),
            Forget::Task(task) => next.forget_task(*task),
        }?;
        if next.classes.is_empty() {
            next.start_anew();
        }
        *self = next;
        Ok(forgotten)
    }

    fn forget_classes(&mut self, names: &[String]) -> Result<Forgotten, ForgetError> {
        let mut classes = Vec::new();
        for name in names {
            classes.push(self.class(name).ok_or_else(|| self.unknown(name))?);
        }
        classes.sort_unstable();
        classes.dedup();
        let mut forgotten = Forgotten::default();
        for &class in &classes {
            forgotten.images += self.head.forget(class)?;
            for task in &mut self.tasks {
                task.classes.retain(|&(id, _)| id != class);
            }
        }
        self.drop_empty(&mut forgotten);
        Ok(forgotten)
    }

    fn forget_task(&mut self, task: TaskId) -> Result<Forgotten, ForgetError> {
        let record = self.tasks.iter_mut().find(|record| record.id == task);
        let record = record.ok_or(ForgetError::UnknownTask(task))?;
        let taught = std::mem::take(&mut record.classes);
        let mut forgotten = Forgotten {
            images: self.head.forget_task(task)?,
            ..Forgotten::default()
        };
        let left = self.head.classes();
        forgotten.still_known = taught
            .iter()
            .filter(|(class, _)| left.contains(class))
            .map(|&(class, _)| self.classes[class as usize].clone())
            .collect();
        self.drop_empty(&mut forgotten);
        Ok(forgotten)
    }

    /// Drops the names and tasks that nothing is left of.
    fn drop_empty(&mut self, forgotten: &mut Forgotten) {
        let left = self.head.classes();
        for class in (0..self.classes.len()).rev() {
            let id = class as ClassId;
            if left.contains(&id) {
                continue;
            }
            forgotten.classes.push(self.classes.remove(class));
            self.head.close_gap(id);
            let mentioned = self.tasks.iter_mut().flat_map(|task| &mut task.classes);
            for (later, _) in mentioned.filter(|(other, _)| *other > id) {
                *later -= 1;
            }
        }
        forgotten.classes.reverse();
        while let Some(empty) = self.tasks.iter().position(|task| task.classes.is_empty()) {
            let task = self.tasks.remove(empty);
            forgotten.tasks.push(task.id);
            self.release_cores(empty, task);
        }
    }

    /// Takes the cores of a task that stood at `place` out of the adapters, or, while a later task
    /// rests on them, leaves them to that one.
    fn release_cores(&mut self, place: usize, task: TaskRecord) {
        let rank = self.adapters.rank;
        match self.tasks.get_mut(place) {
            None => {
                for (core, site) in task.cores.iter().zip(&mut self.adapters.sites) {
                    core.add_to(-1.0, &mut site.core, rank);
                }
            }
            Some(later) if later.cores.is_empty() => later.cores = task.cores,
            Some(later) => {
                for (ours, theirs) in later.cores.iter_mut().zip(&task.cores) {
                    ours.join(theirs, rank);
                }
            }
        }
    }

    /// Nothing is known: what adapted for it goes too.
    fn start_anew(&mut self) {
        self.adapters.restart(&mut ChaCha8Rng::seed_from_u64(0));
        self.head.clear();
        self.calibration = Calibration::default();
    }

    fn unknown(&self, name: &str) -> ForgetError {
        let likeness =
            |known: &&String| strsim::jaro_winkler(&known.to_lowercase(), &name.to_lowercase());
        let nearest = self
            .classes
            .iter()
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
            .filter(|known| likeness(known) > 0.7);
        ForgetError::UnknownClass {
            name: name.to_owned(),
            nearest: nearest.cloned(),
        }
    }

    /// What the arithmetic of forgetting relies on; a file need not have been written by fledge.
    fn check_removable(&self) -> Result<(), ForgetError> {
        self.head.check()?;
        let (d, r) = (self.adapters.dim, self.adapters.rank);
        let holds = |condition: bool, what: &'static str| {
            condition.then_some(()).ok_or(ForgetError::Damaged(what))
        };
        holds(d > 0 && (1..=d).contains(&r), "its adapters have no width")?;
        let sites = &self.adapters.sites;
        holds(
            sites.iter().all(|site| site.core.len() == r * r),
            "an adapter has the wrong shape",
        )?;
        let cores = self.tasks.iter().all(|task| {
            let fits = |core: &crate::adapt::TaskCore| {
                core.m.len() == core.n.len() && core.m.len().is_multiple_of(r)
            };
            (task.cores.is_empty() || task.cores.len() == sites.len())
                && task.cores.iter().all(fits)
        });
        holds(cores, "a task's cores have the wrong shape")?;
        let known = |class: ClassId| (class as usize) < self.classes.len();
        let taught = self.tasks.iter().flat_map(|task| &task.classes);
        holds(
            self.head.classes().into_iter().all(known) && taught.copied().all(|(c, _)| known(c)),
            "it knows a class without a name",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::{Adapters, Projection, TaskCore};
    use crate::head::{Layout, Statistics};
    use crate::state::ModelIdentity;
    use crate::vit::ContentHash;

    const RANK: usize = 3;

    /// Three tasks of one class each, the last two with cores.
    fn knowledge() -> Knowledge {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut adapters = Adapters::new(6, RANK, 0..1, &[Projection::Query], 0, &mut rng);
        let mut head = Statistics::new(Layout { parts: 2, dim: 6 });
        let mut tasks = Vec::new();
        for id in 0..3u32 {
            let features: Vec<f32> = (0..24).map(|i| ((i * 7 + id * 5) % 11) as f32).collect();
            head.learn(id, id, &features).unwrap();
            let cores = match id {
                0 => Vec::new(),
                _ => vec![TaskCore {
                    m: (0..2 * RANK)
                        .map(|i| (i as f32 + id as f32).sin())
                        .collect(),
                    n: (0..2 * RANK)
                        .map(|i| (i as f32 - id as f32).cos())
                        .collect(),
                }],
            };
            for core in &cores {
                core.add_to(1.0, &mut adapters.sites[0].core, RANK);
            }
            tasks.push(TaskRecord {
                id,
                name: format!("task {id}"),
                classes: vec![(id, 2)],
                learned_at: 0,
                adapted: !cores.is_empty(),
                rank: 2 * cores.len(),
                cores,
            });
        }
        Knowledge {
            model: ModelIdentity {
                name: "small".into(),
                hash: ContentHash([0; 32]),
            },
            resolution: 28,
            taps: vec![1],
            first_adapted: 0,
            adapters,
            head,
            calibration: Calibration::default(),
            classes: vec!["robin".into(), "wren".into(), "tit".into()],
            tasks,
        }
    }

    /// The core of the first task plus those of the tasks still listed.
    fn listed_core(k: &Knowledge) -> Vec<f32> {
        let mut core: Vec<f32> = (0..RANK * RANK)
            .map(|i| if i % (RANK + 1) == 0 { 1.0 } else { 0.0 })
            .collect();
        for task_core in k.tasks.iter().flat_map(|task| &task.cores) {
            task_core.add_to(1.0, &mut core, RANK);
        }
        core
    }

    fn assert_same(a: &[f32], b: &[f32]) {
        assert!(
            a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5),
            "{a:?} {b:?}"
        );
    }

    #[test]
    fn a_core_stays_while_later_statistics_rest_on_it_and_goes_with_them() {
        let mut k = knowledge();
        let full = k.adapters.sites[0].core.clone();
        k.forget(&Forget::Task(1)).unwrap();
        assert_eq!(k.adapters.sites[0].core, full);
        assert_same(&listed_core(&k), &full);
        assert_eq!(k.tasks.iter().map(|t| t.id).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(k.next_task(), 3);
        k.forget(&Forget::Classes(vec!["tit".into()])).unwrap();
        let mut identity = vec![0.0; RANK * RANK];
        (0..RANK).for_each(|i| identity[i * (RANK + 1)] = 1.0);
        assert_same(&k.adapters.sites[0].core, &identity);
    }

    #[test]
    fn numbers_of_later_classes_close_the_gap() {
        let mut k = knowledge();
        let tit = k.head.components()[2].mean.clone();
        k.forget(&Forget::Classes(vec!["wren".into()])).unwrap();
        assert_eq!(k.classes, ["robin", "tit"]);
        assert_eq!(k.head.components()[1].class, 1);
        assert_eq!(k.head.components()[1].mean, tit);
        assert_eq!(k.tasks[1].classes, [(1, 2)]);
        assert_eq!(k.class_or_insert("wren"), 2);
    }

    #[test]
    fn with_the_last_class_the_adapters_go_too() {
        let mut k = knowledge();
        k.calibration.add(crate::head::Temperature {
            value: 3.0,
            images: 5,
        });
        let all = k.classes.clone();
        let forgotten = k.forget(&Forget::Classes(all.clone())).unwrap();
        assert_eq!((forgotten.classes, forgotten.tasks), (all, vec![0, 1, 2]));
        assert!(k.adapters.sites[0].b.iter().all(|&b| b == 0.0));
        assert_eq!(k.calibration, Calibration::default());
        assert!(k.head.components().is_empty() && k.tasks.is_empty());
        assert_eq!(k.next_task(), 0);
    }

    #[test]
    fn a_damaged_state_is_refused_and_stays_as_it_is() {
        let damages: [fn(&mut Knowledge); 3] = [
            |k| k.tasks[1].cores[0].m.truncate(1),
            |k| k.adapters.sites[0].core.clear(),
            |k| k.classes.truncate(1),
        ];
        for damage in damages {
            let mut k = knowledge();
            damage(&mut k);
            let before = k.clone();
            assert!(k.forget(&Forget::Task(1)).is_err());
            assert_eq!(k, before);
        }
    }
}
