//! Using what was learned: naming the class of an image, scoring a folder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{EncodeError, Encoder, Learner};
use crate::data::{FolderError, Limits, Rgb, Skipped, TaskFolder, decode};
use crate::head::{Classifier, HeadError, Novelty, Shrinkage, probabilities};
use crate::kernels::gemm::Accuracy;
use crate::kernels::threads;
use crate::state::Knowledge;
use crate::train::stack::Stack;
use crate::vit::PrefixError;
use crate::{Progress, Stage};

/// One class and how probable it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Guess {
    pub class: String,
    /// Calibrated, 0 to 1.
    pub probability: f32,
}

/// What is on an image, as far as fledge knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Recognised {
    /// All known classes, most probable first, as if it had to be one of them.
    pub guesses: Vec<Guess>,
    /// Whether the image is far from every class. Never, unless [`Recogniser::rejecting`].
    pub unknown: bool,
}

/// Share of known images that may be called unknown, unless asked otherwise.
pub const DEFAULT_FALSE_ALARMS: f32 = 0.05;

/// What an image must exceed to be unknown.
#[derive(Debug)]
struct Rejection {
    novelty: Novelty,
    threshold: f32,
}

/// Ready to name the classes of images: the fitted head, the prefix, and the adapted blocks.
#[derive(Debug)]
pub struct Recogniser<'a> {
    knowledge: &'a Knowledge,
    encoder: Encoder<'a>,
    classifier: Classifier,
    rejection: Option<Rejection>,
    learner: &'a Learner,
    limits: Limits,
}

/// The buffers that one thread needs to recognise images.
#[derive(Debug)]
pub struct Session<'a> {
    stack: Stack<'a>,
    features: Vec<f32>,
    scores: Vec<f32>,
}

/// A folder could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Head(#[from] HeadError),
}

/// What came of the images of one class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassScore {
    pub class: String,
    /// Whether it was ever learned.
    pub known: bool,
    pub images: usize,
    /// Images whose best class is this one, called unknown or not.
    pub right: usize,
    /// Images called unknown.
    pub unknown: usize,
    /// Images answered as they should be: by name if the class is known, else as unknown.
    pub answered: usize,
}

/// What came of scoring a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreReport {
    pub per_class: Vec<ClassScore>,
    pub skipped: Vec<Skipped>,
    /// Wall-clock milliseconds an image, all threads together, decoding included.
    pub ms_per_image: f64,
}

impl ScoreReport {
    pub fn images(&self) -> usize {
        self.per_class.iter().map(|class| class.images).sum()
    }

    /// Share of the images of known classes whose best class is theirs, 0 to 1, whether they were
    /// called unknown or not; `None` when the folder has no known class.
    pub fn accuracy(&self) -> Option<f64> {
        let known = self.per_class.iter().filter(|class| class.known);
        share(known.map(|class| (class.right, class.images)))
    }

    /// Share of all images answered as they should be, 0 to 1: by name where the class is known,
    /// as unknown where it is not.
    pub fn open_set_accuracy(&self) -> Option<f64> {
        let classes = self.per_class.iter();
        share(classes.map(|class| (class.answered, class.images)))
    }

    /// Images called unknown.
    pub fn unknown(&self) -> usize {
        self.per_class.iter().map(|class| class.unknown).sum()
    }
}

fn share(counts: impl Iterator<Item = (usize, usize)>) -> Option<f64> {
    let (part, all) = counts.fold((0, 0), |sum, (part, all)| (sum.0 + part, sum.1 + all));
    (all > 0).then(|| part as f64 / all as f64)
}

