//! Knowledge from and to a file without all of it in memory: what the head keeps on disk goes from
//! one file to another.

use std::cell::Cell;
use std::io::{self, Read, Write};

use postcard::Deserializer;
use postcard::de_flavors::Flavor;
use serde::Deserialize;

use super::Knowledge;
use crate::head::{HeadError, Statistics};

/// Why a payload cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("cannot decode: {0}")]
    Decode(#[from] postcard::Error),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Read(io::Error),
}

impl Knowledge {
    /// Reads what postcard wrote of a knowledge, field by field in their order, with scatter and
    /// factors of the head going to unnamed files as they come.
    pub(super) fn from_stream(reader: impl Read, length: u64) -> Result<Self, StreamError> {
        let failure = Cell::new(None);
        let read = Self::from_source(Source {
            reader,
            left: length,
            taken: Vec::new(),
            failure: &failure,
        });
        read.map_err(|error| failure.take().map_or(error, StreamError::Read))
    }

    fn from_source<R: Read>(source: Source<'_, R>) -> Result<Self, StreamError> {
        let mut from = Deserializer::from_flavor(source);
        let knowledge = Self {
            model: Deserialize::deserialize(&mut from)?,
            resolution: Deserialize::deserialize(&mut from)?,
            taps: Deserialize::deserialize(&mut from)?,
            first_adapted: Deserialize::deserialize(&mut from)?,
            adapters: Deserialize::deserialize(&mut from)?,
            ranks: Deserialize::deserialize(&mut from)?,
            head: Statistics::deserialize_shelved(&mut from)?,
            calibration: Deserialize::deserialize(&mut from)?,
            classes: Deserialize::deserialize(&mut from)?,
            tasks: Deserialize::deserialize(&mut from)?,
        };
        from.finalize()?;
        Ok(knowledge)
    }
}

/// What postcard takes bytes from. Nothing borrows from it for longer than a call.
struct Source<'f, R> {
    reader: R,
    /// Bytes that are still to come.
    left: u64,
    taken: Vec<u8>,
    /// Why the reader failed, which postcard does not tell.
    failure: &'f Cell<Option<io::Error>>,
}

impl<R: Read> Source<'_, R> {
    fn fill(&mut self, bytes: &mut [u8]) -> postcard::Result<()> {
        let end = postcard::Error::DeserializeUnexpectedEnd;
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(end.clone())?;
        self.reader.read_exact(bytes).map_err(|error| {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                self.failure.set(Some(error));
            }
            end
        })
    }
}

impl<'de, 'f: 'de, R: Read + 'de> Flavor<'de> for Source<'f, R> {
    type Remainder = ();
    type Source = R;

    fn pop(&mut self) -> postcard::Result<u8> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        Ok(byte[0])
    }

    fn try_take_n(&mut self, _: usize) -> postcard::Result<&'de [u8]> {
        Err(postcard::Error::NotYetImplemented)
    }

    fn try_take_n_temp<'a>(&'a mut self, count: usize) -> postcard::Result<&'a [u8]>
    where
        'de: 'a,
    {
        if count as u64 > self.left {
            return Err(postcard::Error::DeserializeUnexpectedEnd);
        }
        let mut taken = std::mem::take(&mut self.taken);
        taken.resize(count, 0);
        let filled = self.fill(&mut taken);
        self.taken = taken;
        filled.map(|()| self.taken.as_slice())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Counts and checks what is written.
pub(super) struct Summed<W> {
    pub writer: W,
    pub length: u64,
    pub checksum: crc32fast::Hasher,
    /// Why a write failed.
    pub failure: Option<io::Error>,
}

impl<W: Write> Summed<W> {
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            length: 0,
            checksum: crc32fast::Hasher::new(),
            failure: None,
        }
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes).inspect_err(|error| {
            self.failure = Some(error.raw_os_error().map_or_else(
                || io::Error::from(error.kind()),
                io::Error::from_raw_os_error,
            ));
        })?;
        self.checksum.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
