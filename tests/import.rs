//! Imports of small models that `tests/fixtures/onnx/make.py` wrote with several libraries and
//! both of PyTorch's exporters.

use std::fs;
use std::path::{Path, PathBuf};

use fledge::vit::import::{self, ImportError, Imported};
use fledge::vit::{Activation, Geometry, Preprocessing, Weights, reference};

/// Correct imports of these models measure below 1e-6; a misread eps or scale shows far above.
const TOLERANCE: f32 = 5e-6;

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
    folder.join(format!("{name}.onnx"))
}

fn imported(name: &str) -> Imported {
    let folder = tempfile::tempdir().unwrap();
    let destination = folder.path().join("model.weights");
    let imported = import::import(&fixture(name), Preprocessing::HALF, &destination)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let weights = Weights::open(&destination).unwrap();
    assert_eq!(weights.geometry(), &imported.geometry);
    assert_eq!(weights.hash(), imported.hash);
    assert_eq!(weights.preprocessing(), &Preprocessing::HALF);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "leftovers");
    imported
}

fn hf(hidden: usize) -> Geometry {
    Geometry {
        dim: 16,
        depth: 2,
        heads: 2,
        hidden,
        patch: 4,
        image: 16,
        registers: 0,
        position_grid: 4,
        norm_eps: 1e-12,
        activation: Activation::Gelu,
        layer_scale: false,
    }
}

fn hf_vit() -> Geometry {
    hf(40)
}

fn hf_dinov2() -> Geometry {
    Geometry {
        norm_eps: 1e-6,
        layer_scale: true,
        ..hf(48)
    }
}

fn timm() -> Geometry {
    Geometry {
        norm_eps: 1e-6,
        ..hf(32)
    }
}

/// Every model that must import, with the geometry it was made with.
fn models() -> Vec<(&'static str, Geometry)> {
    let tanh = Geometry {
        activation: Activation::GeluTanh,
        ..hf_vit()
    };
    let registers = Geometry {
        registers: 3,
        hidden: 32,
        ..hf_dinov2()
    };
    vec![
        ("hf_vit_opset14", hf_vit()),
        ("hf_vit_opset17_eager", hf_vit()),
        ("hf_vit_opset20", hf_vit()),
        ("hf_vit_dynamo", hf_vit()),
        ("hf_vit_dynamo_opset20", hf_vit()),
        ("hf_vit_tanh", tanh.clone()),
        ("hf_vit_gelu_new", tanh),
        ("hf_vit_no_qkv_bias", hf_vit()),
        ("hf_vit_dynamic", hf_vit()),
        ("hf_vit_external", hf_vit()),
        ("hf_vit_f16", hf_vit()),
        // 1e-12 is nothing in f16.
        (
            "hf_vit_f16_external",
            Geometry {
                norm_eps: 0.0,
                ..hf_vit()
            },
        ),
        (
            "hf_dinov2_opset14",
            Geometry {
                position_grid: 7,
                ..hf_dinov2()
            },
        ),
        ("hf_dinov2_own_grid", hf_dinov2()),
        // The newer exporter folds the resize away, so the table arrives at the export's grid.
        ("hf_dinov2_dynamo", hf_dinov2()),
        ("hf_dinov2_registers", registers.clone()),
        ("hf_dinov2_registers_dynamo", registers),
        (
            "timm_vit_opset14",
            Geometry {
                dim: 18,
                depth: 3,
                heads: 3,
                hidden: 36,
                ..timm()
            },
        ),
        ("timm_vit_sdpa", timm()),
        ("timm_vit_dynamo", timm()),
        (
            "timm_vit_layer_scale",
            Geometry {
                layer_scale: true,
                ..timm()
            },
        ),
        (
            "timm_vit_registers",
            Geometry {
                registers: 2,
                ..timm()
            },
        ),
        ("timm_deit", timm()),
        // A distillation token is one more token that starts the same for every image: a register.
        (
            "timm_deit_distilled",
            Geometry {
                registers: 1,
                ..timm()
            },
        ),
        (
            "transposed_scores",
            Geometry {
                dim: 8,
                hidden: 12,
                image: 12,
                position_grid: 3,
                norm_eps: 1e-5,
                ..hf_vit()
            },
        ),
    ]
}

#[test]
fn every_export_is_recognised_and_computes_what_the_original_does() {
    for (name, geometry) in models() {
        let imported = imported(name);
        assert_eq!(imported.geometry, geometry, "{name}");
        assert_eq!(
            imported.boundaries.stream.len(),
            geometry.depth + 1,
            "{name}"
        );
        assert_eq!(imported.differences.len(), geometry.depth + 2, "{name}");
        for difference in &imported.differences {
            assert!(
                difference.rms > 0.1,
                "{name}: {difference:?} compares nothing"
            );
            assert!(difference.relative() <= TOLERANCE, "{name}: {difference:?}");
        }
    }
}

#[test]
fn exporters_of_one_model_lead_to_the_same_weights() {
    let reference = imported("hf_vit_opset14").hash;
    for name in [
        "hf_vit_opset20",
        "hf_vit_dynamo",
        "hf_vit_external",
        "hf_vit_dynamic",
    ] {
        assert_eq!(imported(name).hash, reference, "{name}");
    }
}

