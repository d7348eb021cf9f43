//! From pixels to a ViT's input: a square of RGB bytes, then normalised numbers.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::Rgb;
use crate::vit::{Pixels, Preprocessing};

/// How an oblong photo becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Fit {
    /// The largest square in the middle, scaled: keeps proportions, loses the ends.
    #[default]
    CenterCrop,
    /// The whole photo, each side scaled on its own: keeps everything, bends proportions.
    Squash,
}

/// Scales to `side` x `side` RGB bytes, row by row, three bytes a pixel.
///
/// The filter is Catmull-Rom (Keys' cubic with a = -0.5), widened when shrinking: what Pillow and
/// torchvision call antialiased bicubic, and what most ViTs were trained on. The crop may start
/// between two pixels, so it differs from crop-after-resize by less than a pixel.
pub fn resize_square(rgb: &Rgb, side: Pixels, fit: Fit) -> Vec<u8> {
    let (width, height) = (rgb.width(), rgb.height());
    if side == 0 {
        return Vec::new();
    }
    // A side is a few hundred pixels; a number beyond u32 could not be allocated in any case.
    let target = u32::try_from(side).unwrap_or(u32::MAX);
    let filter = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let options = match fit {
        Fit::Squash => filter,
        Fit::CenterCrop => {
            let square = f64::from(width.min(height));
            filter.crop(
                (f64::from(width) - square) / 2.0,
                (f64::from(height) - square) / 2.0,
                square,
                square,
            )
        }
    };
    // Typed, because the untyped call compiles the resizer for every pixel format there is.
    let source = TypedImageRef::<U8x3>::from_buffer(width, height, rgb.pixels())
        .expect("an Rgb holds width x height x 3 bytes");
    let mut out = vec![0; 3 * side * side];
    let mut target = TypedImage::<U8x3>::from_buffer(target, target, &mut out)
        .expect("the buffer was made for side x side x 3 bytes");
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .expect("the crop lies within the source");
    out
}

/// The normalised value of every byte, per channel: `(byte / 255 - mean) / std`.
fn byte_values(preprocessing: &Preprocessing) -> [[f32; 256]; 3] {
    std::array::from_fn(|c| {
        std::array::from_fn(|byte| {
            (byte as f32 / 255.0 - preprocessing.mean[c]) / preprocessing.std[c]
        })
    })
}

/// Writes RGB bytes `[side, side, 3]` as normalised numbers `[3, side, side]`.
///
/// # Panics
/// When `pixels` or `out` is not `3 * side * side` long.
pub fn normalise(pixels: &[u8], side: Pixels, preprocessing: &Preprocessing, out: &mut [f32]) {
    assert_eq!(pixels.len(), 3 * side * side, "pixels are [side, side, 3]");
    assert_eq!(out.len(), 3 * side * side, "out is [3, side, side]");
    let values = byte_values(preprocessing);
    for (c, values) in values.iter().enumerate() {
        let plane = &mut out[c * side * side..][..side * side];
        for (value, rgb) in plane.iter_mut().zip(pixels.chunks_exact(3)) {
            *value = values[usize::from(rgb[c])];
        }
    }
}

