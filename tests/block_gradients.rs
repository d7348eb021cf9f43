//! The adapted block against two independent judges: PyTorch's values tensor by tensor, and itself
//! in other tilings, batches and adapter settings.

use fledge::kernels::attention::{AttentionShape, attention_backward, attention_forward};
use fledge::kernels::gelu::{gelu_backward, gelu_forward, gelu_tanh_backward, gelu_tanh_forward};
use fledge::kernels::gemm::Accuracy;
use fledge::kernels::norm::{layer_norm_backward, layer_norm_forward};
use fledge::kernels::panels::Panels;
use fledge::kernels::softmax::{softmax_backward, softmax_forward};
use fledge::train::block::{
    Adapter, AdapterGrad, Adapters, BlockShape, Buffer, Gradients, Kept, adapter_input, backward,
    buffers, forward, forward_buffers, forward_scratch_len, scratch_len,
};
use fledge::vit::{Activation, BlockWeights, NormWeights};
use proptest::prelude::*;

const TOLERANCE: f32 = 1e-5;
const FORMS: [(&str, Activation); 2] = [
    ("gelu", Activation::Gelu),
    ("gelu-tanh", Activation::GeluTanh),
];

/// What `fixtures/block/make.py` wrote.
struct Fixture {
    index: toml::Table,
    values: Vec<f32>,
}

impl Fixture {
    fn read() -> Self {
        let values = include_bytes!("fixtures/block/block.bin")
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let index = include_str!("fixtures/block/block.toml").parse().unwrap();
        Self { index, values }
    }

    fn size(&self, name: &str) -> usize {
        self.index[name].as_integer().unwrap() as usize
    }

    fn get(&self, name: &str) -> &[f32] {
        let entry = &self.index["tensors"][name];
        let offset = entry["offset"].as_integer().unwrap() as usize;
        let shape = entry["shape"].as_array().unwrap().iter();
        let len: usize = shape.map(|n| n.as_integer().unwrap() as usize).product();
        &self.values[offset..offset + len]
    }

    fn shape(&self, activation: Activation) -> BlockShape {
        BlockShape {
            images: self.size("images"),
            tokens: self.size("tokens"),
            dim: self.size("dim"),
            heads: self.size("heads"),
            hidden: self.size("hidden"),
            rank: self.size("rank"),
            norm_eps: self.index["norm_eps"].as_float().unwrap() as f32,
            activation,
            accuracy: Accuracy::Full,
            mlp_rows: usize::MAX,
            mlp_columns: usize::MAX,
            attention_rows: usize::MAX,
        }
    }

    /// The frozen matrices in panels.
    fn packed(&self) -> [Vec<f32>; 4] {
        let (d, hidden) = (self.size("dim"), self.size("hidden"));
        [
            Panels::pack(self.get("qkv.weight"), d, 3 * d),
            Panels::pack(self.get("proj.weight"), d, d),
            Panels::pack(self.get("fc1.weight"), d, hidden),
            Panels::pack(self.get("fc2.weight"), hidden, d),
        ]
    }

    fn weights<'a>(&'a self, packed: &'a [Vec<f32>; 4]) -> BlockWeights<'a> {
        let (d, hidden) = (self.size("dim"), self.size("hidden"));
        let norm = |gain, bias| NormWeights {
            gain: self.get(gain),
            bias: self.get(bias),
        };
        BlockWeights {
            norm1: norm("norm1.gain", "norm1.bias"),
            qkv_weight: Panels::new(&packed[0], d, 3 * d),
            qkv_bias: self.get("qkv.bias"),
            proj_weight: Panels::new(&packed[1], d, d),
            proj_bias: self.get("proj.bias"),
            norm2: norm("norm2.gain", "norm2.bias"),
            fc1_weight: Panels::new(&packed[2], d, hidden),
            fc1_bias: self.get("fc1.bias"),
            fc2_weight: Panels::new(&packed[3], hidden, d),
            fc2_bias: self.get("fc2.bias"),
        }
    }

    fn adapters(&self) -> Adapters<'_> {
        let adapter = |name: &str| {
            Some(Adapter {
                a: self.get(&format!("{name}.a")),
                c: self.get(&format!("{name}.c")),
                b: self.get(&format!("{name}.b")),
                rank: self.size("rank"),
            })
        };
        [adapter("q"), None, adapter("v")]
    }
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest, v| largest.max(v.abs()))
}

/// Every element within `TOLERANCE` of the largest expected one.
#[track_caller]
fn assert_close(name: &str, got: &[f32], expected: &[f32]) {
    assert_within(TOLERANCE, name, got, expected);
}

#[track_caller]
fn assert_within(tolerance: f32, name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name} has the wrong length");
    let bound = tolerance * largest(expected).max(1e-3);
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= bound,
            "{name}[{i}] is {got}, not {expected}"
        );
    }
}

