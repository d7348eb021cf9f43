use super::*;
use crate::vit::Activation;

fn geometry() -> Geometry {
    Geometry {
        dim: 4,
        depth: 2,
        heads: 2,
        hidden: 6,
        patch: 2,
        image: 4,
        registers: 1,
        position_grid: 2,
        norm_eps: 1e-6,
        activation: Activation::Gelu,
        layer_scale: false,
    }
}

fn tensors(g: &Geometry) -> Tensors {
    let lengths = layout(g).into_iter().map(Stored::given).enumerate();
    Tensors(
        lengths
            .map(|(k, n)| (0..n).map(|i| (k * 1000 + i) as f32).collect())
            .collect(),
    )
}

#[test]
fn what_was_written_is_mapped_aligned_and_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.weights");
    let (g, tensors) = (geometry(), tensors(&geometry()));
    let hash = Weights::write(&path, &g, &Preprocessing::HALF, &tensors).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!((weights.geometry(), weights.hash()), (&g, hash));
    assert_eq!(weights.embedding().positions, tensors.0[4]);
    let second = EMBEDDING_TENSORS + BLOCK_TENSORS;
    assert_eq!(weights.block(1).qkv_weight.unpack(), tensors.0[second + 2]);
    assert_eq!(weights.block(1).fc2_bias, tensors.0[second + 11]);
    assert_eq!(weights.final_norm().bias, tensors.0[tensors.0.len() - 1]);
    assert!(
        weights
            .block(0)
            .fc1_weight
            .data()
            .as_ptr()
            .addr()
            .is_multiple_of(ALIGNMENT)
    );
}

#[test]
fn a_cut_or_forged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.weights");
    let g = geometry();
    Weights::write(&path, &g, &Preprocessing::HALF, &tensors(&g)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 7, 15, 40, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(
            matches!(Weights::open(&path), Err(WeightsError::Malformed { .. })),
            "{cut}"
        );
    }
    for at in 16..60 {
        let mut forged = whole.clone();
        forged[at] ^= 0xff;
        std::fs::write(&path, &forged).unwrap();
        // Refused or still in bounds; never a panic.
        if let Ok(weights) = Weights::open(&path) {
            let _ = (weights.embedding(), weights.final_norm());
            for block in 0..weights.geometry().depth {
                let _ = weights.block(block);
            }
        }
    }
}

#[test]
fn one_changed_weight_is_another_model() {
    let g = geometry();
    let mut changed = tensors(&g);
    changed.0[7][0] += 1.0;
    assert_ne!(
        hash(&Preprocessing::HALF, &tensors(&g)),
        hash(&Preprocessing::HALF, &changed)
    );
}

fn hash(preprocessing: &Preprocessing, tensors: &Tensors) -> ContentHash {
    let tensors = tensors.0.iter().map(|tensor| Cow::Borrowed(&tensor[..]));
    content_hash(&geometry(), preprocessing, tensors)
}

#[test]
fn a_models_hash_is_what_it_was_when_states_were_written() {
    let g = geometry();
    assert_eq!(
        hash(&Preprocessing::IMAGENET, &tensors(&g)).to_string(),
        "4feca1055a6b2e7961e084b28c46c6795d0e69bcf14f8157e3613bc46f52e622"
    );
}

#[test]
fn a_weight_that_changed_on_disk_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.weights");
    let g = geometry();
    Weights::write(&path, &g, &Preprocessing::HALF, &tensors(&g)).unwrap();
    Weights::open(&path).unwrap().verify().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = Weights::open(&path).unwrap().verify().unwrap_err();
    assert!(refused.to_string().contains("are damaged"), "{refused}");
}
