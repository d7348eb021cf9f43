//! Numbers of a task that wait on disk: one row an image, in an unnamed file beside the cache of the
//! frozen prefix, so that they take no memory while training.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::cache::{CacheError, io_error, open_in_default, reserve};

/// Numbers converted at a time, on the stack.
const CHUNK: usize = 1024;

/// `[rows, width]` f32 in a file.
#[derive(Debug)]
pub struct RowFile {
    file: File,
    folder: PathBuf,
    rows: usize,
    width: usize,
}

impl RowFile {
    /// Rows of zeros, in `$TMPDIR` or where the prefix cache goes without it.
    ///
    /// # Errors
    /// When the folder cannot be written to or has not enough room.
    pub fn create(rows: usize, width: usize) -> Result<Self, CacheError> {
        let (file, folder) = open_in_default()?;
        let rows_file = Self {
            file,
            folder,
            rows,
            width,
        };
        reserve(&rows_file.file, &rows_file.folder, rows_file.bytes())?;
        Ok(rows_file)
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    fn bytes(&self) -> u64 {
        4 * (self.rows as u64).saturating_mul(self.width as u64)
    }

    fn offset(&self, row: usize, column: usize) -> u64 {
        assert!(
            row < self.rows,
            "row {row} is beyond the {} there are",
            self.rows
        );
        4 * (row as u64 * self.width as u64 + column as u64)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> CacheError {
        io_error(action, &self.folder, self.bytes(), source)
    }

    /// Writes numbers into a row, from `column` on. Distinct rows can be written and read at once.
    ///
    /// # Errors
    /// When the disk fails.
    ///
    /// # Panics
    /// When the row does not hold them.
    pub fn write(&self, row: usize, column: usize, values: &[f32]) -> Result<(), CacheError> {
        assert!(
            column + values.len() <= self.width,
            "a row has {} numbers",
            self.width
        );
        let mut bytes = [0; 4 * CHUNK];
        let mut at = self.offset(row, column);
        for chunk in values.chunks(CHUNK) {
            let bytes = &mut bytes[..4 * chunk.len()];
            for (bytes, value) in bytes.chunks_exact_mut(4).zip(chunk) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            self.file
                .write_all_at(bytes, at)
                .map_err(|source| self.failed("written", source))?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Reads some columns of a row. Allocates nothing.
    ///
    /// # Errors
    /// When the disk fails.
    ///
    /// # Panics
    /// When the columns are not there or `out` has another length.
    pub fn read(
        &self,
        row: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CacheError> {
        assert!(
            columns.end <= self.width && columns.len() == out.len(),
            "no such columns"
        );
        let mut bytes = [0; 4 * CHUNK];
        let mut at = self.offset(row, columns.start);
        for chunk in out.chunks_mut(CHUNK) {
            let bytes = &mut bytes[..4 * chunk.len()];
            self.file
                .read_exact_at(bytes, at)
                .map_err(|source| self.failed("read", source))?;
            for (value, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Another file with the same numbers.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn copy(&self) -> Result<Self, CacheError> {
        let copy = Self::create(self.rows, self.width)?;
        let mut values = [0.0; CHUNK];
        for row in 0..self.rows {
            for first in (0..self.width).step_by(CHUNK) {
                let columns = first..self.width.min(first + CHUNK);
                let values = &mut values[..columns.len()];
                self.read(row, columns, values)?;
                copy.write(row, first, values)?;
            }
        }
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_parts_of_them_come_back_as_they_were() {
        let width = 2 * CHUNK + 5;
        let file = RowFile::create(3, width).unwrap();
        let values: Vec<f32> = (0..width).map(|k| k as f32 * 0.3 - 7.0).collect();
        file.write(1, 0, &values).unwrap();
        file.write(2, 4, &[1.5]).unwrap();
        let copy = file.copy().unwrap();
        for file in [file, copy] {
            let mut part = vec![0.0; CHUNK + 1];
            file.read(1, 3..CHUNK + 4, &mut part).unwrap();
            assert_eq!(part, values[3..CHUNK + 4]);
            let mut start = [0.0; 6];
            file.read(2, 0..6, &mut start).unwrap();
            assert_eq!(start, [0.0, 0.0, 0.0, 0.0, 1.5, 0.0]);
        }
    }
}
