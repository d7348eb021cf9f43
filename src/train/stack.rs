//! The adapted blocks, one behind the other: cached tokens up to features, and the gradient of the
//! features back down to adapters and prompts.
//!
//! A stack owns one arena and carves every buffer from it, so that a worker runs without sharing and
//! without allocating. The inputs of every n-th block are kept between forward and backward; the
//! inputs between them are computed again, and so is what is inside a block, but for the last ones,
//! whose insides are kept as far as memory goes (gradient checkpointing, Chen et al., arXiv
//! 1604.06174).

mod shape;

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::block::{self, AdapterGrad, Buffer, Gradients, Kept};
use crate::adapt::Adapters;
use crate::kernels::gemm::Accuracy;
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::kernels::pool::{pool, pool_backward};
use crate::vit::Weights;

use shape::site_gradient_len;
pub use shape::{Phase, Precision, StackShape};

/// The adapted blocks with the buffers of one worker.
#[derive(Debug)]
pub struct Stack<'w> {
    weights: &'w Weights,
    /// Of the images at hand, which may have fewer tokens than the stack was made for.
    shape: StackShape,
    most_tokens: usize,
    arena: Vec<f32>,
    /// Kept inputs when they are stored as bf16.
    narrow: Vec<bf16>,
    /// See [`Stack::in_turns`].
    in_turns: usize,
}

impl<'w> Stack<'w> {
    /// Allocates every buffer the stack will ever use.
    pub fn new(weights: &'w Weights, shape: StackShape) -> Self {
        let (buffers, narrow) = shape.buffers();
        Self {
            weights,
            arena: vec![0.0; buffers.iter().map(Buffer::len).sum()],
            narrow: vec![bf16::ZERO; narrow.as_ref().map_or(0, Buffer::len)],
            most_tokens: shape.cached_tokens,
            shape,
            in_turns: 0,
        }
    }

    /// Gives back the pages of the first so many blocks once they have run forward, and of the last
    /// once they have run backward: these wait longest until they are needed again. So the frozen
    /// weights of so many blocks never take memory, for reading twice as many again at every pass.
    pub fn in_turns(self, in_turns: usize) -> Self {
        Self { in_turns, ..self }
    }

    pub fn shape(&self) -> &StackShape {
        &self.shape
    }

    /// From now on every image has so many cached tokens, where some are left out of a step.
    ///
    /// # Panics
    /// When they are more than the stack was made for.
    pub fn take_tokens(&mut self, cached_tokens: usize) {
        assert!(
            cached_tokens <= self.most_tokens,
            "more tokens than the stack holds"
        );
        self.shape.cached_tokens = cached_tokens;
    }

    /// Cached tokens of an image that the stack was made for.
    pub fn most_tokens(&self) -> usize {
        self.most_tokens
    }

