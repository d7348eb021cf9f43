//! Multi-head self-attention of one image over a fused query, key and value buffer (Vaswani et
//! al., arXiv 1706.03762, section 3.2). Only `tile` rows of the probability matrix exist at a time,
//! and the backward pass computes them again instead of reading them back.

use super::matmul::{MatMut, MatRef, matmul};
use super::softmax::{softmax_backward, softmax_forward};
use super::threads;
use std::ops::Range;

/// Fewest queries that are worth another thread.
const SHARED_QUERIES: usize = 16;

/// Sizes of one image's attention; the width D is `heads * head_dim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Rows of the probability matrix held at a time, 1 to `tokens`.
    pub tile: usize,
}

impl AttentionShape {
    /// Floats of scratch that [`attention_forward`] needs: `[tile, tokens]`.
    pub fn forward_scratch(&self) -> usize {
        self.tile * self.tokens
    }

    /// Floats of scratch that [`attention_backward`] needs on each thread: probabilities and their
    /// gradient `[tile, tokens]` each, and one head's queries, keys and values `[tokens, head_dim]`
    /// and their gradients, of queries `[tile, head_dim]`.
    pub fn backward_scratch(&self) -> usize {
        2 * self.forward_scratch() + (self.tile + 5 * self.tokens) * self.head_dim
    }

    fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// `(first row, rows)` of each tile.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (tokens, tile) = (self.tokens, self.tile);
        (0..tokens)
            .step_by(tile)
            .map(move |first| (first, tile.min(tokens - first)))
    }

    /// `[rows, head_dim]` from token `first` on, `column` floats into each row of `[tokens, width]`.
    fn rows<'a>(
        &self,
        data: &'a [f32],
        width: usize,
        column: usize,
        (first, rows): (usize, usize),
    ) -> MatRef<'a> {
        MatRef::strided(&data[first * width + column..], rows, self.head_dim, width)
    }
}

/// `out = softmax(q k^T / sqrt(head_dim)) v` for each head.
///
/// qkv `[tokens, 3 D]`: query, key and value side by side, heads side by side in each; out
/// `[tokens, D]`; scratch at least [`AttentionShape::forward_scratch`].
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn attention_forward(
    shape: &AttentionShape,
    qkv: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let rows = shape.tokens * shape.dim();
    let scratch = &mut scratch[..shape.forward_scratch()];
    forward_rows(shape, qkv, 0, &mut out[..rows], scratch, threads::at_hand());
}

/// Attention of the queries that `out` `[rows, D]` holds, the first of them `first`.
fn forward_rows(
    shape: &AttentionShape,
    qkv: &[f32],
    first: usize,
    out: &mut [f32],
    scratch: &mut [f32],
    threads: usize,
) {
    let (dim, tokens) = (shape.dim(), shape.tokens);
    let rows = out.len() / dim;
    let tile = scratch.len() / tokens;
    if threads > 1 && rows >= 2 * SHARED_QUERIES && tile > 1 {
        let left = threads / 2;
        let middle = rows * left / threads;
        let (out1, out2) = out.split_at_mut(middle * dim);
        let (scratch1, scratch2) = scratch.split_at_mut((tile * left / threads).max(1) * tokens);
        threads::join(
            || forward_rows(shape, qkv, first, out1, scratch1, left),
            || forward_rows(shape, qkv, first + middle, out2, scratch2, threads - left),
        );
        return;
    }
    for column in (0..dim).step_by(shape.head_dim) {
        let k = shape.rows(qkv, 3 * dim, dim + column, (0, tokens));
        let v = shape.rows(qkv, 3 * dim, 2 * dim + column, (0, tokens));
        for start in (0..rows).step_by(tile) {
            let n = tile.min(rows - start);
            let q = shape.rows(qkv, 3 * dim, column, (first + start, n));
            let p = &mut scratch[..n * tokens];
            matmul(shape.scale(), q, k.t(), 0.0, MatMut::new(p, n, tokens));
            softmax_forward(p, tokens);
            let out = MatMut::strided(&mut out[start * dim + column..], n, shape.head_dim, dim);
            matmul(1.0, MatRef::new(p, n, tokens), v, 0.0, out);
        }
    }
}

