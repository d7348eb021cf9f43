//! The state file: an envelope that tells a whole file from a torn, foreign or newer one.
//!
//! Layout, little-endian: 8-byte magic, `u32` version, `u32` CRC-32 of the payload, `u64` length
//! of the payload, then the payload in postcard. A file is replaced by rename only, after its
//! successor is on disk: whatever happens, either the old or the new state is there, whole.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::Knowledge;
use super::stream::{StreamError, Summed};
use crate::head::HeadError;

const MAGIC: [u8; 8] = *b"fledgest";
const VERSION: u32 = 4;
const ENVELOPE: usize = 24;

/// Part of a file's name while it is written.
const SAVING: &str = ".saving-";

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
    #[error(
        "cannot read the state file {path}: {reason}; the file itself is whole, so make room there or set TMPDIR to another folder"
    )]
    NoRoom { path: PathBuf, reason: String },
    #[error("cannot save the state to {path}: {source}; what was there before is untouched")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the state is saved to {path}, but a power cut may undo that: {source}; look at it with `fledge state show` before anything is learned twice"
    )]
    Unsynced { path: PathBuf, source: io::Error },
    #[error(
        "a save to {path} takes {} MiB beside what is there, and {} MiB are left: make room there or name another file with --state",
        needed.div_ceil(1 << 20), available >> 20
    )]
    NoSpace {
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    #[error(
        "{path} is mounted on its own, so no file can take its place: mount the folder it is in, or name another file with --state"
    )]
    Mounted { path: PathBuf },
    #[error(
        "cannot save the state to {path}: there is no folder {folder}; make it, attach the drive it is on, or name another file with --state"
    )]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error(
        "{path} was changed by another process in the meantime; nothing was overwritten, run the command again"
    )]
    Changed { path: PathBuf },
    #[error(
        "another fledge is changing {path}, and only one can keep what it learns: run this when that has ended, or name another file with --state"
    )]
    Busy { path: PathBuf },
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
    let knowledge = knowledge.map_err(|error| match error {
        StreamError::Head(HeadError::Disk(reason)) => StateError::NoRoom {
            path: path.to_owned(),
            reason,
        },
        StreamError::Read(source) => StateError::Read {
            path: path.to_owned(),
            source,
        },
        error => malformed(path, &error.to_string()),
    })?;
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
        let mut file = open_regular(path).map_err(failed)?;
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
/// is then untouched, but for [`StateError::Unsynced`], when it was replaced.
pub fn write<T: Serialize>(
    path: &Path,
    value: &T,
    expected: Revision,
) -> Result<(u64, Revision), StateError> {
    let failed = |source: io::Error| unwritable(path, source);
    let target = resolve(path);
    let folder = File::open(folder_of(&target)).map_err(failed)?;
    // Or two that save at the same time both find the file as they read it, and what one learned is lost.
    // Where a file system has no locks, that is left to chance.
    let alone = folder.lock().is_ok();
    if revision(path)? != expected {
        return Err(StateError::Changed {
            path: path.to_owned(),
        });
    }
    if alone {
        remove_leftovers(&target);
    }
    let (checksum, length) = replace(&target, value).map_err(failed)?;
    // The rename itself lives in the folder; without this a power cut could undo it.
    folder.sync_all().map_err(|source| StateError::Unsynced {
        path: path.to_owned(),
        source,
    })?;
    let revision = Revision(Some((checksum, length)));
    Ok((ENVELOPE as u64 + length, revision))
}

/// Checks before hours of work that a state could be saved at `path` later.
///
/// # Errors
/// When the folder is missing or cannot be written to, or the file cannot be replaced.
pub fn check_writable(path: &Path) -> Result<(), StateError> {
    let target = resolve(path);
    if is_mounted(&target) {
        return Err(StateError::Mounted {
            path: path.to_owned(),
        });
    }
    tempfile::NamedTempFile::new_in(folder_of(&target))
        // A save opens the folder as well.
        .and_then(|_| File::open(folder_of(&target)))
        .map(drop)
        // The name of the file that was tried says nothing.
        .map_err(|error| unwritable(path, io::Error::from(error.kind())))
}

