//! Learning a task whose images went through the frozen prefix already.

use std::time::Instant;

use super::course::{Course, Outcome, Taken};
use super::fisher::{fisher, remember_fisher};
use super::task_images::TaskImages;
use super::{LearnError, LearnReport, LearnSettings, Learner, now};
use crate::Progress;
use crate::adapt::{Adapters, RankSelector};
use crate::data::PrefixCache;
use crate::head::{Calibration, ClassId, Classifier, Shrinkage, Statistics};
use crate::state::TaskRecord;
use crate::train::features::Features;
use crate::train::judge::learn_on_shelf;
use crate::train::lesson::FitSettings;
use crate::train::novelty::{Seen, novelties};
use crate::train::parameters::Guard;
use crate::train::plan::{Budget, Plan};
use crate::train::saved::Saved;
use crate::train::stand_ins::StandIns;
use crate::train::trainer::{Encoded, FitError, Trainer};
use crate::vit::Geometry;

/// One class of a task, as records of a prefix cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedClass {
    pub name: String,
    /// Records of the images that train.
    pub training: Vec<usize>,
    /// Records of the images that are held back from training.
    pub validation: Vec<usize>,
}

impl EncodedClass {
    /// All images of the class.
    pub fn images(&self) -> usize {
        self.training.len() + self.validation.len()
    }
}

/// A task as it leaves the frozen prefix. Several tasks can share one cache.
#[derive(Debug)]
pub struct EncodedTask<'a> {
    pub name: String,
    /// Made by an [`Encoder`](super::Encoder) with the learner's resolution, blocks and taps.
    pub cache: &'a PrefixCache,
    /// At least one, each with at least one image that trains.
    pub classes: Vec<EncodedClass>,
}

/// What methods that fledge is compared with keep from task to task; empty in fledge itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Research {
    /// Diagonal of the cores' Fisher information, `[r, r]` a site, summed over tasks; guards the
    /// cores in place of the Gram guard.
    pub fisher: Option<Vec<f32>>,
    /// Kept images of old classes, as records of the cache: they are trained on with every task,
    /// and old statistics follow them.
    pub exemplars: Vec<(ClassId, usize)>,
}

impl Learner {
    /// Learns a task that was encoded before.
    ///
    /// # Errors
    /// When the settings do not fit the learner, the cache cannot be read or the head cannot be fitted.
    /// Nothing is changed then.
    pub fn learn_encoded(
        &mut self,
        task: &EncodedTask<'_>,
        settings: &LearnSettings,
        progress: &dyn Progress,
    ) -> Result<LearnReport, LearnError> {
        self.learn_with(task, settings, &mut Research::default(), progress)
    }

    /// Names of the classes that encoded images are taken for.
    ///
    /// # Errors
    /// When nothing was learned yet or the cache cannot be read.
    pub fn classify_encoded(
        &self,
        cache: &PrefixCache,
        records: &[usize],
    ) -> Result<Vec<String>, LearnError> {
        let features = self.features(cache, records, &self.knowledge.adapters)?;
        let rows = features.rows(records.len()).map_err(FitError::from)?;
        self.classify_features(rows.chunks_exact(features.width()))
    }

