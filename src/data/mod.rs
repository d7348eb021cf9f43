//! From folders of photos to the numbers a ViT reads: task folders, decoding, preprocessing, the
//! train and validation split, and the cache of the frozen prefix's outputs.

mod decode;
mod jpeg;
mod preprocess;

pub use decode::{DecodeError, Fault, Limits, Rgb, decode, decode_bytes};
pub use preprocess::{Fit, normalise, patchify, resize_square};
