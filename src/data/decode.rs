//! Image files to RGB bytes: format by content, upright, within bounds, and never half.

mod content;
mod raster;

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, RgbImage};

pub(super) use self::content::{Content, SIGNATURE, recognise};
use self::content::{DESCRIBED, describe};
use self::raster::{decode_as, decoder_of};
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
    /// Bytes that decoding may take.
    pub max_memory: usize,
}

impl Default for Limits {
    /// 40 megapixels, more than most cameras make, in a file of at most 256 MiB; all pixels, and
    /// whatever memory that takes.
    fn default() -> Self {
        Self {
            max_pixels: 40_000_000,
            max_bytes: 256 << 20,
            enough: usize::MAX,
            max_memory: usize::MAX,
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
    #[error(
        "takes {} MiB to decode, and there are {} MiB for it: scale it down first, or allow this program more memory",
        needed.div_ceil(1 << 20), left >> 20
    )]
    BeyondMemory { needed: usize, left: usize },
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
    kind.check_memory(0, limits)?;
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
        let (decoding, height) = self.kind.memory(self.length);
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
            .and_then(|()| self.kind.check_memory(self.length, &self.limits))
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
                let mut reader = reader().map_err(unreadable)?;
                jpeg::Header::peek(&mut reader, limits).map(Self::Jpeg)
            }
            Some(Content::Image(format)) => {
                let mut reader = BufReader::new(reader().map_err(unreadable)?);
                let (decoder, _) = decoder_of(format, &mut reader, limits)?;
                let (width, height) = decoder.dimensions();
                let pixels = width as usize * height as usize;
                let decoded = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
                // What the decoder itself holds: rows, a copy, or frames and planes.
                let inside = match format {
                    ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Pnm => 16 * width as usize,
                    ImageFormat::Tiff => decoded.saturating_add(pixels),
                    ImageFormat::Gif => 5 * pixels,
                    _ => 7 * pixels,
                };
                // What becomes of it when the decoder is gone: RGBA of what is not RGB yet.
                let made = match decoder.color_type() {
                    ColorType::Rgb8 => 0,
                    _ => 4 * pixels,
                };
                // And last RGB of the RGBA, or the picture turned.
                let most = decoded.saturating_add(inside.max(made)).max(7 * pixels);
                Ok(Self::Other {
                    format,
                    memory: most.saturating_add(192 << 10),
                    height: width.max(height) as usize,
                })
            }
            Some(Content::Foreign(what)) => Err(Fault::Unsupported { what: what.into() }),
            None => Err(Fault::NotAnImage {
                holds: describe(head),
            }),
        }
    }

    /// Bytes that decoding takes at most, of a file of `length` bytes that is yet to be read, and the longer side.
    fn memory(&self, length: usize) -> (usize, usize) {
        match self {
            Self::Jpeg(Some(header)) => {
                let file = if header.is_streamed() { 0 } else { length };
                (header.memory() + file, header.height().max(header.width()))
            }
            // Damaged headers: only the file is looked at.
            Self::Jpeg(None) => (length + (64 << 10), 0),
            Self::Other { memory, height, .. } => (*memory, *height),
        }
    }

    fn check_memory(&self, length: usize, limits: &Limits) -> Result<(), Fault> {
        let (needed, left) = (self.memory(length).0, limits.max_memory);
        if needed > left {
            return Err(Fault::BeyondMemory { needed, left });
        }
        Ok(())
    }

    fn decode(&self, mut reader: impl Read + Seek, limits: &Limits) -> Result<Rgb, Fault> {
        match self {
            Self::Jpeg(Some(header)) if header.is_streamed() => {
                header.decode_streamed(&mut reader, header.memory())
            }
            Self::Jpeg(_) => {
                let unreadable = |error: io::Error| Fault::Unreadable(error.to_string());
                let length = reader.seek(SeekFrom::End(0)).map_err(unreadable)?;
                check_length(length, limits)?;
                reader.rewind().map_err(unreadable)?;
                let mut bytes = Vec::with_capacity(length as usize + jpeg::COMPLETED);
                // Not more than there was: a file may be growing.
                reader
                    .take(length)
                    .read_to_end(&mut bytes)
                    .map_err(unreadable)?;
                jpeg::decode(bytes, limits)
            }
            Self::Other { format, .. } => decode_as(*format, &mut BufReader::new(reader), limits),
        }
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