    /// Names of the classes that feature vectors `[F]` are taken for.
    pub(crate) fn classify_features<'f>(
        &self,
        features: impl Iterator<Item = &'f [f32]>,
    ) -> Result<Vec<String>, LearnError> {
        let known = &self.knowledge;
        let head = Classifier::fit(&[&known.head], Shrinkage::Estimated)?;
        let mut scores = vec![0.0; head.classes().len()];
        features
            .map(|features| {
                head.scores(features, &mut scores)?;
                let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
                let class = best.map(|index| head.classes()[index] as usize);
                Ok(class.map_or_else(String::new, |class| known.classes[class].clone()))
            })
            .collect()
    }

    /// Features of `records` with `adapters`, `[records, F]`.
    pub(crate) fn features(
        &self,
        cache: &PrefixCache,
        records: &[usize],
        adapters: &Adapters,
    ) -> Result<Features, FitError> {
        let all: Vec<usize> = (0..records.len()).collect();
        let encoded = Encoded {
            cache,
            records,
            labels: &vec![0; records.len()],
            training: &all,
            validation: &[],
            stand_ins: StandIns::default(),
        };
        let batch = FitSettings::default().batch;
        let head = &self.knowledge.head;
        let plan = Plan::within(
            &self.demand(adapters, head, &[records.len()], batch),
            Budget::default(),
        );
        let (pool, weights) = (&self.pool, &self.weights);
        let mut trainer = Trainer::new(pool, weights, &plan, &encoded, adapters);
        let features = Features::new(records.len(), trainer.width())?;
        trainer.refresh(&all, adapters, &features)?;
        Ok(features)
    }

    pub(crate) fn learn_with(
        &mut self,
        task: &EncodedTask<'_>,
        settings: &LearnSettings,
        research: &mut Research,
        progress: &dyn Progress,
    ) -> Result<LearnReport, LearnError> {
        settings.check(self.knowledge.adapters.rank)?;
        self.knowledge.head.shelve().map_err(FitError::from)?;
        let mut counts: Vec<usize> = task.classes.iter().map(EncodedClass::images).collect();
        counts.extend(research.exemplars.iter().map(|_| 1));
        let known = &self.knowledge;
        let demand = self.demand(&known.adapters, &known.head, &counts, settings.fit.batch);
        let plan = Plan::within(&demand, settings.budget);
        // Taken out, so that what is trained is the only copy in memory. What to go back to are a
        // few KB, and bases on disk while they are learned.
        let saved = Saved::adapters(&self.knowledge.adapters, self.phase(), plan.bases)
            .map_err(FitError::from)?;
        let pooled = self.knowledge.head.pooled().to_vec();
        let layout = self.knowledge.head.layout();
        let mut taken = Taken {
            adapters: std::mem::take(&mut self.knowledge.adapters),
            head: std::mem::replace(
                &mut self.knowledge.head,
                Statistics::transient(layout, 0..0),
            ),
        };
        let outcome = self.learn_taken(
            &mut taken,
            (saved.in_memory(), &plan),
            task,
            settings,
            research,
            progress,
        );
        if outcome.is_err() {
            taken.head.pool_only(pooled);
            saved.restore(&mut taken.adapters);
        }
        self.knowledge.adapters = taken.adapters;
        self.knowledge.head = taken.head;
        let (learned, report) = outcome?;
        self.knowledge.head = learned.head;
        self.knowledge.calibration = learned.calibration;
        self.knowledge.classes = learned.names;
        self.knowledge.ranks = learned.ranks;
        self.knowledge.tasks.push(learned.task);
        Ok(report)
    }

    /// Learns into what was taken out of the knowledge and copies of the rest.
    fn learn_taken(
        &self,
        taken: &mut Taken,
        (saved, plan): (Option<&Adapters>, &Plan),
        task: &EncodedTask<'_>,
        settings: &LearnSettings,
        research: &mut Research,
        progress: &dyn Progress,
    ) -> Result<(Learned, LearnReport), LearnError> {
        let start = Instant::now();
        let known = &self.knowledge;
        let mut names = known.classes.clone();
        let mut ranks = known.ranks.clone();
        let images = TaskImages::of(task, &mut names, &self.token_grid(), &research.exemplars)
            .map_err(FitError::from)?;
        let asked = !settings.instant && names.len() > 1;
        let trains = asked && images.teach(known.classes.len());
        if asked && !trains {
            progress.warn(
                "no class has two images to train on beside those held back, so features stay as they \
                 are and only the head learns; more photos of these classes can be another task",
            );
        }
        let TaskImages {
            mut records,
            mut labels,
            training,
            validation,
            own,
            taught,
        } = images;
        let follows = trains && settings.transport && saved.is_some();
        let stand_ins = match follows {
            true => self.stand_ins(task, &taught, settings, &mut records, &mut labels),
            false => StandIns::default(),
        };
        let encoded = Encoded {
            cache: task.cache,
            records: &records,
            labels: &labels,
            training: &training,
            validation: &validation,
            stand_ins,
        };
        if known.tasks.is_empty() {
            let prompts = &mut taken.adapters.prompts;
            prompts_from(&encoded, self.weights.geometry(), prompts)?;
        }
        let course = Course {
            learner: self,
            settings,
            plan,
            saved,
            encoded: &encoded,
            own: &own,
            taught: &taught,
            trains,
            follows,
        };
        let guard = match &research.fisher {
            Some(fisher) => Guard::Fisher(fisher),
            None => Guard::Gram,
        };
        let Outcome {
            mut head,
            judged,
            features,
            features_before,
            cores,
            parameters_added,
            epochs,
            choice,
            kept,
        } = course.take(taken, &mut ranks, guard, progress)?;
        let adapters = &mut taken.adapters;
        let mut calibration = known.calibration;
        if let Some(temperature) = judged.temperature {
            calibration.add(temperature);
        }
        let seen = Seen {
            known: &head,
            features: &features,
        };
        let shrinkage = settings.fit.shrinkage;
        let novelties = match &features_before {
            None => novelties(&encoded, &own, seen, None, shrinkage)?,
            Some(features) => {
                let before = Seen {
                    known: &taken.head,
                    features,
                };
                novelties(&encoded, &own, before, Some(seen), shrinkage)?
            }
        };
        drop(features_before);
        let task_id = known.next_task();
        learn_on_shelf(&mut head, &labels, &own, &features, task_id)?;
        head.tidy().map_err(FitError::from)?;
        if research.fisher.is_some() || !adapters.prompts.is_empty() {
            let fitted = Classifier::fit(&[&head], settings.fit.training_shrinkage)?;
            let temperature = calibration.temperature(head.layout().parts);
            let found = fisher(
                &mut course.trainer(adapters),
                adapters,
                (&fitted, temperature),
                &own,
                &features,
            )?;
            remember_fisher(&found, adapters, research);
        }
        let record = TaskRecord {
            id: task_id,
            name: task.name.clone(),
            classes: taught,
            learned_at: now(),
            adapted: kept,
            rank: cores.first().map_or(0, |core| core.m.len() / adapters.rank),
            cores,
            novelties,
        };
        let report = LearnReport {
            task: task.name.clone(),
            classes: task
                .classes
                .iter()
                .map(|class| class.name.clone())
                .collect(),
            images: own.len(),
            skipped: Vec::new(),
            epochs,
            seconds: start.elapsed().as_secs_f64(),
            train_accuracy: judged.train_accuracy,
            validation_accuracy: judged.temperature.map(|_| judged.validation.accuracy),
            parameters_added,
            adapted: kept,
            choice,
        };
        let learned = Learned {
            head,
            calibration,
            names,
            ranks,
            task: record,
        };
        Ok((learned, report))
    }
}

