//! Novelty of images that a head did not learn, with one part of the statistics in memory at a time.
//!
//! The same numbers as [`Novelty::observe`](super::Novelty::observe) gives against a head over what
//! is known and what it learned, for which it keeps the factors of every part.

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

/// Novelty by what is left of a squared distance with the score of the nearest component.
fn novelty(
    classifier: &Classifier,
    [nearest, relative]: &[Scale; 2],
    squares: [f64; 2],
    score: f64,
) -> ImageNovelty {
    let width = classifier.layout().width() as f64;
    let [plain, less] = squares.map(|square| square - 2.0 * score);
    ImageNovelty {
        nearest: nearest.place((plain.max(0.0) / width) as f32),
        relative: is_relative(classifier).then(|| relative.place((less / width) as f32)),
    }
}

impl Strangeness<'_> {
    /// Measures `images`, in their order, or none when the statistics cannot tell; `read(image, columns, out)`
    /// writes some of an image's features.
    ///
    /// # Errors
    /// What `read` returns, [`HeadError::NotFinite`], as [`Classifier::fit`], and when the disk
    /// fails.
    pub fn measure<E: From<HeadError>, R: Read<E>>(
        &self,
        images: &[usize],
        mut read: R,
    ) -> Result<Vec<ImageNovelty>, E> {
        let layout = self.known.layout();
        let mut squares = vec![[0.0f64; 2]; images.len()];
        let (mut feature, mut deviation) = (vec![0.0; layout.dim], vec![0.0; layout.dim]);
        let (classifier, scales) = self.part_by_part(&mut read, |head, read| {
            let (part, classifier) = (head.part, head.classifier);
            let count = classifier.components().len();
            let scale = (count as f64).sqrt();
            let mut along = vec![0.0f32; count];
            for (&image, squares) in images.iter().zip(&mut squares) {
                read(image, layout.part(part), &mut feature)?;
                layout.check_part(&feature)?;
                let center = &classifier.center[layout.part(part)];
                let pairs = deviation.iter_mut().zip(feature.iter().zip(center));
                pairs.for_each(|(d, (x, c))| *d = x - c);
                squares[0] += head.measure.square(&deviation);
                for (i, u) in along.iter_mut().enumerate() {
                    *u = (classifier.projection(i, part, &feature) / scale) as f32;
                }
                head.measure.whiten(&mut along);
                squares[1] += along.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            }
            Ok(())
        })?;
        let Some(scales) = scales else {
            return Ok(Vec::new());
        };
        let mut row = vec![0.0; layout.width()];
        let placed = images.iter().zip(squares);
        placed
            .map(|(&image, squares)| {
                read(image, 0..layout.width(), &mut row)?;
                let (score, _) = classifier.nearest(&row);
                Ok(novelty(&classifier, &scales, squares, score))
            })
            .collect()
    }

    /// Measures every image that the head learned, in the order of `learned`, as it would be without that
    /// one; none for an image that is its component's only one, or when the statistics cannot tell.
    ///
    /// # Errors
    /// As [`Strangeness::measure`].
    pub fn leave_out<E: From<HeadError>, R: Read<E>>(
        &self,
        mut read: R,
    ) -> Result<Vec<Option<ImageNovelty>>, E> {
        let layout = self.known.layout();
        let images = self.learned.len();
        let mut squares = vec![[0.0f64; 2]; images];
        // `[images, components]`
        let mut scores: Vec<f32> = Vec::new();
        let mut right = 1.0;
        let mut alone = vec![false; images];
        let (mut mean, mut deviation) = (vec![0.0; layout.dim], vec![0.0; layout.dim]);
        let (classifier, scales) = self.part_by_part(&mut read, |head, read| {
            let (part, classifier) = (head.part, head.classifier);
            let count = classifier.components().len();
            if scores.is_empty() {
                scores.resize(images * count, 0.0);
                right = put_right(classifier, &head.sources);
            }
            let weight = weight(classifier, &head.sources, part);
            let mut at = 0;
            for class in self.learned.chunk_by(|a, b| a.0 == b.0) {
                let rows = at..at + class.len();
                at = rows.end;
                let Some((group, members, n)) = head.of_learned(class[0].0).filter(|c| c.2 >= 2.0)
                else {
                    alone[rows].fill(true);
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
                    layout.check_part(&deviation)?;
                    // From the mean of the others.
                    let more = (n / (n - 1.0)) as f32;
                    let pairs = deviation.iter_mut().zip(&mean);
                    pairs.for_each(|(x, mean)| *x = more * (*x - mean));
                    let scores = &mut scores[row * count..(row + 1) * count];
                    let place = left_out(head.measure, classifier, part, &deviation, &out, scores);
                    let sums = squares[row].iter_mut().zip(place.squares);
                    sums.for_each(|(sum, square)| *sum += square);
                }
            }
            Ok(())
        })?;
        let Some(scales) = scales else {
            return Ok(vec![None; images]);
        };
        let count = classifier.components().len();
        let placed = scores.chunks_exact(count).zip(squares).zip(alone);
        Ok(placed
            .map(|((scores, squares), alone)| {
                let score = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let (squares, score) = (squares.map(|s| right * s), right * f64::from(score));
                (!alone).then(|| novelty(&classifier, &scales, squares, score))
            })
            .collect())
    }

    /// Fits the head part by part and shows each to `look`. Returns what is left when all are through: the
    /// classifier, and the scales of both distances where the statistics can tell.
    fn part_by_part<E: From<HeadError>, R: Read<E>>(
        &self,
        read: &mut R,
        mut look: impl FnMut(PartHead<'_>, &mut R) -> Result<(), E>,
    ) -> Result<(Classifier, Option<[Scale; 2]>), E> {
        let layout = self.known.layout();
        let mut workspace = Workspace::default();
        let mut classifier = Classifier::empty(layout);
        let mut scales = Scales::new();
        for part in 0..layout.parts {
            let task = self.task(part, read)?;
            let sources = [self.known, &task];
            if part == 0 {
                classifier.start(&sources, self.shrinkage, &mut workspace)?;
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
            look(head, read)?;
        }
        Ok((classifier, scales.finish()))
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
                    layout.check_part(row)?;
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

    use super::super::{Layout, Novelties, Novelty};
    use super::*;

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
        out.copy_from_slice(&image(index, 24)[columns]);
        Ok(())
    }

    #[test]
    fn an_image_left_out_is_about_as_strange_as_to_a_head_without_it() {
        let layout = Layout { parts: 3, dim: 8 };
        let mut known = Statistics::new(layout);
        let rows: Vec<f32> = (0..20).flat_map(|i| image(i, 24)).collect();
        known.learn(0, 0, &rows).unwrap();
        // Two classes of 20, the last image of one in the middle of the other, and a class of one.
        let mut learned: Vec<(ClassId, usize)> =
            (20..60).map(|i| ((i / 20) as ClassId, i)).collect();
        learned[19].1 = 59;
        learned[39].1 = 39;
        learned.push((3, 70));
        fn strangeness<'a>(
            known: &'a Statistics,
            learned: &'a [(ClassId, usize)],
        ) -> Strangeness<'a> {
            Strangeness {
                known,
                learned,
                shrinkage: 0.3.into(),
            }
        }
        let found = strangeness(&known, &learned).leave_out(read).unwrap();
        assert_eq!(found.len(), 41);
        assert_eq!(found[40], None);
        for (at, found) in found
            .iter()
            .enumerate()
            .take(40)
            .step_by(7)
            .chain([(39, &found[39])])
        {
            let mut others = learned.clone();
            let (_, image) = others.remove(at);
            let expected = strangeness(&known, &others)
                .measure(&[image], read)
                .unwrap()[0];
            let found = found.unwrap();
            // The scale of a head without the image is a little different.
            let far = |x: f32, y: f32| (x - y).abs() > 0.12;
            assert!(
                !far(found.nearest, expected.nearest),
                "{found:?} {expected:?}"
            );
            let relative = (found.relative.unwrap(), expected.relative.unwrap());
            assert!(!far(relative.0, relative.1), "{found:?} {expected:?}");
        }
    }

    #[test]
    fn part_by_part_images_are_as_strange_as_with_everything_in_memory() {
        let layout = Layout { parts: 3, dim: 8 };
        let width = layout.width();
        for classes in [1, 2, 4] {
            let rows = |images: Range<usize>| -> Vec<f32> {
                images.flat_map(|i| image(i, width)).collect()
            };
            let mut known = Statistics::new(layout);
            known.learn(0, 0, &rows(0..12)).unwrap();
            let mut task = Statistics::new(layout);
            let mut learned = Vec::new();
            for class in 1..=classes {
                let images = class * 20..class * 20 + 15;
                task.learn(class as ClassId, TaskId::MAX, &rows(images.clone()))
                    .unwrap();
                learned.extend(images.map(|i| (class as ClassId, i)));
            }
            let images: Vec<usize> = (0..5).flat_map(|k| [12 + k, 35 + k]).collect();
            let (classifier, novelty) = Novelty::fit(&[&known, &task], 0.1).unwrap();
            let mut expected = Novelties::default();
            for &index in &images {
                let row = image(index, width);
                novelty.observe(&classifier, &row, &mut expected).unwrap();
            }
            known.shelve().unwrap();
            let strangeness = Strangeness {
                known: &known,
                learned: &learned,
                shrinkage: 0.1.into(),
            };
            let found = strangeness.measure(&images, read).unwrap();
            let mut seen = Novelties::default();
            found.into_iter().for_each(|it| seen.add(it).unwrap());
            assert_eq!(seen, expected);
        }
    }
}