/// Writes RGB bytes `[side, side, 3]` as normalised patches `[patches, 3 * patch * patch]`.
///
/// Patches go row by row over the image; within one, numbers are in channel, row, column order,
/// that of the rows of [`EmbeddingWeights::patch_weight`](crate::vit::EmbeddingWeights), so that
/// patch embedding is one matrix product. Equals [`normalise`] followed by cutting, without the
/// plane in between.
///
/// # Panics
/// When `patch` does not divide `side`, or a length does not fit.
pub fn patchify(
    pixels: &[u8],
    side: Pixels,
    patch: Pixels,
    preprocessing: &Preprocessing,
    out: &mut [f32],
) {
    assert!(
        patch > 0 && side.is_multiple_of(patch),
        "patch divides side"
    );
    assert_eq!(pixels.len(), 3 * side * side, "pixels are [side, side, 3]");
    assert_eq!(
        out.len(),
        3 * side * side,
        "out is [patches, 3 * patch * patch]"
    );
    let values = byte_values(preprocessing);
    let area = patch * patch;
    let grid = side / patch;
    for (index, row) in out.chunks_exact_mut(3 * area).enumerate() {
        let (top, left) = (index / grid * patch, index % grid * patch);
        let (red, rest) = row.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        for y in 0..patch {
            let line = &pixels[3 * ((top + y) * side + left)..][..3 * patch];
            let at = y * patch..(y + 1) * patch;
            let targets = red[at.clone()]
                .iter_mut()
                .zip(&mut green[at.clone()])
                .zip(&mut blue[at]);
            for (rgb, ((red, green), blue)) in line.chunks_exact(3).zip(targets) {
                *red = values[0][usize::from(rgb[0])];
                *green = values[1][usize::from(rgb[1])];
                *blue = values[2][usize::from(rgb[2])];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(width: u32, height: u32, colour: impl Fn(u32, u32) -> [u8; 3]) -> Rgb {
        let pixels = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| colour(x, y))
            .collect();
        Rgb::new(width, height, pixels).unwrap()
    }

    /// Keys' cubic at a = -0.5, widened when shrinking, by the definition and in f64.
    fn cubic_line(source: &[f64], from: f64, length: f64, side: usize) -> Vec<f64> {
        let kernel = |x: f64| {
            let x = x.abs();
            if x < 1.0 {
                1.5 * x * x * x - 2.5 * x * x + 1.0
            } else if x < 2.0 {
                -0.5 * x * x * x + 2.5 * x * x - 4.0 * x + 2.0
            } else {
                0.0
            }
        };
        let scale = length / side as f64;
        let wide = scale.max(1.0);
        (0..side)
            .map(|k| {
                let centre = from + (k as f64 + 0.5) * scale;
                let weights: Vec<f64> = (0..source.len())
                    .map(|i| kernel((i as f64 + 0.5 - centre) / wide))
                    .collect();
                let total: f64 = weights.iter().sum();
                source.iter().zip(&weights).map(|(v, w)| v * w).sum::<f64>() / total
            })
            .collect()
    }

    #[test]
    fn shrinking_is_the_antialiased_cubic_of_its_definition() {
        let tone = |x: u32| (127.5 + 90.0 * (f64::from(x) * 0.9).sin()).round() as u8;
        let rgb = flat(50, 50, |x, _| [tone(x); 3]);
        let line: Vec<f64> = (0..50).map(|x| f64::from(tone(x))).collect();
        let expected = cubic_line(&line, 0.0, 50.0, 14);
        for fit in [Fit::Squash, Fit::CenterCrop] {
            let out = resize_square(&rgb, 14, fit);
            for (pixel, expected) in out[..3 * 14].chunks(3).zip(&expected) {
                assert!((f64::from(pixel[0]) - expected).abs() <= 1.0);
            }
        }
    }

    #[test]
    fn the_centre_crop_drops_the_ends_and_squash_keeps_them() {
        // Red, then a green square, then blue; and the same standing up.
        let stripe = |k: u32| [[255, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 255]][k as usize / 30];
        for rgb in [
            flat(120, 60, |x, _| stripe(x)),
            flat(60, 120, |_, y| stripe(y)),
        ] {
            let out = resize_square(&rgb, 28, Fit::CenterCrop);
            // As after a crop of the scaled whole, the filter sees a little beyond the edge.
            let green = out.chunks(3).filter(|pixel| *pixel == [0, 255, 0]);
            assert!(green.count() >= 26 * 28);
            assert!(out.chunks(3).all(|pixel| pixel[1] > 200));
            let out = resize_square(&rgb, 28, Fit::Squash);
            assert_eq!(out[..3], [255, 0, 0]);
            assert_eq!(out[out.len() - 3..], [0, 0, 255]);
        }
    }

    #[test]
    fn slivers_and_single_pixels_are_scaled_too() {
        for (width, height) in [(1, 1), (1, 3000), (3000, 1), (2, 3)] {
            let rgb = flat(width, height, |_, _| [9, 99, 199]);
            for fit in [Fit::CenterCrop, Fit::Squash] {
                let out = resize_square(&rgb, 14, fit);
                assert_eq!(out.len(), 3 * 14 * 14);
                assert!(out.chunks(3).all(|pixel| pixel == [9, 99, 199]));
            }
        }
    }

    #[test]
    fn normalising_follows_the_formula_channel_by_channel() {
        let pixels: Vec<u8> = (0..12).map(|k| k * 20).collect();
        let mut out = [0.0; 12];
        normalise(&pixels, 2, &Preprocessing::IMAGENET, &mut out);
        let Preprocessing { mean, std } = Preprocessing::IMAGENET;
        for c in 0..3 {
            for position in 0..4 {
                let expected = (f32::from(pixels[3 * position + c]) / 255.0 - mean[c]) / std[c];
                assert_eq!(out[4 * c + position], expected);
            }
        }
    }

    proptest! {
        #[test]
        fn patches_equal_cutting_up_the_normalised_planes(
            (grid, patch, pixels) in (1usize..4, 1usize..6).prop_flat_map(|(grid, patch)| {
                let side = grid * patch;
                (Just(grid), Just(patch), prop::collection::vec(any::<u8>(), 3 * side * side))
            }),
        ) {
            let side = grid * patch;
            let mut planes = vec![0.0; pixels.len()];
            normalise(&pixels, side, &Preprocessing::IMAGENET, &mut planes);
            let mut expected = Vec::new();
            for (gy, gx) in (0..grid).flat_map(|gy| (0..grid).map(move |gx| (gy, gx))) {
                for c in 0..3 {
                    for y in 0..patch {
                        for x in 0..patch {
                            let (py, px) = (gy * patch + y, gx * patch + x);
                            expected.push(planes[(c * side + py) * side + px]);
                        }
                    }
                }
            }
            let mut out = vec![f32::NAN; pixels.len()];
            patchify(&pixels, side, patch, &Preprocessing::IMAGENET, &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
