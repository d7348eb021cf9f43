//! A folder that another program fills with pictures.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::{CameraError, Frame, Next};

/// Time between two looks at the folder.
const INTERVAL: Duration = Duration::from_millis(100);

/// A look at thousands of files takes long enough to keep a core busy: after one that took more than `LONG`, there
/// is none for `REST` times as long.
const LONG: Duration = Duration::from_millis(5);
const REST: u32 = 10;

/// A file by the time it was last written and its name, the order in which files are handed out, and its
/// length.
type Mark = (SystemTime, PathBuf, u64);

#[derive(Debug)]
pub(super) struct FolderCamera {
    folder: PathBuf,
    /// Files that were there at the last look and were handed out or passed over. What is not one of them
    /// is new, whatever its time: a clock may be wrong, and files that are moved in keep theirs.
    seen: BTreeSet<Mark>,
    /// The file to come next as it was at the last look: one that still grows has to wait.
    growing: Option<Mark>,
    /// When the next look is due.
    due: Instant,
}

impl FolderCamera {
    /// The newest picture that is there already comes first, and then what appears.
    pub(super) fn open(folder: &Path) -> Result<Self, CameraError> {
        let mut camera = Self {
            folder: folder.to_owned(),
            seen: BTreeSet::new(),
            growing: None,
            due: Instant::now(),
        };
        camera.seen = camera.files()?;
        camera.seen.pop_last();
        Ok(camera)
    }

    pub(super) fn next(&mut self, wait: Duration) -> Result<Next, CameraError> {
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            let [rest, left] = [self.due, until].map(|time| time.saturating_duration_since(now));
            std::thread::sleep(rest.min(left));
            if rest > left {
                return Ok(Next::Nothing);
            }
            let start = Instant::now();
            let files = self.files()?;
            let took = start.elapsed();
            if took > LONG {
                self.due = Instant::now() + REST * took;
            }
            self.seen.retain(|mark| files.contains(mark));
            let next = files.difference(&self.seen).next().cloned();
            if let Some(mark) = next.clone().filter(|_| next == self.growing) {
                self.growing = None;
                let path = mark.1.clone();
                self.seen.insert(mark);
                return Ok(Next::Frame(Frame::File(path)));
            }
            self.growing = next;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Nothing);
            }
            std::thread::sleep(left.min(INTERVAL));
        }
    }

    /// Every regular file. Hidden ones are left out: programs write under such a
    /// name until a file is whole.
    fn files(&self) -> Result<BTreeSet<Mark>, CameraError> {
        let failed = |source: io::Error| CameraError::Folder {
            folder: self.folder.clone(),
            source,
        };
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // A file that went away between the two calls is no picture.
            let Ok(metadata) = fs::metadata(entry.path()) else {
                continue;
            };
            if metadata.is_file() {
                let written = metadata.modified().map_err(failed)?;
                files.insert((written, entry.path(), metadata.len()));
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const SOON: Duration = Duration::from_secs(20);

    fn write(folder: &Path, name: &str, second: u64) {
        let file = File::create(folder.join(name)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second);
        file.set_modified(time).unwrap();
    }

    fn name(next: Next) -> String {
        match next {
            Next::Frame(Frame::File(path)) => path.file_name().unwrap().to_str().unwrap().into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_newest_file_comes_first_and_then_what_appears_in_order() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.jpg", 1);
        write(folder.path(), "c.jpg", 3);
        write(folder.path(), "b.jpg", 2);
        let mut camera = FolderCamera::open(folder.path()).unwrap();
        assert_eq!(name(camera.next(SOON).unwrap()), "c.jpg");
        write(folder.path(), "f.jpg", 5);
        write(folder.path(), ".e.jpg", 4);
        write(folder.path(), "d.jpg", 5);
        assert_eq!(name(camera.next(SOON).unwrap()), "d.jpg");
        assert_eq!(name(camera.next(SOON).unwrap()), "f.jpg");
        let moment = Duration::from_millis(1);
        assert_eq!(camera.next(moment).unwrap(), Next::Nothing);
        write(folder.path(), "d.jpg", 6);
        assert_eq!(name(camera.next(SOON).unwrap()), "d.jpg");
    }

    #[test]
    fn a_file_that_is_new_is_handed_out_whatever_its_time() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "future.jpg", 1 << 30);
        let mut camera = FolderCamera::open(folder.path()).unwrap();
        assert_eq!(name(camera.next(SOON).unwrap()), "future.jpg");
        for (new, second) in [("now.jpg", 1 << 10), ("moved in.jpg", 1)] {
            write(folder.path(), new, second);
            assert_eq!(name(camera.next(SOON).unwrap()), new);
        }
        assert_eq!(camera.next(Duration::ZERO).unwrap(), Next::Nothing);
    }

    #[test]
    fn a_file_is_handed_out_once_it_has_stopped_growing() {
        let folder = tempfile::tempdir().unwrap();
        let mut camera = FolderCamera::open(folder.path()).unwrap();
        let moment = Duration::ZERO;
        for length in 1..5 {
            fs::write(folder.path().join("a.jpg"), vec![0; length]).unwrap();
            assert_eq!(camera.next(moment).unwrap(), Next::Nothing);
        }
        assert_eq!(name(camera.next(moment).unwrap()), "a.jpg");
    }

    #[test]
    fn a_folder_is_let_be_until_the_next_look_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let mut camera = FolderCamera::open(folder.path()).unwrap();
        write(folder.path(), "a.jpg", 1);
        camera.due = Instant::now() + SOON;
        let moment = Duration::from_millis(1);
        for _ in 0..3 {
            assert_eq!(camera.next(moment).unwrap(), Next::Nothing);
        }
        camera.due = Instant::now();
        assert_eq!(name(camera.next(SOON).unwrap()), "a.jpg");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = FolderCamera::open(Path::new("no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
