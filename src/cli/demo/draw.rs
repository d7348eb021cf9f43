//! One picture of the demonstration's bird set: a pose, a place, the light and the camera's
//! faults, all from one seed, so that the same seed gives the same bytes.

use std::io::Cursor;
use std::path::Path;

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb as Pixel, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tiny_skia::Pixmap;

use super::anatomy::Pose;
use super::bird;
use super::perch::Perch;
use super::scene::Scene;
use super::species::Species;

/// Width and height of a drawing, in pixels.
pub const SIDE: u32 = 160;

const JPEG_QUALITY: u8 = 90;

/// Room a standing bird needs above its feet, in hundredths of a body length.
const STANDING: f32 = 132.0;

/// Draws `count` pictures of each species into `folder/<species>/<species>-NN.jpg`.
/// Pictures of another `seed` are other birds in other places.
pub fn draw_set(folder: &Path, species: &[Species], count: u32, seed: u64) -> anyhow::Result<()> {
    for bird in species {
        let class = folder.join(bird.name);
        std::fs::create_dir_all(&class)
            .with_context(|| format!("cannot make the folder {}", class.display()))?;
        for index in 0..count {
            let file = class.join(format!("{}-{index:02}.jpg", bird.name.replace(' ', "-")));
            std::fs::write(&file, jpeg(&draw(bird, seed, index))?)
                .with_context(|| format!("cannot write the drawing {}", file.display()))?;
        }
    }
    Ok(())
}

/// Draws picture `index` of a species.
pub fn draw(species: &Species, seed: u64, index: u32) -> RgbImage {
    let mut rng = generator(species, seed, index);
    let blank = RgbImage::new(SIDE, SIDE);
    let Some(mut picture) = Pixmap::new(SIDE, SIDE) else {
        return blank;
    };
    let scene = Scene::random(&mut rng);
    let pose = pose(species, &scene, &mut rng);
    scene.paint_backdrop(&mut picture, &mut rng);
    scene
        .perch
        .paint(&mut picture, pose.feet, pose.scale, &mut rng);
    bird::draw(&mut picture, species, &pose, &mut rng);
    photograph(&picture, &mut rng)
}

/// Every picture has a stream of random numbers of its own, so drawing more of one species does
/// not change another.
fn generator(species: &Species, seed: u64, index: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let name = species
        .name
        .bytes()
        .fold(0_u64, |hash, byte| hash.wrapping_mul(131) + u64::from(byte));
    rng.set_stream((name << 16) | u64::from(index));
    rng
}

fn pose(species: &Species, scene: &Scene, rng: &mut ChaCha8Rng) -> Pose {
    let side = SIDE as f32;
    // Body lengths between two fifths and two thirds of the picture; small species stay smaller.
    let scale = side * rng.random_range(0.0042..0.0064_f32) * species.size;
    let pecking = scene.perch == Perch::Ground && rng.random_bool(0.3);
    let (upright, nod) = if pecking {
        (
            rng.random_range(-20.0..-6.0_f32),
            rng.random_range(14.0..38.0_f32),
        )
    } else {
        (
            species.upright + rng.random_range(-12.0..14.0_f32),
            rng.random_range(-12.0..16.0_f32),
        )
    };
    Pose {
        feet: [
            side * rng.random_range(0.40..0.60_f32),
            (side * rng.random_range(0.70..0.86_f32))
                .max(scale * STANDING)
                .min(side * 0.9),
        ],
        scale,
        facing_left: rng.random_bool(0.5),
        upright,
        nod,
        tail_up: rng.random_range(-10.0..14.0),
        plump: rng.random_range(0.94..1.1),
        legs: !(scene.perch == Perch::Ground && rng.random_bool(0.2)),
    }
}

