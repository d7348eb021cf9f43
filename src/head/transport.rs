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

/// Images whose features are looked at together.
const WINDOW: usize = 64;
/// Ridge, as a share of an image's mean squared distance from the centre.
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
    /// Floats that fitting the map of a part takes, beside what `before` and `after` do.
    pub(crate) const fn floats(dim: usize) -> usize {
        2 * dim * dim + 2 * WINDOW * dim + cholesky::PANEL_ROWS * dim
    }

    /// Fits the maps of `parts` to images, of whose features `before(i, columns, out)` and
    /// `after(i, columns, out)` write some columns, for `i` below `images`.
    ///
    /// Ridge regression of the movement on the centred features: with `X` the centred features
    /// before and `Y` the movement less its mean, both `[n, dim]`, `D = (X^T X + r I)^-1 X^T Y`, r
    /// being the mean squared length of a row of `X`. What it takes does not grow with the images.
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
        let dim = layout.dim;
        let mut rows = [vec![0.0f32; WINDOW * dim], vec![0.0f32; WINDOW * dim]];
        let mut maps = Vec::with_capacity(parts.len());
        for part in parts {
            let columns = layout.part(part);
            let mut each = |sees: &mut dyn FnMut(&mut [f32], &mut [f32])| -> Result<(), E> {
                for first in (0..images).step_by(WINDOW) {
                    let count = WINDOW.min(images - first);
                    let [x, y] = &mut rows;
                    let (x, y) = (&mut x[..count * dim], &mut y[..count * dim]);
                    let pairs = x.chunks_exact_mut(dim).zip(y.chunks_exact_mut(dim));
                    for (image, (old, new)) in (first..).zip(pairs) {
                        before(image, columns.clone(), old)?;
                        after(image, columns.clone(), new)?;
                        new.iter_mut().zip(&*old).for_each(|(new, old)| *new -= old);
                    }
                    sees(x, y);
                }
                Ok(())
            };
            let (mut mean, mut shift) = (vec![0.0f32; dim], vec![0.0f32; dim]);
            each(&mut |x, y| {
                add_rows(x, &mut mean);
                add_rows(y, &mut shift);
            })?;
            for sum in mean.iter_mut().chain(&mut shift) {
                *sum /= images as f32;
            }
            let (mut gram, mut delta) = (vec![0.0f32; dim * dim], vec![0.0f32; dim * dim]);
            each(&mut |x, y| {
                subtract_from_rows(x, &mean);
                subtract_from_rows(y, &shift);
                let count = x.len() / dim;
                let (x, y) = (MatRef::new(x, count, dim), MatRef::new(y, count, dim));
                matmul(1.0, x.t(), x, 1.0, MatMut::new(&mut gram, dim, dim));
                matmul(1.0, x.t(), y, 1.0, MatMut::new(&mut delta, dim, dim));
            })?;
            let trace: f32 = (0..dim).map(|i| gram[i * dim + i]).sum();
            let ridge = (RIDGE * trace / images as f32).max(f32::MIN_POSITIVE);
            (0..dim).for_each(|i| gram[i * dim + i] += ridge);
            let mut buffer = Vec::new();
            cholesky::factorise(&mut gram, dim, &mut buffer).map_err(|_| HeadError::NotFinite {
                image: 0,
                position: columns.start,
            })?;
            cholesky::solve(&gram, dim, &mut delta, dim);
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

fn add_rows(rows: &[f32], sum: &mut [f32]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

fn subtract_from_rows(rows: &mut [f32], vector: &[f32]) {
    for row in rows.chunks_exact_mut(vector.len()) {
        row.iter_mut().zip(vector).for_each(|(x, v)| *x -= v);
    }
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
