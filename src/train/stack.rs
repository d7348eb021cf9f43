//! The adapted blocks, one behind the other: cached tokens up to features, and the gradient of the
//! features back down to adapters and prompts.
//!
//! A stack owns one arena and carves every buffer from it, so that a worker runs without sharing and
//! without allocating. The inputs of every n-th block are kept between forward and backward; the
//! inputs between them and everything inside a block are computed again (gradient checkpointing,
//! Chen et al., arXiv 1604.06174).

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::block::{self, AdapterGrad, BlockShape, Buffer, Gradients, Kept};
use crate::adapt::Adapters;
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::kernels::pool::{pool, pool_backward};
use crate::kernels::threads;
use crate::vit::{Geometry, Weights};

/// What of the adapters is being learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The first task: bases A and B of every site.
    Bases,
    /// A later task: the core of every site, through M and N.
    Cores,
}

/// Where everything lies, for one model, resolution and number of prompts.
#[derive(Debug, Clone)]
pub struct StackShape {
    pub geometry: Geometry,
    /// Adapted blocks, from 0; up to the model's depth.
    pub blocks: Range<usize>,
    /// Tokens of one image in the prefix cache, prompts not included.
    pub cached_tokens: usize,
    /// Number m of prompt tokens.
    pub prompts: usize,
    /// Taps above the first adapted block, ascending: tap k is the stream after k blocks.
    pub taps: Vec<usize>,
    /// Rank of the adapters.
    pub rank: usize,
    /// Images that run through a block together.
    pub images: usize,
    /// Rows of the MLP that are worked on together.
    pub mlp_rows: usize,
    /// Hidden columns of the MLP that are worked on together.
    pub mlp_columns: usize,
    /// Query rows of an attention head that are worked on together.
    pub attention_rows: usize,
    /// Blocks between two inputs that are kept for the backward pass; 1 keeps all.
    pub checkpoint_every: usize,
    /// How kept inputs are stored.
    pub checkpoints: Precision,
    /// Blocks, counted from the last, whose insides are kept too: the backward pass computes nearly
    /// nothing of them again.
    pub kept_insides: usize,
}

/// How a number that is only kept for later is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As it was computed.
    F32,
    /// Half the bytes, 8 bits of mantissa. What is computed behind a checkpoint sees the rounded
    /// numbers in the forward pass too, so that the gradient is that of what was computed.
    Bf16,
}

impl StackShape {
    /// Tokens of one image inside the stack.
    pub fn tokens(&self) -> usize {
        self.cached_tokens + self.prompts
    }

    /// Index of the first patch token inside the stack.
    pub fn first_patch(&self) -> usize {
        1 + self.prompts + self.geometry.registers
    }

    /// Features of one image that the stack produces: class token and mean of each tap.
    pub fn features(&self) -> usize {
        2 * self.taps.len() * self.geometry.dim
    }

    fn block(&self, images: usize) -> BlockShape {
        BlockShape {
            images,
            tokens: self.tokens(),
            dim: self.geometry.dim,
            heads: self.geometry.heads,
            hidden: self.geometry.hidden,
            rank: self.rank,
            norm_eps: self.geometry.norm_eps,
            activation: self.geometry.activation,
            mlp_rows: self.mlp_rows,
            mlp_columns: self.mlp_columns,
            attention_rows: self.attention_rows,
        }
    }

    /// Inputs that are kept between forward and backward.
    fn kept(&self) -> usize {
        self.blocks.len().div_ceil(self.interval())
    }

    fn interval(&self) -> usize {
        self.checkpoint_every.clamp(1, self.blocks.len().max(1))
    }

    /// What a stack carves from its arena, in the order it lies there, and what of it is stored as
    /// bf16 instead of f32.
    pub fn buffers(&self) -> ([Buffer; 7], Option<Buffer>) {
        let (rows, dim) = (self.images * self.tokens(), self.geometry.dim);
        let kept = Buffer::new("kept block inputs", self.kept() * rows, dim);
        // In bf16 the input of a segment's first block has to be widened somewhere.
        let (wide, narrow, between) = match self.checkpoints {
            Precision::F32 => (kept, None, self.interval() - 1),
            Precision::Bf16 => (
                Buffer::new("kept block inputs", 0, dim),
                Some(kept),
                self.interval(),
            ),
        };
        let kept_insides = self.kept_insides.min(self.blocks.len());
        let buffers = [
            wide,
            Buffer::new("block inputs between those kept", between * rows, dim),
            Buffer::new("last block's output", rows, dim),
            Buffer::new("gradient of the stream", rows, dim),
            Buffer::new("adapter inputs", 3 * rows, self.rank),
            Buffer::new("inside a block", 1, self.scratch()),
            Buffer::new(
                "kept insides of blocks but the last",
                kept_insides.saturating_sub(1) * rows,
                Kept::row(dim, self.geometry.hidden),
            ),
        ];
        (buffers, narrow)
    }