/// Checks before hours of work that there is room to save at `path` what is there and `more` bytes, while
/// what is there stays.
///
/// # Errors
/// [`StateError::NoSpace`].
pub fn check_room(path: &Path, more: u64) -> Result<(), StateError> {
    let target = resolve(path);
    let there = fs::metadata(&target).map_or(0, |file| file.len());
    let needed = there.saturating_add(more);
    // What cannot be told shows when it is written. File systems that cannot tell report 0 blocks in all.
    let disk = rustix::fs::statvfs(folder_of(&target)).ok();
    let Some(disk) = disk.filter(|disk| disk.f_blocks > 0) else {
        return Ok(());
    };
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    match available < needed {
        false => Ok(()),
        true => Err(StateError::NoSpace {
            path: path.to_owned(),
            needed,
            available,
        }),
    }
}

/// Whether something is mounted at a file, as container programs do with single files.
fn is_mounted(target: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let mount = |path: &Path| {
        let told = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
        // Linux before 5.8 does not tell.
        (told.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(told.stx_mnt_id)
    };
    let both = mount(target).zip(mount(folder_of(target)));
    both.is_some_and(|(file, folder)| file != folder)
}

/// Why nothing can be saved at `path`.
fn unwritable(path: &Path, source: io::Error) -> StateError {
    let target = resolve(path);
    let folder = folder_of(&target);
    let path = path.to_owned();
    match folder.is_dir() {
        true => StateError::Write { path, source },
        false => StateError::NoFolder {
            path,
            folder: folder.to_owned(),
        },
    }
}

/// The revision on disk now, told by the file's first bytes.
///
/// # Errors
/// When there is a file and it cannot be read.
pub fn revision(path: &Path) -> Result<Revision, StateError> {
    let mut head = [0; ENVELOPE];
    let read = open_regular(path).and_then(|mut file| file.read_exact(&mut head));
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

/// Opens a file to read it; a pipe that nobody writes to would make that wait for ever.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    File::open(path)
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

/// The file that a link names, so that saving replaces the file and keeps the link, even while what it
/// names is not there.
fn resolve(path: &Path) -> PathBuf {
    /// As many as Linux follows.
    const LINKS: usize = 40;
    fs::canonicalize(path).unwrap_or_else(|_| {
        (0..LINKS)
            .try_fold(path.to_owned(), |path, _| match fs::read_link(&path) {
                Ok(to) => Ok(folder_of(&path).join(to)),
                Err(_) => Err(path),
            })
            .unwrap_or_else(|last| last)
    })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What the name of a file begins with that is to become `target`.
fn temporary_name(target: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(SAVING);
    name
}

/// Removes what others left that were stopped while they saved. None of them can be at work.
fn remove_leftovers(target: &Path) {
    let name = temporary_name(target);
    let entries = fs::read_dir(folder_of(target)).into_iter().flatten();
    for entry in entries.flatten() {
        let is_left = entry.file_name().as_bytes().starts_with(name.as_bytes());
        // To be rid of them is not worth failing for.
        let _ = is_left.then(|| fs::remove_file(entry.path()));
    }
}

/// Writes checksum and length of the payload last, in front of it: only then are they known.
fn replace<T: Serialize>(target: &Path, value: &T) -> io::Result<(u32, u64)> {
    let mut temporary = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666))
        .prefix(&temporary_name(target))
        .tempfile_in(folder_of(target))?;
    if let Ok(metadata) = fs::metadata(target) {
        let file = temporary.as_file();
        // It stays whose it is, where this process may say so: a service reads what root learned.
        let _ = fchown(file, Some(metadata.uid()), Some(metadata.gid()));
        file.set_permissions(metadata.permissions())?;
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
    temporary.persist(target).map_err(|e| e.error)?;
    Ok((checksum, length))
}

#[cfg(test)]
mod tests;