#[test]
fn models_that_cannot_be_adapted_are_refused_with_the_reason() {
    for (name, part, reason) in [
        (
            "convnet",
            "patch embedding",
            "no Conv whose stride equals its kernel",
        ),
        ("hf_vit_quick_gelu", "block 0, MLP", "expected GELU"),
        ("hf_vit_relu", "block 0, MLP", "expected GELU"),
        ("hf_dinov2_swiglu", "block 0, MLP", "gated MLP"),
        (
            "timm_vit_qk_norm",
            "block 0, attention",
            "query or key: expected a matrix product",
        ),
        (
            "timm_vit_pre_norm",
            "block 0",
            "a norm between embedding and blocks",
        ),
        (
            "timm_vit_no_class_token",
            "embedding",
            "expected a class token and 4 x 4 patches",
        ),
        (
            "timm_vit_average_pool",
            "final norm",
            "expected a final LayerNorm over all tokens",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("model.weights");
        match import::import(&fixture(name), Preprocessing::IMAGENET, &destination) {
            Err(ImportError::NotAdaptable {
                part: p, reason: r, ..
            }) => {
                assert_eq!(p, part, "{name}: {r}");
                assert!(r.contains(reason), "{name}: {r}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "leftovers");
    }
}

#[test]
fn a_forward_pass_that_disagrees_is_refused_and_the_earlier_model_survives() {
    let folder = tempfile::tempdir().unwrap();
    let destination = folder.path().join("model.weights");
    fs::write(&destination, b"earlier").unwrap();
    let result = import::import_with(
        &fixture("timm_deit"),
        Preprocessing::IMAGENET,
        &destination,
        |weights, image| {
            let mut run = reference::forward(weights, image, 16);
            run[1][7] += 0.05 * run[1].iter().fold(0.0f32, |a, b| a.max(b.abs()));
            run
        },
    );
    let names = import::inspect(&fixture("timm_deit")).unwrap().boundaries;
    match result {
        Err(ImportError::Disagrees {
            boundary, relative, ..
        }) => {
            assert_eq!(boundary, names.stream[1]);
            assert!((0.04..0.06).contains(&relative), "{relative}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&destination).unwrap(), b"earlier");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "leftovers");
}

#[test]
fn checking_a_model_reports_the_difference_and_leaves_nothing() {
    let checked = import::check_with(&fixture("timm_vit_sdpa"), import::reference_forward).unwrap();
    assert_eq!(checked.geometry, timm());
    assert!(checked.max_relative_difference() <= TOLERANCE);
    assert!(checked.max_difference() > 0.0);
}

#[test]
fn empty_truncated_and_foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.onnx");
    let whole = fs::read(fixture("hf_vit_opset14")).unwrap();
    let mut contents: Vec<Vec<u8>> = (1..40)
        .map(|k| whole[..whole.len() * k / 40].to_vec())
        .collect();
    contents.push(Vec::new());
    contents.push(b"not a model at all, but some text".to_vec());
    contents.push(vec![0xff; 4096]);
    contents.push(vec![0; 4096]);
    for content in contents {
        fs::write(&path, &content).unwrap();
        let refused = import::inspect(&path);
        assert!(
            matches!(
                refused,
                Err(ImportError::NotOnnx { .. } | ImportError::NotAdaptable { .. })
            ),
            "{} bytes: {refused:?}",
            content.len()
        );
    }
    assert!(matches!(
        import::inspect(&folder.path().join("missing.onnx")),
        Err(ImportError::Read { .. })
    ));
    assert!(import::inspect(folder.path()).is_err());
}

#[test]
fn corrupt_bytes_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corrupt.onnx");
    let whole = fs::read(fixture("hf_vit_dynamic")).unwrap();
    for k in 0..60 {
        let mut bytes = whole.clone();
        // Spread over the nodes in front and the weights behind.
        let at = k * 7919 % bytes.len();
        bytes[at] ^= 1 << (k % 8);
        fs::write(&path, &bytes).unwrap();
        // A flipped weight is still a model; anything else has to be an error, not a panic.
        let _ = import::inspect(&path);
    }
}

#[test]
fn external_data_outside_the_models_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("model");
    fs::create_dir(&inner).unwrap();
    let data = fs::read(fixture("hf_vit_external").with_extension("data")).unwrap();
    let model = fs::read(fixture("hf_vit_external")).unwrap();
    let path = inner.join("m.onnx");
    let located = |location: &[u8; 20]| -> Vec<u8> {
        let mut model = model.clone();
        let ours = b"hf_vit_external.data";
        let places: Vec<usize> = (0..model.len() - 20)
            .filter(|&at| &model[at..at + 20] == ours)
            .collect();
        assert!(!places.is_empty());
        for at in places {
            model[at..at + 20].copy_from_slice(location);
        }
        model
    };
    fs::write(&path, located(b"hf_vit_external.data")).unwrap();
    fs::write(inner.join("hf_vit_external.data"), &data).unwrap();
    assert!(import::inspect(&path).is_ok());

    // The data is there to be read, one folder up: only the rule stands in the way.
    fs::write(folder.path().join("outer_weights.dat"), &data).unwrap();
    fs::write(&path, located(b"../outer_weights.dat")).unwrap();
    match import::inspect(&path) {
        Err(ImportError::NotOnnx { reason, .. }) => {
            assert!(reason.contains("inside the model directory"), "{reason}");
        }
        other => panic!("{other:?}"),
    }

    // Cut short, and missing.
    fs::write(&path, located(b"hf_vit_external.data")).unwrap();
    fs::write(inner.join("hf_vit_external.data"), &data[..data.len() / 2]).unwrap();
    assert!(import::inspect(&path).is_err());
    fs::remove_file(inner.join("hf_vit_external.data")).unwrap();
    assert!(import::inspect(&path).is_err());
}
