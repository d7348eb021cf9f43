//! What a class looks like where the frozen blocks end: the mean of its images' tokens, of which
//! patches of a coarse grid share one.

use half::f16;
use serde::{Deserialize, Serialize};

use super::cache::{CacheError, PrefixCache};

/// Cells along a side of the picture.
const CELLS: usize = 4;

/// Where each token of an image belongs: the tokens before the patches each have a row of their own,
/// and all patches of a cell share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    dim: usize,
    first_patch: usize,
    /// Patches along a side of the picture.
    side: usize,
}

impl TokenGrid {
    /// For images of `side` x `side` patches of width `dim`, and `first_patch` tokens before them.
    pub fn new(dim: usize, first_patch: usize, side: usize) -> Self {
        Self {
            dim,
            first_patch,
            side,
        }
    }

    fn cells(&self) -> usize {
        self.side.min(CELLS)
    }

    /// Rows of a mean.
    pub fn rows(&self) -> usize {
        self.first_patch + self.cells().pow(2)
    }

    /// Bytes of a mean.
    pub fn bytes(&self) -> usize {
        size_of::<f16>() * self.rows() * self.dim
    }

    fn tokens(&self) -> usize {
        self.first_patch + self.side.pow(2)
    }

    /// The row that a token belongs to.
    fn row_of(&self, token: usize) -> usize {
        let Some(patch) = token.checked_sub(self.first_patch) else {
            return token;
        };
        let cell = |at: usize| at * self.cells() / self.side;
        self.first_patch + cell(patch / self.side) * self.cells() + cell(patch % self.side)
    }

    /// Moves tokens `[kept, dim]` of an image by the difference of two means; `kept` says which of
    /// the image's tokens they are.
    ///
    /// # Panics
    /// When a length does not fit.
    pub fn translate(&self, kept: &[usize], tokens: &mut [f32], from: &TokenMean, to: &TokenMean) {
        assert_eq!(
            tokens.len(),
            kept.len() * self.dim,
            "tokens are [kept, dim]"
        );
        assert!(from.fits(self) && to.fits(self), "a mean is [rows, dim]");
        for (values, &token) in tokens.chunks_exact_mut(self.dim).zip(kept) {
            let row = self.row_of(token);
            let pairs = from.row(row, self.dim).zip(to.row(row, self.dim));
            for (x, (from, to)) in values.iter_mut().zip(pairs) {
                *x += to - from;
            }
        }
    }
}

/// The mean of some images' tokens, `[rows, dim]` of a [`TokenGrid`], as little-endian f16. The
/// default, of no image, fits no grid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMean(Vec<u8>);

impl TokenMean {
    /// The mean over `records` of `cache`.
    ///
    /// # Errors
    /// When one cannot be read.
    ///
    /// # Panics
    /// When the grid is not that of the cache's images, or there is no record.
    pub fn of(
        cache: &PrefixCache,
        records: impl ExactSizeIterator<Item = usize>,
        grid: &TokenGrid,
    ) -> Result<Self, CacheError> {
        assert_eq!(cache.tokens(), grid.tokens() * grid.dim, "another grid");
        assert!(records.len() > 0, "a mean is over something");
        let mut tokens = vec![0.0; cache.tokens()];
        let mut pooled = vec![0.0; cache.pooled()];
        let mut sums = vec![0.0f32; grid.rows() * grid.dim];
        let images = records.len() as f32;
        let mut members = vec![0.0f32; grid.rows()];
        (0..grid.tokens()).for_each(|token| members[grid.row_of(token)] += images);
        for record in records {
            cache.read(record, &mut tokens, &mut pooled)?;
            for (token, values) in tokens.chunks_exact(grid.dim).enumerate() {
                let row = grid.row_of(token) * grid.dim;
                let sum = &mut sums[row..row + grid.dim];
                sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
            }
        }
        let rows = sums.chunks_exact(grid.dim).zip(&members);
        let means = rows.flat_map(|(row, members)| row.iter().map(move |sum| sum / members));
        let mut bytes = Vec::with_capacity(grid.bytes());
        means.for_each(|mean| bytes.extend(f16::from_f32(mean).to_le_bytes()));
        Ok(Self(bytes))
    }

