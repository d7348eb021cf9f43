//! JPEG, decoded by zune-jpeg with one rule of our own: half a photo is an error.
//!
//! A lenient JPEG decoder paints what is missing grey and says nothing, which would teach a class
//! that it is half grey. So the markers are walked first: a file that never reaches its end marker
//! was cut short (or zero-filled, as after a power cut). The rest is decoded strictly, so that
//! damage inside the pixel data is an error too. What neither sees is an end marker set in too
//! early, by a repair tool say: the decoder takes what is missing for flat colour.
//!
//! zune-jpeg makes every pixel there is. Photos much larger than what is needed are decoded at a
//! half, a quarter or an eighth by [`reduced`] instead, and so is, at its own size, a sequential one whose components
//! come in scans of their own: of these zune-jpeg 0.5.15 loses colours that are coded at a lower resolution.

mod bits;
mod coefficients;
mod frame;
mod plane;
mod reduced;
mod tables;

use std::io::Read;

use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use self::bits::Broken;
use self::frame::Frame;
use super::decode::{Fault, Limits, Rgb, upright};

const FORMAT: &str = "JPEG";
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const DHT: u8 = 0xC4;

/// How large a JPEG is and how it will be decoded.
#[derive(Debug)]
pub(super) struct Header {
    frame: Frame,
    /// 1, or 2, 4 or 8 where that leaves enough.
    factor: usize,
}

impl Header {
    /// Reads as far as the frame header. None where the headers are damaged or end: decoding will
    /// tell what is wrong.
    pub fn peek(reader: &mut dyn Read, limits: &Limits) -> Result<Option<Self>, Fault> {
        let frame = match Frame::peek(reader) {
            Ok(Some(frame)) => frame,
            Err(Broken::Io(error)) => return Err(Fault::Unreadable(error.to_string())),
            Ok(None) | Err(_) => return Ok(None),
        };
        limits.check_dimensions(frame.width as u64, frame.height as u64)?;
        let shorter = frame.width.min(frame.height);
        let enough = |factor: &usize| shorter / factor >= limits.enough;
        let factor = [8, 4, 2].into_iter().find(enough);
        Ok(Some(Self {
            factor: factor.filter(|_| frame.can_be_reduced()).unwrap_or(1),
            frame,
        }))
    }

    /// Whether [`reduced`] decodes it, row by row of the file.
    pub fn is_streamed(&self) -> bool {
        let split = self.frame.in_scans && !self.frame.progressive;
        self.factor > 1 || (split && self.frame.can_be_reduced())
    }

    /// Height of what decoding will make, before it is turned upright.
    pub fn height(&self) -> usize {
        self.frame.reduced(self.factor).1
    }

    /// Width of what decoding will make, before it is turned upright.
    pub fn width(&self) -> usize {
        self.frame.reduced(self.factor).0
    }

    /// Bytes that decoding takes at most, the result included, besides the file where it is decoded
    /// whole.
    pub fn memory(&self) -> usize {
        let (width, height) = self.frame.reduced(self.factor);
        let turned = match self.frame.orientation {
            Orientation::NoTransforms => 0,
            _ => 3 * width * height,
        };
        turned
            + match self.is_streamed() {
                true => self.frame.memory(self.factor),
                // zune-jpeg: pixels, the coefficients of several scans, and rows of blocks.
                false => {
                    let grey = self.frame.components.len() == 1;
                    let pixels = if grey { 4 } else { 3 } * width * height;
                    let coefficients = match self.frame.in_scans {
                        true => self.frame.coefficients(),
                        false => 0,
                    };
                    pixels + coefficients + ROW_BYTES * (width + 64) + (64 << 10)
                }
            }
    }

    /// Decodes a JPEG that is streamed, to upright RGB.
    pub fn decode_streamed(&self, reader: &mut dyn Read, memory: usize) -> Result<Rgb, Fault> {
        let picture =
            reduced::decode(reader, self.factor, memory).map_err(|broken| match broken {
                Broken::Io(error) => Fault::Unreadable(error.to_string()),
                Broken::Ended => Fault::Truncated { format: FORMAT },
                Broken::Damaged(reason) => Fault::Corrupt {
                    format: FORMAT,
                    reason: reason.into(),
                },
            })?;
        let (width, height) = (picture.width as u32, picture.height as u32);
        let rgb = Rgb::new(width, height, picture.pixels).ok_or_else(no_pixels)?;
        Ok(upright(rgb, picture.orientation))
    }
}