impl Learner {
    /// Prepares to classify.
    ///
    /// # Errors
    /// When nothing was learned yet, or the model cannot be prepared.
    pub fn recogniser(&self) -> Result<Recogniser<'_>, ScoreError> {
        let knowledge = self.knowledge();
        let classifier = Classifier::fit(&[&knowledge.head], Shrinkage::Estimated)?;
        let encoder = self.encoder()?;
        Ok(Recogniser {
            knowledge,
            limits: encoder.limits(),
            encoder,
            classifier,
            rejection: None,
            learner: self,
        })
    }

    /// Classifies every image of a folder of class folders, as [`Recogniser::score`] does;
    /// `false_alarms` as in [`Recogniser::rejecting`].
    ///
    /// # Errors
    /// As [`Learner::recogniser`] and [`Recogniser::score`].
    pub fn score(
        &self,
        folder: &Path,
        false_alarms: f32,
        progress: &dyn Progress,
    ) -> Result<ScoreReport, ScoreError> {
        let recogniser = self.recogniser()?.rejecting(false_alarms)?;
        recogniser.score(folder, progress)
    }
}

/// The best class of an image, and whether even that one is far away.
struct Best {
    class: String,
    unknown: bool,
}

impl<'a> Recogniser<'a> {
    /// Calls images that are far from every class unknown, so that of images of known classes a
    /// share of `false_alarms` is, going by how each learned image looked to a head without it. With 0, or
    /// when every class was learned from a single image, nothing is unknown.
    ///
    /// # Errors
    /// When the head cannot be fitted.
    pub fn rejecting(mut self, false_alarms: f32) -> Result<Self, ScoreError> {
        self.rejection = None;
        if false_alarms > 0.0 {
            let (classifier, novelty) =
                Novelty::fit(&[&self.knowledge.head], Shrinkage::Estimated)?;
            let tasks = self.knowledge.tasks.iter().map(|task| &task.novelties);
            let threshold = novelty.threshold(&classifier, tasks, false_alarms);
            self.rejection = Some(Rejection { novelty, threshold });
        }
        Ok(self)
    }

    /// Refuses pictures that take more than `bytes` to decode, instead of any that have not too many pixels.
    pub fn decoding_within(mut self, bytes: usize) -> Self {
        self.limits.max_memory = bytes;
        self
    }

