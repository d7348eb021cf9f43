//! Draws one bird of a species in a pose, part by part as one would on paper: tail, legs, body,
//! head, wing, face, and light last.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tiny_skia::{FillRule, Mask, Path, PathBuilder, Pixmap, Transform};

use super::anatomy::{Anatomy, Pose};
use super::brush::{Brush, blob, curve, mix, polygon};
use super::species::{Mark, Rgb, Species, TailEnd};

/// Draws the bird. `rng` moves single feathers only, never a field mark.
pub fn draw(picture: &mut Pixmap, species: &Species, pose: &Pose, rng: &mut ChaCha8Rng) {
    let anatomy = Anatomy::new(species, pose);
    let (Some(trunk), Some(neck), Some(wing), Some(skull)) = (
        anatomy.trunk(),
        anatomy.neck(species.head),
        anatomy.wing(),
        PathBuilder::from_circle(0.0, 0.0, 1.0),
    ) else {
        return;
    };
    let outline = mask(
        picture,
        &[
            (&trunk, anatomy.body),
            (&neck, anatomy.body),
            (&skull, anatomy.head),
        ],
    );
    let folded = mask(picture, &[(&wing, anatomy.body)]);
    let (Some(outline), Some(folded)) = (outline, folded) else {
        return;
    };

    tail(
        &mut Brush {
            picture,
            place: anatomy.body,
            mask: None,
        },
        species,
        pose.tail_up,
    );
    if pose.legs {
        legs(
            &mut Brush {
                picture,
                place: anatomy.standing,
                mask: None,
            },
            species,
            &anatomy,
        );
    }
    let mut body = Brush {
        picture,
        place: anatomy.body,
        mask: Some(&outline),
    };
    plumage(&mut body, species, &anatomy, rng);
    face(
        &mut Brush {
            picture,
            place: anatomy.head,
            mask: Some(&outline),
        },
        species,
        rng,
    );
    light(
        &mut Brush {
            picture,
            place: anatomy.body,
            mask: Some(&outline),
        },
        &anatomy,
    );
    let mut shadow = Brush {
        picture,
        place: anatomy.body,
        mask: Some(&outline),
    };
    shadow.patch(
        [-14.0, anatomy.half * 0.34],
        [44.0, anatomy.half * 0.34],
        -8.0,
        0.8,
        [20, 16, 18],
        0.35,
    );
    folded_wing(
        &mut Brush {
            picture,
            place: anatomy.body,
            mask: Some(&folded),
        },
        species,
        &wing,
        rng,
    );
    beak_and_eye(
        &mut Brush {
            picture,
            place: anatomy.head,
            mask: None,
        },
        species,
    );
}

fn mask(picture: &Pixmap, parts: &[(&Path, Transform)]) -> Option<Mask> {
    let mut mask = Mask::new(picture.width(), picture.height())?;
    for (path, place) in parts {
        mask.fill_path(path, FillRule::Winding, true, *place);
    }
    Some(mask)
}

fn tail(brush: &mut Brush<'_>, species: &Species, tail_up: f32) {
    let tail = &species.tail;
    let (length, half) = (tail.length, tail.width / 2.0);
    let outer = brush.place;
    brush.place = outer
        .pre_translate(-46.0, 4.0)
        .pre_concat(Transform::from_rotate(tail.cocked + tail_up));
    let end = match tail.end {
        TailEnd::Square => vec![[-length, -half * 0.9], [-length, half * 0.9]],
        TailEnd::Notched => vec![[-length, -half], [-length * 0.9, 0.0], [-length, half]],
        TailEnd::Round => vec![
            [-length * 0.93, -half],
            [-length, -half * 0.4],
            [-length, half * 0.4],
            [-length * 0.93, half],
        ],
    };
    let mut points = vec![[14.0, -half * 0.8]];
    points.extend(end);
    points.push([14.0, half * 0.8]);
    if let Some(path) = polygon(&points) {
        brush.fill(&path, tail.colour, 1.0);
    }
    let dark = mix(tail.colour, [0, 0, 0], 0.35);
    for share in [-0.45_f32, 0.0, 0.45] {
        if let Some(path) = curve(
            [8.0, half * share],
            [-length * 0.5, half * share],
            [-length * 0.9, half * share],
        ) {
            brush.line(&path, 0.9, dark, 0.7);
        }
    }
    brush.place = outer;
}

