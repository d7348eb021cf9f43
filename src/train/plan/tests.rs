//! Budgets that must work, and what a plan makes of them.

use super::*;
use crate::vit::Activation;

const MIB: usize = 1 << 20;

/// The default model's blocks, learning with 8 prompts at rank 16.
fn demand(resolution: Pixels, adapted: usize, threads: usize) -> Demand {
    Demand {
        geometry: Geometry {
            dim: 384,
            depth: 12,
            heads: 6,
            hidden: 1536,
            patch: 14,
            image: 224,
            registers: 0,
            position_grid: 37,
            norm_eps: 1e-6,
            activation: Activation::Gelu,
            layer_scale: true,
        },
        resolution,
        first_adapted: 12 - adapted,
        projections: 2,
        prompts: 8,
        rank: 16,
        taps: vec![6, 8, 10, 11, 12],
        classes: 10,
        task_classes: 6,
        images: 200,
        largest_class: 40,
        known: 4 * 6 * 3840,
        known_head: 4 * 6 * 3840,
        batch: 16,
        threads,
        later: false,
        bases: true,
    }
}

#[test]
fn the_promised_settings_fit_their_budgets_without_rounding_what_is_kept() {
    for (resolution, adapted, budget) in [(112, 4, 4), (112, 12, 8), (224, 4, 8), (224, 12, 16)] {
        for threads in [1, 2, 4] {
            for later in [false, true] {
                let mut demand = demand(resolution, adapted, threads);
                demand.later = later;
                if !later {
                    // Nothing is known before a first task.
                    (demand.known, demand.known_head) = (0, 0);
                }
                let plan = Plan::new(&demand, budget * MIB).unwrap();
                assert!(plan.bytes() <= budget * MIB);
                assert_eq!(plan.stack.checkpoints, Precision::F32, "{demand:?}");
            }
        }
    }
}

#[test]
fn a_refusal_names_the_smallest_budget_and_that_one_is_enough() {
    let demand = demand(224, 12, 2);
    let error = Plan::new(&demand, MIB).unwrap_err();
    assert!(Plan::new(&demand, error.smallest).is_ok());
    assert_eq!(
        Plan::new(&demand, error.smallest - 1).unwrap_err().smallest,
        error.smallest
    );
    let text = error.to_string();
    for word in [
        "--budget",
        "--resolution (to 112)",
        "--adapt-blocks (to 6)",
        "--rank (to 8)",
    ] {
        assert!(text.contains(word), "{word} is not in {text:?}");
    }
    // What tasks before settled cannot be lowered.
    let later = Demand {
        later: true,
        ..demand
    };
    let error = Plan::new(&later, MIB).unwrap_err();
    assert_eq!(error.lower, Vec::<String>::new());
    let text = error.to_string();
    assert!(
        text.contains("as the state file has it") && text.ends_with("raise --budget"),
        "{text}"
    );
}

#[test]
fn a_budget_that_grows_leaves_a_task_what_it_would_have_if_nothing_were_known() {
    let later = |known: usize| Demand {
        classes: known + 6,
        known: known * 30_000,
        known_head: known * 16_000,
        later: true,
        prompts: 0,
        ..demand(112, 4, 2)
    };
    let (growing, fixed) = (Budget::default(), Budget::Fixed(DEFAULT_BUDGET));
    let little = Plan::allowed(&later(20), growing).unwrap();
    assert_eq!((little.budget, little.bases), (DEFAULT_BUDGET, true));
    let mut before = DEFAULT_BUDGET;
    for known in [200, 400, 2000] {
        let demand = later(known);
        let plan = Plan::allowed(&demand, growing).unwrap();
        assert!(plan.bases && plan.bytes() <= plan.budget && plan.budget > before);
        // A known class takes 30 and 16 kB, its row of weights 15, and its distances to the others.
        let grown = known * 61_000 + 4 * known * known;
        assert!(plan.budget <= (DEFAULT_BUDGET + grown) / 16 * 17);
        before = plan.budget;
        assert!(Plan::allowed(&demand, fixed).is_err());
        assert!(Plan::within(&demand, fixed).budget > DEFAULT_BUDGET);
    }
    // What would not fit if nothing were known is refused, and M and N learn alone where they would.
    assert!(Plan::allowed(&demand(224, 12, 2), Budget::Growing(MIB)).is_err());
    let all_blocks = |known| Demand {
        prompts: 8,
        first_adapted: 0,
        ..later(known)
    };
    let tight = Plan::new(&all_blocks(0), 1).unwrap_err().smallest;
    let growing = Budget::Growing(tight);
    let little = Plan::allowed(&all_blocks(0), growing).unwrap();
    assert_eq!((little.budget, little.bases), (tight, false));
    let much = Plan::allowed(&all_blocks(200), growing).unwrap();
    assert!(much.budget > tight && !much.bases);
}

#[test]
fn at_the_promised_budgets_the_process_stays_within_a_quarter_more_than_the_weights() {
    for (adapted, resolution, budget) in [(4, 112, 4), (12, 112, 8), (4, 224, 8), (12, 224, 16)] {
        for threads in [1, 2, 4] {
            for later in [false, true] {
                let mut demand = demand(resolution, adapted, threads);
                demand.later = later;
                let plan = Plan::new(&demand, budget * MIB).unwrap();
                let (weights, block) = crate::vit::weights_bytes(&demand.geometry);
                let resident =
                    (adapted - plan.in_turns) * block + budget * MIB + process::PROGRAM_BYTES;
                assert!(4 * resident <= 5 * weights, "{demand:?}");
                assert!(plan.in_turns == 0 || plan.workers == 1);
            }
        }
    }
    // Where memory is plenty, nothing is given back.
    let plan = Plan::new(&demand(112, 12, 2), 64 * MIB).unwrap();
    assert_eq!((plan.in_turns, plan.workers), (0, 2));
}

#[test]
fn a_larger_budget_buys_workers_before_anything_else() {
    let plan = |threads, budget| Plan::new(&demand(112, 4, threads), budget).unwrap();
    let two = (16..256)
        .map(|quarters| plan(2, quarters * MIB / 4))
        .find(|plan| plan.workers == 2)
        .unwrap();
    // One worker would have had room for more than each of the two has.
    let one = plan(1, two.budget);
    let holds = |plan: &Plan| {
        let stack = &plan.stack;
        let tiles = [stack.mlp_rows, stack.mlp_columns, stack.attention_rows];
        (stack.images, stack.kept_insides, tiles)
    };
    assert!(holds(&one) > holds(&two), "{:?}", two.stack);
    assert!(plan(2, two.budget - MIB / 4).workers == 1);
    let large = plan(2, 64 * MIB);
    assert!(two.bytes() < large.bytes());
    assert_eq!((large.workers, large.stack.checkpoint_every), (2, 1));
    assert_eq!(large.stack.mlp_rows, usize::MAX);
}