    /// Floats of one block's kept insides.
    fn inside(&self) -> usize {
        self.images * self.tokens() * Kept::row(self.geometry.dim, self.geometry.hidden)
    }

    /// Floats that a block works in. The last block's insides, where they are kept, are there as well:
    /// its backward pass comes right behind its forward pass.
    fn scratch(&self) -> usize {
        let block = self.block(self.images);
        let of_last = block::scratch_len(&block, true) + self.inside();
        match self.kept_insides {
            0 => block::scratch_len(&block, false),
            kept if kept < self.blocks.len() => of_last.max(block::scratch_len(&block, false)),
            _ => of_last.max(block::forward_scratch_len(&block)),
        }
    }

    /// Where the buffers lie in the arena.
    fn places(&self) -> [Range<usize>; 7] {
        let mut end = 0;
        self.buffers().0.map(|buffer| {
            let start = end;
            end += buffer.len();
            start..end
        })
    }

    /// Numbers of floats in a gradient buffer: A and B, or C, of each site, then the prompts.
    pub fn gradient_len(&self, adapters: &Adapters, phase: Phase) -> usize {
        adapters.sites.len() * site_gradient_len(adapters, phase) + adapters.prompts.len()
    }
}

fn site_gradient_len(adapters: &Adapters, phase: Phase) -> usize {
    match phase {
        Phase::Bases => 2 * adapters.dim * adapters.rank,
        Phase::Cores => adapters.rank * adapters.rank,
    }
}

/// The adapted blocks with the buffers of one worker.
#[derive(Debug)]
pub struct Stack<'w> {
    weights: &'w Weights,
    shape: StackShape,
    arena: Vec<f32>,
    /// Kept inputs when they are stored as bf16.
    narrow: Vec<bf16>,
}

impl<'w> Stack<'w> {
    /// Allocates every buffer the stack will ever use.
    pub fn new(weights: &'w Weights, shape: StackShape) -> Self {
        let (buffers, narrow) = shape.buffers();
        Self {
            weights,
            arena: vec![0.0; buffers.iter().map(Buffer::len).sum()],
            narrow: vec![bf16::ZERO; narrow.as_ref().map_or(0, Buffer::len)],
            shape,
        }
    }

    pub fn shape(&self) -> &StackShape {
        &self.shape
    }

