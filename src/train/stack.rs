//! The adapted blocks, one behind the other: cached tokens up to features, and the gradient of the
//! features back down to adapters and prompts.
//!
//! A stack is single-threaded and owns its buffers, so that one a worker thread runs without
//! sharing and without allocating. Only the input of each block is kept between forward and
//! backward; a block recomputes the rest (gradient checkpointing, Chen et al., arXiv 1604.06174).

use std::ops::Range;

use super::block::{self, AdapterGrad, BlockShape, Gradients};
use crate::adapt::Adapters;
use crate::kernels::matmul::{MatMut, MatRef, matmul};
use crate::kernels::pool::{pool, pool_backward};
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

    fn stream(&self) -> usize {
        self.images * self.tokens() * self.geometry.dim
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
    /// Input of each block and output of the last, each `[images, T, D]`.
    streams: Vec<Vec<f32>>,
    /// Gradient of the stream, `[images, T, D]`.
    d_stream: Vec<f32>,
    scratch: Vec<f32>,
}

impl<'w> Stack<'w> {
    /// Allocates every buffer the stack will ever use.
    pub fn new(weights: &'w Weights, shape: StackShape) -> Self {
        Self {
            weights,
            streams: vec![vec![0.0; shape.stream()]; shape.blocks.len() + 1],
            d_stream: vec![0.0; shape.stream()],
            scratch: vec![0.0; block::scratch_len(&shape.block(shape.images))],
            shape,
        }
    }

    pub fn shape(&self) -> &StackShape {
        &self.shape
    }

    /// Where the cached tokens `[T_cached, D]` of image `index` of the coming batch belong: the
    /// caller writes them here, then calls [`Stack::forward`].
    pub fn input(&mut self, index: usize) -> &mut [f32] {
        let (d, tokens) = (self.shape.geometry.dim, self.shape.tokens());
        let start = index * tokens * d;
        // Right-aligned: `forward` moves the class token in front of the prompts.
        &mut self.streams[0][start + self.shape.prompts * d..start + tokens * d]
    }

    /// Runs `images` images, whose tokens were written through [`Stack::input`], and writes the
    /// features of each to `features` `[images, F]`.
    ///
    /// # Panics
    /// When `images` exceeds the shape's, or `features` has another length.
    pub fn forward(&mut self, adapters: &Adapters, images: usize, features: &mut [f32]) {
        let shape = &self.shape;
        assert!(images <= shape.images, "more images than the stack holds");
        assert_eq!(features.len(), images * shape.features());
        let (d, per_image) = (shape.geometry.dim, shape.tokens() * shape.geometry.dim);
        let length = images * per_image;
        for stream in self.streams[0][..length].chunks_exact_mut(per_image) {
            stream.copy_within(shape.prompts * d..(shape.prompts + 1) * d, 0);
            stream[d..(shape.prompts + 1) * d].copy_from_slice(&adapters.prompts);
        }
        let block_shape = shape.block(images);
        for (level, index) in shape.blocks.clone().enumerate() {
            let (below, above) = self.streams.split_at_mut(level + 1);
            let output = &mut above[0][..length];
            block::forward(
                &block_shape,
                &self.weights.block(index),
                &adapters.of_block(index),
                &below[level][..length],
                output,
                &mut self.scratch,
            );
            if let Some(slot) = shape.taps.iter().position(|&tap| tap == index + 1) {
                let rows = features.chunks_exact_mut(shape.features());
                for (stream, row) in output.chunks_exact(per_image).zip(rows) {
                    let out = &mut row[2 * slot * d..2 * (slot + 1) * d];
                    pool(stream, d, shape.first_patch(), out);
                }
            }
        }
    }

    /// Adds `z z^T` of every token of the last [`Stack::forward`] to `gram`, `[r, r]` a site, where
    /// `z = A^T h` is what a site's core sees.
    pub fn add_gram(&mut self, adapters: &Adapters, images: usize, gram: &mut [f32]) {
        let shape = &self.shape;
        let block_shape = shape.block(images);
        let (r, rows) = (adapters.rank, images * shape.tokens());
        let mut grams = gram.chunks_exact_mut(r * r);
        for (level, index) in shape.blocks.clone().enumerate() {
            let of_block = adapters.of_block(index);
            let sites = of_block.iter().flatten().count();
            let mut z = vec![0.0; sites * rows * r];
            block::adapter_input(
                &block_shape,
                &self.weights.block(index),
                &of_block,
                &self.streams[level][..rows * shape.geometry.dim],
                &mut z,
                &mut self.scratch,
            );
            for (z, gram) in z.chunks_exact(rows * r).zip(&mut grams) {
                let z = MatRef::new(z, rows, r);
                matmul(1.0, z.t(), z, 1.0, MatMut::new(gram, r, r));
            }
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
        let shape = &self.shape;
        assert_eq!(d_features.len(), images * shape.features());
        assert_eq!(gradient.len(), shape.gradient_len(adapters, phase));
        let (d, per_image) = (shape.geometry.dim, shape.tokens() * shape.geometry.dim);
        let length = images * per_image;
        let d_stream = &mut self.d_stream[..length];
        d_stream.fill(0.0);
        let block_shape = shape.block(images);
        let (sites, d_prompts) =
            gradient.split_at_mut(adapters.sites.len() * site_gradient_len(adapters, phase));
        for (level, index) in shape.blocks.clone().enumerate().rev() {
            if let Some(slot) = shape.taps.iter().position(|&tap| tap == index + 1) {
                let rows = d_features.chunks_exact(shape.features());
                let streams = self.streams[level + 1][..length].chunks_exact(per_image);
                for ((stream, d_stream), row) in
                    streams.zip(d_stream.chunks_exact_mut(per_image)).zip(rows)
                {
                    let d_pooled = &row[2 * slot * d..2 * (slot + 1) * d];
                    pool_backward(stream, d, shape.first_patch(), d_pooled, d_stream);
                }
            }
            let mut gradients = Gradients {
                adapters: site_gradients(adapters, phase, index, sites),
                input: level > 0 || shape.prompts > 0,
            };
            block::backward(
                &block_shape,
                &self.weights.block(index),
                &adapters.of_block(index),
                &self.streams[level][..length],
                d_stream,
                &mut gradients,
                &mut self.scratch,
            );
        }
        for d_stream in d_stream.chunks_exact(per_image) {
            let rows = &d_stream[d..(shape.prompts + 1) * d];
            d_prompts
                .iter_mut()
                .zip(rows)
                .for_each(|(sum, g)| *sum += g);
        }
    }
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
