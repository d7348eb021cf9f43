//! The state file: an envelope that tells a whole file from a torn, foreign or newer one.
//!
//! Layout, little-endian: 8-byte magic, `u32` version, `u32` CRC-32 of the payload, `u64` length
//! of the payload, then the payload in postcard. A file is replaced by rename only, after its
//! successor is on disk: whatever happens, either the old or the new state is there, whole.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::Knowledge;
use super::stream::Summed;

const MAGIC: [u8; 8] = *b"fledgest";
const VERSION: u32 = 4;
const ENVELOPE: usize = 24;

/// Why a state file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "no state file at {path}: learn a first task with `fledge learn --task DIR --state {path}`"
    )]
    Missing { path: PathBuf },
    #[error("cannot read the state file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a fledge state file ({reason}); nothing was changed, so restore it from a copy or name another with --state"
    )]
    Malformed { path: PathBuf, reason: String },
    #[error(
        "{path} was written by a newer fledge (format {found}, this one reads up to {VERSION}); update fledge"
    )]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "{path} was written by an older fledge (format {found}, this one reads {VERSION}); learn its tasks again into another file with --state, or keep the older fledge for it"
    )]
    Older { path: PathBuf, found: u32 },
    #[error("cannot save the state to {path}: {source}; the previous state is untouched")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{path} was changed by another process while this one was learning; nothing was overwritten, run the command again"
    )]
    Changed { path: PathBuf },
}

/// What a state file held when it was read, to notice a change by somebody else before saving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision(Option<(u32, u64)>);

impl Revision {
    /// There was no file.
    pub const NONE: Self = Self(None);
}

/// Reads and checks the payload of the state file at `path`.
///
/// # Errors
/// When the file is missing, unreadable, torn, foreign, or of another format version.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Revision), StateError> {
    let mut file = Checked::open(path)?;
    let mut payload = Vec::new();
    let read = file.payload.read_to_end(&mut payload);
    read.map_err(|source| StateError::Read {
        path: path.to_owned(),
        source,
    })?;
    let value = postcard::from_bytes(&payload)
        .map_err(|e| malformed(path, &format!("cannot decode: {e}")))?;
    Ok((value, file.revision))
}

/// Reads a state file as [`read`] does, with most of the head staying on disk: in memory are class
/// means, adapters and names.
///
/// # Errors
/// As [`read`], and when there is no room for unnamed files.
pub fn open(path: &Path) -> Result<(Knowledge, Revision), StateError> {
    let file = Checked::open(path)?;
    let knowledge = Knowledge::from_stream(BufReader::new(file.payload), file.length);
    let knowledge = knowledge.map_err(|e| malformed(path, &e.to_string()))?;
    Ok((knowledge, file.revision))
}

fn malformed(path: &Path, reason: &str) -> StateError {
    StateError::Malformed {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A state file that is whole, read up to its payload.
struct Checked {
    payload: File,
    length: u64,
    revision: Revision,
}

impl Checked {
    fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => StateError::Missing {
                path: path.to_owned(),
            },
            _ => StateError::Read {
                path: path.to_owned(),
                source,
            },
        };
        let mut file = File::open(path).map_err(failed)?;
        let mut head = [0; ENVELOPE];
        let foreign = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => malformed(path, "it does not start as one"),
            _ => failed(e),
        };
        file.read_exact(&mut head).map_err(foreign)?;
        let envelope =
            Envelope::parse(&head).ok_or_else(|| malformed(path, "it does not start as one"))?;
        let (path_of, found) = (path.to_owned(), envelope.version);
        match found.cmp(&VERSION) {
            Ordering::Greater => {
                return Err(StateError::Newer {
                    path: path_of,
                    found,
                });
            }
            Ordering::Less => {
                return Err(StateError::Older {
                    path: path_of,
                    found,
                });
            }
            Ordering::Equal => {}
        }
        let mut summed = Summed::new(io::sink());
        io::copy(&mut file, &mut summed).map_err(failed)?;
        if summed.length != envelope.length {
            return Err(malformed(path, "it is cut short or has something appended"));
        }
        if summed.checksum.finalize() != envelope.checksum {
            return Err(malformed(path, "its checksum does not match its content"));
        }
        file.seek(SeekFrom::Start(ENVELOPE as u64))
            .map_err(failed)?;
        Ok(Self {
            payload: file,
            length: envelope.length,
            revision: Revision(Some((envelope.checksum, envelope.length))),
        })
    }
}

/// Bytes that [`write()`] would put on disk for `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    let payload = postcard::to_allocvec(value)?;
    let mut bytes = Vec::with_capacity(ENVELOPE + payload.len());
    let (checksum, length) = (crc32fast::hash(&payload), payload.len() as u64);
    bytes.extend(Envelope::of(checksum, length));
    bytes.extend(payload);
    Ok(bytes)
}

