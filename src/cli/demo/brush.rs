//! A thin layer over tiny-skia: the few strokes that birds and landscapes are made of.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tiny_skia::{
    Color, FillRule, GradientStop, LineCap, LinearGradient, Mask, Paint, Path, PathBuilder, Pixmap,
    Point, RadialGradient, Shader, SpreadMode, Stroke, Transform,
};

use super::species::Rgb;

/// A colour with an opacity from 0 to 1.
pub fn colour(rgb: Rgb, opacity: f32) -> Color {
    let mut colour = Color::from_rgba8(rgb[0], rgb[1], rgb[2], 255);
    colour.set_alpha(opacity.clamp(0.0, 1.0));
    colour
}

/// The colour `share` of the way from `from` to `to`.
pub fn mix(from: Rgb, to: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|channel| {
        let (from, to) = (f32::from(from[channel]), f32::from(to[channel]));
        (from + (to - from) * share).round().clamp(0.0, 255.0) as u8
    })
}

/// A colour near `rgb`: each channel moves by up to `spread`.
pub fn near(rgb: Rgb, spread: i16, rng: &mut ChaCha8Rng) -> Rgb {
    rgb.map(|channel| (i16::from(channel) + rng.random_range(-spread..=spread)).clamp(0, 255) as u8)
}

/// The shapes of one coordinate system on one picture, optionally seen only through a mask.
pub struct Brush<'a> {
    pub picture: &'a mut Pixmap,
    pub place: Transform,
    pub mask: Option<&'a Mask>,
}

impl Brush<'_> {
    pub fn fill(&mut self, path: &Path, rgb: Rgb, opacity: f32) {
        self.fill_with(path, Shader::SolidColor(colour(rgb, opacity)));
    }

    pub fn fill_with(&mut self, path: &Path, shader: Shader<'_>) {
        let paint = Paint {
            shader,
            anti_alias: true,
            ..Paint::default()
        };
        self.picture
            .fill_path(path, &paint, FillRule::Winding, self.place, self.mask);
    }

    pub fn line(&mut self, path: &Path, width: f32, rgb: Rgb, opacity: f32) {
        let paint = Paint {
            shader: Shader::SolidColor(colour(rgb, opacity)),
            anti_alias: true,
            ..Paint::default()
        };
        let stroke = Stroke {
            width,
            line_cap: LineCap::Round,
            ..Stroke::default()
        };
        self.picture
            .stroke_path(path, &paint, &stroke, self.place, self.mask);
    }

    /// An ellipse turned by `turn` degrees whose outer part, `soft` of the radius, fades out.
    pub fn patch(
        &mut self,
        at: [f32; 2],
        radii: [f32; 2],
        turn: f32,
        soft: f32,
        rgb: Rgb,
        opacity: f32,
    ) {
        let Some(circle) = PathBuilder::from_circle(0.0, 0.0, 1.0) else {
            return;
        };
        let Some(shader) = RadialGradient::new(
            Point::zero(),
            0.0,
            Point::zero(),
            1.0,
            vec![
                GradientStop::new(0.0, colour(rgb, opacity)),
                GradientStop::new((1.0 - soft).clamp(0.0, 0.98), colour(rgb, opacity)),
                GradientStop::new(1.0, colour(rgb, 0.0)),
            ],
            SpreadMode::Pad,
            Transform::identity(),
        ) else {
            return;
        };
        let outer = self.place;
        self.place = outer
            .pre_translate(at[0], at[1])
            .pre_concat(Transform::from_rotate(turn))
            .pre_scale(radii[0], radii[1]);
        self.fill_with(&circle, shader);
        self.place = outer;
    }

    /// Fills `path` with a straight gradient of `(position, colour, opacity)` stops.
    pub fn gradient(
        &mut self,
        path: &Path,
        from: [f32; 2],
        to: [f32; 2],
        stops: &[(f32, Rgb, f32)],
    ) {
        let shader = LinearGradient::new(
            Point::from_xy(from[0], from[1]),
            Point::from_xy(to[0], to[1]),
            stops
                .iter()
                .map(|&(at, rgb, opacity)| GradientStop::new(at, colour(rgb, opacity)))
                .collect(),
            SpreadMode::Pad,
            Transform::identity(),
        );
        if let Some(shader) = shader {
            self.fill_with(path, shader);
        }
    }
}

/// A closed path through `start` and cubic segments `[control, control, end]`.
pub fn blob(start: [f32; 2], segments: &[[[f32; 2]; 3]]) -> Option<Path> {
    let mut path = PathBuilder::new();
    path.move_to(start[0], start[1]);
    for [one, two, end] in segments {
        path.cubic_to(one[0], one[1], two[0], two[1], end[0], end[1]);
    }
    path.close();
    path.finish()
}

/// A closed path with straight sides.
pub fn polygon(points: &[[f32; 2]]) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (index, point) in points.iter().enumerate() {
        if index == 0 {
            path.move_to(point[0], point[1]);
        } else {
            path.line_to(point[0], point[1]);
        }
    }
    path.close();
    path.finish()
}

/// An open line from `from` to `to` that bows through `bend`.
pub fn curve(from: [f32; 2], bend: [f32; 2], to: [f32; 2]) -> Option<Path> {
    let mut path = PathBuilder::new();
    path.move_to(from[0], from[1]);
    path.quad_to(bend[0], bend[1], to[0], to[1]);
    path.finish()
}
