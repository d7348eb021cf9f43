//! Moving old statistics along when the features move under them.
//!
//! A task whose update is kept changes the features of every class, and the old classes' images
//! are gone. The task's own images show how features move: a linear map fitted to them before and
//! after is applied to the old means and factors. Away from the span of these images the map is the
//! identity plus a shift.

use std::ops::Range;

use super::cholesky;
use super::factor::Rows;
use super::{HeadError, Layout, Statistics};
use crate::kernels::matmul::{MatMut, MatRef, matmul};

/// Images that the map of a part is fitted to, at most; more are thinned out evenly.
const MOST_IMAGES: usize = 512;
/// Ridge, as a share of the kernel's mean diagonal.
const RIDGE: f32 = 1.0;

/// How the features of some parts moved: `x -> x + d + (x - m) D`.
#[derive(Debug, Clone)]
pub struct Transport {
    layout: Layout,
    parts: Vec<(usize, PartMap)>,
}

#[derive(Debug, Clone)]
struct PartMap {
    /// m: mean of the features before.
    mean: Vec<f32>,
    /// d: how far that mean moved.
    shift: Vec<f32>,
    /// D `[dim, dim]`.
    delta: Vec<f32>,
}

impl Transport {
    /// How many of so many images a map is fitted to.
    pub fn images(images: usize) -> usize {
        images.min(MOST_IMAGES)
    }

    /// Fits the maps of `parts` to images, of whose features `before(i, columns, out)` and
    /// `after(i, columns, out)` write some columns, for `i` below `images`.
    ///
    /// Kernel ridge regression of the movement on the centred features: with `X` the centred
    /// features before and `Y` the movement less its mean, both `[n, dim]`,
    /// `D = X^T (X X^T + r I)^-1 Y`, r being the mean of the diagonal of `X X^T`.
    ///
    /// # Errors
    /// [`HeadError::Empty`] without images, [`HeadError::NotFinite`] when the features are not
    /// numbers, and what `before` and `after` return.
    pub fn fit<E: From<HeadError>>(
        layout: Layout,
        parts: Range<usize>,
        images: usize,
        before: impl Fn(usize, Range<usize>, &mut [f32]) -> Result<(), E>,
        after: impl Fn(usize, Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        if images == 0 {
            return Err(HeadError::Empty.into());
        }
        let n = Self::images(images);
        let chosen: Vec<usize> = (0..n).map(|k| k * images / n).collect();
        let dim = layout.dim;
        let mut maps = Vec::with_capacity(parts.len());
        for part in parts {
            let range = layout.part(part);
            let (mut x, mut y) = (vec![0.0f32; n * dim], vec![0.0f32; n * dim]);
            let rows = x.chunks_exact_mut(dim).zip(y.chunks_exact_mut(dim));
            for (&image, (old, new)) in chosen.iter().zip(rows) {
                before(image, range.clone(), old)?;
                after(image, range.clone(), new)?;
                new.iter_mut().zip(&*old).for_each(|(new, old)| *new -= old);
            }
            let (mean, shift) = (centre(&mut x, dim), centre(&mut y, dim));
            let mut kernel = vec![0.0f32; n * n];
            let rows = MatRef::new(&x, n, dim);
            matmul(1.0, rows, rows.t(), 0.0, MatMut::new(&mut kernel, n, n));
            let trace: f32 = (0..n).map(|i| kernel[i * n + i]).sum();
            let ridge = (RIDGE * trace / n as f32).max(f32::MIN_POSITIVE);
            (0..n).for_each(|i| kernel[i * n + i] += ridge);
            let mut buffer = Vec::new();
            cholesky::factorise(&mut kernel, n, &mut buffer).map_err(|_| HeadError::NotFinite {
                image: 0,
                position: range.start,
            })?;
            cholesky::solve(&kernel, n, &mut y, dim);
            let mut delta = vec![0.0f32; dim * dim];
            let solved = MatRef::new(&y, n, dim);
            matmul(
                1.0,
                rows.t(),
                solved,
                0.0,
                MatMut::new(&mut delta, dim, dim),
            );
            maps.push((part, PartMap { mean, shift, delta }));
        }
        Ok(Self {
            layout,
            parts: maps,
        })
    }

    /// Moves means, factors and scatter of `statistics`. The shared scatter is summed anew from
    /// the moved factors, so that removing a component stays exact.
    ///
    /// # Errors
    /// [`HeadError::Shape`] for another layout, [`HeadError::NoFactor`] when a factor is missing;
    /// nothing is changed then.
    pub fn apply(&self, statistics: &mut Statistics) -> Result<(), HeadError> {
        statistics.move_parts(
            self.layout,
            self.parts.iter().map(|(part, _)| *part),
            |part, mean, rows| {
                let Some((_, map)) = self.parts.iter().find(|(p, _)| *p == part) else {
                    return;
                };
                map.move_mean(mean);
                map.move_rows(rows);
            },
        )
    }
}

impl PartMap {
    fn move_mean(&self, mean: &mut [f32]) {
        let dim = mean.len();
        let offset: Vec<f32> = mean.iter().zip(&self.mean).map(|(x, m)| x - m).collect();
        let mut moved = vec![0.0f32; dim];
        matmul(
            1.0,
            MatRef::new(&offset, 1, dim),
            MatRef::new(&self.delta, dim, dim),
            0.0,
            MatMut::new(&mut moved, 1, dim),
        );
        for ((x, d), m) in mean.iter_mut().zip(&self.shift).zip(moved) {
            *x += d + m;
        }
    }

