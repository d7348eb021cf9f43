//! The block's gradients at random shapes, against the slope of a plain f64 twin.

use fledge::kernels::gemm::Accuracy;
use fledge::kernels::panels::Panels;
use fledge::train::block::{
    Adapter, AdapterGrad, Adapters, BlockShape, Gradients, backward, forward, forward_scratch_len,
    scratch_len,
};
use fledge::vit::{Activation, BlockWeights, NormWeights};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Every tensor of a block with adapters on query, key and value, in the order of [`lengths`].
type Tensors<T> = Vec<Vec<T>>;

/// norm1 gain, bias; qkv weight, bias; projection weight, bias; norm2 gain, bias; fc1 weight, bias;
/// fc2 weight, bias; A, C, B of query, key and value; input.
fn lengths(s: &BlockShape) -> Vec<usize> {
    let (d, h, r) = (s.dim, s.hidden, s.rank);
    let mut lengths = vec![d, d, 3 * d * d, 3 * d, d * d, d, d, d, d * h, h, h * d, d];
    lengths.extend([d * r, r * r, d * r].repeat(3));
    lengths.push(s.rows() * d);
    lengths
}
const ADAPTERS: usize = 12;
const INPUT: usize = 21;

fn draw(s: &BlockShape, seed: u64) -> Tensors<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let lengths = lengths(s).into_iter();
    lengths
        .map(|len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect())
        .collect()
}

fn linear(x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    let (out, inner) = (bias.len(), w.len() / bias.len());
    let row = |x: &[f64]| -> Vec<f64> {
        (0..out)
            .map(|j| bias[j] + (0..inner).map(|i| x[i] * w[i * out + j]).sum::<f64>())
            .collect()
    };
    x.chunks(inner).flat_map(row).collect()
}

fn norm(x: &[f64], gain: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let n = gain.len();
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        let std = (variance + eps).sqrt();
        (0..n)
            .map(|i| (x[i] - mean) / std * gain[i] + bias[i])
            .collect()
    };
    x.chunks(n).flat_map(row).collect()
}

/// Attention of one image: qkv `[tokens, 3 D]`.
fn attention(s: &BlockShape, qkv: &[f64]) -> Vec<f64> {
    let (d, width) = (s.dim, s.dim / s.heads);
    let at = |token: usize, column: usize| qkv[token * 3 * d + column];
    let mut out = vec![0.0; s.tokens * d];
    for (token, row) in out.chunks_mut(d).enumerate() {
        for (c, out) in row.iter_mut().enumerate() {
            let head = c / width * width..(c / width + 1) * width;
            let score = |other| -> f64 {
                let dot: f64 = head.clone().map(|c| at(token, c) * at(other, d + c)).sum();
                (dot / (width as f64).sqrt()).exp()
            };
            let sum: f64 = (0..s.tokens).map(score).sum();
            *out = (0..s.tokens)
                .map(|t| score(t) / sum * at(t, 2 * d + c))
                .sum();
        }
    }
    out
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// `[rows, cols]` to `[cols, rows]`.
fn transpose(b: &[f64], cols: usize) -> Vec<f64> {
    (0..cols)
        .flat_map(|j| b.iter().skip(j).step_by(cols).copied())
        .collect()
}

/// The block in f64, one obvious step after the other.
fn twin(s: &BlockShape, t: &Tensors<f64>) -> Vec<f64> {
    let (d, r, eps) = (s.dim, s.rank, f64::from(s.norm_eps));
    let x = &t[INPUT];
    let h = norm(x, &t[0], &t[1], eps);
    let mut qkv = linear(&h, &t[2], &t[3]);
    for projection in 0..3 {
        let [a, c, b] = [0, 1, 2].map(|part| &t[ADAPTERS + 3 * projection + part]);
        let u = linear(&linear(&h, a, &vec![0.0; r]), c, &vec![0.0; r]);
        let y = linear(&u, &transpose(b, r), &vec![0.0; d]);
        for (qkv, y) in qkv.chunks_mut(3 * d).zip(y.chunks(d)) {
            qkv[projection * d..]
                .iter_mut()
                .zip(y)
                .for_each(|(q, y)| *q += y);
        }
    }
    let attended: Vec<f64> = qkv
        .chunks(s.tokens * 3 * d)
        .flat_map(|image| attention(s, image))
        .collect();
    let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let x1 = add(x, &linear(&attended, &t[4], &t[5]));
    let mut hidden = linear(&norm(&x1, &t[6], &t[7], eps), &t[8], &t[9]);
    hidden.iter_mut().for_each(|v| *v = gelu_tanh(*v));
    add(&x1, &linear(&hidden, &t[10], &t[11]))
}

/// The frozen matrices in panels.
fn packed(s: &BlockShape, t: &Tensors<f32>) -> [Vec<f32>; 4] {
    [
        Panels::pack(&t[2], s.dim, 3 * s.dim),
        Panels::pack(&t[4], s.dim, s.dim),
        Panels::pack(&t[8], s.dim, s.hidden),
        Panels::pack(&t[10], s.hidden, s.dim),
    ]
}

fn weights<'a>(s: &BlockShape, t: &'a Tensors<f32>, packed: &'a [Vec<f32>; 4]) -> BlockWeights<'a> {
    let norm = |gain: usize| NormWeights {
        gain: &t[gain],
        bias: &t[gain + 1],
    };
    BlockWeights {
        norm1: norm(0),
        qkv_weight: Panels::new(&packed[0], s.dim, 3 * s.dim),
        qkv_bias: &t[3],
        proj_weight: Panels::new(&packed[1], s.dim, s.dim),
        proj_bias: &t[5],
        norm2: norm(6),
        fc1_weight: Panels::new(&packed[2], s.dim, s.hidden),
        fc1_bias: &t[9],
        fc2_weight: Panels::new(&packed[3], s.hidden, s.dim),
        fc2_bias: &t[11],
    }
}

fn adapters<'t>(s: &BlockShape, t: &'t Tensors<f32>) -> Adapters<'t> {
    [0, 1, 2].map(|projection| {
        let first = ADAPTERS + 3 * projection;
        Some(Adapter {
            a: &t[first],
            c: &t[first + 1],
            b: &t[first + 2],
            rank: s.rank,
        })
    })
}