/// Light, lens and sensor: a colour cast, a gradient of shade, a little blur and grain.
fn photograph(picture: &Pixmap, rng: &mut ChaCha8Rng) -> RgbImage {
    let brightness = rng.random_range(0.68..1.14_f32);
    let warmth = rng.random_range(-0.12..0.12_f32);
    let gains = [
        brightness * (1.0 + warmth),
        brightness,
        brightness * (1.0 - warmth),
    ];
    let angle = rng.random_range(0.0..std::f32::consts::TAU);
    let fall = rng.random_range(0.0..0.35_f32);
    let grain = rng.random_range(1.0..7.0_f32);
    let blur = if rng.random_bool(0.4) {
        rng.random_range(0.1..0.6_f32)
    } else {
        0.0
    };
    let side = SIDE as f32;

    let sharp = RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let pixel = picture.pixels()[(y * SIDE + x) as usize].demultiply();
        let (u, v) = (x as f32 / side - 0.5, y as f32 / side - 0.5);
        let shade = 1.0 - fall * (0.5 + u * angle.cos() + v * angle.sin());
        let channel =
            |value: u8, gain: f32| (f32::from(value) * gain * shade).clamp(0.0, 255.0) as u8;
        Pixel([
            channel(pixel.red(), gains[0]),
            channel(pixel.green(), gains[1]),
            channel(pixel.blue(), gains[2]),
        ])
    });
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        // Three uniform numbers summed are near enough to a Gaussian for film grain.
        let noise = (0..3).map(|_| rng.random_range(-1.0..1.0_f32)).sum::<f32>() * grain;
        let own = sharp.get_pixel(x, y).0;
        let around = [
            sharp.get_pixel(x.saturating_sub(1), y).0,
            sharp.get_pixel((x + 1).min(SIDE - 1), y).0,
            sharp.get_pixel(x, y.saturating_sub(1)).0,
            sharp.get_pixel(x, (y + 1).min(SIDE - 1)).0,
        ];
        Pixel(std::array::from_fn(|c| {
            let mean = around.iter().map(|pixel| f32::from(pixel[c])).sum::<f32>() / 4.0;
            let value = f32::from(own[c]) * (1.0 - blur) + mean * blur + noise;
            value.clamp(0.0, 255.0) as u8
        }))
    })
}

fn jpeg(picture: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode_image(picture)
        .context("cannot encode a drawing as JPEG")?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::species::{FIRST_TASK, SECOND_TASK};

    fn every_species() -> impl Iterator<Item = Species> {
        FIRST_TASK.into_iter().chain(SECOND_TASK)
    }

    /// Mean absolute difference of two drawings, in 8-bit steps.
    fn difference(one: &RgbImage, other: &RgbImage) -> f64 {
        let bytes = one.as_raw().iter().zip(other.as_raw());
        bytes.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / one.as_raw().len() as f64
    }

    #[test]
    fn the_same_seed_draws_the_same_bytes() {
        for bird in every_species() {
            let twice = [0, 0].map(|_| jpeg(&draw(&bird, 7, 3)).unwrap());
            assert_eq!(twice[0], twice[1], "{}", bird.name);
        }
    }

    #[test]
    fn another_seed_or_number_draws_another_picture() {
        for bird in every_species() {
            let picture = draw(&bird, 7, 3);
            for other in [draw(&bird, 8, 3), draw(&bird, 7, 4)] {
                assert!(difference(&picture, &other) > 8.0, "{}", bird.name);
            }
        }
    }

    #[test]
    fn every_species_looks_different_in_the_same_pose_and_place() {
        let portrait = |bird: &Species| {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let pose = Pose {
                feet: [80.0, 130.0],
                scale: 0.9,
                facing_left: false,
                upright: 15.0,
                nod: 0.0,
                tail_up: 0.0,
                plump: 1.0,
                legs: true,
            };
            let mut picture = Pixmap::new(SIDE, SIDE).unwrap();
            bird::draw(&mut picture, bird, &pose, &mut rng);
            picture
        };
        let portraits: Vec<_> = every_species()
            .map(|bird| (bird.name, portrait(&bird)))
            .collect();
        for (index, (name, one)) in portraits.iter().enumerate() {
            let painted = one
                .pixels()
                .iter()
                .filter(|pixel| pixel.alpha() > 128)
                .count();
            assert!(painted > 2000, "{name} covers {painted} pixels");
            for (other_name, other) in &portraits[index + 1..] {
                let pairs = one.data().iter().zip(other.data());
                let apart: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
                assert!(
                    apart > 400_000,
                    "{name} and {other_name} are only {apart} apart"
                );
            }
        }
    }

    #[test]
    fn a_set_has_one_folder_a_species_with_the_number_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        draw_set(folder.path(), &FIRST_TASK, 2, 1).unwrap();
        for bird in FIRST_TASK {
            let files: Vec<_> = std::fs::read_dir(folder.path().join(bird.name))
                .unwrap()
                .collect();
            assert_eq!(files.len(), 2, "{}", bird.name);
            for file in files {
                assert_eq!(
                    image::image_dimensions(file.unwrap().path()).unwrap(),
                    (SIDE, SIDE)
                );
            }
        }
    }
}