/// The part of `scratch` that a buffer list calls `name`.
fn part<'a>(buffers: &[Buffer], scratch: &'a [f32], name: &str) -> &'a [f32] {
    let index = buffers.iter().position(|b| b.name == name).unwrap();
    let start: usize = buffers[..index].iter().map(Buffer::len).sum();
    &scratch[start..start + buffers[index].len()]
}

/// Gradients of the query's and the value's adapter: dA, dC, dB each.
type Six = [Vec<f32>; 6];

struct Run {
    output: Vec<f32>,
    d_input: Vec<f32>,
    adapters: Six,
    scratch: Vec<f32>,
}

/// Both passes, with scratch that starts as NaN: nothing may be read before it is written.
fn run(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    adapters: &Adapters<'_>,
    input: &[f32],
    d_output: &[f32],
) -> Run {
    run_with(shape, weights, adapters, input, d_output, None)
}

/// [`run`], with what the forward pass may keep for the backward pass.
fn run_with(
    shape: &BlockShape,
    weights: &BlockWeights<'_>,
    adapters: &Adapters<'_>,
    input: &[f32],
    d_output: &[f32],
    mut kept: Option<&mut Kept<'_>>,
) -> Run {
    let mut output = vec![f32::NAN; input.len()];
    let mut scratch = vec![f32::NAN; forward_scratch_len(shape)];
    let keep = kept.as_deref_mut();
    forward(
        shape,
        weights,
        adapters,
        input,
        &mut output,
        keep,
        &mut scratch,
    );
    let mut d_input = d_output.to_vec();
    let mut scratch = vec![f32::NAN; scratch_len(shape, false)];
    let (basis, core) = (shape.dim * shape.rank, shape.rank * shape.rank);
    let mut six: Six = [basis, core, basis, basis, core, basis].map(|len| vec![0.0; len]);
    let mut gradients = gradients(&mut six);
    backward(
        shape,
        weights,
        adapters,
        input,
        &mut d_input,
        &mut gradients,
        kept,
        &mut scratch,
    );
    Run {
        output,
        d_input,
        adapters: six,
        scratch,
    }
}

fn gradients(six: &mut Six) -> Gradients<'_> {
    let [qa, qc, qb, va, vc, vb] = six;
    Gradients {
        adapters: [
            AdapterGrad {
                da: Some(qa),
                dc: Some(qc),
                db: Some(qb),
            },
            AdapterGrad::default(),
            AdapterGrad {
                da: Some(va),
                dc: Some(vc),
                db: Some(vb),
            },
        ],
        input: true,
    }
}

const SIX_NAMES: [&str; 6] = ["q.a", "q.c", "q.b", "v.a", "v.c", "v.b"];

#[track_caller]
fn assert_same(got: &Run, expected: &Run) {
    assert_close("output", &got.output, &expected.output);
    assert_close("d_input", &got.d_input, &expected.d_input);
    for ((name, got), expected) in SIX_NAMES.iter().zip(&got.adapters).zip(&expected.adapters) {
        assert_close(&format!("d_{name}"), got, expected);
    }
}

#[test]
fn output_and_gradients_equal_pytorch() {
    let fixture = Fixture::read();
    let packed = fixture.packed();
    let (input, d_output) = (fixture.get("input"), fixture.get("d_output"));
    let ways = [
        (Accuracy::Full, TOLERANCE),
        (Accuracy::Training, 10.0 * TOLERANCE),
    ];
    for ((form, activation), (accuracy, tolerance)) in FORMS
        .into_iter()
        .flat_map(|form| ways.map(|way| (form, way)))
    {
        let of = |name: &str| fixture.get(&format!("{form}/{name}"));
        let shape = BlockShape {
            accuracy,
            ..fixture.shape(activation)
        };
        let assert_close = |name: &str, got: &[f32], expected: &[f32]| {
            assert_within(tolerance, name, got, expected);
        };
        let got = run(
            &shape,
            &fixture.weights(&packed),
            &fixture.adapters(),
            input,
            d_output,
        );
        assert_close("output", &got.output, of("output"));
        assert_close("d_input", &got.d_input, of("d_input"));
        for (name, got) in SIX_NAMES.iter().zip(&got.adapters) {
            assert_close(
                &format!("{accuracy:?} {name}"),
                got,
                of(&format!("d_{name}")),
            );
        }
        let after = |name| part(&buffers(&shape, false), &got.scratch, name);
        assert_close("normed1", after("norm 1 output"), of("normed1"));
        assert_close("d_qkv", after("query, key, value"), of("d_qkv"));
        assert_close("d_normed1", after("attention output"), of("d_normed1"));
    }
}

