//! Novelty of a task's held-back images, with one part of the statistics in memory at a time.
//!
//! The same numbers as [`Novelty::observe`](super::Novelty::observe) gives against a head over what
//! is known and the training images, for which it keeps the factors of every part.

use std::ops::Range;

use super::accumulate::{LearnWork, learn_part};
use super::fit::Workspace;
use super::novelty::{Measure, Scales, is_relative};
use super::reject::square;
use super::relative::{factor, whiten};
use super::{ClassId, Classifier, HeadError, Novelties, Shrinkage, Statistics, TaskId};

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

/// How strange images are to a head over what is known and others.
#[derive(Debug, Clone, Copy)]
pub struct Strangeness<'a> {
    pub known: &'a Statistics,
    /// Images that the head learns too, sorted by class.
    pub training: &'a [(ClassId, usize)],
    /// Images to be measured.
    pub images: &'a [usize],
    pub shrinkage: Shrinkage,
}

impl Strangeness<'_> {
    /// Measures the images; `read(image, columns, out)` writes some of an image's features.
    ///
    /// # Errors
    /// What `read` returns, [`HeadError::NotFinite`], as [`Classifier::fit`], and when the disk
    /// fails.
    pub fn measure<E: From<HeadError>>(
        &self,
        mut read: impl FnMut(usize, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Novelties, E> {
        let layout = self.known.layout();
        let dim = layout.dim;
        let mut workspace = Workspace::default();
        let mut classifier = Classifier::empty(layout);
        let mut scales = Scales::new();
        let mut squares = vec![[0.0f64; 2]; self.images.len()];
        let (mut feature, mut deviation) = (vec![0.0; dim], vec![0.0; dim]);
        for part in 0..layout.parts {
            let task = self.task(part, &mut read)?;
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
            let scale = (count as f64).sqrt();
            let mut along = vec![0.0f32; count];
            for (&image, squares) in self.images.iter().zip(&mut squares) {
                read(image, layout.part(part), &mut feature)?;
                layout.check_part(&feature)?;
                let center = &classifier.center[layout.part(part)];
                let pairs = deviation.iter_mut().zip(feature.iter().zip(center));
                pairs.for_each(|(d, (x, c))| *d = x - c);
                squares[0] += measure.square(&deviation);
                for (i, u) in along.iter_mut().enumerate() {
                    *u = (classifier.projection(i, part, &feature) / scale) as f32;
                }
                measure.whiten(&mut along);
                squares[1] += along.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            }
        }
        let mut seen = Novelties::default();
        let Some([nearest, relative]) = scales.finish() else {
            return Ok(seen);
        };
        let width = layout.width();
        let mut row = vec![0.0; width];
        for (&image, squares) in self.images.iter().zip(&squares) {
            read(image, 0..width, &mut row)?;
            let (score, _) = classifier.nearest(&row);
            let distance = ((squares[0] - 2.0 * score).max(0.0) / width as f64) as f32;
            seen.nearest.add(nearest.place(distance))?;
            if is_relative(&classifier) {
                let distance = ((squares[1] - 2.0 * score) / width as f64) as f32;
                seen.relative.add(relative.place(distance))?;
            }
        }
        Ok(seen)
    }

    /// One part of the training images, with the factors of that part.
    fn task<E: From<HeadError>>(
        &self,
        part: usize,
        read: &mut impl FnMut(usize, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Statistics, E> {
        let layout = self.known.layout();
        let mut task = Statistics::of_part(layout, part);
        let mut scatter = vec![0.0; layout.packed()];
        let mut work = LearnWork::new(layout.dim);
        let groups = || self.training.chunk_by(|a, b| a.0 == b.0);
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
    use super::super::{Layout, Novelty};
    use super::*;

    fn image(index: usize, width: usize) -> Vec<f32> {
        let class = index / 20;
        (0..width)
            .map(|k| {
                let noise = ((index * 7919 + k * 104_729) % 997) as f32 / 500.0;
                noise + ((class * 31 + k * 17) % 7) as f32
            })
            .collect()
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
            let mut training = Vec::new();
            for class in 1..=classes {
                let images = class * 20..class * 20 + 15;
                task.learn(class as ClassId, TaskId::MAX, &rows(images.clone()))
                    .unwrap();
                training.extend(images.map(|i| (class as ClassId, i)));
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
                training: &training,
                images: &images,
                shrinkage: 0.1.into(),
            };
            let found = strangeness
                .measure::<HeadError>(|index, columns, out| {
                    out.copy_from_slice(&image(index, width)[columns]);
                    Ok(())
                })
                .unwrap();
            assert_eq!(found, expected);
        }
    }
}
