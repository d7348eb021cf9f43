//! Methods with a trained linear head, as the papers compare them: the head sees the class token
//! of the last block, and its logits are joined over tasks.

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::contender::{Contender, Learned};
use super::method::Method;
use crate::adapt::Adapters;
use crate::data::PrefixCache;
use crate::head::HeadError;
use crate::learner::{EncodedTask, LearnError, LearnSettings, Learner};
use crate::train::adam::{Adam, cosine};
use crate::train::features::Features;
use crate::train::objective::cross_entropy;
use crate::train::parameters::Parameters;
use crate::train::plan::Plan;
use crate::train::stack::Phase;
use crate::train::stand_ins::StandIns;
use crate::train::target::{Scorer, Target};
use crate::train::token_drop::TokenDrop;
use crate::train::trainer::{Encoded, FitError, Trainer};

/// Rank of M and N unless one is given.
const CORE_RANK: usize = 8;

/// Learning rate of adapters and head. That of [`FitSettings`](crate::train::lesson::FitSettings) is
/// half of it: it suits an LDA head, which is fitted anew, while a linear one has to be learned.
const RATE: f32 = 1e-3;

/// Weights `[classes, D]` and biases of a linear classifier on the last block's class token, which
/// is divided by its root mean square first.
#[derive(Debug, Clone)]
struct LinearHead {
    dim: usize,
    /// Where the class token of the last tap starts in a feature vector.
    from: usize,
    /// `[classes, D]`, then `[classes]`.
    values: Vec<f32>,
    classes: usize,
}

impl LinearHead {
    fn new(dim: usize, features: usize) -> Self {
        Self {
            dim,
            from: features - 2 * dim,
            values: Vec::new(),
            classes: 0,
        }
    }

    /// More classes, with weights and biases of zero.
    fn grow(&mut self, classes: usize) {
        let mut biases = self.values.split_off(self.classes * self.dim);
        self.values.resize(classes * self.dim, 0.0);
        biases.resize(classes, 0.0);
        self.values.extend(biases);
        self.classes = classes;
    }

    fn token<'f>(&self, features: &'f [f32]) -> (&'f [f32], f32) {
        let token = &features[self.from..self.from + self.dim];
        let square = token.iter().map(|x| x * x).sum::<f32>() / self.dim as f32;
        (token, 1.0 / (square + 1e-6).sqrt())
    }

    /// Logits of the classes from `first` on.
    fn logits(&self, features: &[f32], first: usize, out: &mut [f32]) {
        let (token, scale) = self.token(features);
        let rows = self
            .values
            .chunks_exact(self.dim)
            .take(self.classes)
            .skip(first);
        let biases = &self.values[self.classes * self.dim + first..];
        for ((out, row), bias) in out.iter_mut().zip(rows).zip(biases) {
            *out = bias + scale * row.iter().zip(token).map(|(w, x)| w * x).sum::<f32>();
        }
    }

    /// Adds the gradient of weights and biases for one image; `d_logits` is of the classes from
    /// `first` on.
    fn add_gradient(&self, features: &[f32], first: usize, d_logits: &[f32], gradient: &mut [f32]) {
        let (token, scale) = self.token(features);
        let (weights, biases) = gradient.split_at_mut(self.classes * self.dim);
        let rows = weights.chunks_exact_mut(self.dim).skip(first);
        for ((row, bias), d) in rows.zip(&mut biases[first..]).zip(d_logits) {
            *bias += d;
            row.iter_mut()
                .zip(token)
                .for_each(|(g, x)| *g += d * scale * x);
        }
    }
}

/// The head as training sees it: only the classes from `first` on take part.
struct Since<'h> {
    head: &'h LinearHead,
    first: usize,
}

impl Scorer for Since<'_> {
    fn classes(&self) -> usize {
        self.head.classes - self.first
    }

    fn scores(&self, features: &[f32], scores: &mut [f32]) -> Result<(), HeadError> {
        self.head.logits(features, self.first, scores);
        Ok(())
    }

    /// With `y = x / rms(x)`: `dx = (dy - y mean(dy y)) / rms(x)`.
    fn backward(
        &self,
        features: &[f32],
        d_scores: &[f32],
        d_features: &mut [f32],
    ) -> Result<(), HeadError> {
        let head = self.head;
        let (token, scale) = head.token(features);
        let mut dy = vec![0.0f32; head.dim];
        let rows = head.values.chunks_exact(head.dim).take(head.classes);
        for (row, d) in rows.skip(self.first).zip(d_scores) {
            dy.iter_mut().zip(row).for_each(|(g, w)| *g += d * w);
        }
        let along = dy
            .iter()
            .zip(token)
            .map(|(g, x)| g * x * scale)
            .sum::<f32>()
            / head.dim as f32;
        let out = &mut d_features[head.from..head.from + head.dim];
        for ((out, g), x) in out.iter_mut().zip(&dy).zip(token) {
            *out += scale * (g - along * x * scale);
        }
        Ok(())
    }
}