    /// What a picture that is to be classified may cost to decode, and how much of it is needed.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Classifies every image of a folder of class folders against all classes known.
    ///
    /// # Errors
    /// When the folder has no images or the model cannot be run.
    pub fn score(&self, folder: &Path, progress: &dyn Progress) -> Result<ScoreReport, ScoreError> {
        use rayon::prelude::*;
        let folder = TaskFolder::scan(folder)?;
        let work: Vec<(usize, &PathBuf)> = folder
            .classes
            .iter()
            .enumerate()
            .flat_map(|(class, f)| f.images.iter().map(move |image| (class, image)))
            .collect();
        progress.begin(Stage::Score, work.len());
        let start = Instant::now();
        let answers: Vec<Result<Best, EncodeError>> = self.learner.pool.install(|| {
            work.par_iter()
                .map_init(
                    || self.session(),
                    |session, (_, path)| {
                        let answer = self.best(session, path);
                        progress.advance(1);
                        answer
                    },
                )
                .collect::<Result<_, ScoreError>>()
        })?;
        let elapsed = start.elapsed();
        progress.finish();
        let mut per_class: Vec<ClassScore> = folder
            .classes
            .iter()
            .map(|class| ClassScore {
                class: class.name.clone(),
                known: self.knowledge.class(&class.name).is_some(),
                images: 0,
                right: 0,
                unknown: 0,
                answered: 0,
            })
            .collect();
        let mut skipped = folder.skipped;
        for ((class, _), answer) in work.iter().zip(answers) {
            match answer {
                Ok(best) => {
                    let score = &mut per_class[*class];
                    let right = best.class == score.class;
                    let as_it_should_be = match score.known {
                        true => right && !best.unknown,
                        false => best.unknown,
                    };
                    score.images += 1;
                    score.right += usize::from(right);
                    score.unknown += usize::from(best.unknown);
                    score.answered += usize::from(as_it_should_be);
                }
                Err(EncodeError::Decode(error)) => skipped.push(error.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(ScoreReport {
            per_class,
            skipped,
            ms_per_image: 1e3 * elapsed.as_secs_f64() / work.len().max(1) as f64,
        })
    }

    /// Buffers for one thread.
    pub fn session(&self) -> Session<'a> {
        let shape = self.learner.stack_shape();
        let width = self.encoder.pooled() + shape.features();
        Session {
            stack: Stack::new(&self.learner.weights, shape),
            features: vec![0.0; width],
            scores: vec![0.0; self.classifier.classes().len()],
        }
    }

    /// Says what is on an image.
    ///
    /// # Errors
    /// When the file is no image that can be decoded, or the model cannot be run.
    pub fn classify(
        &self,
        session: &mut Session<'_>,
        path: &Path,
    ) -> Result<Recognised, ScoreError> {
        let unknown = self.scores(session, path)?;
        self.recognised(session, unknown)
    }

    /// Says what is on a picture that is decoded.
    ///
    /// # Errors
    /// When the model cannot be run.
    pub fn classify_image(
        &self,
        session: &mut Session<'_>,
        image: Rgb,
    ) -> Result<Recognised, ScoreError> {
        let unknown = self.scores_of(session, image)?;
        self.recognised(session, unknown)
    }

    /// The session's scores as probabilities, most probable first.
    fn recognised(&self, session: &Session<'_>, unknown: bool) -> Result<Recognised, ScoreError> {
        let mut chances = vec![0.0; session.scores.len()];
        probabilities(
            &session.scores,
            self.knowledge
                .calibration
                .temperature(self.knowledge.head.layout().parts),
            &mut chances,
        )?;
        let mut guesses: Vec<Guess> = self
            .classifier
            .classes()
            .iter()
            .zip(chances)
            .map(|(&class, probability)| Guess {
                class: self.knowledge.classes[class as usize].clone(),
                probability,
            })
            .collect();
        guesses.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        Ok(Recognised { guesses, unknown })
    }

    /// Writes the scores of an image into the session, and says whether it is unknown.
    fn scores(&self, session: &mut Session<'_>, path: &Path) -> Result<bool, ScoreError> {
        let image = decode(path, &self.limits).map_err(EncodeError::from)?;
        self.scores_of(session, image)
    }

    /// The same for a picture that is decoded.
    fn scores_of(&self, session: &mut Session<'_>, image: Rgb) -> Result<bool, ScoreError> {
        let (pooled, _) = session.features.split_at_mut(self.encoder.pooled());
        self.encoder
            .run_image(image, session.stack.input(0), pooled)?;
        self.finish_scores(session)
    }

    /// From the input of the first adapted block, which the session holds, to the scores and
    /// whether the image is unknown.
    fn finish_scores(&self, session: &mut Session<'_>) -> Result<bool, ScoreError> {
        let (_, made) = session.features.split_at_mut(self.encoder.pooled());
        let (stack, adapters) = (&mut session.stack, &self.knowledge.adapters);
        threads::awake(|| stack.forward(adapters, Accuracy::Full, 1, made));
        self.classifier
            .scores(&session.features, &mut session.scores)?;
        let Some(rejection) = &self.rejection else {
            return Ok(false);
        };
        let novelty = rejection.novelty.of(&self.classifier, &session.features)?;
        Ok(novelty.is_some_and(|novelty| novelty > rejection.threshold))
    }

    /// The best class; a file that is no image is an answer too, other failures are not.
    fn best(
        &self,
        session: &mut Session<'_>,
        path: &Path,
    ) -> Result<Result<Best, EncodeError>, ScoreError> {
        let unknown = match self.scores(session, path) {
            Ok(unknown) => unknown,
            Err(ScoreError::Encode(error)) => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        let scores = &session.scores;
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let class = best.map(|index| self.classifier.classes()[index] as usize);
        Ok(Ok(Best {
            class: class.map_or_else(String::new, |class| self.knowledge.classes[class].clone()),
            unknown,
        }))
    }
}
