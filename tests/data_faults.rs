//! Odd, broken and hostile image files: each decodes as a viewer would show it, or is refused with
//! a sentence that names what is wrong.

use std::io::Cursor;
use std::path::Path;

use fledge::data::{Fault, Limits, Rgb, decode, decode_bytes};
use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, RgbImage, Rgba,
    RgbaImage,
};
use proptest::prelude::*;

const CMYK: &[u8] = include_bytes!("fixtures/images/cmyk.jpg");
const YCCK: &[u8] = include_bytes!("fixtures/images/ycck.jpg");
const SCANS: &[u8] = include_bytes!("fixtures/images/scans.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("fixtures/images/progressive.jpg");
const SUBSAMPLED: &[u8] = include_bytes!("fixtures/images/subsampled.jpg");
/// As printed by `fixtures/images/make.py`.
const YCCK_COLOURS: [[u8; 3]; 4] = [[192, 0, 229], [255, 187, 168], [128, 236, 255], [0, 126, 0]];

const FORMATS: [ImageFormat; 7] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
    ImageFormat::Pnm,
];

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// 24 x 16 with a different colour at every pixel, smooth enough for JPEG.
fn gradient() -> RgbImage {
    RgbImage::from_fn(24, 16, |x, y| {
        image::Rgb([x as u8 * 10, y as u8 * 15, 255 - x as u8 * 5])
    })
}

fn decoded(bytes: &[u8]) -> Rgb {
    decode_bytes(bytes, &Limits::default()).unwrap()
}

fn fault(bytes: &[u8]) -> Fault {
    decode_bytes(bytes, &Limits::default()).unwrap_err()
}

fn pixel(rgb: &Rgb, x: u32, y: u32) -> [u8; 3] {
    let at = 3 * (y * rgb.width() + x) as usize;
    rgb.pixels()[at..at + 3].try_into().unwrap()
}

#[track_caller]
fn assert_close(actual: [u8; 3], expected: [u8; 3], tolerance: u8) {
    let close = actual
        .iter()
        .zip(expected)
        .all(|(a, e)| a.abs_diff(e) <= tolerance);
    assert!(close, "{actual:?} is not {expected:?}");
}

#[test]
fn every_format_is_read_whatever_the_file_is_called() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        // JPEG is lossy and GIF has 256 colours; the others are exact.
        let tolerance = match format {
            ImageFormat::Jpeg | ImageFormat::Gif => 40,
            _ => 0,
        };
        let path = folder.path().join("photo.jpg");
        std::fs::write(&path, encoded(gradient(), format)).unwrap();
        let rgb = decode(&path, &Limits::default()).unwrap();
        assert_eq!((rgb.width(), rgb.height()), (24, 16), "{format:?}");
        for (x, y, colour) in gradient().enumerate_pixels() {
            assert_close(pixel(&rgb, x, y), colour.0, tolerance);
        }
    }
}

#[test]
fn jpegs_of_every_colour_space_look_as_pillow_shows_them() {
    let plain = [[200, 30, 30], [30, 160, 60], [40, 60, 190], [240, 240, 230]];
    let expected = [
        (CMYK, plain),
        (PROGRESSIVE, plain),
        (SUBSAMPLED, plain),
        (YCCK, YCCK_COLOURS),
    ];
    for (bytes, colours) in expected {
        let rgb = decoded(bytes);
        assert_eq!((rgb.width(), rgb.height()), (16, 16));
        for ((x, y), colour) in [(3, 3), (11, 3), (3, 11), (11, 11)]
            .into_iter()
            .zip(colours)
        {
            assert_close(pixel(&rgb, x, y), colour, 6);
        }
    }
}

/// What is decoded where so few pixels on the shorter side are enough.
fn reduced(enough: usize) -> Limits {
    Limits {
        enough,
        ..Limits::default()
    }
}