fn legs(brush: &mut Brush<'_>, species: &Species, anatomy: &Anatomy) {
    for (index, hip) in anatomy.hips.iter().enumerate() {
        let colour = mix(species.legs, [0, 0, 0], if index == 0 { 0.0 } else { 0.25 });
        let foot = [hip[0] + 2.0, anatomy.floor];
        if let Some(path) = curve(*hip, [hip[0] - 1.5, (hip[1] + foot[1]) / 2.0], foot) {
            brush.line(&path, 2.4, colour, 1.0);
        }
        for toe in [[7.0, 0.6], [5.5, -1.4], [-5.0, 0.6]] {
            if let Some(path) = curve(
                foot,
                [foot[0] + toe[0] * 0.6, foot[1] - 1.2],
                [foot[0] + toe[0], foot[1] + toe[1]],
            ) {
                brush.line(&path, 1.9, colour, 1.0);
            }
        }
    }
}

fn plumage(brush: &mut Brush<'_>, species: &Species, anatomy: &Anatomy, rng: &mut ChaCha8Rng) {
    let h = anatomy.half;
    if let Some(page) = polygon(&[
        [-200.0, -200.0],
        [200.0, -200.0],
        [200.0, 200.0],
        [-200.0, 200.0],
    ]) {
        brush.fill(&page, species.back, 1.0);
    }
    brush.patch(
        [12.0, h * 0.72],
        [62.0, h * 0.92],
        -6.0,
        0.22,
        species.belly,
        1.0,
    );
    marks(brush, species.body_marks, rng);
    feathers(brush, [-4.0, 0.0], [54.0, h * 1.1], 90, rng);
}

/// Fine light and dark strokes along the body: what makes a flat shape look like down.
fn feathers(
    brush: &mut Brush<'_>,
    at: [f32; 2],
    radii: [f32; 2],
    count: u32,
    rng: &mut ChaCha8Rng,
) {
    for _ in 0..count {
        let [x, y] = strewn(at, radii, rng);
        let length = rng.random_range(4.0..10.0_f32);
        let droop = rng.random_range(0.5..3.5_f32);
        let tone: Rgb = if rng.random_bool(0.5) {
            [255, 250, 240]
        } else {
            [24, 18, 14]
        };
        if let Some(path) = curve(
            [x, y],
            [x - length * 0.5, y + droop * 0.2],
            [x - length, y + droop],
        ) {
            brush.line(&path, 1.1, tone, 0.13);
        }
    }
}

/// A point of an ellipse, uniformly drawn.
fn strewn(at: [f32; 2], radii: [f32; 2], rng: &mut ChaCha8Rng) -> [f32; 2] {
    let angle = rng.random_range(0.0..std::f32::consts::TAU);
    let reach = rng.random_range(0.0..1.0_f32).sqrt();
    [
        at[0] + radii[0] * reach * angle.cos(),
        at[1] + radii[1] * reach * angle.sin(),
    ]
}

fn marks(brush: &mut Brush<'_>, marks: &[Mark], rng: &mut ChaCha8Rng) {
    for mark in marks {
        match *mark {
            Mark::Patch {
                at,
                radii,
                turn,
                colour,
                soft,
            } => {
                brush.patch(at, radii, turn, soft, colour, 1.0);
            }
            Mark::Stripe {
                from,
                bend,
                to,
                width,
                colour,
            } => {
                if let Some(path) = curve(from, bend, to) {
                    brush.line(&path, width, colour, 1.0);
                }
            }
            Mark::Streaks {
                at,
                radii,
                count,
                colour,
            } => {
                let length = radii[0].min(radii[1]) * 0.5;
                for _ in 0..count {
                    let [x, y] = strewn(at, radii, rng);
                    if let Some(path) = curve(
                        [x, y],
                        [x - length * 0.5, y],
                        [x - length, y + length * 0.25],
                    ) {
                        brush.line(&path, length * 0.3, colour, 0.8);
                    }
                }
            }
        }
    }
}

fn face(brush: &mut Brush<'_>, species: &Species, rng: &mut ChaCha8Rng) {
    brush.patch(
        [0.0, 0.0],
        [1.16, 1.12],
        0.0,
        0.14,
        species.head_colour,
        1.0,
    );
    let whole = brush.place;
    marks(brush, species.head_marks, rng);
    brush.place = whole.pre_scale(0.02, 0.02);
    feathers(brush, [0.0, 0.0], [48.0, 48.0], 26, rng);
    brush.place = whole;
}

