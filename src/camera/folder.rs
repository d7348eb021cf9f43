//! A folder that another program fills with pictures.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::{CameraError, Frame, Next};

/// Time between two looks at the folder.
const INTERVAL: Duration = Duration::from_millis(100);

/// A file by the time it was last written and its name: the order in which files are handed out.
type Mark = (SystemTime, PathBuf);

#[derive(Debug)]
pub(super) struct FolderCamera {
    folder: PathBuf,
    /// The file handed out last. What is not after it has been seen.
    seen: Option<Mark>,
    /// The file to come next and its length at the last look: one that still grows has to wait.
    growing: Option<(Mark, u64)>,
}

impl FolderCamera {
    /// The newest picture that is there already comes first, and then what appears.
    pub(super) fn open(folder: &Path) -> Result<Self, CameraError> {
        let mut camera = Self {
            folder: folder.to_owned(),
            seen: None,
            growing: None,
        };
        let mut marks: Vec<Mark> = camera.files()?.into_iter().map(|(mark, _)| mark).collect();
        marks.sort();
        camera.seen = marks
            .len()
            .checked_sub(2)
            .map(|last| marks.swap_remove(last));
        Ok(camera)
    }

    pub(super) fn next(&mut self, wait: Duration) -> Result<Next, CameraError> {
        let until = Instant::now() + wait;
        loop {
            let next = self
                .files()?
                .into_iter()
                .filter(|(mark, _)| self.seen.as_ref().is_none_or(|seen| mark > seen))
                .min();
            if next.is_some() && next == self.growing {
                self.growing = None;
                self.seen = next.map(|(mark, _)| mark);
                let path = self.seen.as_ref().map(|(_, path)| path.clone());
                return Ok(path.map_or(Next::Nothing, |path| Next::Frame(Frame::File(path))));
            }
            self.growing = next;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Nothing);
            }
            std::thread::sleep(left.min(INTERVAL));
        }
    }

    /// Every regular file with its length. Hidden ones are left out: programs write under such a
    /// name until a file is whole.
    fn files(&self) -> Result<Vec<(Mark, u64)>, CameraError> {
        let failed = |source: io::Error| CameraError::Folder {
            folder: self.folder.clone(),
            source,
        };
        let mut files = Vec::new();
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
                files.push(((written, entry.path()), metadata.len()));
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
    fn a_folder_that_is_not_there_is_named() {
        let error = FolderCamera::open(Path::new("no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }
}
