//! From an image file to the input of the first adapted block.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::Learner;
use super::window::Window;
use crate::data::{
    CacheError, DecodeError, Fault, Fit, Limits, PrefixCache, Rgb, Undecoded, patchify,
    resize_square,
};
use crate::kernels::pool::pool;
use crate::train::plan::Encoding;
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
        let threads = self.pool.current_num_threads();
        let how = Encoding::unbounded(self.weights.geometry(), self.knowledge.resolution, threads);
        self.encode_within(paths, &how, progress)
    }

    /// As [`Learner::encode`], in the memory that `how` says.
    pub(super) fn encode_within(
        &self,
        paths: &[PathBuf],
        how: &Encoding,
        progress: &dyn Progress,
    ) -> Result<(PrefixCache, Vec<(usize, DecodeError)>), EncodeError> {
        let encoder = self.encoder()?;
        self.pool.install(|| encoder.run_all(paths, how, progress))
    }
}

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

    /// What a picture may cost, and how much of it is needed.
    pub fn limits(&self) -> Limits {
        Limits::for_side(self.resolution)
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

    /// Runs the embedded tokens of some images, `[images, T, D]`, through the prefix. `pooled` is
    /// `[images, pooled]`; `reached` sees the tokens in front of the first adapted block and what
    /// was pooled on the way.
    fn run_stream(
        &self,
        stream: Vec<f32>,
        pooled: &mut [f32],
        mut reached: impl FnMut(&[f32], &[f32]) + Send,
    ) -> Result<(), PrefixError> {
        let geometry = self.weights.geometry();
        let (d, first_patch) = (geometry.dim, 1 + geometry.registers);
        let one = self.tokens() * d;
        self.prefix.run_embedded(stream, |depth, streams| {
            if let Some(slot) = self.taps.iter().position(|&tap| tap == depth) {
                let rows = pooled.chunks_exact_mut(self.pooled());
                for (stream, row) in streams.chunks_exact(one).zip(rows) {
                    let out = &mut row[2 * slot * d..2 * (slot + 1) * d];
                    pool(stream, d, first_patch, out);
                }
            }
            if depth == self.prefix.depth() {
                reached(streams, pooled);
            }
        })
    }

    /// Runs one picture: `tokens` `[T, D]` becomes the input of the first adapted block, `pooled` the
    /// features of the taps below it.
    ///
    /// # Errors
    /// When tract fails.
    pub fn run_image(
        &self,
        image: Rgb,
        tokens: &mut [f32],
        pooled: &mut [f32],
    ) -> Result<(), PrefixError> {
        let mut stream = Vec::with_capacity(tokens.len());
        self.embed(image, &mut vec![0.0; self.patches()], &mut stream);
        self.run_stream(stream, pooled, |streams, _| {
            tokens.copy_from_slice(streams);
        })
    }

    /// Appends the tokens of a picture at the input of the first block to `stream`.
    fn embed(&self, image: Rgb, patches: &mut [f32], stream: &mut Vec<f32>) {
        self.patchify(image, patches);
        self.prefix.embed(patches, stream);
    }

    /// Opens an image, waits for the memory that it takes, and embeds it.
    fn embed_file(
        &self,
        path: &Path,
        window: &Window,
        patches: &mut [f32],
        stream: &mut Vec<f32>,
    ) -> Result<(), DecodeError> {
        let image = Undecoded::open(path, &self.limits())?;
        let needed = image.memory(self.resolution);
        let Some(piece) = window.take(needed) else {
            let left = window.bytes();
            return Err(image.fault(Fault::BeyondBudget { needed, left }));
        };
        self.patchify(image.decode()?, patches);
        drop(piece);
        self.prefix.embed(patches, stream);
        Ok(())
    }

    /// Runs many image files in parallel on the current thread pool and keeps the results in a
    /// cache file, one record a path. Files that are no images, or take more memory than `how`
    /// leaves, are returned with the reason; their records stay unwritten.
    ///
    /// # Errors
    /// When the cache cannot be made or written, or tract fails: those would hit every image.
    pub fn run_all(
        &self,
        paths: &[PathBuf],
        how: &Encoding,
        progress: &dyn Progress,
    ) -> Result<(PrefixCache, Vec<(usize, DecodeError)>), EncodeError> {
        let d = self.weights.geometry().dim;
        let cache = PrefixCache::create(None, paths.len(), self.tokens(), d, self.pooled())?;
        let bad = Mutex::new(Vec::new());
        progress.begin(Stage::Prefix, paths.len());
        let workers = how.threads.clamp(1, rayon::current_num_threads());
        let share = paths.len().div_ceil(workers);
        let together = share.clamp(1, how.together);
        let (tokens, pooled, patches) = (self.tokens() * d, self.pooled(), self.patches());
        let window = Window::new(how.window);
        // Threads beyond the workers share the large products.
        let next = AtomicUsize::new(0);
        let work = |_| -> Result<(), EncodeError> {
            let mut all_pooled = vec![0.0; together * pooled];
            let mut all_patches = vec![0.0; patches];
            let mut good = Vec::with_capacity(together);
            loop {
                let group = next.fetch_add(1, Ordering::Relaxed);
                let Some(paths) = paths.chunks(together).nth(group) else {
                    return Ok(());
                };
                good.clear();
                let mut stream = Vec::with_capacity(paths.len() * tokens);
                for (index, path) in (group * together..).zip(paths) {
                    match self.embed_file(path, &window, &mut all_patches, &mut stream) {
                        Ok(()) => good.push(index),
                        Err(error) => {
                            bad.lock()
                                .unwrap_or_else(|e| e.into_inner())
                                .push((index, error));
                        }
                    }
                }
                if !good.is_empty() {
                    let mut written = Ok(());
                    let all_pooled = &mut all_pooled[..good.len() * pooled];
                    self.run_stream(stream, all_pooled, |streams, rows| {
                        let images = good.iter().enumerate();
                        written = images.clone().try_for_each(|(slot, &index)| {
                            let tokens = &streams[slot * tokens..][..tokens];
                            cache.write(index, tokens, &rows[slot * pooled..][..pooled])
                        });
                    })?;
                    written?;
                }
                progress.advance(paths.len());
            }
        };
        (0..workers)
            .into_par_iter()
            .with_max_len(1)
            .try_for_each(work)?;
        progress.finish();
        let mut bad = bad.into_inner().unwrap_or_else(|e| e.into_inner());
        bad.sort_by_key(|&(index, _)| index);
        Ok((cache, bad))
    }
}
