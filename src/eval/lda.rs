//! Methods that learn through the LDA head, as `fledge learn` does.

use crate::adapt::Adapters;
use crate::data::PrefixCache;
use crate::learner::{
    EncodedClass, EncodedTask, LearnError, LearnSettings, Learner, Research, Setup,
};
use crate::progress::Silent;
use crate::state::Knowledge;
use crate::train::trainer::FitError;

use super::contender::{Contender, Learned};

/// One learner over the whole sequence: fledge itself, or a variant of it.
pub(super) struct Sequential<'a> {
    learner: &'a mut Learner,
    cache: &'a PrefixCache,
    settings: LearnSettings,
    research: Research,
    /// Images of each class that are kept for rehearsal.
    exemplars: usize,
    seen: Option<Seen>,
}

/// Features of test images, which stay what they are until the adapters change.
struct Seen {
    adapters: Adapters,
    records: Vec<usize>,
    /// `[records, F]`
    features: Vec<f32>,
}

impl Seen {
    /// Whether the first of `records` are these, seen through adapters that do the same.
    fn covers(&self, adapters: &Adapters, records: &[usize]) -> bool {
        let pairs = self.adapters.sites.iter().zip(&adapters.sites);
        records.starts_with(&self.records)
            && self.adapters.prompts == adapters.prompts
            && pairs
                .into_iter()
                .all(|(old, new)| (&old.a, &old.b, &old.core) == (&new.a, &new.b, &new.core))
    }
}

impl<'a> Sequential<'a> {
    pub fn new(
        learner: &'a mut Learner,
        cache: &'a PrefixCache,
        settings: LearnSettings,
        research: Research,
        exemplars: usize,
    ) -> Self {
        Self {
            learner,
            cache,
            settings,
            research,
            exemplars,
            seen: None,
        }
    }
}

impl Contender for Sequential<'_> {
    fn learn(&mut self, task: &EncodedTask<'_>) -> Result<Learned, LearnError> {
        let report = self
            .learner
            .learn_with(task, &self.settings, &mut self.research, &Silent)?;
        let mut bytes = bytes_of_latest(self.learner.knowledge());
        if self.exemplars > 0 {
            for class in &task.classes {
                let kept = class.training.iter().take(self.exemplars);
                let id = self.learner.knowledge().class(&class.name);
                for (&record, id) in kept.zip(std::iter::repeat(id)) {
                    self.research.exemplars.extend(id.map(|id| (id, record)));
                    bytes += self.cache.record_bytes();
                }
            }
        }
        let latest = self.learner.knowledge().tasks.last();
        if latest.is_some_and(|task| task.cores.is_empty()) {
            // A first task's are bases, which are no part of its record.
            bytes += 4 * report.parameters_added;
        }
        Ok(Learned {
            parameters: report.parameters_added,
            bytes,
            rank: latest.map(|task| task.rank).filter(|&rank| rank > 0),
        })
    }

    fn classify(&mut self, records: &[usize]) -> Result<Vec<String>, LearnError> {
        let adapters = &self.learner.knowledge().adapters;
        let width = self.learner.knowledge().head.layout().width();
        let mut seen = self
            .seen
            .take()
            .filter(|seen| seen.covers(adapters, records))
            .unwrap_or_else(|| Seen {
                adapters: adapters.clone(),
                records: Vec::new(),
                features: Vec::new(),
            });
        let new = &records[seen.records.len()..];
        let features = self.learner.features(self.cache, new, adapters)?;
        seen.features
            .extend(features.rows(new.len()).map_err(FitError::from)?);
        seen.records.extend_from_slice(new);
        let rows = seen.features.chunks_exact(width);
        let answers = self.learner.classify_features(rows);
        self.seen = Some(seen);
        answers
    }
}

/// Adapters of its own for every task, so nothing ever drifts. Which task an image belongs to is
/// decided by a head on the frozen features, which knows the classes of each task apart, and which class of it by the
/// head of that task's adapters.
pub(super) struct PerTask<'a> {
    learner: &'a mut Learner,
    cache: &'a PrefixCache,
    setup: Setup,
    settings: LearnSettings,
    /// What the head on frozen features knows: classes named after their task as well.
    router: Option<Knowledge>,
    tasks: Vec<Knowledge>,
}

impl<'a> PerTask<'a> {
    pub fn new(
        learner: &'a mut Learner,
        cache: &'a PrefixCache,
        setup: Setup,
        mut settings: LearnSettings,
    ) -> Self {
        // Nothing comes after it that a blend with the frozen weights would serve.
        settings.fit.blend = 1.0;
        Self {
            learner,
            cache,
            setup,
            settings,
            router: None,
            tasks: Vec::new(),
        }
    }
}

impl Contender for PerTask<'_> {
    fn learn(&mut self, task: &EncodedTask<'_>) -> Result<Learned, LearnError> {
        let instant = LearnSettings {
            instant: true,
            ..self.settings.clone()
        };
        self.learner.start_over(&self.setup)?;
        if let Some(router) = self.router.take() {
            self.learner.set_knowledge(router);
        }
        let classes = task.classes.iter().map(|class| EncodedClass {
            name: of_task(self.tasks.len(), &class.name),
            ..class.clone()
        });
        let apart = EncodedTask {
            name: task.name.clone(),
            cache: task.cache,
            classes: classes.collect(),
        };
        self.learner.learn_encoded(&apart, &instant, &Silent)?;
        let router = self.learner.knowledge().clone();
        let shared = bytes_of_latest(&router);
        self.router = Some(router);
        self.learner.start_over(&self.setup)?;
        let report = self.learner.learn_encoded(task, &self.settings, &Silent)?;
        let own = self.learner.knowledge().clone();
        let bytes = bytes_of_latest(&own) + 4 * report.parameters_added + shared;
        let rank = own.adapters.rank;
        self.tasks.push(own);
        Ok(Learned {
            parameters: report.parameters_added,
            bytes,
            rank: Some(rank),
        })
    }

    fn classify(&mut self, records: &[usize]) -> Result<Vec<String>, LearnError> {
        let Some(router) = &self.router else {
            return Ok(Vec::new());
        };
        self.learner.set_knowledge(router.clone());
        let mut answers = self.learner.classify_encoded(self.cache, records)?;
        let routed = answers.clone();
        for (index, own) in self.tasks.iter().enumerate() {
            let (places, mine): (Vec<usize>, Vec<usize>) = records
                .iter()
                .enumerate()
                .filter(|&(place, _)| routed[place].starts_with(&of_task(index, "")))
                .unzip();
            self.learner.set_knowledge(own.clone());
            let renamed = self.learner.classify_encoded(self.cache, &mine)?;
            for (place, name) in places.into_iter().zip(renamed) {
                answers[place] = name;
            }
        }
        Ok(answers)
    }
}

/// A class name that tells tasks apart.
fn of_task(task: usize, class: &str) -> String {
    format!("{task} {class}")
}

/// Bytes that the task learned last takes.
fn bytes_of_latest(knowledge: &Knowledge) -> usize {
    let latest = knowledge.tasks.last();
    latest.map_or(0, |task| knowledge.task_bytes(task))
}