    /// Whether it has the rows of `grid`.
    pub fn fits(&self, grid: &TokenGrid) -> bool {
        self.bytes() == grid.bytes()
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn row(&self, row: usize, dim: usize) -> impl Iterator<Item = f32> + '_ {
        let width = size_of::<f16>() * dim;
        self.0[row * width..(row + 1) * width]
            .chunks_exact(size_of::<f16>())
            .map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A cache of images whose numbers f16 holds exactly.
    fn cache(grid: &TokenGrid, images: usize) -> PrefixCache {
        let cache = PrefixCache::create(None, images, grid.tokens(), grid.dim, 1).unwrap();
        for image in 0..images {
            cache.write(image, &tokens(grid, image), &[0.0]).unwrap();
        }
        cache
    }

    fn tokens(grid: &TokenGrid, image: usize) -> Vec<f32> {
        (0..grid.tokens() * grid.dim)
            .map(|k| ((image * 31 + k * 7) % 23) as f32 - 11.0)
            .collect()
    }

    proptest! {
        #[test]
        fn images_moved_from_their_mean_to_another_have_that_one(
            dim in 1usize..5, first_patch in 1usize..4, side in 1usize..11, images in 1usize..6,
        ) {
            let grid = TokenGrid::new(dim, first_patch, side);
            let cache = cache(&grid, 2 * images);
            let from = TokenMean::of(&cache, 0..images, &grid).unwrap();
            let to = TokenMean::of(&cache, images..2 * images, &grid).unwrap();
            prop_assert!(from.fits(&grid));
            let all: Vec<usize> = (0..grid.tokens()).collect();
            let moved = PrefixCache::create(None, images, grid.tokens(), dim, 1).unwrap();
            for image in 0..images {
                let mut tokens = tokens(&grid, image);
                grid.translate(&all, &mut tokens, &from, &to);
                moved.write(image, &tokens, &[0.0]).unwrap();
            }
            let kept: Vec<usize> = all.iter().copied().step_by(2).collect();
            let mut whole = tokens(&grid, 0);
            let mut thinned: Vec<f32> =
                kept.iter().flat_map(|&token| whole[token * dim..][..dim].to_vec()).collect();
            grid.translate(&all, &mut whole, &from, &to);
            grid.translate(&kept, &mut thinned, &from, &to);
            for (&token, thinned) in kept.iter().zip(thinned.chunks_exact(dim)) {
                prop_assert_eq!(&whole[token * dim..][..dim], thinned);
            }
            let found = TokenMean::of(&moved, 0..images, &grid).unwrap();
            for row in 0..grid.rows() {
                for (found, to) in found.row(row, dim).zip(to.row(row, dim)) {
                    prop_assert!((found - to).abs() < 0.05, "{found} {to}");
                }
            }
        }

        #[test]
        fn the_mean_of_a_row_is_that_of_the_tokens_in_its_cell(
            side in 1usize..11, images in 1usize..4,
        ) {
            let grid = TokenGrid::new(2, 2, side);
            let mean = TokenMean::of(&cache(&grid, images), 0..images, &grid).unwrap();
            // The slow way: every token asks which row it is in by the cell's borders.
            let cells = side.min(4);
            for row in 0..grid.rows() {
                let (mut sum, mut count) = ([0.0f64; 2], 0.0);
                for image in 0..images {
                    for (token, values) in tokens(&grid, image).chunks_exact(2).enumerate() {
                        let inside = match (token, row) {
                            (0 | 1, _) | (_, 0 | 1) => token == row,
                            _ => {
                                let (y, x) = ((token - 2) / side, (token - 2) % side);
                                let (cy, cx) = ((row - 2) / cells, (row - 2) % cells);
                                let within = |at: usize, cell: usize| {
                                    (cell * side..(cell + 1) * side).contains(&(at * cells))
                                };
                                within(y, cy) && within(x, cx)
                            }
                        };
                        if inside {
                            count += 1.0;
                            sum.iter_mut().zip(values).for_each(|(s, v)| *s += f64::from(*v));
                        }
                    }
                }
                for (sum, found) in sum.iter().zip(mean.row(row, 2)) {
                    prop_assert!((sum / count - f64::from(found)).abs() < 0.02);
                }
            }
        }
    }

    #[test]
    fn a_mean_of_nothing_fits_no_grid() {
        assert!(!TokenMean::default().fits(&TokenGrid::new(3, 1, 2)));
    }
}