/// The gradients of [`attention_forward`]: with P the probabilities and S the scaled scores,
/// `dV = P^T d_out`, `dP = d_out V^T`, `dS = P (dP - rowsum(P dP))`, `dQ = dS K / sqrt(head_dim)`,
/// `dK = dS^T Q / sqrt(head_dim)`.
///
/// qkv `[tokens, 3 D]`, replaced by its gradient; d_out `[tokens, D]`; scratch at least
/// [`AttentionShape::backward_scratch`], of which each thread takes so much.
///
/// # Panics
/// When a slice does not have the length its shape says, or scratch is shorter.
pub fn attention_backward(
    shape: &AttentionShape,
    qkv: &mut [f32],
    d_out: &[f32],
    scratch: &mut [f32],
) {
    let (values, each) = (shape.tokens * shape.dim(), shape.backward_scratch());
    assert!(
        qkv.len() == 3 * values && d_out.len() == values && scratch.len() >= each,
        "attention outside its slices"
    );
    let threads = (scratch.len() / each).min(threads::at_hand());
    let gradient = Gradient {
        shape,
        qkv: qkv.as_mut_ptr(),
        d_out,
    };
    // SAFETY: qkv holds all heads and is borrowed exclusively.
    unsafe { gradient.heads(0..shape.heads, scratch, threads) }
}

/// What [`attention_backward`] shares between threads, head by head.
struct Gradient<'a> {
    shape: &'a AttentionShape,
    qkv: *mut f32,
    d_out: &'a [f32],
}

// SAFETY: every thread reads and writes only the columns of its own heads.
unsafe impl Sync for Gradient<'_> {}

