//! The birds of the second day.

use super::{Beak, Species, Tail, TailEnd, Wing, patch, streaks, stripe};

const SPARROW: Species = Species {
    name: "sparrow",
    depth: 60.0,
    head: 23.0,
    upright: 14.0,
    size: 1.0,
    back: [150, 104, 62],
    head_colour: [206, 202, 194],
    belly: [200, 194, 184],
    legs: [176, 124, 96],
    eye_ring: None,
    tail: Tail {
        length: 44.0,
        width: 13.0,
        cocked: 4.0,
        end: TailEnd::Notched,
        colour: [94, 74, 56],
    },
    beak: Beak {
        length: 0.56,
        depth: 0.52,
        colour: [44, 42, 44],
    },
    wing: Wing {
        colour: [148, 92, 48],
        tip: [88, 64, 44],
        marks: &[
            streaks([-18.0, 2.0], [26.0, 12.0], 26, [58, 42, 30]),
            stripe(
                [14.0, -14.0],
                [2.0, -4.0],
                [2.0, 10.0],
                4.2,
                [238, 232, 220],
            ),
        ],
    },
    body_marks: &[
        streaks([-8.0, -22.0], [30.0, 9.0], 26, [64, 46, 34]),
        patch([48.0, -10.0], [16.0, 14.0], 10.0, [46, 42, 42], 0.35),
    ],
    head_marks: &[
        patch([0.06, -0.98], [1.0, 0.56], 4.0, [126, 124, 124], 0.08),
        stripe([0.3, -0.2], [-0.6, -0.7], [-0.95, 0.5], 0.36, [138, 76, 38]),
        patch([-0.95, 0.3], [0.4, 0.7], -20.0, [138, 76, 38], 0.3),
        stripe([1.0, 0.0], [0.5, -0.1], [0.1, -0.16], 0.24, [44, 40, 40]),
        patch([0.74, 0.82], [0.44, 0.52], 0.0, [44, 40, 40], 0.1),
    ],
};

const WREN: Species = Species {
    name: "wren",
    depth: 72.0,
    head: 24.0,
    upright: 6.0,
    size: 0.8,
    back: [140, 88, 50],
    head_colour: [144, 94, 56],
    belly: [198, 168, 130],
    legs: [168, 122, 92],
    eye_ring: None,
    tail: Tail {
        length: 30.0,
        width: 13.0,
        cocked: 72.0,
        end: TailEnd::Round,
        colour: [122, 72, 38],
    },
    beak: Beak {
        length: 0.72,
        depth: 0.2,
        colour: [96, 74, 56],
    },
    wing: Wing {
        colour: [132, 78, 42],
        tip: [104, 62, 34],
        marks: &[streaks([-8.0, 0.0], [34.0, 14.0], 44, [66, 40, 24])],
    },
    body_marks: &[
        patch([40.0, -10.0], [22.0, 30.0], 20.0, [204, 176, 138], 0.6),
        streaks([0.0, 22.0], [34.0, 10.0], 26, [124, 92, 62]),
        streaks([-22.0, -16.0], [22.0, 12.0], 22, [74, 44, 26]),
    ],
    head_marks: &[
        stripe(
            [0.82, -0.22],
            [0.1, -0.5],
            [-0.82, -0.08],
            0.13,
            [230, 204, 166],
        ),
        stripe([0.9, 0.02], [0.2, -0.2], [-0.72, 0.14], 0.16, [98, 60, 36]),
        streaks([-0.1, 0.45], [0.5, 0.3], 12, [104, 68, 42]),
        patch([0.66, 0.72], [0.5, 0.5], 0.0, [214, 188, 152], 0.85),
    ],
};

const GOLDFINCH: Species = Species {
    name: "goldfinch",
    depth: 56.0,
    head: 22.0,
    upright: 16.0,
    size: 0.92,
    back: [178, 136, 92],
    head_colour: [240, 236, 226],
    belly: [236, 226, 208],
    legs: [186, 140, 118],
    eye_ring: None,
    tail: Tail {
        length: 42.0,
        width: 12.0,
        cocked: 2.0,
        end: TailEnd::Notched,
        colour: [30, 28, 30],
    },
    beak: Beak {
        length: 0.72,
        depth: 0.44,
        colour: [232, 212, 188],
    },
    wing: Wing {
        colour: [32, 30, 32],
        tip: [24, 22, 24],
        marks: &[
            patch([-16.0, 4.0], [25.0, 6.5], -14.0, [250, 210, 36], 0.05),
            patch([-56.0, 8.0], [5.0, 2.6], -20.0, [244, 242, 238], 0.1),
        ],
    },
    body_marks: &[patch([38.0, 6.0], [18.0, 16.0], 20.0, [198, 158, 112], 0.5)],
    head_marks: &[
        patch([-0.3, -1.0], [0.8, 0.6], -14.0, [30, 28, 30], 0.05),
        stripe([-0.5, -0.72], [-0.86, 0.0], [-0.5, 0.5], 0.34, [30, 28, 30]),
        patch([0.66, 0.04], [0.48, 0.86], 10.0, [206, 36, 34], 0.05),
    ],
};

const BULLFINCH: Species = Species {
    name: "bullfinch",
    depth: 70.0,
    head: 25.0,
    upright: 22.0,
    size: 1.02,
    back: [128, 136, 148],
    head_colour: [26, 26, 32],
    belly: [232, 112, 104],
    legs: [96, 74, 68],
    eye_ring: None,
    tail: Tail {
        length: 42.0,
        width: 13.0,
        cocked: 0.0,
        end: TailEnd::Notched,
        colour: [24, 24, 32],
    },
    beak: Beak {
        length: 0.42,
        depth: 0.62,
        colour: [30, 30, 34],
    },
    wing: Wing {
        colour: [104, 112, 124],
        tip: [26, 26, 36],
        marks: &[stripe(
            [-2.0, -16.0],
            [-16.0, -2.0],
            [-18.0, 14.0],
            6.0,
            [238, 238, 240],
        )],
    },
    body_marks: &[
        patch([-34.0, 24.0], [18.0, 12.0], -30.0, [244, 240, 238], 0.4),
        patch([40.0, -4.0], [30.0, 42.0], 26.0, [232, 112, 104], 0.18),
    ],
    head_marks: &[
        patch([-0.02, 0.92], [1.02, 0.9], -10.0, [232, 112, 104], 0.06),
        patch([0.82, 0.5], [0.26, 0.26], 0.0, [26, 26, 32], 0.1),
    ],
};

/// What fledge meets on the second day.
pub const SECOND_TASK: [Species; 4] = [SPARROW, WREN, GOLDFINCH, BULLFINCH];