/// A linear head and adapters, trained task after task.
pub(super) struct Linear<'a> {
    learner: &'a mut Learner,
    cache: &'a PrefixCache,
    method: Method,
    settings: LearnSettings,
    adapters: Adapters,
    head: LinearHead,
    /// Names of the classes, in the order of the head's rows.
    classes: Vec<String>,
    tasks: usize,
    rng: ChaCha8Rng,
}

impl<'a> Linear<'a> {
    pub fn new(
        learner: &'a mut Learner,
        cache: &'a PrefixCache,
        method: Method,
        settings: &LearnSettings,
    ) -> Self {
        let adapters = learner.knowledge().adapters.clone();
        let layout = learner.knowledge().head.layout();
        Self {
            cache,
            method,
            adapters,
            head: LinearHead::new(layout.dim, layout.width()),
            classes: Vec::new(),
            tasks: 0,
            rng: ChaCha8Rng::seed_from_u64(settings.fit.seed),
            settings: settings.clone(),
            learner,
        }
    }

    /// Adapters as the coming task starts from them, and what it trains of them.
    fn start(&mut self) -> (Phase, usize) {
        let rank = self.learner.knowledge().adapters.rank;
        let fresh = matches!(self.method, Method::Lora | Method::SdLora);
        if fresh && self.tasks > 0 {
            let from = self.adapters.rank;
            self.adapters = widened(&self.adapters, rank, &mut self.rng);
            return (Phase::Bases, from);
        }
        let published = self.method == Method::FmLoraPublished;
        if published && self.tasks > 0 {
            return (Phase::Cores, 0);
        }
        (Phase::Bases, 0)
    }
}

impl Contender for Linear<'_> {
    fn learn(&mut self, task: &EncodedTask<'_>) -> Result<Learned, LearnError> {
        let known = self.classes.len();
        for class in &task.classes {
            if !self.classes.contains(&class.name) {
                self.classes.push(class.name.clone());
            }
        }
        self.head.grow(self.classes.len());
        let (mut records, mut labels, mut training) = (Vec::new(), Vec::new(), Vec::new());
        let mut validation = Vec::new();
        for class in &task.classes {
            let row = self.classes.iter().position(|name| *name == class.name);
            for (part, images) in [
                (&class.training, &mut training),
                (&class.validation, &mut validation),
            ] {
                images.extend(records.len()..records.len() + part.len());
                records.extend_from_slice(part);
            }
            labels.resize(records.len(), row.unwrap_or(0) as u32);
        }
        // Sequential fine-tuning has one softmax over all classes so far; the others train the
        // classes of the task among themselves, where all of them are new: a domain brings images of known ones.
        let all_new = self.classes.len() - known == task.classes.len();
        let apart = all_new && self.method != Method::Finetune;
        let first = if apart { known } else { 0 };
        let (phase, from) = self.start();
        let encoded = Encoded {
            cache: self.cache,
            records: &records,
            labels: &labels,
            training: &training,
            validation: &validation,
            stand_ins: StandIns::default(),
        };
        let lesson = Lesson {
            encoded: &encoded,
            first,
            phase,
            from,
            fresh_rank: self.learner.knowledge().adapters.rank,
            core_rank: self.settings.rank.unwrap_or(CORE_RANK),
            magnitudes: self.method == Method::SdLora,
        };
        let parameters = lesson.train(
            self.learner,
            &mut self.adapters,
            &mut self.head,
            &self.settings,
            &mut self.rng,
        )?;
        if phase == Phase::Bases {
            match self.method {
                Method::FmLoraPublished => self.adapters.orthonormalise(),
                Method::SdLora => normalise_directions(&mut self.adapters, from),
                _ => {}
            }
        }
        let rows = (self.classes.len() - known) * (self.head.dim + 1);
        // Its adapters are those of the task before, written over.
        let again = self.method == Method::Finetune && self.tasks > 0;
        let added = rows + if again { 0 } else { parameters };
        self.tasks += 1;
        Ok(Learned {
            parameters: added,
            bytes: 4 * added,
            rank: Some(match phase {
                Phase::Bases => lesson.fresh_rank,
                Phase::Cores => lesson.core_rank,
            }),
        })
    }

    fn classify(&mut self, records: &[usize]) -> Result<Vec<String>, LearnError> {
        let features = self.learner.features(self.cache, records, &self.adapters)?;
        let mut logits = vec![0.0; self.head.classes];
        let mut row = vec![0.0; features.width()];
        (0..records.len())
            .map(|image| {
                features.read(image, &mut row).map_err(FitError::from)?;
                self.head.logits(&row, 0, &mut logits);
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                Ok(best.map_or_else(String::new, |row| self.classes[row].clone()))
            })
            .collect()
    }
}