/// Replaces the state file at `path`, which must still be at `expected`, and returns its size in
/// bytes and its new revision.
///
/// # Errors
/// When the file changed since it was read, or the new one cannot be written; the file at `path`
/// is then untouched.
pub fn write<T: Serialize>(
    path: &Path,
    value: &T,
    expected: Revision,
) -> Result<(u64, Revision), StateError> {
    let failed = |source: io::Error| StateError::Write {
        path: path.to_owned(),
        source,
    };
    if current(path)? != expected {
        return Err(StateError::Changed {
            path: path.to_owned(),
        });
    }
    let (checksum, length) = replace(path, value).map_err(failed)?;
    let revision = Revision(Some((checksum, length)));
    Ok((ENVELOPE as u64 + length, revision))
}

/// Checks before hours of work that a state could be saved at `path` later.
///
/// # Errors
/// When the folder is missing or cannot be written to.
pub fn check_writable(path: &Path) -> Result<(), StateError> {
    let target = resolve(path);
    tempfile::NamedTempFile::new_in(folder_of(&target))
        .map(drop)
        .map_err(|source| StateError::Write {
            path: path.to_owned(),
            source,
        })
}

/// The revision on disk now.
fn current(path: &Path) -> Result<Revision, StateError> {
    let mut head = [0; ENVELOPE];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Ok(()) => Ok(Revision(
            Envelope::parse(&head).map(|e| (e.checksum, e.length)),
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Revision::NONE),
        Err(source) => Err(StateError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

struct Envelope {
    version: u32,
    checksum: u32,
    length: u64,
}

impl Envelope {
    /// The bytes in front of a payload.
    fn of(checksum: u32, length: u64) -> [u8; ENVELOPE] {
        let mut bytes = [0; ENVELOPE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes[16..].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (version, rest) = rest.split_first_chunk()?;
        let (checksum, rest) = rest.split_first_chunk()?;
        let (length, _) = rest.split_first_chunk()?;
        Some(Self {
            version: u32::from_le_bytes(*version),
            checksum: u32::from_le_bytes(*checksum),
            length: u64::from_le_bytes(*length),
        })
    }
}

/// The file that a link names, so that saving replaces the file and keeps the link.
fn resolve(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes checksum and length of the payload last, in front of it: only then are they known.
fn replace<T: Serialize>(path: &Path, value: &T) -> io::Result<(u32, u64)> {
    let target = resolve(path);
    let folder = folder_of(&target);
    let mut temporary = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    if let Ok(metadata) = fs::metadata(&target) {
        temporary
            .as_file()
            .set_permissions(metadata.permissions())?;
    }
    temporary.write_all(&[0; ENVELOPE])?;
    let mut payload = BufWriter::new(Summed::new(temporary.as_file()));
    if let Err(error) = postcard::to_io(value, &mut payload) {
        // postcard does not tell what failed.
        let failure = payload.get_mut().failure.take();
        return Err(failure.unwrap_or_else(|| io::Error::other(error)));
    }
    payload.flush()?;
    let (checksum, length) = (
        payload.get_ref().checksum.clone().finalize(),
        payload.get_ref().length,
    );
    drop(payload);
    let envelope = Envelope::of(checksum, length);
    temporary.as_file().write_all_at(&envelope, 0)?;
    temporary.as_file().sync_all()?;
    temporary.persist(&target).map_err(|e| e.error)?;
    // The rename itself lives in the folder; without this a power cut could undo it.
    File::open(folder)?.sync_all()?;
    Ok((checksum, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = folder();
        let path = folder.path().join("a.fledge");
        let value = vec![1.5f32, -2.0];
        let (bytes, revision) = write(&path, &value, Revision::NONE).unwrap();
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        assert_eq!(read::<Vec<f32>>(&path).unwrap(), (value, revision));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let folder = folder();
        let path = folder.path().join("a.fledge");
        write(&path, &vec![7u8; 40], Revision::NONE).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            fs::write(&path, &torn).unwrap();
            assert!(read::<Vec<u8>>(&path).is_err(), "flip at {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read::<Vec<u8>>(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_file_changed_by_somebody_else_is_not_overwritten() {
        let folder = folder();
        let path = folder.path().join("a.fledge");
        let (_, mine) = write(&path, &1u32, Revision::NONE).unwrap();
        write(&path, &2u32, mine).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(
            write(&path, &3u32, mine),
            Err(StateError::Changed { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn saving_through_a_link_keeps_the_link() {
        let folder = folder();
        let (file, link) = (
            folder.path().join("a.fledge"),
            folder.path().join("b.fledge"),
        );
        let (_, revision) = write(&file, &1u32, Revision::NONE).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, &2u32, revision).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read::<u32>(&file).unwrap().0, 2);
    }

    #[test]
    fn an_older_or_newer_format_is_named_as_such() {
        let folder = folder();
        let path = folder.path().join("a.fledge");
        write(&path, &1u32, Revision::NONE).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 200;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            read::<u32>(&path),
            Err(StateError::Newer { found: 200, .. })
        ));
        bytes[8] = 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(
            read::<u32>(&path),
            Err(StateError::Older { found: 1, .. })
        ));
    }
}