    /// Lends the arena while nothing runs.
    pub(super) fn lend(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.arena)
    }

    /// Takes the arena back. What it holds is not read before it is written.
    pub(super) fn give_back(&mut self, mut arena: Vec<f32>) {
        self.shape.cached_tokens = self.most_tokens;
        let places = self.shape.places();
        arena.resize(places[places.len() - 1].end, 0.0);
        self.arena = arena;
    }

    /// Where the cached tokens `[T_cached, D]` of image `index` of the coming batch belong: the
    /// caller writes them here, then calls [`Stack::forward`].
    pub fn input(&mut self, index: usize) -> &mut [f32] {
        let (d, tokens) = (self.shape.geometry.dim, self.shape.tokens());
        let start = self.shape.input_of(0, 0).start + index * tokens * d;
        // Right-aligned: `forward` moves the class token in front of the prompts.
        &mut self.arena[start + self.shape.prompts * d..start + tokens * d]
    }

    /// Keeps the input of a segment's first block in bf16 and widens it again.
    fn narrow_input(&mut self, level: usize, length: usize) {
        let from = self.shape.input_of(level, length);
        let at = level / self.shape.interval() * self.shape.images * self.shape.per_image();
        let narrow = &mut self.narrow[at..at + length];
        narrow.convert_from_f32_slice(&self.arena[from.clone()]);
        narrow.convert_to_f32_slice(&mut self.arena[from]);
    }

    /// Runs the block at `level` from its input to its output.
    fn run_block(&mut self, adapters: &Adapters, accuracy: Accuracy, level: usize, images: usize) {
        let length = images * self.shape.per_image();
        let index = self.shape.blocks.start + level;
        let (scratch, inside) = self.shape.work_of(level);
        let places = [
            self.shape.input_of(level, length),
            self.shape.output_of(level, length),
            scratch,
            inside,
        ];
        let [input, output, scratch, inside] = disjoint(&mut self.arena, places);
        let shape = self.shape.block(images, accuracy);
        block::forward(
            &shape,
            &self.weights.block(index),
            &adapters.of_block(index),
            input,
            output,
            (!inside.is_empty())
                .then(|| Kept::new(&shape, inside))
                .as_mut(),
            scratch,
        );
    }

    /// Runs `images` images, whose tokens were written through [`Stack::input`], and writes the
    /// features of each to `features` `[images, F]`.
    ///
    /// # Panics
    /// When `images` exceeds the shape's, or `features` has another length.
    pub fn forward(
        &mut self,
        adapters: &Adapters,
        accuracy: Accuracy,
        images: usize,
        features: &mut [f32],
    ) {
        let (d, width) = (self.shape.geometry.dim, self.shape.features());
        let first_patch = self.shape.first_patch();
        assert_eq!(features.len(), images * width);
        self.add_prompts(adapters, images);
        let per_image = self.shape.per_image();
        let length = images * per_image;
        for level in 0..self.shape.blocks.len() {
            self.keep_input(level, length);
            self.run_block(adapters, accuracy, level, images);
            let backward_follows = accuracy == Accuracy::Training;
            if level < self.in_turns || self.is_late(level) && !backward_follows {
                self.release(level);
            }
            let tap = self.shape.blocks.start + level + 1;
            if let Some(slot) = self.shape.taps.iter().position(|&t| t == tap) {
                let output = &self.arena[self.shape.output_of(level, length)];
                let rows = features.chunks_exact_mut(width);
                for (stream, row) in output.chunks_exact(per_image).zip(rows) {
                    pool(
                        stream,
                        d,
                        first_patch,
                        &mut row[2 * slot * d..2 * (slot + 1) * d],
                    );
                }
            }
        }
    }

    /// Runs `images` images as [`Stack::forward`] does, to [`Accuracy::Training`], and adds `z z^T` of
    /// every token to `gram`, `[r, r]` a site, where `z = A^T h` is what a site's core sees.
    ///
    /// # Panics
    /// When `images` exceeds the shape's, or `gram` has another length.
    pub fn gram(&mut self, adapters: &Adapters, images: usize, gram: &mut [f32]) {
        self.add_prompts(adapters, images);
        let length = images * self.shape.per_image();
        let (mut site, depth) = (0, self.shape.blocks.len());
        for level in 0..depth {
            self.keep_input(level, length);
            site += self.add_gram(adapters, level, images, site, gram);
            // Nobody asks what the last block makes of it.
            if level + 1 < depth {
                self.run_block(adapters, Accuracy::Training, level, images);
                if level < self.in_turns || self.is_late(level) {
                    self.release(level);
                }
            }
        }
    }

    /// Whether a block is one of the last that take turns.
    fn is_late(&self, level: usize) -> bool {
        level + self.in_turns >= self.shape.blocks.len()
    }

    fn release(&self, level: usize) {
        self.weights.release_block(self.shape.blocks.start + level);
    }

    /// Moves the class token of each image in front of the prompts.
    fn add_prompts(&mut self, adapters: &Adapters, images: usize) {
        assert!(
            images <= self.shape.images,
            "more images than the stack holds"
        );
        let (d, prompts) = (self.shape.geometry.dim, self.shape.prompts);
        let per_image = self.shape.per_image();
        let input = self.shape.input_of(0, images * per_image);
        for stream in self.arena[input].chunks_exact_mut(per_image) {
            stream.copy_within(prompts * d..(prompts + 1) * d, 0);
            stream[d..(prompts + 1) * d].copy_from_slice(&adapters.prompts);
        }
    }

    /// Keeps the input of the block at `level` where that is done in bf16.
    fn keep_input(&mut self, level: usize, length: usize) {
        let first = level.is_multiple_of(self.shape.interval());
        if self.shape.checkpoints == Precision::F32 || !first {
            return;
        }
        if level > 0 {
            let above = self.shape.output_of(level - 1, length);
            let input = self.shape.input_of(level, length);
            self.arena.copy_within(above, input.start);
        }
        self.narrow_input(level, length);
    }

    /// Adds the Gram matrices of one block's sites, of which the first is `site`; returns how many
    /// there are.
    fn add_gram(
        &mut self,
        adapters: &Adapters,
        level: usize,
        images: usize,
        site: usize,
        gram: &mut [f32],
    ) -> usize {
        let (r, rows) = (adapters.rank, images * self.shape.tokens());
        let index = self.shape.blocks.start + level;
        let of_block = adapters.of_block(index);
        let sites = of_block.iter().flatten().count();
        let [.., z, scratch, _] = self.shape.places();
        let places = [
            self.shape.input_of(level, rows * self.shape.geometry.dim),
            z.start..z.start + sites * rows * r,
            scratch,
        ];
        let [input, z, scratch] = disjoint(&mut self.arena, places);
        let (shape, weights) = (
            self.shape.block(images, Accuracy::Full),
            self.weights.block(index),
        );
        block::adapter_input(&shape, &weights, &of_block, input, z, scratch);
        let grams = gram[site * r * r..].chunks_exact_mut(r * r);
        for (z, gram) in z.chunks_exact(rows * r).zip(grams) {
            let z = MatRef::new(z, rows, r);
            matmul(1.0, z.t(), z, 1.0, MatMut::new(gram, r, r));
        }
        sites
    }

    /// Brings back the inputs of a segment that the segments behind it have overwritten.
    fn recompute(&mut self, adapters: &Adapters, segment: usize, images: usize) {
        let (interval, depth) = (self.shape.interval(), self.shape.blocks.len());
        let (first, next) = (segment * interval, (segment + 1) * interval);
        if next >= depth {
            return;
        }
        let length = images * self.shape.per_image();
        if self.shape.checkpoints == Precision::Bf16 {
            let above = self.shape.input_of(next, length);
            let top = self.shape.places()[2].start;
            self.arena.copy_within(above, top);
            let at = segment * self.shape.images * self.shape.per_image();
            let input = self.shape.input_of(first, length);
            self.narrow[at..at + length].convert_to_f32_slice(&mut self.arena[input]);
        }
        for level in first..next - 1 {
            self.run_block(adapters, Accuracy::Training, level, images);
        }
    }

    /// Adds to `gradient` what `d_features` `[images, F]` sends back through the last
    /// [`Stack::forward`], which must have run the same images with the same adapters.
    ///
    /// `gradient` is laid out as [`StackShape::gradient_len`] says.
    ///
    /// # Panics
    /// When a slice has the wrong length.
    pub fn backward(
        &mut self,
        adapters: &Adapters,
        phase: Phase,
        images: usize,
        d_features: &[f32],
        gradient: &mut [f32],
    ) {
        let width = self.shape.features();
        assert_eq!(d_features.len(), images * width);
        assert_eq!(gradient.len(), self.shape.gradient_len(adapters, phase));
        let (d, prompts, per_image) = (
            self.shape.geometry.dim,
            self.shape.prompts,
            self.shape.per_image(),
        );
        let (first_patch, interval) = (self.shape.first_patch(), self.shape.interval());
        let length = images * per_image;
        let [_, _, _, d_stream, ..] = self.shape.places();
        let d_stream = d_stream.start..d_stream.start + length;
        self.arena[d_stream.clone()].fill(0.0);
        let (sites, d_prompts) =
            gradient.split_at_mut(adapters.sites.len() * site_gradient_len(adapters, phase));
        for level in (0..self.shape.blocks.len()).rev() {
            if (level + 1).is_multiple_of(interval) {
                self.recompute(adapters, level / interval, images);
            }
            let index = self.shape.blocks.start + level;
            if let Some(slot) = self.shape.taps.iter().position(|&tap| tap == index + 1) {
                let places = [self.shape.output_of(level, length), d_stream.clone()];
                let [output, d_stream] = disjoint(&mut self.arena, places);
                let streams = output.chunks_exact(per_image);
                let rows = d_features.chunks_exact(width);
                for ((stream, d_stream), row) in
                    streams.zip(d_stream.chunks_exact_mut(per_image)).zip(rows)
                {
                    let d_pooled = &row[2 * slot * d..2 * (slot + 1) * d];
                    pool_backward(stream, d, first_patch, d_pooled, d_stream);
                }
            }
            let mut gradients = Gradients {
                adapters: site_gradients(adapters, phase, index, sites),
                input: level > 0 || prompts > 0,
            };
            let (scratch, inside) = self.shape.work_of(level);
            let places = [
                self.shape.input_of(level, length),
                d_stream.clone(),
                scratch,
                inside,
            ];
            let [input, d_stream, scratch, inside] = disjoint(&mut self.arena, places);
            let shape = self.shape.block(images, Accuracy::Training);
            block::backward(
                &shape,
                &self.weights.block(index),
                &adapters.of_block(index),
                input,
                d_stream,
                &mut gradients,
                (!inside.is_empty())
                    .then(|| Kept::new(&shape, inside))
                    .as_mut(),
                scratch,
            );
            if self.is_late(level) {
                self.release(level);
            }
        }
        for d_stream in self.arena[d_stream].chunks_exact(per_image) {
            let rows = &d_stream[d..(prompts + 1) * d];
            d_prompts
                .iter_mut()
                .zip(rows)
                .for_each(|(sum, g)| *sum += g);
        }
    }
}

/// Parts of an arena that lie beside each other.
fn disjoint<const N: usize>(arena: &mut [f32], places: [Range<usize>; N]) -> [&mut [f32]; N] {
    arena
        .get_disjoint_mut(places)
        .expect("buffers lie one after the other in the arena")
}

/// Splits the sites' gradient buffer into the slices that the backward of block `index` fills.
fn site_gradients<'g>(
    adapters: &Adapters,
    phase: Phase,
    index: usize,
    sites: &'g mut [f32],
) -> [AdapterGrad<'g>; 3] {
    let mut found = [
        AdapterGrad::default(),
        AdapterGrad::default(),
        AdapterGrad::default(),
    ];
    let slices = sites.chunks_exact_mut(site_gradient_len(adapters, phase));
    for (site, slice) in adapters.sites.iter().zip(slices) {
        if site.block == index {
            found[site.projection as usize] = match phase {
                Phase::Bases => {
                    let (da, db) = slice.split_at_mut(adapters.dim * adapters.rank);
                    AdapterGrad {
                        da: Some(da),
                        dc: None,
                        db: Some(db),
                    }
                }
                Phase::Cores => AdapterGrad {
                    da: None,
                    dc: Some(slice),
                    db: None,
                },
            };
        }
    }
    found
}
