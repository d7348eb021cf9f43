//! Image files to RGB bytes: format by content, upright, within bounds, and never half.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use super::jpeg;
use crate::vit::Pixels;

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
    /// How many pixels the shorter side of the result needs: a JPEG of twice as many or more may be
    /// decoded at a half, a quarter or an eighth of its size that still has them.
    pub enough: usize,
}

impl Default for Limits {
    /// 40 megapixels, more than most cameras make, in a file of at most 256 MiB; all pixels.
    fn default() -> Self {
        Self {
            max_pixels: 40_000_000,
            max_bytes: 256 << 20,
            enough: usize::MAX,
        }
    }
}

impl Limits {
    /// For a picture that is scaled to squares of `side`: twice as many pixels leave the filter
    /// everything it looks at.
    pub fn for_side(side: Pixels) -> Self {
        Self {
            enough: 2 * side,
            ..Self::default()
        }
    }

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
    #[error(
        "takes {} MiB to decode, and the budget leaves {} MiB for it: raise --budget by {} MiB, or scale it down first",
        needed.div_ceil(1 << 20), left >> 20, needed.div_ceil(1 << 20) - (left >> 20)
    )]
    BeyondBudget { needed: usize, left: usize },
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
    Undecoded::open(path, limits)?.decode()
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
    check_length(bytes.len() as u64, limits)?;
    let kind = Kind::of(bytes, || Ok(Cursor::new(bytes)), limits)?;
    kind.decode(Cursor::new(bytes), limits)
}

/// An image file of which only the headers were read.
#[derive(Debug)]
pub struct Undecoded {
    path: PathBuf,
    file: File,
    length: usize,
    kind: Kind,
    limits: Limits,
}

impl Undecoded {
    /// Opens an image file and looks at its headers.
    ///
    /// # Errors
    /// When the file cannot be read, is beyond `limits`, or begins as no image does.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, DecodeError> {
        let fault = |fault| DecodeError {
            path: path.to_owned(),
            fault,
        };
        let unreadable = |error: io::Error| fault(Fault::Unreadable(error.to_string()));
        // Asked first: opening a pipe that nobody writes to would wait for ever.
        let metadata = path.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(fault(Fault::NotAFile));
        }
        check_length(metadata.len(), limits).map_err(fault)?;
        let file = File::open(path).map_err(unreadable)?;
        let mut head = [0; DESCRIBED];
        let mut begun = 0;
        while begun < head.len() {
            match file.read_at(&mut head[begun..], begun as u64) {
                Ok(0) => break,
                Ok(read) => begun += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        let from_start = || file.try_clone();
        let kind = Kind::of(&head[..begun], from_start, limits).map_err(fault)?;
        Ok(Self {
            path: path.to_owned(),
            length: usize::try_from(metadata.len()).unwrap_or(usize::MAX),
            kind,
            limits: *limits,
            file,
        })
    }

    /// Bytes that decoding takes at most, and scaling the result to squares of `side`.
    pub fn memory(&self, side: Pixels) -> usize {
        let (decoding, height) = match &self.kind {
            Kind::Jpeg(Some(header)) => {
                let file = if header.is_reduced() { 0 } else { self.length };
                (header.memory() + file, header.height().max(header.width()))
            }
            // Damaged headers: only the file is looked at.
            Kind::Jpeg(None) => (self.length + (64 << 10), 0),
            Kind::Other { memory, height, .. } => (*memory, *height),
        };
        // The filter goes along rows first, and holds its weights.
        decoding + 3 * side * height + 3 * side * side + 64 * side + 64 * height
    }

    /// Decodes it to upright RGB.
    ///
    /// # Errors
    /// When it holds no whole image.
    pub fn decode(mut self) -> Result<Rgb, DecodeError> {
        let rgb = self
            .file
            .rewind()
            .map_err(|error| Fault::Unreadable(error.to_string()))
            .and_then(|()| self.kind.decode(&self.file, &self.limits));
        rgb.map_err(|fault| DecodeError {
            path: self.path,
            fault,
        })
    }

    /// The path, to say what is wrong with it.
    pub fn fault(self, fault: Fault) -> DecodeError {
        DecodeError {
            path: self.path,
            fault,
        }
    }
}

