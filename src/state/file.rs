//! The state file: an envelope that tells a whole file from a torn, foreign or newer one.
//!
//! Layout, little-endian: 8-byte magic, `u32` version, `u32` CRC-32 of the payload, `u64` length
//! of the payload, then the payload in postcard. A file is replaced by rename only, after its
//! successor is on disk: whatever happens, either the old or the new state is there, whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

const MAGIC: [u8; 8] = *b"fledgest";
const VERSION: u32 = 2;
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
    let bytes = fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StateError::Missing {
            path: path.to_owned(),
        },
        _ => StateError::Read {
            path: path.to_owned(),
            source,
        },
    })?;
    let malformed = |reason: &str| StateError::Malformed {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let envelope = Envelope::parse(&bytes).ok_or_else(|| malformed("it does not start as one"))?;
    if envelope.version > VERSION {
        return Err(StateError::Newer {
            path: path.to_owned(),
            found: envelope.version,
        });
    }
    if envelope.version < VERSION {
        return Err(StateError::Older {
            path: path.to_owned(),
            found: envelope.version,
        });
    }
    let payload = &bytes[ENVELOPE..];
    if payload.len() as u64 != envelope.length {
        return Err(malformed("it is cut short or has something appended"));
    }
    if crc32fast::hash(payload) != envelope.checksum {
        return Err(malformed("its checksum does not match its content"));
    }
    let value =
        postcard::from_bytes(payload).map_err(|e| malformed(&format!("cannot decode: {e}")))?;
    Ok((value, Revision(Some((envelope.checksum, envelope.length)))))
}

/// Bytes that [`write()`] would put on disk for `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    let payload = postcard::to_allocvec(value)?;
    let mut bytes = Vec::with_capacity(ENVELOPE + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(&payload).to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
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
    let bytes = encode(value).map_err(|e| failed(io::Error::other(e)))?;
    replace(path, &bytes).map_err(failed)?;
    let revision = Envelope::parse(&bytes).map(|e| (e.checksum, e.length));
    Ok((bytes.len() as u64, Revision(revision)))
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
    use std::io::Read;
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

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
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
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(&target).map_err(|e| e.error)?;
    // The rename itself lives in the folder; without this a power cut could undo it.
    File::open(folder)?.sync_all()
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
