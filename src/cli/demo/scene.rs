//! Where the birds sit: the backgrounds. None of it depends on the
//! species, so a background never gives a bird away.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tiny_skia::{FilterQuality, Pixmap, PixmapPaint, Transform};

use super::brush::{Brush, blob, curve, mix, near, polygon};
use super::perch::Perch;
use super::species::Rgb;

/// What is behind the bird.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backdrop {
    Sky,
    Leaves,
    Meadow,
    Snow,
    Bricks,
    Reeds,
}

const BACKDROPS: [Backdrop; 6] = [
    Backdrop::Sky,
    Backdrop::Leaves,
    Backdrop::Meadow,
    Backdrop::Snow,
    Backdrop::Bricks,
    Backdrop::Reeds,
];

/// One place at one time of day.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub backdrop: Backdrop,
    pub perch: Perch,
    /// 1 is focused; larger is a softer background.
    pub softness: u32,
}

impl Scene {
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        Self {
            backdrop: BACKDROPS[rng.random_range(0..BACKDROPS.len())],
            perch: Perch::random(rng),
            softness: [1, 2, 3, 4, 6][rng.random_range(0..5_usize)],
        }
    }

    /// Paints the background: small, then enlarged, which blurs it as a lens would.
    pub fn paint_backdrop(&self, picture: &mut Pixmap, rng: &mut ChaCha8Rng) {
        let side = picture.width() as f32;
        let Some(mut small) = Pixmap::new(
            picture.width().div_ceil(self.softness),
            picture.height().div_ceil(self.softness),
        ) else {
            return;
        };
        let mut brush = Brush {
            picture: &mut small,
            place: Transform::from_scale(
                side / self.softness as f32 / 100.0,
                side / self.softness as f32 / 100.0,
            ),
            mask: None,
        };
        match self.backdrop {
            Backdrop::Sky => sky(&mut brush, rng),
            Backdrop::Leaves => leaves(&mut brush, rng),
            Backdrop::Meadow => meadow(&mut brush, rng),
            Backdrop::Snow => snow(&mut brush, rng),
            Backdrop::Bricks => bricks(&mut brush, rng),
            Backdrop::Reeds => reeds(&mut brush, rng),
        }
        let paint = PixmapPaint {
            quality: FilterQuality::Bicubic,
            ..PixmapPaint::default()
        };
        let grow = Transform::from_scale(
            side / small.width() as f32,
            picture.height() as f32 / small.height() as f32,
        );
        picture.draw_pixmap(0, 0, small.as_ref(), &paint, grow, None);
    }
}

fn wash(brush: &mut Brush<'_>, top: Rgb, bottom: Rgb) {
    if let Some(page) = polygon(&[[-2.0, -2.0], [102.0, -2.0], [102.0, 102.0], [-2.0, 102.0]]) {
        brush.gradient(
            &page,
            [0.0, 0.0],
            [0.0, 100.0],
            &[(0.0, top, 1.0), (1.0, bottom, 1.0)],
        );
    }
}

fn anywhere(rng: &mut ChaCha8Rng) -> [f32; 2] {
    [rng.random_range(-5.0..105.0), rng.random_range(-5.0..105.0)]
}

fn sky(brush: &mut Brush<'_>, rng: &mut ChaCha8Rng) {
    let hues: [(Rgb, Rgb); 4] = [
        ([96, 152, 214], [190, 216, 238]),
        ([150, 164, 180], [206, 210, 212]),
        ([112, 122, 168], [246, 196, 150]),
        ([176, 206, 226], [232, 236, 232]),
    ];
    let (top, bottom) = hues[rng.random_range(0..hues.len())];
    wash(brush, near(top, 14, rng), near(bottom, 12, rng));
    for _ in 0..rng.random_range(0..5) {
        let [x, y] = anywhere(rng);
        for puff in 0..4 {
            let at = [
                x + puff as f32 * rng.random_range(5.0..10.0),
                y + rng.random_range(-3.0..3.0),
            ];
            let radius = rng.random_range(6.0..14.0_f32);
            brush.patch(
                at,
                [radius * 1.4, radius * 0.7],
                0.0,
                0.9,
                [250, 250, 250],
                0.6,
            );
        }
    }
}

fn leaves(brush: &mut Brush<'_>, rng: &mut ChaCha8Rng) {
    let seasons: [[Rgb; 3]; 4] = [
        [[58, 92, 40], [98, 140, 56], [166, 190, 92]],
        [[34, 62, 44], [62, 98, 62], [112, 146, 96]],
        [[112, 66, 30], [176, 108, 40], [214, 160, 72]],
        [[80, 84, 40], [136, 140, 70], [188, 180, 116]],
    ];
    let season = seasons[rng.random_range(0..seasons.len())];
    wash(
        brush,
        mix(season[0], [210, 220, 220], rng.random_range(0.0..0.35)),
        season[0],
    );
    for _ in 0..rng.random_range(60..130) {
        let at = anywhere(rng);
        let radius = rng.random_range(2.5..9.0_f32);
        let colour = near(season[rng.random_range(0..3_usize)], 16, rng);
        brush.patch(
            at,
            [radius, radius * rng.random_range(0.4..0.9)],
            rng.random_range(0.0..180.0),
            0.25,
            colour,
            0.8,
        );
    }
    for _ in 0..rng.random_range(0..10) {
        let at = anywhere(rng);
        brush.patch(at, [3.0, 3.0], 0.0, 0.4, [248, 246, 220], 0.5);
    }
}

