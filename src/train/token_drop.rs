//! Which patch tokens of an image take part in a training step.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Patch tokens that a step leaves out, drawn anew for every image (PatchDropout, Liu et al., arXiv
/// 2208.07220): the adapters cannot lean on one spot of a few pictures, and a step has less to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenDrop {
    /// Share that is left out, from 0 to 1; one patch stays in any case.
    pub share: f32,
    /// Draws them, together with the index of the image.
    pub seed: u64,
}

impl TokenDrop {
    /// Every token takes part.
    pub const NONE: Self = Self {
        share: 0.0,
        seed: 0,
    };

    /// Patches of `patches` that take part.
    pub(super) fn patches(&self, patches: usize) -> usize {
        let kept = (patches as f32 * (1.0 - self.share)).round() as usize;
        kept.clamp(1, patches.max(1)).min(patches)
    }

    /// Writes the tokens of `image` that take part, ascending: those before the first patch and a
    /// draw of the patches, of which there are `patches`.
    /// Allocates nothing where `kept` has room for all tokens.
    pub(super) fn draw(
        &self,
        image: usize,
        first_patch: usize,
        patches: usize,
        kept: &mut Vec<usize>,
    ) {
        kept.clear();
        kept.extend(0..first_patch + patches);
        let wanted = self.patches(patches);
        if wanted == patches {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(image as u64);
        let drawn = &mut kept[first_patch..];
        for i in 0..wanted {
            drawn.swap(i, rng.random_range(i..patches));
        }
        drawn[..wanted].sort_unstable();
        kept.truncate(first_patch + wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(drop: TokenDrop, image: usize) -> Vec<usize> {
        let mut kept = Vec::new();
        drop.draw(image, 3, 64, &mut kept);
        kept
    }

    #[test]
    fn the_tokens_before_the_patches_and_a_share_of_the_patches_stay_in_order() {
        let drop = TokenDrop {
            share: 0.5,
            seed: 7,
        };
        let kept = drawn(drop, 4);
        assert_eq!((&kept[..3], kept.len()), (&[0, 1, 2][..], 3 + 32));
        assert!(kept.is_sorted_by(|a, b| a < b) && kept[34] < 67);
        assert_eq!(kept, drawn(drop, 4));
        assert_ne!(kept, drawn(drop, 5));
        assert_ne!(kept, drawn(TokenDrop { seed: 8, ..drop }, 4));
        assert_eq!(drawn(TokenDrop::NONE, 4), (0..67).collect::<Vec<_>>());
    }

    #[test]
    fn every_patch_is_kept_as_often_as_any_other() {
        let mut seen = [0usize; 67];
        for image in 0..2000 {
            let drop = TokenDrop {
                share: 0.75,
                seed: 1,
            };
            drawn(drop, image).into_iter().for_each(|t| seen[t] += 1);
        }
        assert_eq!(&seen[..3], [2000; 3]);
        // Binomial with a mean of 500 and a deviation of 19.4: beyond five of these is no chance.
        assert!(
            seen[3..].iter().all(|n| (403..=597).contains(n)),
            "{seen:?}"
        );
    }

    #[test]
    fn one_patch_stays_however_large_the_share() {
        let drop = TokenDrop {
            share: 0.999,
            seed: 0,
        };
        assert_eq!(drop.patches(64), 1);
        assert_eq!(drop.patches(1), 1);
    }
}