/// How one task is trained.
struct Lesson<'a> {
    encoded: &'a Encoded<'a>,
    /// First class that takes part in the cross-entropy.
    first: usize,
    phase: Phase,
    /// First column of A and B that is trained.
    from: usize,
    fresh_rank: usize,
    /// Rank of M and N in [`Phase::Cores`].
    core_rank: usize,
    /// Whether the magnitudes of earlier directions are trained.
    magnitudes: bool,
}

impl Lesson<'_> {
    /// Returns how many numbers of the adapters were trained for the task alone.
    fn train(
        &self,
        learner: &Learner,
        adapters: &mut Adapters,
        head: &mut LinearHead,
        settings: &LearnSettings,
        rng: &mut ChaCha8Rng,
    ) -> Result<usize, FitError> {
        let fit = &settings.fit;
        let images = self.encoded.records.len().div_ceil(head.classes.max(1));
        let known = &learner.knowledge().head;
        let demand = learner.demand(adapters, known, &vec![images; head.classes], fit.batch);
        let plan = Plan::within(&demand, settings.budget);
        let mut trainer = Trainer::new(
            learner.pool(),
            learner.weights(),
            &plan,
            self.encoded,
            adapters,
        );
        let base = adapters.clone();
        let mut parameters = Parameters::new(&base, self.phase, self.core_rank, rng);
        let mut adam = Adam::new(parameters.len());
        let mut head_adam = Adam::new(head.values.len());
        let mut magnitude_adam = Adam::new(base.sites.len() * self.directions());
        let mut chained = vec![0.0; parameters.chain_len()];
        let mut head_gradient = vec![0.0; head.values.len()];
        let features = Features::new(self.encoded.records.len(), trainer.width())?;
        let mut row = vec![0.0; features.width()];
        let class: Vec<Option<usize>> = self
            .encoded
            .labels
            .iter()
            .map(|&label| (label as usize).checked_sub(self.first))
            .collect();
        let prompts_start = parameters.prompts_start();
        let trains = |index: usize| {
            self.phase == Phase::Cores || index >= prompts_start || {
                // A and B are row-major [D, r], one after the other.
                index % base.rank >= self.from
            }
        };
        let steps = fit.epochs * self.encoded.training.len().div_ceil(fit.batch);
        let (mut step, mut order) = (0, self.encoded.training.to_vec());
        let mut logits = vec![0.0; head.classes - self.first];
        for _ in 0..fit.epochs {
            order.shuffle(rng);
            for images in order.chunks(fit.batch) {
                let rate = cosine(step, steps / 10, steps);
                let target = Target {
                    head: &Since {
                        head,
                        first: self.first,
                    },
                    class: &class,
                    temperature: 1.0,
                    phase: self.phase,
                    dropped: TokenDrop::NONE,
                    hold: None,
                };
                let (_, adapter_gradient) =
                    trainer.gradient(images, adapters, &features, &target)?;
                head_gradient.fill(0.0);
                for &image in images {
                    let Some(class) = class[image] else { continue };
                    features.read(image, &mut row)?;
                    head.logits(&row, self.first, &mut logits);
                    cross_entropy(&mut logits, class, 1.0);
                    let scale = 1.0 / images.len() as f32;
                    logits.iter_mut().for_each(|d| *d *= scale);
                    head.add_gradient(&row, self.first, &logits, &mut head_gradient);
                }
                head_adam.update(&mut head.values, &head_gradient, |_| RATE * rate);
                if self.magnitudes {
                    self.step_magnitudes(adapters, adapter_gradient, &mut magnitude_adam, rate);
                }
                let gradient = parameters.chain(adapter_gradient, &mut chained);
                parameters.update(adapters, &mut adam, gradient, |i| {
                    if trains(i) { RATE * rate } else { 0.0 }
                });
                parameters.apply(&base, adapters);
                step += 1;
            }
        }
        Ok(match self.phase {
            Phase::Cores => prompts_start,
            Phase::Bases => {
                let earlier = if self.magnitudes {
                    self.directions()
                } else {
                    0
                };
                adapters.sites.len() * (2 * base.dim * (base.rank - self.from) + earlier)
            }
        })
    }

    /// How many directions of earlier tasks each site has.
    fn directions(&self) -> usize {
        self.from / self.fresh_rank
    }

    /// One step on the magnitudes of earlier directions, which stand on the diagonal of the core:
    /// with `y = A diag(c) B^T x`, `dc_k = <dA_k, A_k> / c_k`, summed over a direction's columns.
    fn step_magnitudes(
        &self,
        adapters: &mut Adapters,
        gradient: &[f32],
        adam: &mut Adam,
        rate: f32,
    ) {
        let (d, r) = (adapters.dim, adapters.rank);
        let place = |direction: usize| direction * self.fresh_rank * (r + 1);
        let (mut magnitudes, mut slopes) = (Vec::new(), Vec::new());
        for (site, gradient) in adapters.sites.iter().zip(gradient.chunks_exact(2 * d * r)) {
            for direction in 0..self.directions() {
                let first = direction * self.fresh_rank;
                let columns = first..first + self.fresh_rank;
                let along: f32 = (0..d)
                    .flat_map(|row| columns.clone().map(move |column| row * r + column))
                    .map(|i| gradient[i] * site.a[i])
                    .sum();
                let magnitude = site.core[place(direction)];
                magnitudes.push(magnitude);
                slopes.push(along / magnitude.abs().max(1e-3).copysign(magnitude));
            }
        }
        adam.update(&mut magnitudes, &slopes, |_| RATE * rate);
        let mut magnitudes = magnitudes.into_iter();
        for site in &mut adapters.sites {
            for (direction, magnitude) in (0..self.directions()).zip(&mut magnitudes) {
                let first = direction * self.fresh_rank;
                for column in first..first + self.fresh_rank {
                    site.core[column * (r + 1)] = magnitude;
                }
            }
        }
    }
}

