//! The frozen pass over a task's images, cut to fit: how many go through the prefix at once, and how
//! much is left to decode photos in.

use super::{Demand, List, PlannedBuffer, Turn};
use crate::kernels::attention::AttentionShape;
use crate::vit::{Geometry, MLP_ROWS, Pixels};

/// Rows of tokens that go through the prefix together, or those of one image: beyond, reading the
/// weights costs little, and every row takes memory.
const ROWS_TOGETHER: usize = 256;

/// How images are decoded and run through the frozen blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Threads that take images. Those beyond share the large products.
    pub threads: usize,
    /// Images that go through the prefix together.
    pub together: usize,
    /// Bytes that all threads decode photos in.
    pub window: usize,
}

impl Encoding {
    /// As fast as it goes.
    pub fn unbounded(geometry: &Geometry, resolution: Pixels, threads: usize) -> Self {
        Self {
            threads,
            together: ROWS_TOGETHER.div_ceil(geometry.tokens(resolution)),
            window: usize::MAX,
        }
    }

    /// The fastest that leaves `least` bytes of `room` to decode in, and then gives what is left to
    /// that. None when a single image does not fit.
    fn within(
        geometry: &Geometry,
        resolution: Pixels,
        prefix: usize,
        threads: usize,
        least: usize,
        room: usize,
    ) -> Option<Self> {
        let most = Self::unbounded(geometry, resolution, threads);
        let candidates = (1..=most.threads).rev().flat_map(|threads| {
            (1..=most.together).rev().map(move |together| Self {
                threads,
                together,
                ..most
            })
        });
        candidates
            .filter_map(|candidate| {
                let taken = candidate.threads * candidate.thread(geometry, resolution, prefix);
                let window = room.checked_sub(taken)?;
                (window >= least).then_some(Self {
                    window,
                    ..candidate
                })
            })
            .next()
    }

    /// Bytes that a thread holds beside the photo it decodes, behind `prefix` frozen blocks.
    fn thread(&self, geometry: &Geometry, resolution: Pixels, prefix: usize) -> usize {
        let (d, tokens) = (geometry.dim, geometry.tokens(resolution));
        let rows = self.together * tokens;
        let attention = AttentionShape {
            tokens,
            heads: geometry.heads,
            head_dim: geometry.head_dim(),
            tile: tokens,
        };
        // The stream, its norm, query, key and value; or these three and what attention makes of
        // them; or the stream, its norm and the MLP's output with a tile of its hidden layer.
        let hidden = rows.div_ceil(rows.div_ceil(MLP_ROWS)) * geometry.hidden;
        let block = (5 * rows * d + attention.forward_scratch()).max(3 * rows * d + hidden);
        let inside = if prefix == 0 { rows * d } else { block };
        let patches = 3 * resolution * resolution;
        // A few taps are pooled.
        let pooled = 12 * self.together * d;
        4 * (patches + inside + 2 * rows + pooled)
    }

    fn buffers(&self, geometry: &Geometry, resolution: Pixels, prefix: usize, list: &mut List) {
        let name = match self.threads {
            1 => "patches, and inside a frozen block".to_owned(),
            n => format!("patches, and inside a frozen block, of each of {n} threads"),
        };
        let shape = format!(
            "{} images of [{}, {}] f32",
            self.together,
            geometry.tokens(resolution),
            geometry.dim
        );
        let bytes = self.threads * self.thread(geometry, resolution, prefix);
        list.add(name, shape, bytes);
        let shape = "pixels of the photos being decoded".to_owned();
        list.add("decode window", shape, self.window);
    }
}

impl Demand {
    /// The frozen pass in `room` bytes; none where not even one image at a time fits.
    pub(super) fn encoding(&self, room: usize) -> Option<Encoding> {
        Encoding::within(
            &self.geometry,
            self.resolution,
            self.first_adapted,
            self.threads,
            decode_window(self.resolution),
            room.checked_sub(self.prepared())?,
        )
    }

    /// Bytes that the frozen pass takes at least.
    pub(super) fn least_encoding(&self) -> usize {
        let least = Encoding {
            threads: 1,
            together: 1,
            window: 0,
        };
        let thread = least.thread(&self.geometry, self.resolution, self.first_adapted);
        self.prepared() + thread + decode_window(self.resolution)
    }

    pub(super) fn buffers_of(&self, encoding: &Encoding) -> Vec<PlannedBuffer> {
        let mut list = List::of(Turn::Encoding);
        let name = "positions, the frozen blocks' plan, and paths";
        let shape = format!(
            "[{}, {}] f32, {} blocks and {} images",
            self.geometry.tokens(self.resolution),
            self.geometry.dim,
            self.first_adapted,
            self.images
        );
        list.add(name, shape, self.prepared());
        let (resolution, prefix) = (self.resolution, self.first_adapted);
        encoding.buffers(&self.geometry, resolution, prefix, &mut list);
        list.1
    }

    /// Bytes of what is made before the first image.
    fn prepared(&self) -> usize {
        let tokens = self.geometry.tokens(self.resolution);
        let positions = 4 * (tokens + 2) * self.geometry.dim;
        positions + self.first_adapted * BLOCK_BYTES + self.images * PATH_BYTES
    }
}

/// Bytes of an image's path beyond what its lists take later.
const PATH_BYTES: usize = 64;

/// Bytes that tract holds of a block, whose weights it does not.
const BLOCK_BYTES: usize = 24 << 10;

/// Bytes to decode any photo of ordinary proportions in that is not so large that it is decoded at a
/// reduced size: of up to four times `resolution` pixels on its shorter side, and four by three.
pub(super) fn decode_window(resolution: Pixels) -> usize {
    let pixels = 4 * resolution * (4 * resolution * 4).div_ceil(3);
    3 * pixels + pixels / 2 + (192 << 10)
}
