//! What the birds stand on.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tiny_skia::{Pixmap, Transform};

use super::brush::{Brush, blob, curve, mix, near, polygon};
use super::species::Rgb;

/// What the bird stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Perch {
    Branch,
    Post,
    Ground,
    Rock,
}

const PERCHES: [Perch; 4] = [Perch::Branch, Perch::Post, Perch::Ground, Perch::Rock];

impl Perch {
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        PERCHES[rng.random_range(0..PERCHES.len())]
    }

    /// Paints what the bird stands on; `feet` in pixels.
    pub fn paint(self, picture: &mut Pixmap, feet: [f32; 2], scale: f32, rng: &mut ChaCha8Rng) {
        let side = picture.width() as f32;
        let mut brush = Brush {
            picture,
            place: Transform::identity(),
            mask: None,
        };
        match self {
            Self::Branch => branch(&mut brush, feet, side, scale, rng),
            Self::Post => post(&mut brush, feet, side, scale, rng),
            Self::Ground => ground(&mut brush, feet, side, scale, rng),
            Self::Rock => rock(&mut brush, feet, scale, rng),
        }
    }
}

fn branch(brush: &mut Brush<'_>, feet: [f32; 2], side: f32, scale: f32, rng: &mut ChaCha8Rng) {
    let barks: [Rgb; 3] = [[92, 70, 52], [116, 104, 92], [70, 58, 50]];
    let bark = near(barks[rng.random_range(0..3_usize)], 10, rng);
    let width = scale * rng.random_range(9.0..17.0_f32);
    let slope = rng.random_range(-0.22..0.22_f32);
    let (left, right) = (
        feet[1] - slope * feet[0],
        feet[1] + slope * (side - feet[0]),
    );
    let drop = width * 0.42;
    let bow = rng.random_range(-0.04..0.04_f32) * side;
    // The middle control point is chosen so that the curve passes under the feet.
    let share = (feet[0] / side).clamp(0.2, 0.8);
    let lift = 2.0 * share * (1.0 - share) * bow;
    let line = |above: f32| {
        curve(
            [-6.0, left + drop - above - lift],
            [side / 2.0, (left + right) / 2.0 + drop + bow - above - lift],
            [side + 6.0, right + drop - above - lift],
        )
    };
    if let (Some(under), Some(top)) = (line(0.0), line(width * 0.22)) {
        brush.line(&under, width, mix(bark, [0, 0, 0], 0.3), 1.0);
        brush.line(&top, width * 0.56, bark, 1.0);
    }
    for _ in 0..rng.random_range(0..4) {
        let x = rng.random_range(0.0..side);
        let y = feet[1] + slope * (x - feet[0]) + drop;
        let reach = scale * rng.random_range(16.0..44.0_f32);
        let lean = rng.random_range(-0.8..0.8_f32) * reach;
        let down = if rng.random_bool(0.6) { 1.0 } else { -0.7 };
        if let Some(twig) = curve(
            [x, y],
            [x + lean * 0.3, y + down * reach * 0.6],
            [x + lean, y + down * reach],
        ) {
            brush.line(&twig, width * 0.22, mix(bark, [0, 0, 0], 0.15), 1.0);
        }
        let leaf = near([104, 138, 62], 34, rng);
        brush.patch(
            [x + lean, y + down * reach],
            [scale * 9.0, scale * 4.5],
            rng.random_range(0.0..180.0),
            0.1,
            leaf,
            1.0,
        );
    }
}

fn post(brush: &mut Brush<'_>, feet: [f32; 2], side: f32, scale: f32, rng: &mut ChaCha8Rng) {
    let wood = near([132, 118, 100], 18, rng);
    let half = scale * rng.random_range(20.0..34.0_f32);
    let top = feet[1] - scale;
    let shape = polygon(&[
        [feet[0] - half, top],
        [feet[0] + half, top],
        [feet[0] + half * 0.96, side + 4.0],
        [feet[0] - half * 0.96, side + 4.0],
    ]);
    if let Some(path) = shape {
        let dark = mix(wood, [0, 0, 0], 0.4);
        brush.gradient(
            &path,
            [feet[0] - half, 0.0],
            [feet[0] + half, 0.0],
            &[
                (0.0, mix(wood, [255, 255, 255], 0.1), 1.0),
                (0.55, wood, 1.0),
                (1.0, dark, 1.0),
            ],
        );
    }
    for _ in 0..9 {
        let x = feet[0] + rng.random_range(-0.9..0.9_f32) * half;
        if let Some(grain) = curve(
            [x, top + 2.0],
            [x + 1.5, (top + side) / 2.0],
            [x - 1.0, side],
        ) {
            brush.line(&grain, 1.0, mix(wood, [0, 0, 0], 0.45), 0.5);
        }
    }
    brush.patch(
        [feet[0], top],
        [half, scale * 4.0],
        0.0,
        0.05,
        mix(wood, [255, 255, 255], 0.2),
        1.0,
    );
}