#[test]
fn large_jpegs_are_decoded_at_a_size_that_is_enough() {
    let plain = [[200, 30, 30], [30, 160, 60], [40, 60, 190], [240, 240, 230]];
    for bytes in [PROGRESSIVE, SUBSAMPLED] {
        for (enough, side) in [(2, 2), (3, 4), (8, 8), (9, 16)] {
            let rgb = decode_bytes(bytes, &reduced(enough)).unwrap();
            assert_eq!((rgb.width(), rgb.height()), (side, side));
            // Sharp edges ring in frequencies that are cut off.
            let tolerance = if side == 16 { 6 } else { 20 };
            for (index, colour) in plain.into_iter().enumerate() {
                let (x, y) = (index as u32 % 2, index as u32 / 2);
                let middle = |half| side / 4 + half * side / 2;
                assert_close(pixel(&rgb, middle(x), middle(y)), colour, tolerance);
            }
        }
    }
    // Kinds that are decoded whole only.
    for bytes in [CMYK, YCCK] {
        assert_eq!(
            decode_bytes(bytes, &reduced(2)).unwrap().pixels(),
            decoded(bytes).pixels()
        );
    }
}

/// Odd sides, and so fine a pattern that leaving out pixels would show.
#[test]
fn a_reduced_jpeg_is_the_average_of_its_pixels() {
    let fine = |x: u32, y: u32| [((x * 37 + y * 91) % 64) as u8, (x + y) as u8, (y * 2) as u8];
    let colour = RgbImage::from_fn(101, 75, |x, y| {
        let [noise, along, down] = fine(x, y);
        image::Rgb([96 + noise, along, down])
    });
    let grey = GrayImage::from_fn(75, 101, |x, y| Luma([96 + fine(x, y)[0]]));
    for bytes in [
        encoded(colour, ImageFormat::Jpeg),
        encoded(grey, ImageFormat::Jpeg),
    ] {
        let whole = decoded(&bytes);
        for factor in [2u32, 4, 8] {
            let rgb = decode_bytes(&bytes, &reduced(75 / factor as usize)).unwrap();
            let (width, height) = (whole.width(), whole.height());
            assert_eq!(rgb.width(), width.div_ceil(factor));
            assert_eq!(rgb.height(), height.div_ceil(factor));
            let (mut sum, mut count) = (0.0, 0.0);
            for (y, x) in
                (0..height / factor).flat_map(|y| (0..width / factor).map(move |x| (y, x)))
            {
                let mut average = [0.0; 3];
                for (j, i) in (0..factor).flat_map(|j| (0..factor).map(move |i| (j, i))) {
                    let seen = pixel(&whole, x * factor + i, y * factor + j);
                    for (average, value) in average.iter_mut().zip(seen) {
                        *average += f64::from(value) / f64::from(factor * factor);
                    }
                }
                for (average, value) in average.into_iter().zip(pixel(&rgb, x, y)) {
                    sum += (average - f64::from(value)).abs();
                    count += 1.0;
                }
            }
            assert!(sum / count < 4.0, "{factor}: off by {}", sum / count);
        }
    }
}

#[test]
fn grey_images_become_rgb() {
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Tiff] {
        let grey = GrayImage::from_pixel(16, 8, Luma([90]));
        let rgb = decoded(&encoded(grey, format));
        assert_eq!((rgb.width(), rgb.height()), (16, 8));
        assert_close(pixel(&rgb, 5, 5), [90; 3], 1);
    }
}

#[test]
fn transparent_parts_are_laid_over_white() {
    let image = RgbaImage::from_fn(3, 1, |x, _| Rgba([100, 0, 200, [255, 51, 0][x as usize]]));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let rgb = decoded(&encoded(image.clone(), format));
        assert_eq!(pixel(&rgb, 0, 0), [100, 0, 200]);
        assert_eq!(pixel(&rgb, 1, 0), [224, 204, 244]);
        assert_eq!(pixel(&rgb, 2, 0), [255; 3]);
    }
    let grey = GrayAlphaImage::from_fn(2, 1, |x, _| LumaA([60, [255, 0][x as usize]]));
    let rgb = decoded(&encoded(grey, ImageFormat::Png));
    assert_eq!([pixel(&rgb, 0, 0), pixel(&rgb, 1, 0)], [[60; 3], [255; 3]]);
}

#[test]
fn sixteen_bit_images_keep_their_tones() {
    let deep: ImageBuffer<image::Rgb<u16>, Vec<u16>> =
        ImageBuffer::from_pixel(4, 4, image::Rgb([0, 257 * 100, 65535]));
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let rgb = decoded(&encoded(DynamicImage::ImageRgb16(deep.clone()), format));
        assert_eq!(pixel(&rgb, 1, 1), [0, 100, 255]);
    }
}