#[test]
fn intermediates_of_the_forward_pass_equal_pytorch() {
    let fixture = Fixture::read();
    let packed = fixture.packed();
    let (weights, adapters) = (fixture.weights(&packed), fixture.adapters());
    let input = fixture.get("input");
    for (form, activation) in FORMS {
        let of = |name: &str| fixture.get(&format!("{form}/{name}"));
        let shape = fixture.shape(activation);
        let mut output = vec![f32::NAN; input.len()];
        let mut scratch = vec![f32::NAN; forward_scratch_len(&shape)];
        forward(
            &shape,
            &weights,
            &adapters,
            input,
            &mut output,
            None,
            &mut scratch,
        );
        let after = |name| part(&forward_buffers(&shape, false), &scratch, name);
        assert_close("qkv", after("query, key, value"), of("qkv"));
        let attended = after("norm 1 output, then attention output");
        assert_close("attended", attended, of("attended"));

        let mut z = vec![f32::NAN; 2 * shape.rows() * shape.rank];
        adapter_input(&shape, &weights, &adapters, input, &mut z, &mut scratch);
        assert_close("z", &z, &[of("q.z"), of("v.z")].concat());

        forward(
            &shape,
            &weights,
            &[None; 3],
            input,
            &mut output,
            None,
            &mut scratch,
        );
        assert_close("frozen output", &output, of("frozen_output"));
    }
}

#[test]
fn every_kernel_equals_pytorch() {
    let fixture = Fixture::read();
    let packed = fixture.packed();
    let weights = fixture.weights(&packed);
    for (form, activation) in FORMS {
        let of = |name: &str| fixture.get(&format!("{form}/{name}"));
        let shape = fixture.shape(activation);
        let rows = shape.rows();

        let (x1, norm) = (of("x1"), weights.norm2);
        let (mut normed, mut mean, mut rstd) =
            (vec![0.0; x1.len()], vec![0.0; rows], vec![0.0; rows]);
        layer_norm_forward(
            x1,
            norm.gain,
            norm.bias,
            shape.norm_eps,
            &mut normed,
            &mut mean,
            &mut rstd,
        );
        assert_close("normed2", &normed, of("normed2"));
        let mut d_x1 = fixture.get("d_output").to_vec();
        layer_norm_backward(of("d_normed2"), x1, norm.gain, &mean, &rstd, &mut d_x1);
        assert_close("d_x1", &d_x1, of("d_x1"));

        let mut activated = of("hidden").to_vec();
        let mut d_hidden = of("d_activated").to_vec();
        match activation {
            Activation::Gelu => {
                gelu_forward(&mut activated);
                gelu_backward(of("hidden"), &mut d_hidden);
            }
            Activation::GeluTanh => {
                gelu_tanh_forward(&mut activated);
                gelu_tanh_backward(of("hidden"), &mut d_hidden);
            }
        }
        assert_close("activated", &activated, of("activated"));
        assert_close("d_hidden", &d_hidden, of("d_hidden"));

        let (mut p, mut d) = (of("scores").to_vec(), of("d_probabilities").to_vec());
        softmax_forward(&mut p, shape.tokens);
        softmax_backward(of("probabilities"), &mut d, shape.tokens);
        assert_close("probabilities", &p, of("probabilities"));
        assert_close("d_scores", &d, of("d_scores"));

        let attention = AttentionShape {
            tokens: shape.tokens,
            heads: shape.heads,
            head_dim: shape.dim / shape.heads,
            tile: 3,
        };
        let image = shape.tokens * shape.dim;
        let mut attended = vec![f32::NAN; x1.len()];
        let mut d_qkv = of("qkv").to_vec();
        let mut scratch = vec![f32::NAN; attention.backward_scratch()];
        for i in 0..shape.images {
            let (one, three) = (
                i * image..(i + 1) * image,
                3 * i * image..3 * (i + 1) * image,
            );
            let out = &mut attended[one.clone()];
            attention_forward(&attention, &of("qkv")[three.clone()], out, &mut scratch);
            let d_out = &of("d_attended")[one];
            attention_backward(&attention, &mut d_qkv[three], d_out, &mut scratch);
        }
        assert_close("attended", &attended, of("attended"));
        assert_close("d_qkv", &d_qkv, of("d_qkv"));
    }
}

