//! The cache of the frozen prefix: each image runs through the frozen blocks once, and every epoch
//! after that reads the result back.
//!
//! One record an image: its tokens as little-endian f16, then the pooled features of the taps below
//! the adapted blocks as little-endian f32. The file has no name, so it is gone with the process,
//! however that ends.
//!
//! Records are read with `pread` and written with `pwrite` rather than through a mapping. The bytes
//! come from the same page cache; the copy costs some 10 microseconds for the 50 KB of an image,
//! where one training step on it takes milliseconds. For that, a failing disk or card is an error
//! instead of a SIGBUS; no address space is taken, of which a 32-bit board or one under a memory
//! limit is short; and no `unsafe` is needed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Numbers converted at a time, on the stack: 8 KiB of f16.
const CHUNK: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(
        "a file that learning works with needs {needed} bytes in {}, and {}; set TMPDIR to a folder \
         on a disk with more room, or learn fewer images at a time",
        folder.display(),
        available.map_or("the disk is full".into(), |bytes| format!("only {bytes} are free"))
    )]
    NoSpace {
        folder: PathBuf,
        needed: u64,
        available: Option<u64>,
    },
    #[error(
        "a file that learning works with cannot be made in {}: {source}; set TMPDIR to a folder that \
         can be written to", folder.display()
    )]
    Create { folder: PathBuf, source: io::Error },
    #[error("a file that learning works with cannot be {action} in {}: {source}", folder.display())]
    Io {
        action: &'static str,
        folder: PathBuf,
        source: io::Error,
    },
    #[error("a cache of {images} images of {record} bytes is beyond what a file can hold")]
    TooLarge { images: usize, record: u64 },
    #[error(
        "image {index} gives a token value of {value}, beyond the +-65504 that the f16 cache holds"
    )]
    OutOfRange { index: usize, value: f32 },
    #[error("image {index} was not written to the cache before it was read")]
    NotWritten { index: usize },
}

/// Outputs of the frozen prefix for a fixed number of images.
///
/// Shared between threads: distinct images can be written and read at the same time. Writing and
/// reading one image at once gives one or the other's numbers, or some of each.
#[derive(Debug)]
pub struct PrefixCache {
    file: File,
    folder: PathBuf,
    written: Vec<AtomicBool>,
    /// Numbers of one image: tokens times width, and pooled features.
    tokens: usize,
    pooled: usize,
}

impl PrefixCache {
    /// Makes room on disk for `images` records of `tokens x dim` f16 and `pooled` f32.
    ///
    /// The file is made in `folder`, or, when that is `None`, in `$TMPDIR`, or else in `/var/tmp`
    /// (which is on disk where `/tmp` may be memory) or `/tmp`.
    ///
    /// # Errors
    /// When the folder cannot be written to, or has not enough room for all records.
    pub fn create(
        folder: Option<&Path>,
        images: usize,
        tokens: usize,
        dim: usize,
        pooled: usize,
    ) -> Result<Self, CacheError> {
        let tokens = tokens.saturating_mul(dim);
        let record = record_bytes(tokens, pooled);
        let needed = (images as u64)
            .checked_mul(record)
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or(CacheError::TooLarge { images, record })?;
        let (file, folder) = match folder {
            Some(folder) => open_in(folder)?,
            None => open_in_default()?,
        };
        reserve(&file, &folder, needed)?;
        Ok(Self {
            file,
            folder,
            written: std::iter::repeat_with(AtomicBool::default)
                .take(images)
                .collect(),
            tokens,
            pooled,
        })
    }

    /// Number of records.
    pub fn images(&self) -> usize {
        self.written.len()
    }

    /// Numbers in the tokens of an image.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Features kept beside the tokens of an image.
    pub fn pooled(&self) -> usize {
        self.pooled
    }

    /// Size of one image's record in bytes.
    pub fn record_bytes(&self) -> usize {
        record_bytes(self.tokens, self.pooled) as usize
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.images() as u64 * record_bytes(self.tokens, self.pooled)
    }

