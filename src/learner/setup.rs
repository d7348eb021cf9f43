//! What a new state is made with, and whether one that is there fits its model.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::adapt::{Adapters, Projection, RankSelector};
use crate::head::{Calibration, Layout, Statistics};
use crate::state::{Knowledge, ModelIdentity};
use crate::train::plan::Demand;
use crate::vit::{ContentHash, Geometry, Pixels, PrefixError, Weights, check_resolution};

/// How many of a model's blocks carry adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdaptBlocks {
    /// The last so many.
    Last(usize),
    All,
}

/// What carries adapters in an adapted block.
const PROJECTIONS: [Projection; 2] = [Projection::Query, Projection::Value];

/// What a new state is made with, and cannot change afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    pub resolution: Pixels,
    pub adapt_blocks: AdaptBlocks,
    /// Rank r of the shared bases.
    pub rank: usize,
    /// Number of prompt tokens.
    pub prompts: usize,
    /// Taps of the head; `None` for those of [`default_taps`].
    pub taps: Option<Vec<usize>>,
    /// Draws the first bases and prompts.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            resolution: 112,
            adapt_blocks: AdaptBlocks::Last(4),
            rank: 16,
            prompts: 0,
            taps: None,
            seed: 0,
        }
    }
}

impl Setup {
    /// The defaults for a model of `depth` blocks, which may be fewer than would be adapted.
    pub fn for_depth(depth: usize) -> Self {
        let mut setup = Self::default();
        if matches!(setup.adapt_blocks, AdaptBlocks::Last(n) if n > depth) {
            setup.adapt_blocks = AdaptBlocks::All;
        }
        setup
    }

    /// What the first task takes in a state made with this, for a head that knows `classes` classes in
    /// the end, `images` images in steps of `batch`, and `threads` threads.
    ///
    /// # Errors
    /// When the setup does not fit the model.
    pub fn demand(
        &self,
        geometry: &Geometry,
        classes: usize,
        images: usize,
        batch: usize,
        threads: usize,
    ) -> Result<Demand, SetupError> {
        check_resolution(geometry, self.resolution)?;
        let depth = geometry.depth;
        let first_adapted = match self.adapt_blocks {
            AdaptBlocks::All => 0,
            AdaptBlocks::Last(n) if (1..=depth).contains(&n) => depth - n,
            AdaptBlocks::Last(asked) => return Err(SetupError::AdaptBlocks { asked, depth }),
        };
        if !(1..=geometry.dim).contains(&self.rank) {
            return Err(SetupError::Rank {
                asked: self.rank,
                limit: geometry.dim,
            });
        }
        let mut taps = self.taps.clone().unwrap_or_else(|| default_taps(depth));
        taps.sort_unstable();
        taps.dedup();
        if let Some(&tap) = taps.iter().find(|tap| !(1..=depth).contains(tap)) {
            return Err(SetupError::Tap { tap, depth });
        }
        if taps.last().is_none_or(|&last| last <= first_adapted) {
            return Err(SetupError::NoAdaptedTap {
                least: first_adapted + 1,
                depth,
            });
        }
        let patches = geometry.grid(self.resolution).pow(2);
        if self.prompts > patches {
            return Err(SetupError::Prompts {
                asked: self.prompts,
                patches,
            });
        }
        Ok(Demand {
            geometry: geometry.clone(),
            resolution: self.resolution,
            first_adapted,
            projections: PROJECTIONS.len(),
            prompts: self.prompts,
            rank: self.rank,
            taps,
            classes,
            task_classes: classes,
            images,
            largest_class: images.div_ceil(classes.max(1)),
            known: 0,
            known_head: 0,
            batch,
            threads,
            later: false,
            bases: true,
        })
    }
}

/// A learner cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Resolution(#[from] PrefixError),
    #[error("cannot adapt {asked} blocks: the model has {depth}; choose 1 to {depth}, or all")]
    AdaptBlocks { asked: usize, depth: usize },
    #[error("rank {asked} is out of range; choose 1 to {limit} (the model's width)")]
    Rank { asked: usize, limit: usize },
    #[error("tap {tap} does not exist: the model has blocks 1 to {depth}")]
    Tap { tap: usize, depth: usize },
    #[error(
        "the head reads no adapted block: choose a tap from {least} to {depth}, or adapt more blocks"
    )]
    NoAdaptedTap { least: usize, depth: usize },
    #[error(
        "{asked} prompts are too many: an image has {patches} patches to start them from; choose up to {patches}, or a larger resolution"
    )]
    Prompts { asked: usize, patches: usize },
    #[error("a task cannot add rank {asked} to bases of rank {limit}; choose 1 to {limit}")]
    TaskRank { asked: usize, limit: usize },
    #[error(
        "this state was learned with the model {name} ({learned_with}), not with this one ({given}): import that model again with `fledge model get`, or start a new state file"
    )]
    OtherModel {
        name: String,
        learned_with: ContentHash,
        given: ContentHash,
    },
    #[error("the state does not fit its model ({0}); restore it from a copy")]
    Inconsistent(&'static str),
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        threads: usize,
        source: rayon::ThreadPoolBuildError,
    },
}

/// Taps for a model of `depth` blocks: after 6, 8, 10, 11 and 12 twelfths of them, which did best
/// of the sets tried on the default model (`docs/method.md`).
pub fn default_taps(depth: usize) -> Vec<usize> {
    let mut taps: Vec<usize> = [6, 8, 10, 11, 12]
        .iter()
        .map(|twelfths| (depth * twelfths).div_ceil(12).max(1))
        .collect();
    taps.dedup();
    taps
}

