//! Novelty of images that a head did not learn, with one part of the statistics in memory at a time.
//!
//! About the numbers that a [`Novelty`](super::Novelty) gives against a head that was fitted without the image, but
//! by one fit for all images and without the factors of every part.

use std::ops::Range;

use super::accumulate::{LearnWork, learn_part};
use super::fit::{Member, Workspace, pooled_mean};
use super::novelty::{LeftOut, Measure, Scale, Scales, is_relative, left_out, put_right, weight};
use super::reject::square;
use super::relative::{factor, whiten};
use super::{ClassId, Classifier, HeadError, ImageNovelty, Shrinkage, Statistics, TaskId};

/// Images of a class whose features are in memory while they are learned.
const WINDOW: usize = 64;

/// The part in memory.
struct OnePart<'a> {
    /// L `[dim, dim]`, the covariance being `variance L L^T`.
    factor: &'a [f32],
    variance: f64,
    /// `[K, K]`
    between: &'a [f32],
}

impl Measure for OnePart<'_> {
    fn square(&self, deviation: &[f32]) -> f64 {
        let dim = deviation.len();
        let row = |i: usize| &self.factor[i * dim..=i * dim + i];
        square(row, self.variance, deviation)
    }

    fn whiten(&self, v: &mut [f32]) {
        let count = v.len();
        whiten(|i| &self.between[i * count..=i * count + i], v);
    }
}

/// Which of the sources of a head holds the learned images.
const LEARNED: usize = 1;

/// A head while it has a part in memory.
struct PartHead<'a> {
    part: usize,
    classifier: &'a Classifier,
    /// What is known, and the learned images.
    sources: [&'a Statistics; 2],
    workspace: &'a Workspace,
    measure: &'a OnePart<'a>,
}

impl PartHead<'_> {
    /// Which component a learned class is in, its members, and how many images they have.
    fn of_learned(&self, class: ClassId) -> Option<(usize, &[Member], f64)> {
        let learned = |m: &Member| m.class == class && m.source() == LEARNED;
        let mut groups = self.workspace.groups().enumerate();
        let (group, members) = groups.find(|(_, members)| members.iter().any(learned))?;
        let counts = members.iter().map(|m| m.component(&self.sources).count);
        Some((group, members, counts.map(f64::from).sum()))
    }
}

/// Reads some of an image's features: `(image, columns, out)`.
pub trait Read<E>: FnMut(usize, Range<usize>, &mut [f32]) -> Result<(), E> {}

impl<E, F: FnMut(usize, Range<usize>, &mut [f32]) -> Result<(), E>> Read<E> for F {}

/// How strange images are to a head over what is known and others.
#[derive(Debug, Clone, Copy)]
pub struct Strangeness<'a> {
    pub known: &'a Statistics,
    /// Images that the head learns too, sorted by class.
    pub learned: &'a [(ClassId, usize)],
    pub shrinkage: Shrinkage,
}

/// Where images are, each seen by the head without it, summed over the parts so far.
#[derive(Default)]
struct Places {
    /// What squared distances hold beside the score of the nearest component: to it, and to the centre.
    squares: Vec<[f64; 2]>,
    /// `[images, components]`
    scores: Vec<f32>,
    /// What all distances are multiplied by.
    right: f64,
    /// Whether an image is its component's only one.
    alone: Vec<bool>,
}

impl Places {
    fn new(classifier: &Classifier, sources: &[&Statistics], images: usize) -> Self {
        Self {
            squares: vec![[0.0; 2]; images],
            scores: vec![0.0; images * classifier.components().len()],
            right: put_right(classifier, sources),
            alone: vec![false; images],
        }
    }

    fn novelties(
        &self,
        classifier: &Classifier,
        [nearest, relative]: &[Scale; 2],
    ) -> Vec<Option<ImageNovelty>> {
        let width = classifier.layout().width() as f64;
        let scores = self.scores.chunks_exact(classifier.components().len());
        let images = scores.zip(&self.squares).zip(&self.alone);
        images
            .map(|((scores, squares), alone)| {
                let score = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let left = |square: f64| self.right * (square - 2.0 * f64::from(score));
                let [plain, less] = squares.map(left);
                (!alone).then(|| ImageNovelty {
                    nearest: nearest.place((plain.max(0.0) / width) as f32),
                    relative: is_relative(classifier)
                        .then(|| relative.place((less / width) as f32)),
                })
            })
            .collect()
    }
}