fn meadow(brush: &mut Brush<'_>, rng: &mut ChaCha8Rng) {
    let greens: [Rgb; 3] = [[92, 132, 56], [128, 148, 72], [168, 156, 96]];
    let green = greens[rng.random_range(0..3_usize)];
    wash(
        brush,
        mix(green, [220, 226, 220], 0.45),
        near(green, 14, rng),
    );
    for _ in 0..170 {
        let [x, y] = [
            rng.random_range(-5.0..105.0_f32),
            rng.random_range(20.0..108.0_f32),
        ];
        let height = 3.0 + y * 0.16;
        let lean = rng.random_range(-4.0..4.0_f32);
        if let Some(blade) = curve(
            [x, y],
            [x + lean * 0.2, y - height * 0.6],
            [x + lean, y - height],
        ) {
            let tone = mix(
                near(green, 18, rng),
                [30, 46, 18],
                rng.random_range(0.0..0.4),
            );
            brush.line(&blade, 0.7 + y * 0.008, tone, 0.9);
        }
    }
    for _ in 0..rng.random_range(0..16) {
        let at = [rng.random_range(0.0..100.0), rng.random_range(40.0..100.0)];
        let flowers: [Rgb; 4] = [
            [246, 220, 70],
            [244, 240, 236],
            [206, 90, 110],
            [120, 130, 210],
        ];
        brush.patch(
            at,
            [1.6, 1.4],
            0.0,
            0.2,
            flowers[rng.random_range(0..4_usize)],
            0.95,
        );
    }
}

fn snow(brush: &mut Brush<'_>, rng: &mut ChaCha8Rng) {
    wash(brush, near([168, 178, 192], 12, rng), [226, 230, 236]);
    for _ in 0..rng.random_range(3..7) {
        let x = rng.random_range(0.0..100.0_f32);
        let trunk = mix([92, 88, 92], [190, 196, 206], rng.random_range(0.1..0.6));
        if let Some(path) = curve(
            [x, -4.0],
            [x + rng.random_range(-4.0..4.0), 40.0],
            [x + rng.random_range(-3.0..3.0), 84.0],
        ) {
            brush.line(&path, rng.random_range(1.0..5.0), trunk, 0.8);
        }
    }
    let hill = rng.random_range(64.0..86.0_f32);
    if let Some(path) = blob(
        [-4.0, hill],
        &[
            [[30.0, hill - 8.0], [60.0, hill + 6.0], [104.0, hill - 3.0]],
            [[104.0, 110.0], [0.0, 110.0], [-4.0, 104.0]],
        ],
    ) {
        brush.fill(&path, [240, 243, 248], 1.0);
    }
    for _ in 0..rng.random_range(0..70) {
        brush.patch(anywhere(rng), [0.9, 0.9], 0.0, 0.3, [255, 255, 255], 0.9);
    }
}

fn bricks(brush: &mut Brush<'_>, rng: &mut ChaCha8Rng) {
    let walls: [(Rgb, Rgb); 3] = [
        ([150, 84, 62], [196, 184, 168]),
        ([128, 108, 94], [176, 170, 160]),
        ([178, 160, 132], [206, 198, 184]),
    ];
    let (brick, mortar) = walls[rng.random_range(0..3_usize)];
    wash(brush, mortar, mix(mortar, [0, 0, 0], 0.1));
    let (long, high) = (
        rng.random_range(14.0..24.0_f32),
        rng.random_range(6.0..10.0_f32),
    );
    for row in 0..(104.0 / high) as i32 + 1 {
        for column in -1..(104.0 / long) as i32 + 1 {
            let x = column as f32 * long + if row % 2 == 0 { 0.0 } else { long / 2.0 };
            let y = row as f32 * high;
            let joint = 0.8;
            if let Some(path) = polygon(&[
                [x + joint, y + joint],
                [x + long, y + joint],
                [x + long, y + high],
                [x + joint, y + high],
            ]) {
                brush.fill(&path, near(brick, 16, rng), 1.0);
            }
        }
    }
}

fn reeds(brush: &mut Brush<'_>, rng: &mut ChaCha8Rng) {
    let waters: [(Rgb, Rgb); 3] = [
        ([150, 176, 176], [92, 122, 130]),
        ([196, 188, 160], [126, 120, 98]),
        ([110, 140, 160], [60, 84, 104]),
    ];
    let (top, bottom) = waters[rng.random_range(0..3_usize)];
    wash(brush, top, bottom);
    for _ in 0..24 {
        let y = rng.random_range(50.0..100.0_f32);
        let x = rng.random_range(-10.0..100.0_f32);
        if let Some(path) = curve(
            [x, y],
            [x + 10.0, y + 0.8],
            [x + rng.random_range(12.0..26.0), y],
        ) {
            brush.line(&path, 0.8, mix(top, [255, 255, 255], 0.4), 0.5);
        }
    }
    for _ in 0..rng.random_range(14..34) {
        let x = rng.random_range(-4.0..104.0_f32);
        let lean = rng.random_range(-12.0..12.0_f32);
        let tone = near([150, 146, 84], 26, rng);
        if let Some(path) = curve(
            [x, 104.0],
            [x, 50.0],
            [x + lean, rng.random_range(-6.0..40.0)],
        ) {
            brush.line(&path, rng.random_range(0.8..2.2), tone, 0.9);
        }
    }
}