fn shape() -> impl Strategy<Value = BlockShape> {
    let sizes = (
        1usize..4,
        1usize..8,
        1usize..4,
        2usize..6,
        1usize..80,
        1usize..5,
    );
    (sizes, 1usize..30, 1usize..50, 1usize..9).prop_map(
        |((images, tokens, heads, width, hidden, rank), mlp_rows, mlp_columns, attention_rows)| {
            BlockShape {
                images,
                tokens,
                dim: heads * width,
                heads,
                hidden,
                rank,
                // Large, because a row of nearly equal elements would amplify f32 rounding.
                norm_eps: 0.1,
                activation: Activation::GeluTanh,
                accuracy: Accuracy::Full,
                mlp_rows,
                mlp_columns,
                attention_rows,
            }
        },
    )
}

/// The gradients of every adapter tensor and the input, in the order of [`lengths`] from A of query
/// on.
fn gradients(s: &BlockShape, t: &Tensors<f32>, d_output: &[f32]) -> Tensors<f32> {
    let mut all: Tensors<f32> = t[ADAPTERS..].iter().map(|t| vec![0.0; t.len()]).collect();
    let (of_adapters, d_input) = all.split_at_mut(INPUT - ADAPTERS);
    d_input[0].copy_from_slice(d_output);
    let mut parts = of_adapters.iter_mut().map(Vec::as_mut_slice);
    let mut gradients = Gradients {
        adapters: std::array::from_fn(|_| AdapterGrad {
            da: parts.next(),
            dc: parts.next(),
            db: parts.next(),
        }),
        input: true,
    };
    let mut scratch = vec![f32::NAN; scratch_len(s, false)];
    let adapters = adapters(s, t);
    backward(
        s,
        &weights(s, t, &packed(s, t)),
        &adapters,
        &t[INPUT],
        &mut d_input[0],
        &mut gradients,
        None,
        &mut scratch,
    );
    all
}

fn widen(t: &Tensors<f32>) -> Tensors<f64> {
    let widen = |t: &Vec<f32>| t.iter().copied().map(f64::from).collect();
    t.iter().map(widen).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_output_follows_the_twin(s in shape(), seed in any::<u64>()) {
        let t = draw(&s, seed);
        let mut output = vec![f32::NAN; s.rows() * s.dim];
        let mut scratch = vec![f32::NAN; forward_scratch_len(&s)];
        forward(&s, &weights(&s, &t, &packed(&s, &t)), &adapters(&s, &t), &t[INPUT], &mut output, None, &mut scratch);
        for (got, expected) in output.iter().zip(twin(&s, &widen(&t))) {
            let error = (f64::from(*got) - expected).abs();
            prop_assert!(error < 1e-4 * expected.abs().max(1.0), "{got}, not {expected}");
        }
    }

    #[test]
    fn every_gradient_follows_the_slope_of_the_twin(s in shape(), seed in any::<u64>()) {
        let t = draw(&s, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(!seed);
        let d_output: Vec<f32> = (0..s.rows() * s.dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        let loss = |t: &Tensors<f64>| -> f64 {
            twin(&s, t).iter().zip(&d_output).map(|(y, &d)| y * f64::from(d)).sum()
        };
        let wide = widen(&t);
        for (index, gradient) in (ADAPTERS..).zip(gradients(&s, &t, &d_output)) {
            let direction: Vec<f64> = gradient.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
            let moved = |step: f64| {
                let mut t = wide.clone();
                t[index].iter_mut().zip(&direction).for_each(|(t, d)| *t += step * d);
                loss(&t)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let terms = gradient.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d);
            let (got, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            let bound = 1e-4 * f64::max(size, 1.0);
            prop_assert!((got - slope).abs() < bound, "tensor {index}: {got}, not {slope}");
        }
    }
}
