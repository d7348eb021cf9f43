//! The birds of the first day.

use super::{Beak, Species, Tail, TailEnd, Wing, patch, streaks, stripe};

const ROBIN: Species = Species {
    name: "robin",
    depth: 66.0,
    head: 23.0,
    upright: 24.0,
    size: 1.0,
    back: [122, 104, 78],
    head_colour: [122, 102, 76],
    belly: [226, 220, 208],
    legs: [120, 82, 60],
    eye_ring: None,
    tail: Tail {
        length: 44.0,
        width: 13.0,
        cocked: 8.0,
        end: TailEnd::Square,
        colour: [104, 86, 62],
    },
    beak: Beak {
        length: 0.62,
        depth: 0.3,
        colour: [58, 50, 46],
    },
    wing: Wing {
        colour: [114, 94, 66],
        tip: [88, 72, 52],
        marks: &[],
    },
    body_marks: &[
        patch([26.0, 16.0], [10.0, 26.0], 25.0, [168, 170, 170], 0.6),
        patch([42.0, -4.0], [27.0, 31.0], 20.0, [222, 98, 34], 0.25),
    ],
    head_marks: &[
        patch([0.62, 0.35], [0.78, 0.72], 0.0, [222, 98, 34], 0.15),
        patch([0.5, -0.5], [0.5, 0.14], 20.0, [222, 98, 34], 0.3),
    ],
};

const BLACKBIRD: Species = Species {
    name: "blackbird",
    depth: 56.0,
    head: 20.0,
    upright: 12.0,
    size: 1.08,
    back: [34, 33, 36],
    head_colour: [30, 29, 32],
    belly: [44, 42, 44],
    legs: [70, 52, 38],
    eye_ring: Some([240, 176, 40]),
    tail: Tail {
        length: 66.0,
        width: 17.0,
        cocked: 6.0,
        end: TailEnd::Round,
        colour: [26, 25, 28],
    },
    beak: Beak {
        length: 0.95,
        depth: 0.36,
        colour: [243, 158, 30],
    },
    wing: Wing {
        colour: [32, 31, 34],
        tip: [22, 21, 24],
        marks: &[],
    },
    body_marks: &[],
    head_marks: &[],
};

const KINGFISHER: Species = Species {
    name: "kingfisher",
    depth: 58.0,
    head: 26.0,
    upright: 34.0,
    size: 0.96,
    back: [22, 124, 184],
    head_colour: [18, 98, 150],
    belly: [226, 128, 48],
    legs: [214, 74, 44],
    eye_ring: None,
    tail: Tail {
        length: 20.0,
        width: 13.0,
        cocked: 0.0,
        end: TailEnd::Round,
        colour: [24, 92, 168],
    },
    beak: Beak {
        length: 1.85,
        depth: 0.42,
        colour: [40, 38, 44],
    },
    wing: Wing {
        colour: [16, 106, 142],
        tip: [14, 70, 112],
        marks: &[streaks([4.0, -8.0], [20.0, 9.0], 26, [110, 214, 236])],
    },
    body_marks: &[patch(
        [-34.0, -14.0],
        [24.0, 8.0],
        28.0,
        [92, 212, 240],
        0.5,
    )],
    head_marks: &[
        patch([0.1, 0.28], [0.62, 0.26], 8.0, [224, 126, 46], 0.1),
        patch([-0.62, 0.36], [0.34, 0.24], 20.0, [246, 242, 232], 0.1),
        patch([0.5, 0.92], [0.62, 0.34], 12.0, [246, 242, 232], 0.15),
        stripe([0.9, 0.06], [0.6, 0.02], [0.3, -0.02], 0.14, [30, 42, 60]),
        streaks([-0.1, -0.6], [0.8, 0.34], 22, [96, 200, 230]),
    ],
};

const BLUE_TIT: Species = Species {
    name: "blue tit",
    depth: 62.0,
    head: 25.0,
    upright: 14.0,
    size: 0.88,
    back: [120, 148, 84],
    head_colour: [240, 242, 240],
    belly: [240, 208, 62],
    legs: [82, 98, 122],
    eye_ring: None,
    tail: Tail {
        length: 38.0,
        width: 12.0,
        cocked: 4.0,
        end: TailEnd::Notched,
        colour: [66, 112, 172],
    },
    beak: Beak {
        length: 0.4,
        depth: 0.32,
        colour: [46, 48, 56],
    },
    wing: Wing {
        colour: [72, 122, 184],
        tip: [52, 90, 150],
        marks: &[stripe(
            [10.0, -16.0],
            [-4.0, -6.0],
            [-6.0, 10.0],
            4.0,
            [240, 242, 244],
        )],
    },
    body_marks: &[],
    head_marks: &[
        patch([-0.04, -0.96], [0.92, 0.58], -4.0, [58, 124, 204], 0.05),
        stripe([1.0, 0.0], [0.3, -0.12], [-0.95, 0.02], 0.16, [28, 38, 66]),
        stripe([-0.88, -0.1], [-0.7, 0.7], [0.35, 0.98], 0.2, [34, 52, 100]),
        patch([0.72, 0.78], [0.34, 0.26], 20.0, [30, 44, 84], 0.1),
    ],
};

/// What fledge meets on the first day.
pub const FIRST_TASK: [Species; 4] = [ROBIN, BLACKBIRD, KINGFISHER, BLUE_TIT];