/// Bytes a column of the rows of blocks that zune-jpeg works on.
const ROW_BYTES: usize = 200;

fn no_pixels() -> Fault {
    Fault::Corrupt {
        format: FORMAT,
        reason: "it has no pixels".into(),
    }
}

/// Bytes that [`decode`] may add to a JPEG.
pub(super) const COMPLETED: usize = tables::SEGMENT;

/// Decodes a JPEG of any colour space to upright RGB.
pub(super) fn decode(mut bytes: Vec<u8>, limits: &Limits) -> Result<Rgb, Fault> {
    let markers = Markers::walk(&bytes);
    if !markers.tables {
        tables::complete(&mut bytes);
    }
    // Some cameras pad between headers, which strict mode refuses though nothing is missing.
    let options = DecoderOptions::default()
        .set_strict_mode(!markers.padded)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes), options);
    let fault = |error: DecodeErrors| match error {
        DecodeErrors::Unsupported(scheme) => Fault::Unsupported {
            what: format!("a JPEG of an unusual kind ({scheme:?})"),
        },
        _ if !markers.complete => Fault::Truncated { format: FORMAT },
        error => Fault::Corrupt {
            format: FORMAT,
            reason: error.to_string(),
        },
    };
    decoder.decode_headers().map_err(fault)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let (width, height) = (width as u64, height as u64);
    limits.check_dimensions(width, height)?;
    if !markers.complete {
        return Err(Fault::Truncated { format: FORMAT });
    }
    let colours = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(fault)?;
    let pixels = match colours {
        ColorSpace::Luma => pixels.into_iter().flat_map(|grey| [grey; 3]).collect(),
        _ => pixels,
    };
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let rgb = Rgb::new(width as u32, height as u32, pixels).ok_or_else(no_pixels)?;
    Ok(upright(rgb, orientation))
}

/// What the markers of a JPEG say about it, without decoding anything (ITU-T T.81, annex B).
struct Markers {
    /// The end marker was reached.
    complete: bool,
    /// Bytes that belong to nothing lie between the headers.
    padded: bool,
    /// It brings code tables.
    tables: bool,
}

impl Markers {
    fn walk(bytes: &[u8]) -> Self {
        let (mut padded, mut tables) = (false, false);
        let mut at = 2; // behind the start marker
        let complete = loop {
            let Some(skipped) = until_marker(&bytes[at.min(bytes.len())..]) else {
                break false;
            };
            padded |= skipped > 0;
            at += skipped;
            while bytes.get(at) == Some(&0xFF) {
                at += 1;
            }
            let Some(&marker) = bytes.get(at) else {
                break false;
            };
            at += 1;
            tables |= marker == DHT;
            match marker {
                EOI => break true,
                // Markers without a segment: stuffing, temporary, restarts, a second start.
                0x00 | 0x01 | 0xD0..=0xD8 => continue,
                _ => {}
            }
            let Some(length) = bytes.get(at..at + 2) else {
                break false;
            };
            at += usize::from(u16::from_be_bytes([length[0], length[1]]));
            if marker == SOS {
                at += entropy_coded(bytes.get(at..).unwrap_or_default());
            }
        };
        Self {
            complete,
            padded,
            tables,
        }
    }
}

/// Bytes before the next `FF`.
fn until_marker(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == 0xFF)
}

/// Bytes of pixel data up to the next marker that is neither stuffing nor a restart.
fn entropy_coded(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(skipped) = until_marker(&bytes[at..]) {
        at += skipped;
        match bytes.get(at + 1) {
            Some(0x00 | 0xD0..=0xD7) => at += 2,
            Some(0xFF) => at += 1,
            _ => return at,
        }
    }
    bytes.len()
}
