//! Every format but JPEG, by the `image` crate.

use std::error::Error;
use std::io::{self, BufRead, Seek};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

use super::{Fault, Limits, Rgb, upright};

/// What the `image` crate reads from, behind a pointer: for every type of reader it would bring
/// another copy of all its decoders.
pub(super) trait Source: BufRead + Seek {}

impl<R: BufRead + Seek> Source for R {}

/// A decoder for every format but JPEG, from the `image` crate, and what it may allocate.
pub(super) fn decoder_of<'r>(
    format: ImageFormat,
    reader: &'r mut dyn Source,
    limits: &Limits,
) -> Result<(impl ImageDecoder + use<'r>, image::Limits), Fault> {
    let fault = |error: ImageError| fault_of(&error, format_name(format));
    let mut memory = image::Limits::default();
    memory.max_alloc = Some(limits.decoder_memory());
    let mut reader = ImageReader::with_format(reader, format);
    reader.limits(memory.clone());
    let decoder = reader.into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    limits.check_dimensions(width.into(), height.into())?;
    Ok((decoder, memory))
}

/// Every format but JPEG.
pub(super) fn decode_as(
    format: ImageFormat,
    reader: &mut dyn Source,
    limits: &Limits,
) -> Result<Rgb, Fault> {
    let name = format_name(format);
    let fault = |error: ImageError| fault_of(&error, name);
    let (mut decoder, mut memory) = decoder_of(format, reader, limits)?;
    let (width, height) = decoder.dimensions();
    // Orientation is a courtesy: an image with odd metadata is still an image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    memory.reserve(decoder.total_bytes()).map_err(fault)?;
    decoder.set_limits(memory).map_err(fault)?;
    let image = DynamicImage::from_decoder(decoder).map_err(fault)?;
    let pixels = if image.has_alpha() {
        over_white(&image.into_rgba8())
    } else {
        image.into_rgb8().into_raw()
    };
    let rgb = Rgb::new(width, height, pixels).ok_or_else(|| Fault::Corrupt {
        format: name,
        reason: "it has no pixels".into(),
    })?;
    Ok(upright(rgb, orientation))
}

fn over_white(image: &image::RgbaImage) -> Vec<u8> {
    let blend = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let mut opaque = Vec::with_capacity(3 * image.pixels().len());
    for pixel in image.pixels() {
        let [red, green, blue, alpha] = pixel.0;
        opaque.extend([red, green, blue].map(|value| blend(value, alpha)));
    }
    opaque
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Pnm => "PNM",
        _ => "picture",
    }
}

fn fault_of(error: &ImageError, format: &'static str) -> Fault {
    if let ImageError::Unsupported(unsupported) = error {
        return Fault::Unsupported {
            what: format!("a {format} image of an unusual kind ({unsupported})"),
        };
    }
    if let ImageError::Limits(_) = error {
        return Fault::TooMuchMemory { format };
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::UnexpectedEof
        {
            return Fault::Truncated { format };
        }
        cause = error.source();
    }
    let reason = error.to_string().replace('\n', " ");
    // The png crate keeps its cause to itself and only prints it.
    if reason.contains("unexpected end of file") {
        return Fault::Truncated { format };
    }
    Fault::Corrupt { format, reason }
}