#[test]
fn the_first_frame_of_an_animation_is_taken() {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for colour in [[255, 0, 0, 255], [0, 255, 0, 255]] {
        let frame = image::Frame::new(RgbaImage::from_pixel(6, 6, Rgba(colour)));
        encoder.encode_frame(frame).unwrap();
    }
    drop(encoder);
    assert_eq!(pixel(&decoded(&bytes), 3, 3), [255, 0, 0]);
}

/// `jpeg` with an EXIF segment that holds nothing but an orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"\xFF\xE1\x00\x22Exif\0\0MM\0\x2A\0\0\0\x08\0\x01".to_vec();
    exif.extend(b"\x01\x12\0\x03\0\0\0\x01\0");
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    [&jpeg[..2], &exif, &jpeg[2..]].concat()
}

#[test]
fn photos_are_turned_upright_by_their_exif_orientation() {
    // A dark spot in the top left corner ends up in this corner (EXIF 2.32, tag 0x0112).
    let corners = [
        (0, 0),
        (1, 0),
        (1, 1),
        (0, 1),
        (0, 0),
        (1, 0),
        (1, 1),
        (0, 1),
    ];
    let spot = RgbImage::from_fn(32, 16, |x, y| {
        image::Rgb(if x < 8 && y < 8 { [0; 3] } else { [255; 3] })
    });
    let jpeg = encoded(spot, ImageFormat::Jpeg);
    for (orientation, (right, bottom)) in (1..=8).zip(corners) {
        let rgb = decoded(&with_orientation(&jpeg, orientation));
        let size = if orientation < 5 { (32, 16) } else { (16, 32) };
        assert_eq!((rgb.width(), rgb.height()), size);
        let at = |far: u32, length: u32| if far == 1 { length - 3 } else { 2 };
        let dark = pixel(&rgb, at(right, size.0), at(bottom, size.1));
        let light = pixel(&rgb, at(1 - right, size.0), at(1 - bottom, size.1));
        assert!(dark[0] < 40 && light[0] > 215, "orientation {orientation}");
    }
}

#[test]
fn an_impossible_orientation_does_not_cost_the_photo() {
    let jpeg = encoded(gradient(), ImageFormat::Jpeg);
    assert_eq!(decoded(&with_orientation(&jpeg, 99)), decoded(&jpeg));
}

#[test]
fn an_empty_file_is_named_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wren.jpg");
    std::fs::write(&path, []).unwrap();
    let error = decode(&path, &Limits::default()).unwrap_err();
    assert_eq!(error.fault, Fault::Empty);
    assert_eq!(
        error.to_string(),
        format!("{} is empty (0 bytes)", path.display())
    );
}

#[test]
fn files_that_are_no_image_say_what_they_hold() {
    for (bytes, holds) in [
        (&b"once upon a time"[..], "it holds text"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"%PDF-1.7 and so on", "PDF"),
        (&[0; 4096], "nothing but zeros"),
        (b"\x7FELF\x02\x01\x01\0", "no known image format"),
        (b"\xFF", "no known image format"),
    ] {
        let message = fault(bytes).to_string();
        assert!(message.contains(holds), "{message}");
    }
}

#[test]
fn photo_formats_without_a_decoder_are_named() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
        (b"\0\0\0\x1Cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x0CJXL \r\n\x87\n", "JPEG XL"),
    ] {
        let message = fault(bytes).to_string();
        assert!(
            message.contains(name) && message.contains("convert"),
            "{message}"
        );
    }
}