impl Gradient<'_> {
    /// # Safety
    /// `qkv` is `[tokens, 3 D]`, and nothing else accesses the columns of these heads.
    unsafe fn heads(&self, heads: Range<usize>, scratch: &mut [f32], threads: usize) {
        if threads > 1 && heads.len() > 1 {
            let left = threads / 2;
            let middle = heads.start + heads.len() * left / threads;
            let (scratch1, scratch2) = scratch.split_at_mut(left * self.shape.backward_scratch());
            // SAFETY: the contract; no head is on both sides.
            threads::join(
                || unsafe { self.heads(heads.start..middle, scratch1, left) },
                || unsafe { self.heads(middle..heads.end, scratch2, threads - left) },
            );
            return;
        }
        for head in heads {
            // SAFETY: the contract.
            unsafe { self.head(head, scratch) }
        }
    }

    /// # Safety
    /// As for [`Gradient::heads`].
    unsafe fn head(&self, head: usize, scratch: &mut [f32]) {
        let shape = self.shape;
        let (tokens, hd, scale) = (shape.tokens, shape.head_dim, shape.scale());
        let (p, rest) = scratch.split_at_mut(shape.forward_scratch());
        let (d_p, rest) = rest.split_at_mut(shape.forward_scratch());
        let (d_q, rest) = rest.split_at_mut(shape.tile * hd);
        let (d_k, rest) = rest.split_at_mut(tokens * hd);
        let (d_v, rest) = rest.split_at_mut(tokens * hd);
        let (q, rest) = rest.split_at_mut(tokens * hd);
        let (k, v) = rest.split_at_mut(tokens * hd);
        let v = &mut v[..tokens * hd];
        for (of, part) in [&mut *q, k, v].into_iter().enumerate() {
            // SAFETY: the contract.
            unsafe { self.load(head, of, part) }
        }
        let (k, v) = (MatRef::new(k, tokens, hd), MatRef::new(v, tokens, hd));
        for tile in shape.tiles() {
            let q = MatRef::new(&q[tile.0 * hd..], tile.1, hd);
            let d_out = shape.rows(self.d_out, shape.dim(), head * hd, tile);
            let p = &mut p[..tile.1 * tokens];
            let d_p = &mut d_p[..tile.1 * tokens];
            matmul(scale, q, k.t(), 0.0, MatMut::new(p, tile.1, tokens));
            softmax_forward(p, tokens);
            matmul(1.0, d_out, v.t(), 0.0, MatMut::new(d_p, tile.1, tokens));
            softmax_backward(p, d_p, tokens);
            let p = MatRef::new(p, tile.1, tokens);
            let d_s = MatRef::new(d_p, tile.1, tokens);
            // Keys and values collect from every tile of queries.
            let beta = if tile.0 == 0 { 0.0 } else { 1.0 };
            matmul(scale, d_s.t(), q, beta, MatMut::new(d_k, tokens, hd));
            matmul(1.0, p.t(), d_out, beta, MatMut::new(d_v, tokens, hd));
            let d_q = &mut d_q[..tile.1 * hd];
            matmul(scale, d_s, k, 0.0, MatMut::new(d_q, tile.1, hd));
            // SAFETY: the contract.
            unsafe { self.store(head, 0, tile.0, d_q) }
        }
        // SAFETY: the contract.
        unsafe {
            self.store(head, 1, 0, d_k);
            self.store(head, 2, 0, d_v);
        }
    }

    /// Offset of a head's queries (`of` 0), keys (1) or values (2) of one token.
    fn offset(&self, head: usize, of: usize, token: usize) -> usize {
        (3 * token + of) * self.shape.dim() + head * self.shape.head_dim
    }

    /// Copies a head's queries, keys or values to `to` `[tokens, head_dim]`.
    ///
    /// # Safety
    /// As for [`Gradient::heads`].
    unsafe fn load(&self, head: usize, of: usize, to: &mut [f32]) {
        let hd = self.shape.head_dim;
        for (token, row) in to.chunks_exact_mut(hd).enumerate() {
            // SAFETY: the head's columns of a token.
            unsafe {
                let from = self.qkv.add(self.offset(head, of, token));
                std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), hd);
            }
        }
    }

    /// Copies `[rows, head_dim]` to a head's queries, keys or values, from token `first` on.
    ///
    /// # Safety
    /// As for [`Gradient::heads`], and the rows end with the last token.
    unsafe fn store(&self, head: usize, of: usize, first: usize, rows: &[f32]) {
        let hd = self.shape.head_dim;
        for (token, row) in rows.chunks_exact(hd).enumerate() {
            // SAFETY: the head's columns of a token.
            unsafe {
                let to = self.qkv.add(self.offset(head, of, first + token));
                std::ptr::copy_nonoverlapping(row.as_ptr(), to, hd);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Attention in f64, one output element at a time.
    fn twin(shape: &AttentionShape, qkv: &[f64]) -> Vec<f64> {
        let (dim, hd) = (shape.dim(), shape.head_dim);
        let at = |t: usize, c: usize| qkv[t * 3 * dim + c];
        let mut out = vec![0.0; shape.tokens * dim];
        for h in 0..shape.heads {
            for t in 0..shape.tokens {
                let weights: Vec<f64> = (0..shape.tokens)
                    .map(|s| {
                        let dot: f64 = (h * hd..(h + 1) * hd)
                            .map(|c| at(t, c) * at(s, dim + c))
                            .sum();
                        (dot / (hd as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for c in h * hd..(h + 1) * hd {
                    out[t * dim + c] = (0..shape.tokens)
                        .map(|s| weights[s] / sum * at(s, 2 * dim + c))
                        .sum();
                }
            }
        }
        out
    }

    /// A shape with qkv `[tokens, 3 D]` and d_out `[tokens, D]`.
    fn case() -> impl Strategy<Value = (AttentionShape, Vec<f32>, Vec<f32>)> {
        (1usize..9, 1usize..4, 1usize..6, 1usize..9).prop_flat_map(
            |(tokens, heads, head_dim, tile)| {
                let tile = tile.min(tokens);
                let values = |n| prop::collection::vec(-1.5f32..1.5, n);
                let len = tokens * heads * head_dim;
                let shape = AttentionShape {
                    tokens,
                    heads,
                    head_dim,
                    tile,
                };
                (Just(shape), values(3 * len), values(len))
            },
        )
    }

    fn widen(x: &[f32]) -> Vec<f64> {
        x.iter().copied().map(f64::from).collect()
    }

    proptest! {
        #[test]
        fn attention_follows_its_twin((shape, qkv, d_out) in case()) {
            let mut out = vec![f32::NAN; d_out.len()];
            let mut scratch = vec![f32::NAN; shape.forward_scratch()];
            attention_forward(&shape, &qkv, &mut out, &mut scratch);
            for (expected, &got) in twin(&shape, &widen(&qkv)).iter().zip(&out) {
                prop_assert!((expected - f64::from(got)).abs() < 1e-5, "{got}, not {expected}");
            }
        }

        #[test]
        fn the_gradient_follows_central_differences((shape, qkv, d_out) in case()) {
            let mut d_qkv = qkv.clone();
            let mut scratch = vec![f32::NAN; shape.backward_scratch()];
            attention_backward(&shape, &mut d_qkv, &d_out, &mut scratch);
            let loss = |qkv: &[f64]| -> f64 {
                twin(&shape, qkv).iter().zip(&d_out).map(|(y, &d)| y * f64::from(d)).sum()
            };
            let mut nudged = widen(&qkv);
            for i in 0..qkv.len() {
                nudged[i] += 1e-5;
                let above = loss(&nudged);
                nudged[i] -= 2e-5;
                let slope = (above - loss(&nudged)) / 2e-5;
                nudged[i] += 1e-5;
                prop_assert!((slope - f64::from(d_qkv[i])).abs() < 2e-5, "{}, not {slope}", d_qkv[i]);
            }
        }

        #[test]
        fn threads_do_not_change_the_gradient((shape, qkv, d_out) in case(), threads in 1usize..5) {
            let run = |scratch: usize| {
                let mut d_qkv = qkv.clone();
                let mut scratch = vec![f32::NAN; scratch * shape.backward_scratch()];
                attention_backward(&shape, &mut d_qkv, &d_out, &mut scratch);
                d_qkv
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            prop_assert_eq!(pool.install(|| run(threads)), run(1));
        }

        #[test]
        fn threads_do_not_change_the_output(
            (tokens, tile) in (1usize..80).prop_flat_map(|n| (Just(n), 1..n + 1)),
            heads in 1usize..4,
            threads in 2usize..6,
        ) {
            let shape = AttentionShape { tokens, heads, head_dim: 5, tile };
            let len = tokens * shape.dim();
            let qkv: Vec<f32> = (0..3 * len).map(|i| (i as f32 * 0.7).sin()).collect();
            let run = || {
                let mut out = vec![f32::NAN; len];
                let mut scratch = vec![f32::NAN; shape.forward_scratch()];
                attention_forward(&shape, &qkv, &mut out, &mut scratch);
                out
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            prop_assert_eq!(pool.install(run), run());
        }

        #[test]
        fn tiles_do_not_change_the_gradient((shape, qkv, d_out) in case()) {
            let run = |tile| {
                let shape = AttentionShape { tile, ..shape };
                let mut d_qkv = qkv.clone();
                let mut scratch = vec![f32::NAN; shape.backward_scratch()];
                attention_backward(&shape, &mut d_qkv, &d_out, &mut scratch);
                d_qkv
            };
            for (a, b) in run(shape.tile).iter().zip(run(shape.tokens)) {
                prop_assert!((a - b).abs() < 1e-5);
            }
        }
    }
}