    /// Keeps the tokens `[tokens, dim]` and the features `[pooled]` of image `index`.
    ///
    /// Tokens are rounded to the nearest f16 (11 bits), features are kept as they are.
    ///
    /// # Errors
    /// When a token value does not fit f16 or is no number, or the disk fails; the record then
    /// counts as not written.
    ///
    /// # Panics
    /// When `index` or a length does not fit the cache.
    pub fn write(&self, index: usize, tokens: &[f32], pooled: &[f32]) -> Result<(), CacheError> {
        assert_eq!(tokens.len(), self.tokens, "tokens are [tokens, dim]");
        assert_eq!(pooled.len(), self.pooled, "pooled is [pooled]");
        self.written[index].store(false, Ordering::Relaxed);
        let failed = |source| self.io_error("written", source);
        let mut at = self.offset(index);
        let mut halves = [f16::ZERO; CHUNK];
        let mut bytes = [0; 2 * CHUNK];
        for chunk in tokens.chunks(CHUNK) {
            let halves = &mut halves[..chunk.len()];
            let bytes = &mut bytes[..2 * chunk.len()];
            halves.convert_from_f32_slice(chunk);
            if let Some(k) = halves.iter().position(|half| !half.is_finite()) {
                let value = chunk[k];
                return Err(CacheError::OutOfRange { index, value });
            }
            for (bytes, half) in bytes.chunks_exact_mut(2).zip(halves) {
                bytes.copy_from_slice(&half.to_le_bytes());
            }
            self.file.write_all_at(bytes, at).map_err(failed)?;
            at += bytes.len() as u64;
        }
        for chunk in pooled.chunks(CHUNK / 2) {
            let bytes = &mut bytes[..4 * chunk.len()];
            for (bytes, value) in bytes.chunks_exact_mut(4).zip(chunk) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            self.file.write_all_at(bytes, at).map_err(failed)?;
            at += bytes.len() as u64;
        }
        self.written[index].store(true, Ordering::Release);
        Ok(())
    }

    /// Reads the tokens `[tokens, dim]` and the features `[pooled]` of image `index` back.
    /// Allocates nothing.
    ///
    /// # Errors
    /// When that image was never written, or the disk fails.
    ///
    /// # Panics
    /// When `index` or a length does not fit the cache.
    pub fn read(
        &self,
        index: usize,
        tokens: &mut [f32],
        pooled: &mut [f32],
    ) -> Result<(), CacheError> {
        assert_eq!(tokens.len(), self.tokens, "tokens are [tokens, dim]");
        assert_eq!(pooled.len(), self.pooled, "pooled is [pooled]");
        let at = self.start_of(index)?;
        self.read_halves(at, tokens)?;
        self.read_floats(at + 2 * tokens.len() as u64, pooled)
    }

    /// Reads as [`PrefixCache::read`] does, but only some of the tokens: `tokens` is `[rows, dim]`.
    /// Allocates nothing.
    ///
    /// # Errors
    /// When that image was never written, or the disk fails.
    ///
    /// # Panics
    /// When `index`, a row or a length does not fit the cache.
    pub fn read_rows(
        &self,
        index: usize,
        rows: &[usize],
        tokens: &mut [f32],
        pooled: &mut [f32],
    ) -> Result<(), CacheError> {
        assert_eq!(pooled.len(), self.pooled, "pooled is [pooled]");
        let dim = tokens.len() / rows.len().max(1);
        assert_eq!(tokens.len(), rows.len() * dim, "tokens are [rows, dim]");
        let at = self.start_of(index)?;
        for (&row, token) in rows.iter().zip(tokens.chunks_exact_mut(dim.max(1))) {
            assert!((row + 1) * dim <= self.tokens, "an image has this row");
            self.read_halves(at + 2 * (row * dim) as u64, token)?;
        }
        self.read_floats(at + 2 * self.tokens as u64, pooled)
    }

    /// Where the record of an image that was written starts.
    fn start_of(&self, index: usize) -> Result<u64, CacheError> {
        match self.written[index].load(Ordering::Acquire) {
            true => Ok(self.offset(index)),
            false => Err(CacheError::NotWritten { index }),
        }
    }

