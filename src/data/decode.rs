//! Image files to RGB bytes: format by content, upright, within bounds, and never half.

use std::error::Error;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use super::jpeg;

/// An upright photo: `height` rows of `width` pixels of three bytes, no padding, at least 1 x 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Rgb {
    /// `pixels` is `[height, width, 3]`; `None` when its length or an empty side says otherwise.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        let bytes = u64::from(width)
            .checked_mul(u64::from(height))?
            .checked_mul(3)?;
        (bytes > 0 && bytes == pixels.len() as u64).then_some(Self {
            width,
            height,
            pixels,
        })
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[height, width, 3]`
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for Rgb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb({} x {})", self.width, self.height)
    }
}

/// What a file may cost, checked against its size and its header before any pixel is decoded.
///
/// Decoding takes at most `max_bytes` for the file and some 12 bytes a pixel: 3 for the result,
/// and 6 to 8 for the coefficients of a progressive JPEG or 16-bit channels with alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width times height.
    pub max_pixels: u64,
    /// Size of the file.
    pub max_bytes: u64,
}

impl Default for Limits {
    /// 40 megapixels, more than most cameras make, in a file of at most 256 MiB.
    fn default() -> Self {
        Self {
            max_pixels: 40_000_000,
            max_bytes: 256 << 20,
        }
    }
}

impl Limits {
    pub(super) fn check_dimensions(&self, width: u64, height: u64) -> Result<(), Fault> {
        match width.checked_mul(height) {
            Some(pixels) if pixels <= self.max_pixels => Ok(()),
            _ => Err(Fault::TooManyPixels {
                width,
                height,
                max_pixels: self.max_pixels,
            }),
        }
    }

    /// Bound on what a decoder may allocate besides its result.
    fn decoder_memory(&self) -> u64 {
        // Small images need room for tables and buffers that do not scale with them.
        (1 << 20) + self.max_pixels.saturating_mul(8)
    }
}

/// What is wrong with an image file. Reads as the end of a sentence that starts with the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("cannot be read ({0})")]
    Unreadable(String),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is empty (0 bytes)")]
    Empty,
    #[error("has {bytes} bytes, and the limit for one image is {max_bytes}")]
    TooManyBytes { bytes: u64, max_bytes: u64 },
    #[error(
        "has {width} x {height} pixels ({:.1} megapixels), and the limit is {:.1} megapixels; \
         scale it down first",
        *width as f64 * *height as f64 / 1e6, *max_pixels as f64 / 1e6
    )]
    TooManyPixels {
        width: u64,
        height: u64,
        max_pixels: u64,
    },
    #[error("is a {format} image that takes more memory to decode than its pixel limit allows")]
    TooMuchMemory { format: &'static str },
    #[error("is not an image: it holds {holds}")]
    NotAnImage { holds: &'static str },
    #[error("is {what}, which fledge cannot read; convert it to JPEG or PNG")]
    Unsupported { what: String },
    #[error("is a {format} image that ends too early; copy it again from where it came")]
    Truncated { format: &'static str },
    #[error("is a damaged {format} image ({reason})")]
    Corrupt {
        format: &'static str,
        reason: String,
    },
}

/// A [`Fault`] and the file that has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {fault}", path.display())]
pub struct DecodeError {
    pub path: PathBuf,
    pub fault: Fault,
}

/// Decodes the image file at `path`; see [`decode_bytes`].
///
/// # Errors
/// When the file cannot be read, is beyond `limits`, or holds no whole image.
pub fn decode(path: &Path, limits: &Limits) -> Result<Rgb, DecodeError> {
    read(path, limits)
        .and_then(|bytes| decode_bytes(&bytes, limits))
        .map_err(|fault| DecodeError {
            path: path.to_owned(),
            fault,
        })
}

/// Decodes a JPEG, PNG, WebP, GIF, BMP, TIFF or PNM image held in memory.
///
/// The content decides about the format. EXIF orientation is applied; grey, palette, CMYK and
/// 16-bit images become 8-bit RGB; transparent parts are laid over white, as a page would show
/// them; of an animation the first frame is taken.
///
/// # Errors
/// When `bytes` is beyond `limits`, or holds no whole image of these formats.
pub fn decode_bytes(bytes: &[u8], limits: &Limits) -> Result<Rgb, Fault> {
    if bytes.is_empty() {
        return Err(Fault::Empty);
    }
    check_length(bytes.len() as u64, limits)?;
    match recognise(bytes) {
        Some(Content::Image(ImageFormat::Jpeg)) => jpeg::decode(bytes, limits),
        Some(Content::Image(format)) => decode_as(format, bytes, limits),
        Some(Content::Foreign(what)) => Err(Fault::Unsupported { what: what.into() }),
        None => Err(Fault::NotAnImage {
            holds: describe(bytes),
        }),
    }
}

/// Bytes at the start of a file that [`recognise`] wants to see.
pub(super) const SIGNATURE: usize = 16;

/// An image by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Image(ImageFormat),
    /// A photo format without a decoder here, with its name.
    Foreign(&'static str),
}

/// Names the image format that `head`, the first bytes of a file, begins.
pub(super) fn recognise(head: &[u8]) -> Option<Content> {
    let boxed = head.get(4..8) == Some(b"ftyp");
    match head.get(8..12) {
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"mif1" | b"msf1") if boxed => {
            return Some(Content::Foreign("a HEIC photo"));
        }
        Some(b"avif" | b"avis") if boxed => return Some(Content::Foreign("an AVIF image")),
        _ => {}
    }
    if head.starts_with(b"\xFF\x0A") || head.starts_with(b"\0\0\0\x0CJXL ") {
        return Some(Content::Foreign("a JPEG XL image"));
    }
    let format = image::guess_format(head).ok()?;
    format
        .reading_enabled()
        .then_some(Content::Image(format))
        .or(Some(Content::Foreign("an image of a rare format")))
}

fn describe(bytes: &[u8]) -> &'static str {
    let head = &bytes[..bytes.len().min(512)];
    // A character cut in two at the end of `head` is no sign against text.
    let utf8 = str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    let printed = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E | 0x80..);
    let text = utf8 && head.iter().all(printed);
    if head.iter().all(|&byte| byte == 0) {
        "nothing but zeros"
    } else if head.starts_with(b"%PDF") {
        "a PDF document"
    } else if text && head.trim_ascii_start().starts_with(b"<") {
        "a web page or other marked-up text"
    } else if text {
        "text"
    } else {
        "data of no known image format"
    }
}

fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>, Fault> {
    let unreadable = |error: io::Error| Fault::Unreadable(error.to_string());
    // Asked first: opening a pipe that nobody writes to would wait for ever.
    let metadata = path.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Fault::NotAFile);
    }
    check_length(metadata.len(), limits)?;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            // One byte more than allowed, to notice a file that is growing.
            file.take(limits.max_bytes.saturating_add(1))
                .read_to_end(&mut bytes)
        })
        .map_err(unreadable)?;
    Ok(bytes)
}

fn check_length(bytes: u64, limits: &Limits) -> Result<(), Fault> {
    if bytes > limits.max_bytes {
        return Err(Fault::TooManyBytes {
            bytes,
            max_bytes: limits.max_bytes,
        });
    }
    Ok(())
}

/// Every format but JPEG, through the `image` crate.
fn decode_as(format: ImageFormat, bytes: &[u8], limits: &Limits) -> Result<Rgb, Fault> {
    let name = format_name(format);
    let fault = |error: ImageError| fault_of(&error, name);
    let mut memory = image::Limits::default();
    memory.max_alloc = Some(limits.decoder_memory());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(memory.clone());
    let mut decoder = reader.into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    limits.check_dimensions(width.into(), height.into())?;
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
    image
        .pixels()
        .flat_map(|pixel| {
            let [red, green, blue, alpha] = pixel.0;
            [red, green, blue].map(|value| blend(value, alpha))
        })
        .collect()
}

/// Turns and flips `rgb` as its EXIF orientation asks.
pub(super) fn upright(rgb: Rgb, orientation: Orientation) -> Rgb {
    if orientation == Orientation::NoTransforms {
        return rgb;
    }
    let image = RgbImage::from_raw(rgb.width, rgb.height, rgb.pixels)
        .expect("an Rgb holds width x height x 3 bytes");
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    Rgb {
        width,
        height,
        pixels: image.into_rgb8().into_raw(),
    }
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