fn ground(brush: &mut Brush<'_>, feet: [f32; 2], side: f32, scale: f32, rng: &mut ChaCha8Rng) {
    let soils: [Rgb; 4] = [
        [112, 128, 62],
        [138, 112, 84],
        [232, 236, 242],
        [160, 156, 150],
    ];
    let soil = near(soils[rng.random_range(0..4_usize)], 12, rng);
    let horizon = feet[1] - scale * rng.random_range(10.0..22.0_f32);
    let shape = blob(
        [-4.0, horizon],
        &[
            [
                [side * 0.3, horizon - 6.0],
                [side * 0.7, horizon + 5.0],
                [side + 4.0, horizon - 2.0],
            ],
            [
                [side + 4.0, side],
                [side + 4.0, side],
                [side + 4.0, side + 8.0],
            ],
            [[side, side + 8.0], [0.0, side + 8.0], [-4.0, side + 8.0]],
        ],
    );
    if let Some(path) = shape {
        brush.gradient(
            &path,
            [0.0, horizon],
            [0.0, side],
            &[
                (0.0, mix(soil, [255, 255, 255], 0.12), 1.0),
                (1.0, mix(soil, [0, 0, 0], 0.22), 1.0),
            ],
        );
    }
    for _ in 0..60 {
        let at = [
            rng.random_range(0.0..side),
            rng.random_range(horizon + 3.0..side + 4.0),
        ];
        let tone = mix(
            near(soil, 20, rng),
            [20, 20, 16],
            rng.random_range(0.0..0.3),
        );
        brush.patch(
            at,
            [scale * rng.random_range(1.5..6.0), scale * 1.6],
            rng.random_range(-12.0..12.0),
            0.3,
            tone,
            0.7,
        );
    }
    brush.patch(
        [feet[0], feet[1] + scale],
        [scale * 52.0, scale * 8.0],
        0.0,
        0.9,
        [24, 22, 26],
        0.5,
    );
}

fn rock(brush: &mut Brush<'_>, feet: [f32; 2], scale: f32, rng: &mut ChaCha8Rng) {
    let stone = near([138, 134, 130], 20, rng);
    let (x, y) = (feet[0], feet[1]);
    let wide = scale * rng.random_range(52.0..80.0_f32);
    let deep = scale * 200.0;
    let shape = blob(
        [x - wide, y + scale * 34.0],
        &[
            [
                [x - wide * 0.9, y + scale * 4.0],
                [x - wide * 0.4, y - scale * 2.0],
                [x, y - scale],
            ],
            [
                [x + wide * 0.5, y - scale],
                [x + wide * 0.8, y + scale * 8.0],
                [x + wide, y + scale * 30.0],
            ],
            [
                [x + wide * 1.3, y + deep * 0.5],
                [x + wide * 1.5, y + deep],
                [x, y + deep],
            ],
            [
                [x - wide * 1.5, y + deep],
                [x - wide * 1.2, y + deep * 0.5],
                [x - wide, y + scale * 34.0],
            ],
        ],
    );
    if let Some(path) = shape {
        brush.gradient(
            &path,
            [x - wide, y],
            [x + wide * 0.6, y + scale * 90.0],
            &[
                (0.0, mix(stone, [255, 255, 255], 0.3), 1.0),
                (0.5, stone, 1.0),
                (1.0, mix(stone, [0, 0, 0], 0.45), 1.0),
            ],
        );
    }
    for _ in 0..8 {
        let at = [
            x + rng.random_range(-0.7..0.7_f32) * wide,
            y + scale * rng.random_range(8.0..60.0_f32),
        ];
        brush.patch(
            at,
            [scale * rng.random_range(3.0..12.0), scale * 4.0],
            0.0,
            0.5,
            near([146, 150, 112], 24, rng),
            0.6,
        );
    }
}
