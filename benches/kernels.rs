//! The kernels of a block at the default model's shapes: `cargo bench --bench kernels`.

use divan::Bencher;
use divan::counter::ItemsCount;
use fledge::kernels::attention::{AttentionShape, attention_backward, attention_forward};
use fledge::kernels::gelu::{gelu_backward, gelu_forward};
use fledge::kernels::gemm::Accuracy;
use fledge::kernels::linear::{product, product_backward};
use fledge::kernels::norm::layer_norm_forward;
use fledge::kernels::panels::Panels;

const DIM: usize = 384;
const HIDDEN: usize = 1536;
/// Tokens at 112 pixels with half of the patches left out and with all, the same with 8 prompts, and
/// tokens at 224 pixels.
const TOKENS: [usize; 4] = [33, 65, 73, 257];

fn main() {
    divan::main();
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|k| (k * 37 % 101) as f32 / 50.0 - 1.0)
        .collect()
}

/// Operations count as items, so that divan prints them a second.
#[divan::bench(args = TOKENS)]
fn product_with_weights(bencher: Bencher<'_, '_>, tokens: usize) {
    let (x, w) = (numbers(tokens * DIM), numbers(DIM * HIDDEN));
    let mut y = vec![0.0; tokens * HIDDEN];
    bencher
        .counter(ItemsCount::new(2 * tokens * DIM * HIDDEN))
        .bench_local(|| {
            let w = Panels::new(&w, DIM, HIDDEN);
            product(Accuracy::Full, &x, w, 0.0, &mut y);
        });
}

#[divan::bench(args = TOKENS)]
fn product_with_transposed_weights(bencher: Bencher<'_, '_>, tokens: usize) {
    let (d, w) = (numbers(tokens * HIDDEN), numbers(DIM * HIDDEN));
    let mut y = vec![0.0; tokens * DIM];
    bencher
        .counter(ItemsCount::new(2 * tokens * DIM * HIDDEN))
        .bench_local(|| {
            let w = Panels::new(&w, DIM, HIDDEN);
            product_backward(Accuracy::Training, &d, w.t(), 0.0, &mut y);
        });
}

fn shape(tokens: usize) -> AttentionShape {
    AttentionShape {
        tokens,
        heads: 6,
        head_dim: 64,
        tile: tokens,
    }
}

#[divan::bench(args = TOKENS)]
fn attention(bencher: Bencher<'_, '_>, tokens: usize) {
    let (shape, qkv) = (shape(tokens), numbers(tokens * 3 * DIM));
    let (mut out, mut scratch) = (vec![0.0; tokens * DIM], vec![0.0; shape.forward_scratch()]);
    bencher.bench_local(|| attention_forward(&shape, &qkv, &mut out, &mut scratch));
}

#[divan::bench(args = TOKENS)]
fn attention_gradient(bencher: Bencher<'_, '_>, tokens: usize) {
    let (shape, mut qkv, d_out) = (
        shape(tokens),
        numbers(tokens * 3 * DIM),
        numbers(tokens * DIM),
    );
    let mut scratch = vec![0.0; shape.backward_scratch()];
    bencher.bench_local(|| attention_backward(&shape, &mut qkv, &d_out, &mut scratch));
}

#[divan::bench(args = TOKENS)]
fn gelu(bencher: Bencher<'_, '_>, tokens: usize) {
    let x = numbers(tokens * HIDDEN);
    bencher
        .with_inputs(|| x.clone())
        .bench_local_refs(|x| gelu_forward(x));
}

#[divan::bench(args = TOKENS)]
fn gelu_gradient(bencher: Bencher<'_, '_>, tokens: usize) {
    let x = numbers(tokens * HIDDEN);
    bencher
        .with_inputs(|| x.clone())
        .bench_local_refs(|d| gelu_backward(&x, d));
}

#[divan::bench(args = TOKENS)]
fn norm(bencher: Bencher<'_, '_>, tokens: usize) {
    let (x, gain, bias) = (numbers(tokens * DIM), numbers(DIM), numbers(DIM));
    let (mut y, mut mean, mut rstd) = (
        vec![0.0; tokens * DIM],
        vec![0.0; tokens],
        vec![0.0; tokens],
    );
    bencher
        .bench_local(|| layer_norm_forward(&x, &gain, &bias, 1e-6, &mut y, &mut mean, &mut rstd));
}
