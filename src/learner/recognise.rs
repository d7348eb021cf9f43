//! Using what was learned: naming the class of an image, scoring a folder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{EncodeError, Encoder, Learner};
use crate::data::{FolderError, Skipped, TaskFolder};
use crate::head::{Classifier, HeadError, probabilities};
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

/// Ready to name the classes of images: the fitted head, the prefix, and the adapted blocks.
#[derive(Debug)]
pub struct Recogniser<'a> {
    knowledge: &'a Knowledge,
    encoder: Encoder<'a>,
    classifier: Classifier,
    learner: &'a Learner,
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

/// Accuracy on one class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassScore {
    pub class: String,
    pub images: usize,
    pub right: usize,
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

    /// Share of images whose class was named, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        let right: usize = self.per_class.iter().map(|class| class.right).sum();
        right as f64 / self.images().max(1) as f64
    }
}

impl Learner {
    /// Prepares to classify.
    ///
    /// # Errors
    /// When nothing was learned yet, or the model cannot be prepared.
    pub fn recogniser(&self) -> Result<Recogniser<'_>, ScoreError> {
        let knowledge = self.knowledge();
        let classifier = Classifier::fit(&[&knowledge.head], crate::head::DEFAULT_SHRINKAGE)?;
        Ok(Recogniser {
            knowledge,
            encoder: self.encoder()?,
            classifier,
            learner: self,
        })
    }

    /// Classifies every image of a folder of class folders against all classes known.
    ///
    /// # Errors
    /// When the folder has no images or the model cannot be run.
    pub fn score(&self, folder: &Path, progress: &dyn Progress) -> Result<ScoreReport, ScoreError> {
        use rayon::prelude::*;
        let recogniser = self.recogniser()?;
        let folder = TaskFolder::scan(folder)?;
        let work: Vec<(usize, &PathBuf)> = folder
            .classes
            .iter()
            .enumerate()
            .flat_map(|(class, f)| f.images.iter().map(move |image| (class, image)))
            .collect();
        progress.begin(Stage::Score, work.len());
        let start = Instant::now();
        let answers: Vec<Result<String, EncodeError>> = self.pool.install(|| {
            work.par_iter()
                .map_init(
                    || recogniser.session(),
                    |session, (_, path)| {
                        let answer = recogniser.best(session, path);
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
                images: 0,
                right: 0,
            })
            .collect();
        let mut skipped = folder.skipped;
        for ((class, _), answer) in work.iter().zip(answers) {
            match answer {
                Ok(name) => {
                    per_class[*class].images += 1;
                    per_class[*class].right += usize::from(name == per_class[*class].class);
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
}

impl<'a> Recogniser<'a> {
    /// Buffers for one thread.
    pub fn session(&self) -> Session<'a> {
        let shape = self.learner.stack_shape(1);
        let width = self.encoder.pooled() + shape.features();
        Session {
            stack: Stack::new(&self.learner.weights, shape),
            features: vec![0.0; width],
            scores: vec![0.0; self.classifier.classes().len()],
        }
    }

    /// All known classes, most probable first.
    ///
    /// # Errors
    /// When the file is no image that can be decoded, or the model cannot be run.
    pub fn classify(
        &self,
        session: &mut Session<'_>,
        path: &Path,
    ) -> Result<Vec<Guess>, ScoreError> {
        self.scores(session, path)?;
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
        Ok(guesses)
    }

    /// Writes the scores of an image into the session.
    fn scores(&self, session: &mut Session<'_>, path: &Path) -> Result<(), ScoreError> {
        let (pooled, made) = session.features.split_at_mut(self.encoder.pooled());
        self.encoder.run(path, session.stack.input(0), pooled)?;
        session.stack.forward(&self.knowledge.adapters, 1, made);
        self.classifier
            .scores(&session.features, &mut session.scores)?;
        Ok(())
    }

    /// Name of the best class; a file that is no image is an answer too, other failures are not.
    fn best(
        &self,
        session: &mut Session<'_>,
        path: &Path,
    ) -> Result<Result<String, EncodeError>, ScoreError> {
        match self.scores(session, path) {
            Ok(()) => {}
            Err(ScoreError::Encode(error)) => return Ok(Err(error)),
            Err(error) => return Err(error),
        }
        let scores = &session.scores;
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let class = best.map(|index| self.classifier.classes()[index] as usize);
        Ok(Ok(class.map_or_else(String::new, |class| {
            self.knowledge.classes[class].clone()
        })))
    }
}