/// Light from above, shade below: gives the outline its roundness.
fn light(brush: &mut Brush<'_>, anatomy: &Anatomy) {
    let h = anatomy.half;
    if let Some(page) = polygon(&[[-90.0, -110.0], [90.0, -110.0], [90.0, 60.0], [-90.0, 60.0]]) {
        brush.gradient(
            &page,
            [8.0, -h * 1.5],
            [-4.0, h * 1.1],
            &[
                (0.0, [255, 252, 240], 0.22),
                (0.42, [255, 255, 255], 0.0),
                (0.62, [20, 16, 30], 0.0),
                (1.0, [20, 16, 30], 0.42),
            ],
        );
    }
}

fn folded_wing(brush: &mut Brush<'_>, species: &Species, wing: &Path, rng: &mut ChaCha8Rng) {
    let (colour, tip) = (species.wing.colour, species.wing.tip);
    brush.gradient(
        wing,
        [24.0, -8.0],
        [-64.0, 8.0],
        &[
            (0.0, mix(colour, [255, 255, 255], 0.08), 1.0),
            (0.45, colour, 1.0),
            (0.62, tip, 1.0),
            (1.0, tip, 1.0),
        ],
    );
    // The long flight feathers run from the bend of the wing to its tip.
    let dark = mix(tip, [0, 0, 0], 0.4);
    let pale = mix(tip, [255, 255, 255], 0.22);
    for step in 0..5 {
        let drop = step as f32 * 3.6;
        if let Some(path) = curve(
            [-6.0, -4.0 + drop],
            [-32.0, 1.0 + drop],
            [-66.0 + drop * 1.3, 8.0 + drop * 0.5],
        ) {
            brush.line(&path, 1.0, if step % 2 == 0 { dark } else { pale }, 0.75);
        }
    }
    // Rows of covert feathers as little scallops.
    let edge = mix(colour, [0, 0, 0], 0.28);
    for row in 0..3 {
        for place in 0..5 {
            let x = 14.0 - row as f32 * 10.0 - place as f32 * 1.5;
            let y = -11.0 + place as f32 * 5.6 + row as f32 * 1.2;
            if let Some(path) = curve([x, y - 2.8], [x - 4.2, y], [x, y + 2.8]) {
                brush.line(&path, 0.9, edge, 0.6);
            }
        }
    }
    marks(brush, species.wing.marks, rng);
    brush.gradient(
        wing,
        [0.0, -20.0],
        [-4.0, 16.0],
        &[
            (0.0, [255, 252, 240], 0.16),
            (0.5, [255, 255, 255], 0.0),
            (1.0, [16, 12, 20], 0.3),
        ],
    );
    brush.line(wing, 1.8, mix(tip, [0, 0, 0], 0.5), 0.55);
}

fn beak_and_eye(brush: &mut Brush<'_>, species: &Species) {
    let beak = &species.beak;
    let (tip, half) = (0.88 + beak.length, beak.depth / 2.0);
    let upper = blob(
        [0.86, 0.1 - half],
        &[
            [
                [0.9 + beak.length * 0.4, 0.08 - half],
                [tip - 0.08, 0.1],
                [tip, 0.18],
            ],
            [[tip - 0.2, 0.15], [1.0, 0.14], [0.84, 0.13]],
            [[0.82, 0.1], [0.84, 0.1 - half * 0.5], [0.86, 0.1 - half]],
        ],
    );
    let lower = blob(
        [0.84, 0.12],
        &[
            [[1.0, 0.14], [tip - 0.3, 0.15], [tip - 0.06, 0.19]],
            [
                [tip - 0.25, 0.24],
                [0.95 + beak.length * 0.3, 0.12 + half],
                [0.82, 0.12 + half],
            ],
            [[0.8, 0.2], [0.82, 0.16], [0.84, 0.12]],
        ],
    );
    if let (Some(upper), Some(lower)) = (upper, lower) {
        brush.fill(&lower, mix(beak.colour, [0, 0, 0], 0.28), 1.0);
        brush.fill(&upper, beak.colour, 1.0);
    }
    let eye = [0.4, -0.14];
    if let Some(ring) = species.eye_ring {
        brush.patch(eye, [0.27, 0.27], 0.0, 0.05, ring, 1.0);
    } else {
        brush.patch(
            eye,
            [0.27, 0.27],
            0.0,
            0.5,
            mix(species.head_colour, [255, 255, 255], 0.3),
            0.6,
        );
    }
    brush.patch(eye, [0.19, 0.19], 0.0, 0.05, [18, 14, 14], 1.0);
    brush.patch(
        [0.46, -0.21],
        [0.065, 0.065],
        0.0,
        0.1,
        [255, 255, 255],
        0.95,
    );
}
