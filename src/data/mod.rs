//! From folders of photos to the numbers a ViT reads: task folders, decoding, preprocessing, the
//! train and validation split, and the cache of the frozen prefix's outputs.

mod cache;
mod decode;
mod folder;
mod jpeg;
mod preprocess;
mod rows;
mod shelf;
mod split;
mod token_mean;

pub use cache::{CacheError, PrefixCache};
pub use decode::{DecodeError, Fault, Limits, Rgb, Undecoded, decode, decode_bytes};
pub(crate) use folder::holds_images;
pub use folder::{ClassFolder, FolderError, SkipReason, Skipped, TaskFolder};
pub use preprocess::{Fit, normalise, patchify, resize_square};
pub use rows::RowFile;
pub use shelf::Shelf;
pub use split::{DEFAULT_FRACTION, Split, split_class};
pub use token_mean::{TokenGrid, TokenMean};