/// How an image will be decoded.
#[derive(Debug)]
enum Kind {
    /// With what its headers say, where they are whole.
    Jpeg(Option<jpeg::Header>),
    Other {
        format: ImageFormat,
        memory: usize,
        /// The longer side.
        height: usize,
    },
}

impl Kind {
    /// From the first bytes and, through `whole`, the headers of an image.
    fn of<R: Read + Seek>(
        head: &[u8],
        whole: impl FnOnce() -> io::Result<R>,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        if head.is_empty() {
            return Err(Fault::Empty);
        }
        let reader = || {
            let mut reader = whole()?;
            reader.rewind()?;
            Ok(reader)
        };
        let unreadable = |error: io::Error| Fault::Unreadable(error.to_string());
        match recognise(head) {
            Some(Content::Image(ImageFormat::Jpeg)) => {
                let reader = reader().map_err(unreadable)?;
                jpeg::Header::peek(reader, limits).map(Self::Jpeg)
            }
            Some(Content::Image(format)) => {
                let mut reader = BufReader::new(reader().map_err(unreadable)?);
                let (decoder, _) = decoder_of(format, &mut reader, limits)?;
                let (width, height) = decoder.dimensions();
                let pixels = width as usize * height as usize;
                let decoded = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
                // What comes out, what becomes of it, and what the decoder itself holds.
                let inside = match format {
                    ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Pnm => 16 * width as usize,
                    _ => 8 * pixels,
                };
                Ok(Self::Other {
                    format,
                    memory: decoded + 7 * pixels + inside + (192 << 10),
                    height: width.max(height) as usize,
                })
            }
            Some(Content::Foreign(what)) => Err(Fault::Unsupported { what: what.into() }),
            None => Err(Fault::NotAnImage {
                holds: describe(head),
            }),
        }
    }

    fn decode(&self, mut reader: impl Read + Seek, limits: &Limits) -> Result<Rgb, Fault> {
        match self {
            Self::Jpeg(Some(header)) if header.is_reduced() => {
                header.decode_reduced(reader, header.memory())
            }
            Self::Jpeg(_) => {
                let unreadable = |error: io::Error| Fault::Unreadable(error.to_string());
                let length = reader.seek(SeekFrom::End(0)).map_err(unreadable)?;
                check_length(length, limits)?;
                reader.rewind().map_err(unreadable)?;
                let mut bytes = Vec::with_capacity(length as usize);
                // Not more than there was: a file may be growing.
                reader
                    .take(length)
                    .read_to_end(&mut bytes)
                    .map_err(unreadable)?;
                jpeg::decode(&bytes, limits)
            }
            Self::Other { format, .. } => decode_as(*format, &mut BufReader::new(reader), limits),
        }
    }
}

/// Bytes at the start of a file that are looked at to say what it is.
const DESCRIBED: usize = 512;

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

fn check_length(bytes: u64, limits: &Limits) -> Result<(), Fault> {
    if bytes > limits.max_bytes {
        return Err(Fault::TooManyBytes {
            bytes,
            max_bytes: limits.max_bytes,
        });
    }
    Ok(())
}

/// What the `image` crate reads from, behind a pointer: for every type of reader it would bring
/// another copy of all its decoders.
trait Source: BufRead + Seek {}

impl<R: BufRead + Seek> Source for R {}

/// A decoder for every format but JPEG, from the `image` crate, and what it may allocate.
fn decoder_of<'r>(
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
fn decode_as(format: ImageFormat, reader: &mut dyn Source, limits: &Limits) -> Result<Rgb, Fault> {
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