impl Strangeness<'_> {
    /// Measures every image that the head learned, in the order of `learned`, as it would be without that
    /// one; none for an image that is its component's only one, or when the statistics cannot tell.
    ///
    /// `read(image, columns, out)` writes some of an image's features.
    ///
    /// # Errors
    /// What `read` returns, [`HeadError::NotFinite`], as [`Classifier::fit`], and when the disk
    /// fails.
    pub fn leave_out<E: From<HeadError>>(
        &self,
        mut read: impl Read<E>,
    ) -> Result<Vec<Option<ImageNovelty>>, E> {
        let layout = self.known.layout();
        let mut workspace = Workspace::default();
        let mut classifier = Classifier::empty(layout);
        let mut scales = Scales::new();
        let mut places = Places::default();
        for part in 0..layout.parts {
            let task = self.task(part, &mut read)?;
            let sources = [self.known, &task];
            if part == 0 {
                classifier.start(&sources, self.shrinkage, &mut workspace)?;
                places = Places::new(&classifier, &sources, self.learned.len());
            }
            let mut variance = 0.0;
            let only = part..part + 1;
            classifier.refit_parts(&sources, only, &mut workspace, |_, _, s| {
                variance = s.variance
            })?;
            let count = classifier.components().len();
            let mut between = vec![0.0; count * count];
            factor(&classifier, &sources, &workspace, part, &mut between);
            let measure = OnePart {
                factor: &workspace.matrix,
                variance,
                between: &between,
            };
            scales.add_part(&classifier, &sources, &workspace, part, &measure)?;
            let head = PartHead {
                part,
                classifier: &classifier,
                sources,
                workspace: &workspace,
                measure: &measure,
            };
            self.add_part(&head, &mut read, &mut places)?;
        }
        Ok(match scales.finish() {
            Some(scales) => places.novelties(&classifier, &scales),
            None => vec![None; self.learned.len()],
        })
    }

    /// Adds one part of the distances of every learned image, left out of `head`.
    fn add_part<E: From<HeadError>>(
        &self,
        head: &PartHead<'_>,
        read: &mut impl Read<E>,
        places: &mut Places,
    ) -> Result<(), E> {
        let (part, classifier) = (head.part, head.classifier);
        let layout = classifier.layout();
        let count = classifier.components().len();
        let weight = weight(classifier, &head.sources, part);
        let (mut mean, mut deviation) = (vec![0.0; layout.dim], vec![0.0; layout.dim]);
        let mut at = 0;
        for class in self.learned.chunk_by(|a, b| a.0 == b.0) {
            let rows = at..at + class.len();
            at = rows.end;
            let Some((group, members, n)) = head.of_learned(class[0].0).filter(|c| c.2 >= 2.0)
            else {
                places.alone[rows].fill(true);
                continue;
            };
            pooled_mean(&head.sources, members, layout.part(part), &mut mean);
            let products: Vec<f64> = (0..count)
                .map(|j| classifier.projection(j, part, &mean))
                .collect();
            let out = LeftOut {
                group,
                products: &products,
                share: 1.0 / n,
                weight: weight * (n - 1.0) / n,
            };
            for (&(_, image), row) in class.iter().zip(rows) {
                read(image, layout.part(part), &mut deviation)?;
                layout.check_part(&deviation, image, part)?;
                // From the mean of the others.
                let more = (n / (n - 1.0)) as f32;
                let pairs = deviation.iter_mut().zip(&mean);
                pairs.for_each(|(x, mean)| *x = more * (*x - mean));
                let scores = &mut places.scores[row * count..(row + 1) * count];
                let place = left_out(head.measure, classifier, part, &deviation, &out, scores);
                let sums = places.squares[row].iter_mut().zip(place.squares);
                sums.for_each(|(sum, square)| *sum += square);
            }
        }
        Ok(())
    }

    /// One part of the learned images, with the factors of that part.
    fn task<E: From<HeadError>>(
        &self,
        part: usize,
        read: &mut impl Read<E>,
    ) -> Result<Statistics, E> {
        let layout = self.known.layout();
        let mut task = Statistics::of_part(layout, part);
        let mut scatter = vec![0.0; layout.packed()];
        let mut work = LearnWork::new(layout.dim);
        let groups = || self.learned.chunk_by(|a, b| a.0 == b.0);
        let largest = groups().map(<[_]>::len).max().unwrap_or(0);
        let mut window = vec![0.0; largest.min(WINDOW) * layout.dim];
        for group in groups() {
            let index = task.place(group[0].0, TaskId::MAX)?;
            let component = &mut task.components[index];
            for images in group.chunks(WINDOW) {
                let rows = &mut window[..images.len() * layout.dim];
                for (&(_, image), row) in images.iter().zip(rows.chunks_exact_mut(layout.dim)) {
                    read(image, layout.part(part), row)?;
                    layout.check_part(row, image, part)?;
                }
                let rows = rows.chunks_exact(layout.dim);
                learn_part(
                    component,
                    part,
                    component.count,
                    rows,
                    &mut scatter,
                    &mut work,
                )?;
                component.count = component.count.saturating_add(images.len() as u32);
            }
        }
        task.scatter = scatter;
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::{Layout, Novelty};
    use super::*;

    const LAYOUT: Layout = Layout { parts: 3, dim: 8 };

    /// An image of class `index / 20`, about normal around its mean.
    fn image(index: usize, width: usize) -> Vec<f32> {
        let class = index / 20;
        let mut rng = ChaCha8Rng::seed_from_u64(index as u64);
        (0..width)
            .map(|k| {
                let noise: f32 = (0..12).map(|_| rng.random::<f32>()).sum();
                noise + ((class * 31 + k * 17) % 7) as f32
            })
            .collect()
    }

    fn read(index: usize, columns: Range<usize>, out: &mut [f32]) -> Result<(), HeadError> {
        out.copy_from_slice(&image(index, LAYOUT.width())[columns]);
        Ok(())
    }

    /// Statistics of `images`, everything in memory.
    fn learn(images: &[(ClassId, usize)]) -> Statistics {
        let mut statistics = Statistics::new(LAYOUT);
        for class in images.chunk_by(|a, b| a.0 == b.0) {
            let rows = class.iter().flat_map(|&(_, i)| image(i, LAYOUT.width()));
            let rows: Vec<f32> = rows.collect();
            statistics.learn(class[0].0, TaskId::MAX, &rows).unwrap();
        }
        statistics
    }

    #[test]
    fn an_image_left_out_is_about_as_strange_as_to_a_head_without_it() {
        for classes in [1, 2, 4] {
            let mut known = learn(&(0..20).map(|i| (0, i)).collect::<Vec<_>>());
            // Classes of 20, two of them with an image exchanged, and a class of one.
            let mut learned: Vec<(ClassId, usize)> = (20..20 * (classes + 1))
                .map(|i| ((i / 20) as ClassId, i))
                .collect();
            let last = learned.len() - 1;
            (learned[19].1, learned[last].1) = (learned[last].1, 39);
            if classes > 1 {
                learned.push((classes as ClassId + 1, 100));
            }
            let found = |known: &Statistics| {
                let strangeness = Strangeness {
                    known,
                    learned: &learned,
                    shrinkage: 0.3.into(),
                };
                strangeness.leave_out(read).unwrap()
            };
            let in_memory = found(&known);
            assert_eq!(in_memory.len(), learned.len());
            assert!(in_memory[20 * classes..].iter().all(Option::is_none));
            for at in (0..20 * classes).step_by(7).chain([19]) {
                let mut others = learned.clone();
                let (_, taken) = others.remove(at);
                let (classifier, novelty) = Novelty::fit(&[&known, &learn(&others)], 0.3).unwrap();
                let row = image(taken, LAYOUT.width());
                let expected = ImageNovelty {
                    nearest: novelty.nearest(&classifier, &row).unwrap().unwrap(),
                    relative: novelty
                        .relative(&classifier, &row)
                        .unwrap()
                        .filter(|_| is_relative(&classifier)),
                };
                let found = in_memory[at].unwrap();
                // The scale of a head without the image is a little different.
                let far = |x: f32, y: f32| (x - y).abs() > 0.1 + 0.1 * y.abs();
                let told = format!("{classes} {at}: {found:?} {expected:?}");
                assert!(!far(found.nearest, expected.nearest), "{told}");
                let relative = (found.relative, expected.relative);
                match relative {
                    (Some(found), Some(expected)) => assert!(!far(found, expected), "{told}"),
                    (found, expected) => assert_eq!(found, expected, "{told}"),
                }
            }
            known.shelve().unwrap();
            assert_eq!(found(&known), in_memory);
        }
    }
}