    fn read_halves(&self, mut at: u64, numbers: &mut [f32]) -> Result<(), CacheError> {
        let mut halves = [f16::ZERO; CHUNK];
        let mut bytes = [0; 2 * CHUNK];
        for chunk in numbers.chunks_mut(CHUNK) {
            let halves = &mut halves[..chunk.len()];
            let bytes = &mut bytes[..2 * chunk.len()];
            self.read_bytes(bytes, at)?;
            for (half, bytes) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                *half = f16::from_le_bytes([bytes[0], bytes[1]]);
            }
            halves.convert_to_f32_slice(chunk);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn read_floats(&self, mut at: u64, numbers: &mut [f32]) -> Result<(), CacheError> {
        let mut bytes = [0; 2 * CHUNK];
        for chunk in numbers.chunks_mut(CHUNK / 2) {
            let bytes = &mut bytes[..4 * chunk.len()];
            self.read_bytes(bytes, at)?;
            for (value, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn read_bytes(&self, bytes: &mut [u8], at: u64) -> Result<(), CacheError> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(|source| self.io_error("read", source))
    }

    fn offset(&self, index: usize) -> u64 {
        index as u64 * record_bytes(self.tokens, self.pooled)
    }

    fn io_error(&self, action: &'static str, source: io::Error) -> CacheError {
        io_error(action, &self.folder, self.bytes(), source)
    }
}

/// What went wrong with a file in `folder` that needs `needed` bytes in all.
pub(super) fn io_error(
    action: &'static str,
    folder: &Path,
    needed: u64,
    source: io::Error,
) -> CacheError {
    let folder = folder.to_owned();
    if source.kind() == io::ErrorKind::StorageFull {
        return CacheError::NoSpace {
            folder,
            needed,
            available: None,
        };
    }
    CacheError::Io {
        action,
        folder,
        source,
    }
}

fn record_bytes(tokens: usize, pooled: usize) -> u64 {
    (tokens as u64)
        .saturating_mul(2)
        .saturating_add((pooled as u64).saturating_mul(4))
}

/// An unnamed file: never listed where the file system can, else unlinked as soon as it is open.
fn open_in(folder: &Path) -> Result<(File, PathBuf), CacheError> {
    match tempfile::tempfile_in(folder) {
        Ok(file) => Ok((file, folder.to_owned())),
        Err(source) => Err(CacheError::Create {
            folder: folder.to_owned(),
            source,
        }),
    }
}

pub(super) fn open_in_default() -> Result<(File, PathBuf), CacheError> {
    // A folder that the user chose is not silently replaced by another.
    if let Some(chosen) = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()) {
        return open_in(Path::new(&chosen));
    }
    open_in(Path::new("/var/tmp")).or_else(|_| open_in(&std::env::temp_dir()))
}

/// Claims `needed` bytes now, so that a full disk shows before hours of work and not after.
pub(super) fn reserve(file: &File, folder: &Path, needed: u64) -> Result<(), CacheError> {
    let no_space = |available| CacheError::NoSpace {
        folder: folder.to_owned(),
        needed,
        available,
    };
    let failed = |source: io::Error| CacheError::Create {
        folder: folder.to_owned(),
        source,
    };
    // Asked first, as a failing allocation would fill the disk for everybody before it gives up.
    // File systems that cannot tell report 0 blocks in all.
    let disk = rustix::fs::fstatvfs(file).map_err(|errno| failed(errno.into()))?;
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    if disk.f_blocks > 0 && available < needed {
        return Err(no_space(Some(available)));
    }
    if needed == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, needed) {
        Ok(()) => Ok(()),
        Err(Errno::NOSPC | Errno::DQUOT) => Err(no_space(None)),
        // Such a file system allocates while writing, where running out is an error as well.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(needed).map_err(failed),
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    /// Numbers that differ by image and place, with negative and tiny ones among them.
    fn numbers(image: usize, count: usize) -> Vec<f32> {
        (0..count)
            .map(|k| ((image * 31 + k * 7) % 977) as f32 * 0.013 - 5.0)
            .collect()
    }

    #[test]
    fn some_rows_are_those_of_the_whole_record() {
        let (tokens, dim, pooled) = (13, 384, 2_500);
        let cache = PrefixCache::create(None, 2, tokens, dim, pooled).unwrap();
        cache
            .write(1, &numbers(1, tokens * dim), &numbers(2, pooled))
            .unwrap();
        let (mut whole, mut features) = (vec![0.0; tokens * dim], vec![0.0; pooled]);
        cache.read(1, &mut whole, &mut features).unwrap();
        for rows in [&[0, 3, 12][..], &[5], &[], &[12, 0]] {
            let (mut some, mut beside) = (vec![0.0; rows.len() * dim], vec![0.0; pooled]);
            cache.read_rows(1, rows, &mut some, &mut beside).unwrap();
            let expected = rows.iter().flat_map(|&row| &whole[row * dim..][..dim]);
            assert!(some.iter().eq(expected), "{rows:?}");
            assert_eq!(beside, features);
        }
        let unwritten = cache.read_rows(0, &[0], &mut vec![0.0; dim], &mut features);
        assert!(matches!(
            unwritten,
            Err(CacheError::NotWritten { index: 0 })
        ));
    }

    #[test]
    fn records_written_by_many_threads_come_back_as_they_were() {
        // More tokens than one chunk, and not a multiple of it.
        let (images, tokens, dim, pooled) = (40, 13, 384, 2_500);
        let cache = PrefixCache::create(None, images, tokens, dim, pooled).unwrap();
        (0..images).into_par_iter().for_each(|image| {
            let (tokens, pooled) = (numbers(image, tokens * dim), numbers(image + 1, pooled));
            cache.write(image, &tokens, &pooled).unwrap();
        });
        let (mut read, mut read_pooled) = (vec![0.0; tokens * dim], vec![0.0; pooled]);
        for image in 0..images {
            cache.read(image, &mut read, &mut read_pooled).unwrap();
            let rounded = numbers(image, tokens * dim)
                .into_iter()
                .map(|value| f16::from_f32(value).to_f32());
            assert!(read.iter().copied().eq(rounded));
            assert_eq!(read_pooled, numbers(image + 1, pooled));
        }
    }

    #[test]
    fn a_record_can_be_written_again() {
        let cache = PrefixCache::create(None, 2, 1, 3, 1).unwrap();
        cache.write(1, &[1.0, 2.0, 3.0], &[4.0]).unwrap();
        cache.write(1, &[5.0, 6.0, 7.0], &[8.0]).unwrap();
        let (mut tokens, mut pooled) = ([0.0; 3], [0.0]);
        cache.read(1, &mut tokens, &mut pooled).unwrap();
        assert_eq!((tokens, pooled), ([5.0, 6.0, 7.0], [8.0]));
    }

    #[test]
    fn a_record_that_was_never_written_is_not_read_as_zeros() {
        let cache = PrefixCache::create(None, 2, 1, 2, 0).unwrap();
        cache.write(0, &[1.0, 2.0], &[]).unwrap();
        let error = cache.read(1, &mut [0.0; 2], &mut []).unwrap_err();
        assert!(matches!(error, CacheError::NotWritten { index: 1 }));
    }

    #[test]
    fn values_beyond_f16_are_refused_and_the_record_does_not_count() {
        let cache = PrefixCache::create(None, 1, 1, 2, 0).unwrap();
        for value in [70_000.0, f32::NEG_INFINITY, f32::NAN] {
            let error = cache.write(0, &[1.0, value], &[]).unwrap_err();
            assert!(matches!(error, CacheError::OutOfRange { index: 0, .. }));
            assert!(cache.read(0, &mut [0.0; 2], &mut []).is_err());
        }
    }

    #[test]
    fn the_file_has_no_name_while_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PrefixCache::create(Some(folder.path()), 3, 5, 7, 2).unwrap();
        cache.write(0, &[1.0; 35], &[1.0; 2]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(cache.bytes(), 3 * (5 * 7 * 2 + 2 * 4));
    }

    #[test]
    fn a_cache_larger_than_the_disk_is_refused_with_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let error = PrefixCache::create(Some(folder.path()), 1 << 40, 1 << 10, 1, 0).unwrap_err();
        let message = error.to_string();
        for part in [
            "2251799813685248",
            "TMPDIR",
            folder.path().to_str().unwrap(),
        ] {
            assert!(message.contains(part), "{message}");
        }
        let error = PrefixCache::create(Some(folder.path()), usize::MAX, usize::MAX, 2, 3);
        assert!(matches!(error, Err(CacheError::TooLarge { .. })));
    }

    #[test]
    fn a_folder_that_cannot_hold_the_cache_is_named() {
        let error = PrefixCache::create(Some(Path::new("/no/such/folder")), 1, 1, 1, 0);
        let message = error.unwrap_err().to_string();
        assert!(
            message.contains("/no/such/folder") && message.contains("TMPDIR"),
            "{message}"
        );
    }

    #[test]
    fn a_cache_of_no_images_is_fine() {
        assert_eq!(
            PrefixCache::create(None, 0, 65, 384, 10).unwrap().bytes(),
            0
        );
    }
}
