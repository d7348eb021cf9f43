//! What a file is, by its first bytes.

use image::ImageFormat;

/// Bytes at the start of a file that are looked at to say what it is.
pub const DESCRIBED: usize = 512;

/// Bytes at the start of a file that [`recognise`] wants to see.
pub const SIGNATURE: usize = 16;

/// An image by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Image(ImageFormat),
    /// A photo format without a decoder here, with its name.
    Foreign(&'static str),
}

/// Names the image format that `head`, the first bytes of a file, begins.
pub fn recognise(head: &[u8]) -> Option<Content> {
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

/// What a file that holds no image seems to hold.
pub fn describe(bytes: &[u8]) -> &'static str {
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
