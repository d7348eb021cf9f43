//! Statistics of one part after another, in memory that is used again: what training needs, which
//! fits a head in every half of every epoch and keeps none of them.

use super::accumulate::welford;
use super::factor::{Rows, TILE};
use super::{ClassId, Component, HeadError, Statistics, TaskId};

/// Buffers of [`Statistics::retake`], kept between calls so that a later one allocates nothing.
#[derive(Debug)]
pub struct Retaking {
    rows: Rows,
    mean: Vec<f64>,
    feature: Vec<f32>,
    tile: Vec<f32>,
    /// Components that are not in use, with their memory.
    spare: Vec<Component>,
}

impl Retaking {
    /// Room for parts of `dim` numbers.
    pub fn new(dim: usize) -> Self {
        Self {
            rows: Rows::with_room(dim),
            mean: vec![0.0; dim],
            feature: vec![0.0; dim],
            tile: vec![0.0; TILE * dim],
            spare: Vec::new(),
        }
    }
}

impl Statistics {
    /// Keeps the scatter in `memory`, and returns where it was.
    pub fn swap_scatter(&mut self, memory: Vec<f32>) -> Vec<f32> {
        std::mem::replace(&mut self.scatter, memory)
    }

    /// Forgets everything but the means of other parts, and learns one part of some images as
    /// `task`. For transient statistics; called for every part in turn with the same images, it
    /// leaves what [`Statistics::learn`] would, one part's scatter at a time.
    ///
    /// `images` are sorted by class; `read(image, out)` writes the part's features of one, `[dim]`.
    ///
    /// # Errors
    /// What `read` returns, and [`HeadError::NotFinite`] for a feature that is no number.
    pub fn retake<E: From<HeadError>>(
        &mut self,
        part: usize,
        task: TaskId,
        images: &[(ClassId, usize)],
        buffers: &mut Retaking,
        mut read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (layout, width) = (self.layout, self.layout.width());
        let range = layout.part(part);
        self.held = part..part + 1;
        self.scatter.clear();
        self.scatter.resize(layout.packed(), 0.0);
        let groups = || images.chunk_by(|a, b| a.0 == b.0);
        let classes = groups().count();
        while self.components.len() > classes {
            buffers.spare.extend(self.components.pop());
        }
        while self.components.len() < classes {
            self.components
                .push(buffers.spare.pop().unwrap_or_else(|| Component {
                    class: 0,
                    task,
                    count: 0,
                    drift: 0.0,
                    mean: vec![0.0; width],
                    factor: None,
                }));
        }
        buffers.rows.clear();
        for (group, component) in groups().zip(&mut self.components) {
            component.class = group[0].0;
            component.task = task;
            component.drift = 0.0;
            component.count = u32::try_from(group.len()).unwrap_or(u32::MAX);
            for (k, &(_, image)) in group.iter().enumerate() {
                read(image, &mut buffers.feature)?;
                layout.check_part(&buffers.feature, image, part)?;
                welford(
                    k as f64,
                    &mut buffers.mean,
                    &buffers.feature,
                    &mut buffers.rows,
                );
                if buffers.rows.full(0) {
                    buffers
                        .rows
                        .add_gram_in(1.0, &mut self.scatter, &mut buffers.tile);
                    buffers.rows.clear();
                }
            }
            for (m, &mean) in component.mean[range.clone()].iter_mut().zip(&buffers.mean) {
                *m = mean as f32;
            }
        }
        buffers
            .rows
            .add_gram_in(1.0, &mut self.scatter, &mut buffers.tile);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Classifier, Layout, Workspace};
    use super::*;

    fn feature(image: usize, part: usize, dim: usize) -> Vec<f32> {
        (0..dim)
            .map(|d| ((image * 37 + part * 11 + d * 5) % 23) as f32 - 11.0 + image as f32)
            .collect()
    }

    /// A head refitted part by part, twice over different images, against one fitted at once.
    #[test]
    fn parts_taken_in_turn_fit_the_head_that_all_at_once_would() {
        let layout = Layout { parts: 3, dim: 6 };
        let rounds: [&[(ClassId, usize)]; 3] = [
            &[(0, 1), (0, 2), (0, 3), (2, 4), (2, 5)],
            &[(0, 3), (1, 6), (1, 7), (2, 8), (3, 9)],
            &[(1, 0), (1, 2), (1, 5)],
        ];
        let mut known = Statistics::transient(layout, 0..3);
        for class in [0, 4] {
            for image in 20..25 {
                let row: Vec<f32> = (0..3).flat_map(|p| feature(image + class, p, 6)).collect();
                known.learn(class as ClassId, 0, &row).unwrap();
            }
        }
        let mut half = Statistics::transient(layout, 0..1);
        let mut buffers = Retaking::new(6);
        let (mut head, mut workspace) = (Classifier::empty(layout), Workspace::default());
        for images in rounds {
            for part in 0..layout.parts {
                half.retake::<HeadError>(part, 9, images, &mut buffers, |image, out| {
                    out.copy_from_slice(&feature(image, part, 6));
                    Ok(())
                })
                .unwrap();
                if part == 0 {
                    head.start(&[&known, &half], 0.2, &mut workspace).unwrap();
                }
                head.refit(&[&known, &half], part..part + 1, &mut workspace)
                    .unwrap();
            }
            let mut all = Statistics::transient(layout, 0..3);
            for &(class, image) in images {
                let row: Vec<f32> = (0..3).flat_map(|p| feature(image, p, 6)).collect();
                all.learn(class, 9, &row).unwrap();
            }
            let expected = Classifier::fit(&[&known, &all], 0.2).unwrap();
            assert_eq!(head.classes(), expected.classes());
            let row: Vec<f32> = (0..3).flat_map(|p| feature(3, p, 6)).collect();
            let (mut a, mut b) = (
                vec![0.0; head.classes().len()],
                vec![0.0; head.classes().len()],
            );
            head.scores(&row, &mut a).unwrap();
            expected.scores(&row, &mut b).unwrap();
            for (a, b) in a.iter().zip(&b) {
                assert!(
                    (a - b).abs() < 1e-3 * b.abs().max(1.0),
                    "{a} instead of {b}"
                );
            }
        }
    }
}