/// The same adapters with `fresh` more columns: random in A, zero in B, one on the core's diagonal.
fn widened(adapters: &Adapters, fresh: usize, rng: &mut ChaCha8Rng) -> Adapters {
    let (d, old) = (adapters.dim, adapters.rank);
    let new = old + fresh;
    let bound = (3.0 / d as f32).sqrt();
    let mut wide = adapters.clone();
    wide.rank = new;
    for (site, before) in wide.sites.iter_mut().zip(&adapters.sites) {
        site.a = vec![0.0; d * new];
        site.b = vec![0.0; d * new];
        for row in 0..d {
            site.a[row * new..row * new + old].copy_from_slice(&before.a[row * old..][..old]);
            site.b[row * new..row * new + old].copy_from_slice(&before.b[row * old..][..old]);
            for column in old..new {
                site.a[row * new + column] = rng.random_range(-bound..bound);
            }
        }
        site.core = vec![0.0; new * new];
        for row in 0..old {
            site.core[row * new..row * new + old].copy_from_slice(&before.core[row * old..][..old]);
        }
        for k in old..new {
            site.core[k * new + k] = 1.0;
        }
        site.gram = vec![0.0; new * new];
    }
    wide
}

/// Scales the columns from `from` on so that their `A B^T` has norm 1, and keeps the norm as their
/// magnitude on the core's diagonal.
fn normalise_directions(adapters: &mut Adapters, from: usize) {
    let (d, r) = (adapters.dim, adapters.rank);
    for site in &mut adapters.sites {
        // |A B^T|^2 = <A^T A, B^T B>.
        let gram = |x: &[f32], i: usize, j: usize| -> f64 {
            (0..d)
                .map(|row| f64::from(x[row * r + i]) * f64::from(x[row * r + j]))
                .sum()
        };
        let square: f64 = (from..r)
            .flat_map(|i| (from..r).map(move |j| (i, j)))
            .map(|(i, j)| gram(&site.a, i, j) * gram(&site.b, i, j))
            .sum();
        let norm = square.max(0.0).sqrt() as f32;
        if norm < 1e-6 {
            continue;
        }
        for row in 0..d {
            for column in from..r {
                site.b[row * r + column] /= norm;
            }
        }
        for k in from..r {
            site.core[k * r + k] = norm;
        }
    }
}
