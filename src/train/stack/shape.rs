//! Sizes of the adapted blocks, and where a worker's arena holds what.

use std::ops::Range;

use crate::adapt::Adapters;
use crate::kernels::gemm::Accuracy;
use crate::train::block::{self, BlockShape, Buffer, Kept};
use crate::vit::Geometry;

/// What of the adapters is being learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bases A and B of every site: a first task, and a later one once its cores are learned.
    Bases,
    /// The core of every site, through M and N: a later task.
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
    /// Half the bytes, 8 bits of mantissa. Blocks behind a checkpoint see the rounded numbers in the
    /// forward pass too, so that their gradient is that of what was computed; a tap there pools what was not
    /// rounded yet, and its gradient is off by the rounding.
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

    pub(super) fn block(&self, images: usize, accuracy: Accuracy) -> BlockShape {
        BlockShape {
            images,
            tokens: self.tokens(),
            dim: self.geometry.dim,
            heads: self.geometry.heads,
            hidden: self.geometry.hidden,
            rank: self.rank,
            norm_eps: self.geometry.norm_eps,
            activation: self.geometry.activation,
            accuracy,
            mlp_rows: self.mlp_rows,
            mlp_columns: self.mlp_columns,
            attention_rows: self.attention_rows,
        }
    }

    /// Inputs that are kept between forward and backward.
    pub(super) fn kept(&self) -> usize {
        self.blocks.len().div_ceil(self.interval())
    }

    pub(super) fn interval(&self) -> usize {
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
    pub(super) fn inside(&self) -> usize {
        self.images * self.tokens() * Kept::row(self.geometry.dim, self.geometry.hidden)
    }

    /// Floats that a block works in. The last block's insides, where they are kept, are there as well:
    /// its backward pass comes right behind its forward pass.
    pub(super) fn scratch(&self) -> usize {
        let block = self.block(self.images, Accuracy::Full);
        let of_last = block::scratch_len(&block, true) + self.inside();
        match self.kept_insides {
            0 => block::scratch_len(&block, false),
            kept if kept < self.blocks.len() => of_last.max(block::scratch_len(&block, false)),
            _ => of_last,
        }
    }

    /// Where the buffers lie in the arena.
    pub(super) fn places(&self) -> [Range<usize>; 7] {
        let mut end = 0;
        self.buffers().0.map(|buffer| {
            let start = end;
            end += buffer.len();
            start..end
        })
    }

    pub(super) fn per_image(&self) -> usize {
        self.tokens() * self.geometry.dim
    }

    /// Where the input of the block at `level` lies, the first `length` floats of it.
    pub(super) fn input_of(&self, level: usize, length: usize) -> Range<usize> {
        let [kept, between, ..] = self.places();
        let (interval, stream) = (self.interval(), self.images * self.per_image());
        let (within, segment) = (level % interval, level / interval);
        let start = match (self.checkpoints, within) {
            (Precision::F32, 0) => kept.start + segment * stream,
            (Precision::F32, _) => between.start + (within - 1) * stream,
            (Precision::Bf16, _) => between.start + within * stream,
        };
        start..start + length
    }

    /// Where the output of the block at `level` is read: the next block's input, or the last output.
    pub(super) fn output_of(&self, level: usize, length: usize) -> Range<usize> {
        let ends_segment = (level + 1).is_multiple_of(self.interval());
        let is_last = level + 1 == self.blocks.len();
        if is_last || (ends_segment && self.checkpoints == Precision::Bf16) {
            let top = self.places()[2].start;
            return top..top + length;
        }
        self.input_of(level + 1, length)
    }

    /// Where the block at `level` works, and where its insides are kept; that is empty where they
    /// are not.
    pub(super) fn work_of(&self, level: usize) -> (Range<usize>, Range<usize>) {
        let [.., scratch, kept] = self.places();
        let (depth, one) = (self.blocks.len(), self.inside());
        let Some(index) = (level + self.kept_insides.min(depth)).checked_sub(depth) else {
            return (scratch, kept.start..kept.start);
        };
        if level + 1 == depth {
            let middle = scratch.end - one;
            return (scratch.start..middle, middle..scratch.end);
        }
        let start = kept.start + index * one;
        (scratch, start..start + one)
    }

    /// Numbers of floats in a gradient buffer: A and B, or C, of each site, then the prompts.
    pub fn gradient_len(&self, adapters: &Adapters, phase: Phase) -> usize {
        adapters.sites.len() * site_gradient_len(adapters, phase) + adapters.prompts.len()
    }
}

pub(super) fn site_gradient_len(adapters: &Adapters, phase: Phase) -> usize {
    match phase {
        Phase::Bases => 2 * adapters.dim * adapters.rank,
        Phase::Cores => adapters.rank * adapters.rank,
    }
}
