//! Images into the statistics of one part: running mean, factor and shared scatter.

use super::HeadError;
use super::factor::Rows;
use super::statistics::Component;

/// Buffers of [`learn_part`].
pub(super) struct LearnWork {
    rows: Rows,
    mean: Vec<f64>,
}

impl LearnWork {
    pub fn new(dim: usize) -> Self {
        Self {
            rows: Rows::new(dim),
            mean: vec![0.0; dim],
        }
    }
}

/// One part of some images of a component that has `before` images: its mean, its factor where it
/// has one, and the shared scatter.
pub(super) fn learn_part<'f>(
    component: &mut Component,
    part: usize,
    before: u32,
    features: impl Iterator<Item = &'f [f32]>,
    scatter: &mut [f32],
    LearnWork { rows, mean }: &mut LearnWork,
) -> Result<(), HeadError> {
    let dim = mean.len();
    let range = part * dim..(part + 1) * dim;
    rows.clear();
    if let Some(factor) = &component.factor {
        factor.unpack(part, rows)?;
        rows.add_gram(-1.0, scatter);
    }
    let mut triangular = rows.len();
    let stored = &mut component.mean[range];
    for (m, &s) in mean.iter_mut().zip(&*stored) {
        *m = f64::from(s);
    }
    for (image, feature) in features.enumerate() {
        welford(f64::from(before) + image as f64, mean, feature, rows);
        if component.factor.is_some() && rows.full(dim) {
            rows.fold(triangular);
            triangular = rows.len();
        } else if component.factor.is_none() && rows.full(0) {
            rows.add_gram(1.0, scatter);
            rows.clear();
        }
    }
    if let Some(factor) = &mut component.factor {
        rows.fold(triangular);
        factor.pack(part, rows);
    }
    rows.add_gram(1.0, scatter);
    for (s, &m) in stored.iter_mut().zip(&*mean) {
        *s = m as f32;
    }
    Ok(())
}

/// One image of one part: moves the mean of `before` images and adds a row unless it is the first.
pub(super) fn welford(before: f64, mean: &mut [f64], feature: &[f32], rows: &mut Rows) {
    if before == 0.0 {
        for (m, &x) in mean.iter_mut().zip(feature) {
            *m = f64::from(x);
        }
        return;
    }
    let weight = (before / (before + 1.0)).sqrt();
    let share = 1.0 / (before + 1.0);
    for ((row, m), &x) in rows.push().iter_mut().zip(mean).zip(feature) {
        let deviation = f64::from(x) - *m;
        *row = (weight * deviation) as f32;
        *m += share * deviation;
    }
}