/// What learning adds to the knowledge, beside the adapters.
struct Learned {
    head: Statistics,
    calibration: Calibration,
    /// Of all classes.
    names: Vec<String>,
    ranks: RankSelector,
    task: TaskRecord,
}

/// Prompts `[m, D]` that a first task starts from: means of the patch tokens of its images, over m
/// strips of the picture. Tokens that look like the average image disturb the frozen attention
/// least.
fn prompts_from(
    encoded: &Encoded<'_>,
    geometry: &Geometry,
    prompts: &mut [f32],
) -> Result<(), FitError> {
    let d = geometry.dim;
    let count = prompts.len() / d;
    if count == 0 {
        return Ok(());
    }
    prompts.fill(0.0);
    let mut tokens = vec![0.0; encoded.cache.tokens()];
    let mut pooled = vec![0.0; encoded.cache.pooled()];
    let first_patch = 1 + geometry.registers;
    let patches = tokens.len() / d - first_patch;
    let mut seen = vec![0usize; count];
    for &image in encoded.training {
        let record = encoded.records[image];
        encoded.cache.read(record, &mut tokens, &mut pooled)?;
        for (patch, token) in tokens[first_patch * d..].chunks_exact(d).enumerate() {
            let strip = patch * count / patches;
            let prompt = &mut prompts[strip * d..(strip + 1) * d];
            prompt.iter_mut().zip(token).for_each(|(p, t)| *p += t);
            seen[strip] += 1;
        }
    }
    for (prompt, &seen) in prompts.chunks_exact_mut(d).zip(&seen) {
        prompt.iter_mut().for_each(|p| *p /= seen.max(1) as f32);
    }
    Ok(())
}