    /// Lends the arena while nothing runs.
    pub(super) fn lend(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.arena)
    }

    /// Takes the arena back. What it holds is not read before it is written.
    pub(super) fn give_back(&mut self, mut arena: Vec<f32>) {
        let places = self.shape.places();
        arena.resize(places[places.len() - 1].end, 0.0);
        self.arena = arena;
    }

    /// Where the cached tokens `[T_cached, D]` of image `index` of the coming batch belong: the
    /// caller writes them here, then calls [`Stack::forward`].
    pub fn input(&mut self, index: usize) -> &mut [f32] {
        let (d, tokens) = (self.shape.geometry.dim, self.shape.tokens());
        let start = self.input_of(0, 0).start + index * tokens * d;
        // Right-aligned: `forward` moves the class token in front of the prompts.
        &mut self.arena[start + self.shape.prompts * d..start + tokens * d]
    }

    fn per_image(&self) -> usize {
        self.shape.tokens() * self.shape.geometry.dim
    }

    /// Where the input of the block at `level` lies, the first `length` floats of it.
    fn input_of(&self, level: usize, length: usize) -> Range<usize> {
        let [kept, between, ..] = self.shape.places();
        let (interval, stream) = (self.shape.interval(), self.shape.images * self.per_image());
        let (within, segment) = (level % interval, level / interval);
        let start = match (self.shape.checkpoints, within) {
            (Precision::F32, 0) => kept.start + segment * stream,
            (Precision::F32, _) => between.start + (within - 1) * stream,
            (Precision::Bf16, _) => between.start + within * stream,
        };
        start..start + length
    }

    /// Where the output of the block at `level` is read: the next block's input, or the last output.
    fn output_of(&self, level: usize, length: usize) -> Range<usize> {
        let ends_segment = (level + 1).is_multiple_of(self.shape.interval());
        let is_last = level + 1 == self.shape.blocks.len();
        if is_last || (ends_segment && self.shape.checkpoints == Precision::Bf16) {
            let top = self.shape.places()[2].start;
            return top..top + length;
        }
        self.input_of(level + 1, length)
    }

    /// Where the block at `level` works, and where its insides are kept; that is empty where they
    /// are not.
    fn work_of(&self, level: usize) -> (Range<usize>, Range<usize>) {
        let [.., scratch, kept] = self.shape.places();
        let (depth, one) = (self.shape.blocks.len(), self.shape.inside());
        let Some(index) = (level + self.shape.kept_insides.min(depth)).checked_sub(depth) else {
            return (scratch, kept.start..kept.start);
        };
        if level + 1 == depth {
            let middle = scratch.end - one;
            return (scratch.start..middle, middle..scratch.end);
        }
        let start = kept.start + index * one;
        (scratch, start..start + one)
    }

    /// Keeps the input of a segment's first block in bf16 and widens it again.
    fn narrow_input(&mut self, level: usize, length: usize) {
        let from = self.input_of(level, length);
        let at = level / self.shape.interval() * self.shape.images * self.per_image();
        let narrow = &mut self.narrow[at..at + length];
        narrow.convert_from_f32_slice(&self.arena[from.clone()]);
        narrow.convert_to_f32_slice(&mut self.arena[from]);
    }

    /// Runs the block at `level` from its input to its output.
    fn run_block(&mut self, adapters: &Adapters, level: usize, images: usize) {
        let length = images * self.per_image();
        let index = self.shape.blocks.start + level;
        let (scratch, inside) = self.work_of(level);
        let places = [
            self.input_of(level, length),
            self.output_of(level, length),
            scratch,
            inside,
        ];
        let [input, output, scratch, inside] = disjoint(&mut self.arena, places);
        let shape = self.shape.block(images);
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
    pub fn forward(&mut self, adapters: &Adapters, images: usize, features: &mut [f32]) {
        threads::awake(|| self.run(adapters, images, features, None));
    }

    /// Runs as [`Stack::forward`] does and adds `z z^T` of every token to `gram`, `[r, r]` a site,
    /// where `z = A^T h` is what a site's core sees.
    ///
    /// # Panics
    /// As [`Stack::forward`], or when `gram` has another length.
    pub fn forward_with_gram(
        &mut self,
        adapters: &Adapters,
        images: usize,
        features: &mut [f32],
        gram: &mut [f32],
    ) {
        threads::awake(|| self.run(adapters, images, features, Some(gram)));
    }

    fn run(
        &mut self,
        adapters: &Adapters,
        images: usize,
        features: &mut [f32],
        mut gram: Option<&mut [f32]>,
    ) {
        let (d, prompts, width) = (
            self.shape.geometry.dim,
            self.shape.prompts,
            self.shape.features(),
        );
        let first_patch = self.shape.first_patch();
        assert!(
            images <= self.shape.images,
            "more images than the stack holds"
        );
        assert_eq!(features.len(), images * width);
        let per_image = self.per_image();
        let length = images * per_image;
        let input = self.input_of(0, length);
        for stream in self.arena[input].chunks_exact_mut(per_image) {
            stream.copy_within(prompts * d..(prompts + 1) * d, 0);
            stream[d..(prompts + 1) * d].copy_from_slice(&adapters.prompts);
        }
        let mut site = 0;
        for level in 0..self.shape.blocks.len() {
            if self.shape.checkpoints == Precision::Bf16
                && level.is_multiple_of(self.shape.interval())
            {
                if level > 0 {
                    let above = self.output_of(level - 1, length);
                    let input = self.input_of(level, length);
                    self.arena.copy_within(above, input.start);
                }
                self.narrow_input(level, length);
            }
            if let Some(gram) = gram.as_deref_mut() {
                site += self.add_gram(adapters, level, images, site, gram);
            }
            self.run_block(adapters, level, images);
            let tap = self.shape.blocks.start + level + 1;
            if let Some(slot) = self.shape.taps.iter().position(|&t| t == tap) {
                let output = &self.arena[self.output_of(level, length)];
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
            self.input_of(level, rows * self.shape.geometry.dim),
            z.start..z.start + sites * rows * r,
            scratch,
        ];
        let [input, z, scratch] = disjoint(&mut self.arena, places);
        let (shape, weights) = (self.shape.block(images), self.weights.block(index));
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
        let length = images * self.per_image();
        if self.shape.checkpoints == Precision::Bf16 {
            let above = self.input_of(next, length);
            let top = self.shape.places()[2].start;
            self.arena.copy_within(above, top);
            let at = segment * self.shape.images * self.per_image();
            let input = self.input_of(first, length);
            self.narrow[at..at + length].convert_to_f32_slice(&mut self.arena[input]);
        }
        for level in first..next - 1 {
            self.run_block(adapters, level, images);
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
        threads::awake(|| self.run_back(adapters, phase, images, d_features, gradient));
    }

    fn run_back(
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
            self.per_image(),
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
                let places = [self.output_of(level, length), d_stream.clone()];
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
            let (scratch, inside) = self.work_of(level);
            let places = [
                self.input_of(level, length),
                d_stream.clone(),
                scratch,
                inside,
            ];
            let [input, d_stream, scratch, inside] = disjoint(&mut self.arena, places);
            let shape = self.shape.block(images);
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
