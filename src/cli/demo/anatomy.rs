//! The proportions of a bird: where its parts are, and their outlines.

use tiny_skia::{Path, Transform};

use super::brush::blob;
use super::species::Species;

/// How and where one bird stands on a picture.
#[derive(Debug, Clone, Copy)]
pub struct Pose {
    /// Where its feet are, in pixels.
    pub feet: [f32; 2],
    /// Pixels in a hundredth of a body length.
    pub scale: f32,
    pub facing_left: bool,
    /// Degrees from level to upright.
    pub upright: f32,
    /// Degrees the head is lowered.
    pub nod: f32,
    /// Degrees added to how the species carries its tail.
    pub tail_up: f32,
    /// How plump this one is; 1 is the species' own depth.
    pub plump: f32,
    /// Whether the legs show (they do not in long grass).
    pub legs: bool,
}

const LEG: f32 = 19.0;

/// Frames of reference of one bird, from its own coordinates to pixels.
pub struct Anatomy {
    /// Half the depth of the body.
    pub half: f32,
    /// The bird without its tilt: legs hang straight down in it.
    pub standing: Transform,
    pub body: Transform,
    /// Unit: the radius of the head.
    pub head: Transform,
    head_at: [f32; 2],
    pub hips: [[f32; 2]; 2],
    pub floor: f32,
}

impl Anatomy {
    pub fn new(species: &Species, pose: &Pose) -> Self {
        let half = species.depth * pose.plump / 2.0;
        let tilt = Transform::from_rotate(-pose.upright);
        let hips = [[6.0, half * 0.72], [-10.0, half * 0.74]].map(|hip| map(tilt, hip));
        let floor = hips[0][1].max(hips[1][1]) + LEG;
        let side = if pose.facing_left { -1.0 } else { 1.0 };
        let standing = Transform::from_translate(pose.feet[0], pose.feet[1])
            .pre_scale(side * pose.scale, pose.scale)
            .pre_translate(0.0, -floor);
        let body = standing.pre_concat(tilt);
        // The head nods about the root of the neck, and keeps most of its own level when the
        // body sits upright, as a living bird does.
        let neck = [22.0, -half * 0.45];
        let rest = [18.0, -half * 0.5 - species.head * 0.42];
        let lift = map(Transform::from_rotate(pose.nod), rest);
        let head_at = [neck[0] + lift[0], neck[1] + lift[1]];
        let head = body
            .pre_translate(head_at[0], head_at[1])
            .pre_concat(Transform::from_rotate(pose.upright * 0.7 + pose.nod * 0.8))
            .pre_scale(species.head, species.head);
        Self {
            half,
            standing,
            body,
            head,
            head_at,
            hips,
            floor,
        }
    }

    pub fn trunk(&self) -> Option<Path> {
        let h = self.half;
        blob(
            [51.0, -2.0],
            &[
                [[49.0, -h * 0.85], [18.0, -h * 1.12], [-8.0, -h * 0.92]],
                [[-34.0, -h * 0.70], [-50.0, -8.0], [-58.0, 2.0]],
                [[-52.0, 15.0], [-36.0, h * 0.92], [-4.0, h]],
                [[30.0, h * 1.06], [53.0, h * 0.55], [51.0, -2.0]],
            ],
        )
    }

    pub fn neck(&self, head: f32) -> Option<Path> {
        let [x, y] = self.head_at;
        let h = self.half;
        blob(
            [x - head * 0.92, y - head * 0.2],
            &[
                [
                    [x - head * 1.1, y + head * 0.5],
                    [8.0, -h * 1.02],
                    [-10.0, -h * 0.9],
                ],
                [[0.0, 0.0], [20.0, 10.0], [50.5, 4.0]],
                [
                    [54.0, -10.0],
                    [x + head * 0.95, y + head * 0.8],
                    [x + head * 0.93, y + head * 0.25],
                ],
                [[x, y], [x, y], [x - head * 0.92, y - head * 0.2]],
            ],
        )
    }

    pub fn wing(&self) -> Option<Path> {
        let h = self.half;
        blob(
            [25.0, -h * 0.38],
            &[
                [[16.0, -h * 0.86], [-24.0, -h * 0.74], [-68.0, 9.0]],
                [[-50.0, 14.0], [-24.0, h * 0.62], [2.0, h * 0.44]],
                [[20.0, h * 0.3], [30.0, -h * 0.06], [25.0, -h * 0.38]],
            ],
        )
    }
}

fn map(transform: Transform, [x, y]: [f32; 2]) -> [f32; 2] {
    let mut point = tiny_skia::Point::from_xy(x, y);
    transform.map_point(&mut point);
    [point.x, point.y]
}