/// Every cut gives either an error or, where only a trailer is gone, the picture as it was.
#[track_caller]
fn assert_no_cut_is_taken_for_a_photo(bytes: &[u8], name: &str, limits: &Limits) {
    let whole = decode_bytes(bytes, limits).unwrap();
    let mut refused = 0;
    for end in 1..bytes.len() {
        match decode_bytes(&bytes[..end], limits) {
            Ok(rgb) => assert_eq!(rgb.pixels(), whole.pixels(), "{name} cut at {end}"),
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > bytes.len() / 2,
        "{name}: {refused} of {}",
        bytes.len()
    );
}

#[test]
fn a_truncated_image_is_an_error_and_never_half_a_photo() {
    let whole = Limits::default();
    for format in FORMATS {
        let bytes = encoded(gradient(), format);
        assert_no_cut_is_taken_for_a_photo(&bytes, &format!("{format:?}"), &whole);
    }
    for (bytes, name) in [
        (PROGRESSIVE, "progressive"),
        (SUBSAMPLED, "subsampled"),
        (CMYK, "CMYK"),
    ] {
        assert_no_cut_is_taken_for_a_photo(bytes, name, &whole);
    }
    let jpeg = encoded(gradient(), ImageFormat::Jpeg);
    for (bytes, name) in [
        (&jpeg[..], "reduced"),
        (PROGRESSIVE, "progressive and reduced"),
        (SUBSAMPLED, "subsampled and reduced"),
    ] {
        assert_no_cut_is_taken_for_a_photo(bytes, name, &reduced(2));
    }
}

#[test]
fn a_jpeg_of_a_scan_for_each_component_is_decoded_at_any_size() {
    for (limits, side) in [(Limits::default(), 640), (reduced(112), 160)] {
        let rgb = decode_bytes(SCANS, &limits).unwrap();
        assert_eq!((rgb.width(), rgb.height()), (side, side));
        for (x, y, colour) in [
            (1, 1, [200, 30, 30]),
            (3, 1, [30, 160, 60]),
            (1, 3, [40, 60, 190]),
            (3, 3, [240, 240, 230]),
        ] {
            let at = 3 * (y * side / 4 * side + x * side / 4) as usize;
            let found = &rgb.pixels()[at..at + 3];
            let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 6;
            assert!(
                found.iter().zip(&colour).all(near),
                "{side} {x} {y}: {found:?}"
            );
        }
    }
}

/// The segments of a JPEG without its code tables; it is coded by those of the standard.
fn without_code_tables(jpeg: &[u8]) -> Vec<u8> {
    let (mut at, mut rest) = (2, jpeg[..2].to_vec());
    while jpeg[at + 1] != 0xDA {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != 0xC4 {
            rest.extend(&jpeg[at..end]);
        }
        at = end;
    }
    rest.extend(&jpeg[at..]);
    rest
}

#[test]
fn a_frame_of_a_webcam_without_code_tables_is_decoded_by_those_of_the_standard() {
    let jpeg = encoded(gradient(), ImageFormat::Jpeg);
    let bare = without_code_tables(&jpeg);
    assert!(bare.len() + 400 < jpeg.len());
    for limits in [Limits::default(), reduced(2)] {
        assert_eq!(
            decode_bytes(&bare, &limits).unwrap(),
            decode_bytes(&jpeg, &limits).unwrap()
        );
    }
}

#[test]
fn a_truncated_jpeg_is_called_that_also_when_zeros_fill_the_rest() {
    for jpeg in [&encoded(gradient(), ImageFormat::Jpeg), PROGRESSIVE] {
        let cut = jpeg.len() * 3 / 4;
        assert_eq!(fault(&jpeg[..cut]), Fault::Truncated { format: "JPEG" });
        let mut filled = jpeg[..cut].to_vec();
        filled.resize(jpeg.len(), 0);
        assert_eq!(fault(&filled), Fault::Truncated { format: "JPEG" });
        for bytes in [&jpeg[..cut], &filled] {
            assert!(decode_bytes(bytes, &reduced(2)).is_err());
        }
    }
}

#[test]
fn a_truncated_png_is_called_that() {
    let png = encoded(gradient(), ImageFormat::Png);
    assert_eq!(
        fault(&png[..png.len() / 2]),
        Fault::Truncated { format: "PNG" }
    );
}

#[test]
fn bytes_behind_the_end_of_a_jpeg_do_not_matter() {
    let mut jpeg = encoded(gradient(), ImageFormat::Jpeg);
    let plain = decoded(&jpeg);
    jpeg.extend(b"camera maker's own data \xFF\xD8\xFF\x00");
    assert_eq!(decoded(&jpeg), plain);
}

#[test]
fn padding_between_the_headers_of_a_jpeg_does_not_matter() {
    let jpeg = encoded(gradient(), ImageFormat::Jpeg);
    let first = 4 + usize::from(u16::from_be_bytes([jpeg[4], jpeg[5]]));
    let padded = [&jpeg[..first], &[0; 9], &jpeg[first..]].concat();
    assert_eq!(decoded(&padded), decoded(&jpeg));
}

/// The header of a PNG of that size, with a little pixel data behind it.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut png = encoded(RgbImage::new(1, 1), ImageFormat::Png);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32fast::hash(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

/// A JPEG with the size in its frame header overwritten.
fn jpeg_of(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = encoded(gradient(), ImageFormat::Jpeg);
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xFF, 0xC0])
        .unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    jpeg
}