#[test]
fn without_the_input_gradient_the_adapters_still_get_theirs() {
    let fixture = Fixture::read();
    let shape = fixture.shape(Activation::Gelu);
    let packed = fixture.packed();
    let (weights, adapters) = (fixture.weights(&packed), fixture.adapters());
    let (input, d_output) = (fixture.get("input"), fixture.get("d_output"));
    let full = run(&shape, &weights, &adapters, input, d_output);
    let mut six = full.adapters.clone();
    let mut wanted = gradients(&mut six);
    wanted.input = false;
    // Only the value's core on top of what is there, as in every task after the first.
    wanted.adapters[0] = AdapterGrad::default();
    wanted.adapters[2].da = None;
    wanted.adapters[2].db = None;
    let mut scratch = vec![f32::NAN; scratch_len(&shape, false)];
    let mut d = d_output.to_vec();
    backward(
        &shape,
        &weights,
        &adapters,
        input,
        &mut d,
        &mut wanted,
        None,
        &mut scratch,
    );
    for (i, (got, once)) in six.iter().zip(&full.adapters).enumerate() {
        let times = if SIX_NAMES[i] == "v.c" { 2.0 } else { 1.0 };
        let expected: Vec<f32> = once.iter().map(|v| times * v).collect();
        assert_close(SIX_NAMES[i], got, &expected);
    }
}

#[test]
fn a_backward_pass_from_what_was_kept_is_the_one_that_computes_it_again() {
    let fixture = Fixture::read();
    let packed = fixture.packed();
    let (weights, adapters) = (fixture.weights(&packed), fixture.adapters());
    let (input, d_output) = (fixture.get("input"), fixture.get("d_output"));
    for (_, activation) in FORMS {
        let whole = fixture.shape(activation);
        let tiled = BlockShape {
            mlp_rows: 3,
            mlp_columns: 32,
            ..whole
        };
        for shape in [whole, tiled] {
            let expected = run(&shape, &weights, &adapters, input, d_output);
            let row = Kept::row(shape.dim, shape.hidden);
            let mut memory = vec![f32::NAN; shape.rows() * row];
            let mut kept = Kept::new(&shape, &mut memory);
            let got = run_with(
                &shape,
                &weights,
                &adapters,
                input,
                d_output,
                Some(&mut kept),
            );
            assert_eq!(got.output, expected.output);
            assert_eq!(got.d_input, expected.d_input);
            assert_eq!(got.adapters, expected.adapters);
        }
    }
}

#[test]
fn a_zero_core_is_the_frozen_block() {
    let fixture = Fixture::read();
    let shape = fixture.shape(Activation::GeluTanh);
    let (input, d_output) = (fixture.get("input"), fixture.get("d_output"));
    let zeros = vec![0.0; shape.rank * shape.rank];
    let zero_core = fixture.adapters().map(|adapter| {
        adapter.map(|adapter| Adapter {
            c: &zeros,
            ..adapter
        })
    });
    let packed = fixture.packed();
    let with = run(
        &shape,
        &fixture.weights(&packed),
        &zero_core,
        input,
        d_output,
    );
    let without = run(
        &shape,
        &fixture.weights(&packed),
        &[None; 3],
        input,
        d_output,
    );
    assert_close("output", &with.output, &without.output);
    assert_close("d_input", &with.d_input, &without.d_input);
    assert!(largest(&with.adapters[1]) > 0.0 && largest(&with.adapters[4]) > 0.0);
}

#[test]
fn a_batch_equals_its_images_one_by_one() {
    let fixture = Fixture::read();
    let shape = fixture.shape(Activation::Gelu);
    let packed = fixture.packed();
    let (weights, adapters) = (fixture.weights(&packed), fixture.adapters());
    let (input, d_output) = (fixture.get("input"), fixture.get("d_output"));
    let batch = run(&shape, &weights, &adapters, input, d_output);
    let single = BlockShape { images: 1, ..shape };
    let image = shape.tokens * shape.dim;
    let mut parts = input
        .chunks(image)
        .zip(d_output.chunks(image))
        .map(|(x, d)| run(&single, &weights, &adapters, x, d));
    let (mut sum, second) = (parts.next().unwrap(), parts.next().unwrap());
    sum.output.extend(second.output);
    sum.d_input.extend(second.d_input);
    for (sum, second) in sum.adapters.iter_mut().zip(&second.adapters) {
        sum.iter_mut().zip(second).for_each(|(sum, v)| *sum += v);
    }
    assert_same(&batch, &sum);
}

proptest! {
    #[test]
    fn tiles_do_not_change_anything(
        mlp_rows in 1usize..16,
        mlp_columns in 1usize..42,
        attention_rows in 1usize..9,
    ) {
        let fixture = Fixture::read();
        let whole = fixture.shape(Activation::Gelu);
        let tiled = BlockShape { mlp_rows, mlp_columns, attention_rows, ..whole };
        let packed = fixture.packed();
        let (weights, adapters) = (fixture.weights(&packed), fixture.adapters());
        let (input, d_output) = (fixture.get("input"), fixture.get("d_output"));
        let run = |shape| run(shape, &weights, &adapters, input, d_output);
        assert_same(&run(&tiled), &run(&whole));
    }
}
