//! From an image file to the input of the first adapted block.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;

use super::Learner;
use crate::data::{
    CacheError, DecodeError, Fit, Limits, PrefixCache, Rgb, decode, patchify, resize_square,
};
use crate::kernels::pool::pool;
use crate::vit::{Pixels, Prefix, PrefixError, Weights};
use crate::{Progress, Stage};

/// An image could not be brought to the first adapted block.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Learner {
    /// Runs image files through the frozen prefix into a cache, one record a path; returns the
    /// files that are no images by their position, ascending, with the reason.
    ///
    /// # Errors
    /// When the cache cannot be made or written, or the model cannot be run.
    pub fn encode(
        &self,
        paths: &[PathBuf],
        progress: &dyn Progress,
    ) -> Result<(PrefixCache, Vec<(usize, DecodeError)>), EncodeError> {
        let encoder = self.encoder()?;
        self.pool.install(|| encoder.run_all(paths, progress))
    }
}

/// Rows of tokens that go through the prefix together, or those of one image: beyond, reading the
/// weights costs little, and every row takes memory.
const ROWS_TOGETHER: usize = 256;

/// Decoder, preprocessing and frozen prefix in one.
#[derive(Debug)]
pub struct Encoder<'w> {
    weights: &'w Weights,
    resolution: Pixels,
    prefix: Prefix,
    /// Taps inside the prefix, ascending.
    taps: Vec<usize>,
}

impl<'w> Encoder<'w> {
    /// Prepares the frozen blocks `0..blocks` and the taps that lie in them.
    ///
    /// # Errors
    /// When the resolution does not fit the model or tract refuses a block.
    pub fn new(
        weights: &'w Weights,
        resolution: Pixels,
        blocks: usize,
        taps: &[usize],
    ) -> Result<Self, PrefixError> {
        Ok(Self {
            weights,
            resolution,
            prefix: Prefix::new(weights, resolution, blocks)?,
            taps: taps.iter().copied().filter(|&tap| tap <= blocks).collect(),
        })
    }

    /// Tokens of one image at the first adapted block.
    pub fn tokens(&self) -> usize {
        self.weights.geometry().tokens(self.resolution)
    }

    /// Length of the pooled features that the prefix's own taps give.
    pub fn pooled(&self) -> usize {
        2 * self.taps.len() * self.weights.geometry().dim
    }

    /// Runs one image file: `tokens` `[T, D]` becomes the input of the first adapted block,
    /// `pooled` the features of the taps below it.
    ///
    /// # Errors
    /// When the file is no image that can be decoded, or tract fails.
    pub fn run(
        &self,
        path: &Path,
        tokens: &mut [f32],
        pooled: &mut [f32],
    ) -> Result<(), EncodeError> {
        let image = decode(path, &Limits::default())?;
        Ok(self.run_image(image, tokens, pooled)?)
    }

    /// Floats of one image in patches.
    fn patches(&self) -> usize {
        3 * self.resolution * self.resolution
    }

    /// The normalised patches of a decoded picture, `[patches, 3 * patch * patch]`.
    fn patchify(&self, image: Rgb, patches: &mut [f32]) {
        let square = resize_square(&image, self.resolution, Fit::default());
        // A photo takes megabytes, and all threads hold one.
        drop(image);
        let (patch, preprocessing) = (self.weights.geometry().patch, self.weights.preprocessing());
        patchify(&square, self.resolution, patch, preprocessing, patches);
    }

    /// Runs patches of some images: tokens `[images, T, D]`, pooled `[images, pooled]`.
    fn run_patches(
        &self,
        patches: &[f32],
        tokens: &mut [f32],
        pooled: &mut [f32],
    ) -> Result<(), PrefixError> {
        let geometry = self.weights.geometry();
        let (d, first_patch) = (geometry.dim, 1 + geometry.registers);
        let one = self.tokens() * d;
        self.prefix.run(patches, |depth, streams| {
            if let Some(slot) = self.taps.iter().position(|&tap| tap == depth) {
                let rows = pooled.chunks_exact_mut(self.pooled());
                for (stream, row) in streams.chunks_exact(one).zip(rows) {
                    let out = &mut row[2 * slot * d..2 * (slot + 1) * d];
                    pool(stream, d, first_patch, out);
                }
            }
            if depth == self.prefix.depth() {
                tokens.copy_from_slice(streams);
            }
        })
    }

    /// [`Encoder::run`] for a picture that is decoded.
    ///
    /// # Errors
    /// When tract fails.
    pub fn run_image(
        &self,
        image: Rgb,
        tokens: &mut [f32],
        pooled: &mut [f32],
    ) -> Result<(), PrefixError> {
        let mut patches = vec![0.0; self.patches()];
        self.patchify(image, &mut patches);
        self.run_patches(&patches, tokens, pooled)
    }

    /// Runs many image files in parallel on the current thread pool and keeps the results in a
    /// cache file, one record a path. Files that are no images are returned with the reason; their
    /// records stay unwritten.
    ///
    /// # Errors
    /// When the cache cannot be made or written, or tract fails: those would hit every image.
    pub fn run_all(
        &self,
        paths: &[PathBuf],
        progress: &dyn Progress,
    ) -> Result<(PrefixCache, Vec<(usize, DecodeError)>), EncodeError> {
        let d = self.weights.geometry().dim;
        let cache = PrefixCache::create(None, paths.len(), self.tokens(), d, self.pooled())?;
        let bad = Mutex::new(Vec::new());
        progress.begin(Stage::Prefix, paths.len());
        let share = paths.len().div_ceil(rayon::current_num_threads());
        let together = share.clamp(1, ROWS_TOGETHER.div_ceil(self.tokens()));
        let (tokens, pooled, patches) = (self.tokens() * d, self.pooled(), self.patches());
        let groups = paths.par_chunks(together).enumerate();
        groups.try_for_each_init(
            || [tokens, pooled, patches].map(|one| vec![0.0; together * one]),
            |[all_tokens, all_pooled, all_patches], (group, paths)| {
                let mut good = Vec::with_capacity(together);
                for (index, path) in (group * together..).zip(paths) {
                    match decode(path, &Limits::default()) {
                        Ok(image) => {
                            let slot = good.len() * patches..(good.len() + 1) * patches;
                            self.patchify(image, &mut all_patches[slot]);
                            good.push(index);
                        }
                        Err(error) => {
                            bad.lock()
                                .unwrap_or_else(|e| e.into_inner())
                                .push((index, error));
                        }
                    }
                }
                let n = good.len();
                let (tokens_of, pooled_of) =
                    (&mut all_tokens[..n * tokens], &mut all_pooled[..n * pooled]);
                if n > 0 {
                    self.run_patches(&all_patches[..n * patches], tokens_of, pooled_of)?;
                }
                for (slot, index) in good.into_iter().enumerate() {
                    let row = slot * pooled..(slot + 1) * pooled;
                    cache.write(
                        index,
                        &tokens_of[slot * tokens..][..tokens],
                        &pooled_of[row],
                    )?;
                }
                progress.advance(paths.len());
                Ok::<_, EncodeError>(())
            },
        )?;
        progress.finish();
        let mut bad = bad.into_inner().unwrap_or_else(|e| e.into_inner());
        bad.sort_by_key(|&(index, _)| index);
        Ok((cache, bad))
    }
}