    /// `R <- R + R D`: the scatter `R^T R` becomes `(I + D)^T R^T R (I + D)`.
    fn move_rows(&self, rows: &mut Rows) {
        let count = rows.len();
        let dim = self.mean.len();
        if count == 0 {
            return;
        }
        let old = rows.as_slice().to_vec();
        matmul(
            1.0,
            MatRef::new(&old, count, dim),
            MatRef::new(&self.delta, dim, dim),
            1.0,
            MatMut::new(rows.as_mut_slice(), count, dim),
        );
    }
}

/// Subtracts the mean of the rows from every row, and returns it.
fn centre(rows: &mut [f32], dim: usize) -> Vec<f32> {
    let count = rows.len() / dim;
    let mut mean = vec![0.0f32; dim];
    for row in rows.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
    }
    mean.iter_mut().for_each(|m| *m /= count as f32);
    for row in rows.chunks_exact_mut(dim) {
        row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
    }
    mean
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    const LAYOUT: Layout = Layout { parts: 2, dim: 5 };

    fn images(count: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let row = |_| {
            (0..LAYOUT.width())
                .map(|_| rng.random_range(-1.0f32..1.0))
                .collect()
        };
        (0..count).map(row).collect()
    }

    fn learned(images: &[Vec<f32>]) -> Statistics {
        let mut statistics = Statistics::new(LAYOUT);
        for (class, images) in images.chunks(images.len() / 2).enumerate() {
            statistics.learn(class as u32, 0, &images.concat()).unwrap();
        }
        statistics
    }

    fn columns_of(
        rows: &[Vec<f32>],
    ) -> impl Fn(usize, Range<usize>, &mut [f32]) -> Result<(), HeadError> {
        |row, columns, out| {
            out.copy_from_slice(&rows[row][columns]);
            Ok(())
        }
    }

    #[test]
    fn features_that_shift_take_their_statistics_with_them() {
        let (old, seen) = (images(12, 1), images(20, 2));
        let shifted = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            rows.iter()
                .map(|row| {
                    row.iter()
                        .enumerate()
                        .map(|(i, x)| if i < 5 { x + 0.5 } else { *x })
                        .collect()
                })
                .collect()
        };
        let after = shifted(&seen);
        let transport = Transport::fit(
            LAYOUT,
            0..1,
            seen.len(),
            columns_of(&seen),
            columns_of(&after),
        )
        .unwrap();
        let mut statistics = learned(&old);
        transport.apply(&mut statistics).unwrap();
        let expected = learned(&shifted(&old));
        for (moved, fresh) in statistics.components().iter().zip(expected.components()) {
            for (a, b) in moved.mean.iter().zip(&fresh.mean) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_linear_movement_is_followed_where_images_were_seen() {
        let (old, seen) = (images(40, 3), images(400, 4));
        // Small enough that the ridge, which halves it, is easy to bound.
        let moved = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            rows.iter()
                .map(|row| {
                    let mut row = row.clone();
                    row[0] += 0.4 * row[1];
                    row
                })
                .collect()
        };
        let after = moved(&seen);
        let transport = Transport::fit(
            LAYOUT,
            0..2,
            seen.len(),
            columns_of(&seen),
            columns_of(&after),
        )
        .unwrap();
        let (mut statistics, before) = (learned(&old), learned(&old));
        transport.apply(&mut statistics).unwrap();
        let exact = learned(&moved(&old));
        let distance = |a: &Statistics| -> f32 {
            let (a, exact) = (a.scatter(0).unwrap(), exact.scatter(0).unwrap());
            let pairs = a.iter().zip(&*exact);
            pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
        };
        assert!(distance(&statistics) < 0.5 * distance(&before));
    }

    #[test]
    fn removal_stays_exact_after_a_move() {
        let (old, seen, after) = (images(12, 5), images(9, 6), images(9, 7));
        let transport = Transport::fit(
            LAYOUT,
            0..2,
            seen.len(),
            columns_of(&seen),
            columns_of(&after),
        )
        .unwrap();
        let mut both = learned(&old);
        let mut one = Statistics::new(LAYOUT);
        one.learn(1, 0, &old[6..].concat()).unwrap();
        transport.apply(&mut both).unwrap();
        transport.apply(&mut one).unwrap();
        both.forget(0).unwrap();
        for part in 0..2 {
            let (both, one) = (both.scatter(part).unwrap(), one.scatter(part).unwrap());
            for (a, b) in both.iter().zip(&*one) {
                assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} {b}");
            }
        }
    }
}
