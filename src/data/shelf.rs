//! Runs of bytes that wait on disk: written once, read whenever needed, gone with the process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::{CacheError, io_error, open_in_default};

/// An unnamed file that only grows.
#[derive(Debug)]
pub struct Shelf {
    file: File,
    folder: PathBuf,
    end: AtomicU64,
}

impl Shelf {
    /// An empty one, in `$TMPDIR` or where the prefix cache goes without it.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn create() -> Result<Self, CacheError> {
        let (file, folder) = open_in_default()?;
        Ok(Self {
            file,
            folder,
            end: AtomicU64::new(0),
        })
    }

    /// Bytes put so far.
    pub fn bytes(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// Puts a run of bytes, and says where.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn put(&self, bytes: &[u8]) -> Result<u64, CacheError> {
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let needed = at + bytes.len() as u64;
        self.file
            .write_all_at(bytes, at)
            .map_err(|source| io_error("written", &self.folder, needed, source))?;
        Ok(at)
    }

    /// Reads bytes from where they were put. Allocates nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), CacheError> {
        self.file
            .read_exact_at(bytes, at)
            .map_err(|source| io_error("read", &self.folder, self.bytes(), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back_from_where_they_were_put() {
        let shelf = Shelf::create().unwrap();
        let places: Vec<u64> = (0..9u8)
            .map(|k| shelf.put(&vec![k; 3 * usize::from(k)]).unwrap())
            .collect();
        for (k, at) in places.into_iter().enumerate() {
            let mut bytes = vec![0; 3 * k];
            shelf.read(at, &mut bytes).unwrap();
            assert_eq!(bytes, vec![k as u8; 3 * k]);
        }
        assert_eq!(shelf.bytes(), 108);
        assert!(shelf.read(100, &mut [0; 20]).is_err());
    }
}
