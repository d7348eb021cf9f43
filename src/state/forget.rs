//! Forgetting a class or a task.
//!
//! The head forgets exactly: its statistics become those of a head that never saw what went, up
//! to rounding. Adapters are shared by all tasks and cannot be unlearned image by image: the statistics
//! of what stays rest on the features that they make. The record of what a task added goes with it, and
//! so does the novelty of its images; cores, bases, prompts, the drift guard's Gram matrices and the
//! temperature stay as long as anything is known, and start anew when nothing is.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Knowledge;
use crate::adapt::{RankSelector, Site};
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
                task.classes.retain(|taught| taught.class != class);
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
            .filter(|taught| left.contains(&taught.class))
            .map(|taught| self.classes[taught.class as usize].clone())
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
            for later in mentioned.filter(|taught| taught.class > id) {
                later.class -= 1;
            }
        }
        forgotten.classes.reverse();
        let empty = self.tasks.iter().filter(|task| task.classes.is_empty());
        forgotten.tasks = empty.map(|task| task.id).collect();
        self.tasks.retain(|task| !task.classes.is_empty());
    }

    /// Nothing is known: what adapted for it goes too.
    fn start_anew(&mut self) {
        self.adapters.restart(&mut ChaCha8Rng::seed_from_u64(0));
        self.ranks = RankSelector::new(self.adapters.rank);
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
        let holds = |condition: bool, what: &'static str| {
            condition.then_some(()).ok_or(ForgetError::Damaged(what))
        };
        let (d, r) = (self.adapters.dim, self.adapters.rank);
        let whole = |site: &Site| Some(site.a.len()) == d.checked_mul(r);
        holds(
            d > 0 && r <= d && self.adapters.sites.iter().all(whole),
            "an adapter has the wrong shape",
        )?;
        let known = |class: ClassId| (class as usize) < self.classes.len();
        let taught = self.tasks.iter().flat_map(|task| &task.classes);
        holds(
            self.head.classes().into_iter().all(known) && taught.map(|t| t.class).all(known),
            "it knows a class without a name",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::{Adapters, Projection};
    use crate::data::TokenMean;
    use crate::head::{Layout, Novelties, Statistics};
    use crate::state::{ModelIdentity, TaskRecord, TaughtClass};
    use crate::vit::ContentHash;

    /// Three tasks of one class each.
    fn knowledge() -> Knowledge {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut adapters = Adapters::new(6, 3, 0..1, &[Projection::Query], 0, &mut rng);
        adapters.draw_output_bases(&mut rng);
        let mut head = Statistics::new(Layout { parts: 2, dim: 6 });
        let mut tasks = Vec::new();
        for id in 0..3u32 {
            let features: Vec<f32> = (0..24).map(|i| ((i * 7 + id * 5) % 11) as f32).collect();
            head.learn(id, id, &features).unwrap();
            tasks.push(TaskRecord {
                id,
                name: format!("task {id}"),
                classes: vec![TaughtClass {
                    class: id,
                    images: 2,
                    tokens: TokenMean::default(),
                }],
                learned_at: 0,
                adapted: false,
                rank: 0,
                cores: Vec::new(),
                novelties: Novelties::default(),
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
            ranks: RankSelector::new(3),
            head,
            calibration: Calibration::default(),
            classes: vec!["robin".into(), "wren".into(), "tit".into()],
            tasks,
        }
    }

    #[test]
    fn a_task_goes_and_the_features_stay_those_that_later_statistics_rest_on() {
        let mut k = knowledge();
        let adapters = k.adapters.clone();
        let forgotten = k.forget(&Forget::Task(1)).unwrap();
        assert_eq!((forgotten.images, &forgotten.tasks[..]), (2, &[1][..]));
        assert_eq!(k.adapters, adapters);
        assert_eq!(k.tasks.iter().map(|t| t.id).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(k.next_task(), 3);
    }

    #[test]
    fn numbers_of_later_classes_close_the_gap() {
        let mut k = knowledge();
        let tit = k.head.components()[2].mean.clone();
        k.forget(&Forget::Classes(vec!["wren".into()])).unwrap();
        assert_eq!(k.classes, ["robin", "tit"]);
        assert_eq!(k.head.components()[1].class, 1);
        assert_eq!(k.head.components()[1].mean, tit);
        let taught = &k.tasks[1].classes;
        assert_eq!((taught.len(), taught[0].class, taught[0].images), (1, 1, 2));
        assert_eq!(k.class("wren"), None);
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
            |k| k.adapters.dim = 0,
            |k| k.tasks[1].classes[0].class = 9,
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