#[test]
fn a_pixel_bomb_is_refused_by_its_header() {
    let mut bmp = encoded(gradient(), ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&20_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&20_000u32.to_le_bytes());
    let mut gif = encoded(gradient(), ImageFormat::Gif);
    gif[6..8].copy_from_slice(&20_000u16.to_le_bytes());
    gif[8..10].copy_from_slice(&20_000u16.to_le_bytes());
    let pnm = b"P6 20000 20000 255\n".to_vec();
    for bomb in [
        png_of(20_000, 20_000),
        jpeg_of(20_000, 20_000),
        bmp,
        gif,
        pnm,
    ] {
        assert_eq!(
            fault(&bomb).to_string(),
            "has 20000 x 20000 pixels (400.0 megapixels), and the limit is 40.0 megapixels; \
             scale it down first"
        );
    }
    // Sizes whose product overflows or is absurd.
    for bomb in [png_of(0x7FFF_FFFF, 0x7FFF_FFFF), jpeg_of(65_535, 65_535)] {
        let fault = fault(&bomb);
        let refused = matches!(
            fault,
            Fault::TooManyPixels { .. } | Fault::TooMuchMemory { .. }
        );
        assert!(refused, "{fault:?}");
    }
}

#[test]
fn a_header_that_promises_more_pixels_than_follow_is_an_error() {
    assert!(matches!(
        fault(&png_of(5_000, 5_000)),
        Fault::Truncated { .. } | Fault::Corrupt { .. }
    ));
}

#[test]
fn the_limits_are_the_callers() {
    let png = encoded(gradient(), ImageFormat::Png);
    let exact = Limits {
        max_pixels: 24 * 16,
        max_bytes: png.len() as u64,
        ..Limits::default()
    };
    assert!(decode_bytes(&png, &exact).is_ok());
    let small = Limits {
        max_pixels: 24 * 16 - 1,
        ..exact
    };
    assert!(matches!(
        decode_bytes(&png, &small),
        Err(Fault::TooManyPixels { .. })
    ));
    let short = Limits {
        max_bytes: exact.max_bytes - 1,
        ..exact
    };
    assert!(matches!(
        decode_bytes(&png, &short),
        Err(Fault::TooManyBytes { .. })
    ));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.png");
    std::fs::write(&path, &png).unwrap();
    assert!(matches!(
        decode(&path, &short).unwrap_err().fault,
        Fault::TooManyBytes { .. }
    ));
}

#[test]
fn folders_and_missing_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    assert_eq!(
        decode(folder.path(), &limits).unwrap_err().fault,
        Fault::NotAFile
    );
    let missing = decode(Path::new("no/such/photo.jpg"), &limits).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("no/such/photo.jpg cannot be read")
    );
}

/// Small valid files of every kind, to break.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = FORMATS.map(|format| encoded(gradient(), format)).into();
    let clear = RgbaImage::from_fn(9, 7, |x, y| Rgba([x as u8, y as u8, 0, x as u8 * 20]));
    seeds
        .extend([ImageFormat::Png, ImageFormat::WebP].map(|format| encoded(clear.clone(), format)));
    let large = RgbImage::from_fn(40, 56, |x, y| {
        image::Rgb([x as u8 * 6, (x * y) as u8, y as u8])
    });
    seeds.push(encoded(large, ImageFormat::Jpeg));
    seeds.extend([CMYK, YCCK, PROGRESSIVE, SUBSAMPLED].map(<[u8]>::to_vec));
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn mutated_images_never_panic_nor_grow_beyond_the_limits(
        seed in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        drop in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let seeds = seeds();
        let mut bytes = seed.get(&seeds).clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(drop) = drop {
            bytes.remove(drop.index(bytes.len()));
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = Limits { max_pixels: 1_000_000, max_bytes: 1 << 20, enough: 8, ..Limits::default() };
        if let Ok(rgb) = decode_bytes(&bytes, &limits) {
            let pixels = u64::from(rgb.width()) * u64::from(rgb.height());
            prop_assert!(pixels <= limits.max_pixels);
            prop_assert_eq!(rgb.pixels().len() as u64, 3 * pixels);
        }
    }
}