/// Threads to work with: `asked`, or one a core when 0.
///
/// # Errors
/// When the threads cannot be started.
pub fn thread_pool(asked: usize) -> Result<rayon::ThreadPool, SetupError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(asked)
        .build()
        .map_err(|source| SetupError::Threads {
            threads: asked,
            source,
        })
}

/// What is known before anything is learned.
pub(super) fn blank(
    weights: &Weights,
    model: &str,
    setup: &Setup,
) -> Result<Knowledge, SetupError> {
    let geometry = weights.geometry();
    let Demand {
        first_adapted,
        taps,
        ..
    } = setup.demand(geometry, 0, 0, 1, 1)?;
    let depth = geometry.depth;
    let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
    let adapters = Adapters::new(
        geometry.dim,
        setup.rank,
        first_adapted..depth,
        &PROJECTIONS,
        setup.prompts,
        &mut rng,
    );
    let layout = Layout {
        parts: 2 * taps.len(),
        dim: geometry.dim,
    };
    Ok(Knowledge {
        model: ModelIdentity {
            name: model.to_owned(),
            hash: weights.hash(),
        },
        resolution: setup.resolution,
        taps,
        first_adapted,
        adapters,
        ranks: RankSelector::new(setup.rank),
        head: Statistics::new(layout),
        calibration: Calibration::default(),
        classes: Vec::new(),
        tasks: Vec::new(),
    })
}

/// Everything that later arithmetic relies on; a state file with a valid checksum that was not
/// written by fledge must not lead to a panic.
pub(super) fn check_consistent(weights: &Weights, k: &Knowledge) -> Result<(), SetupError> {
    let g = weights.geometry();
    check_resolution(g, k.resolution)?;
    let (d, r) = (g.dim, k.adapters.rank);
    let holds = |condition: bool, what: &'static str| {
        condition
            .then_some(())
            .ok_or(SetupError::Inconsistent(what))
    };
    holds(k.first_adapted < g.depth, "its adapted blocks do not exist")?;
    holds(
        k.adapters.dim == d && (1..=d).contains(&r),
        "its adapters have another width",
    )?;
    holds(k.ranks.fits(r), "its ranks do not fit its adapters")?;
    let sites = k.adapters.sites.iter().all(|site| {
        (k.first_adapted..g.depth).contains(&site.block)
            && site.a.len() == d * r
            && site.b.len() == d * r
            && site.core.len() == r * r
            && site.gram.len() == r * r
    });
    holds(sites, "an adapter has the wrong shape")?;
    let ordered = k
        .adapters
        .sites
        .is_sorted_by(|a, b| (a.block, a.projection as usize) < (b.block, b.projection as usize));
    holds(ordered, "its adapters are out of order")?;
    holds(
        k.adapters.prompts.len().is_multiple_of(d)
            && k.adapters.prompt_fisher.len() == k.adapters.prompts.len(),
        "its prompts have another width",
    )?;
    let taps =
        k.taps.is_sorted_by(|a, b| a < b) && k.taps.iter().all(|t| (1..=g.depth).contains(t));
    holds(taps, "its taps do not exist")?;
    holds(
        k.taps.last().is_some_and(|&last| last > k.first_adapted),
        "its head reads no adapted block",
    )?;
    let layout = Layout {
        parts: 2 * k.taps.len(),
        dim: d,
    };
    holds(k.head.layout() == layout, "its head has another shape")?;
    holds(k.head.check().is_ok(), "its head is damaged")?;
    let known = |class: u32| (class as usize) < k.classes.len();
    holds(
        k.head.classes().into_iter().all(known),
        "its head knows a class without a name",
    )?;
    holds(
        k.tasks.is_sorted_by(|a, b| a.id < b.id),
        "its tasks are out of order",
    )?;
    holds(
        k.tasks
            .iter()
            .flat_map(|task| &task.classes)
            .all(|taught| known(taught.class)),
        "a task has a class without a name",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vit::Activation;

    #[test]
    fn setups_that_cannot_learn_are_refused_with_what_to_choose() {
        let geometry = Geometry {
            dim: 12,
            depth: 4,
            heads: 3,
            hidden: 24,
            patch: 7,
            image: 28,
            registers: 0,
            position_grid: 4,
            norm_eps: 1e-6,
            activation: Activation::Gelu,
            layer_scale: false,
        };
        let fits = Setup {
            resolution: 28,
            adapt_blocks: AdaptBlocks::Last(2),
            rank: 4,
            prompts: 16,
            taps: Some(vec![2, 3]),
            seed: 0,
        };
        let refusal = |change: &dyn Fn(&mut Setup)| {
            let mut setup = fits.clone();
            change(&mut setup);
            let demand = setup.demand(&geometry, 2, 10, 4, 1);
            demand.err().map(|error| error.to_string())
        };
        assert_eq!(refusal(&|_| ()), None);
        let refused = [
            refusal(&|s| s.taps = Some(vec![1, 2])),
            refusal(&|s| s.taps = Some(Vec::new())),
            refusal(&|s| s.taps = Some(vec![5])),
            refusal(&|s| s.prompts = 17),
            refusal(&|s| s.prompts = usize::MAX),
            refusal(&|s| s.rank = 13),
            refusal(&|s| s.adapt_blocks = AdaptBlocks::Last(5)),
        ];
        let told = [
            "from 3 to 4",
            "from 3 to 4",
            "blocks 1 to 4",
            "up to 16",
            "up to 16",
            "1 to 12",
            "1 to 4",
        ];
        for (refused, told) in refused.into_iter().zip(told) {
            let refused = refused.unwrap_or_default();
            assert!(refused.contains(told), "{told}: {refused}");
        }
    }
}
