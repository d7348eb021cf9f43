//! What tells one model from another.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Preprocessing;
use super::file::little_endian;
use crate::vit::{Activation, Geometry};

/// SHA-256 over geometry, preprocessing and every weight: the identity of a model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl std::fmt::Display for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// What the hash of a model begins with. It is spelled out because states name their model by this hash: it
/// must not change with a field's name or with what the compiler derives.
fn description(g: &Geometry, p: &Preprocessing) -> String {
    let activation = match g.activation {
        Activation::Gelu => "Gelu",
        Activation::GeluTanh => "GeluTanh",
    };
    format!(
        "Geometry {{ dim: {}, depth: {}, heads: {}, hidden: {}, patch: {}, image: {}, registers: {}, \
         position_grid: {}, norm_eps: {:?}, activation: {activation}, layer_scale: {} }}\
         Preprocessing {{ mean: {:?}, std: {:?} }}",
        g.dim,
        g.depth,
        g.heads,
        g.hidden,
        g.patch,
        g.image,
        g.registers,
        g.position_grid,
        g.norm_eps,
        g.layer_scale,
        p.mean,
        p.std,
    )
}

/// Of the tensors as an import produces them.
pub(super) fn content_hash<'t>(
    g: &Geometry,
    p: &Preprocessing,
    tensors: impl Iterator<Item = Cow<'t, [f32]>>,
) -> ContentHash {
    let mut hasher = Sha256::new();
    hasher.update(description(g, p));
    for tensor in tensors {
        hasher.update(little_endian(&tensor));
    }
    ContentHash(hasher.finalize().into())
}
