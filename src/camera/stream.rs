//! A program's output, or our own input, read on a thread that keeps only the newest picture.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{CameraError, Frame, Jpegs, Next};

/// The longest picture: a 12-megapixel JPEG of a camera is about half of it.
const MAX_PICTURE: usize = 16 << 20;

/// Bytes read at once: what a pipe holds.
const PIECE: usize = 64 << 10;

/// What a program is given to put its camera away.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct StreamCamera {
    shared: Arc<Shared>,
    program: Option<(String, Child)>,
}

#[derive(Debug, Default)]
struct Shared {
    latest: Mutex<Latest>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Latest {
    picture: Option<Vec<u8>>,
    /// The stream has ended, and how.
    ended: Option<io::Result<()>>,
}

impl Shared {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn put(&self, change: impl FnOnce(&mut Latest)) {
        change(&mut self.latest());
        self.changed.notify_all();
    }
}

impl StreamCamera {
    /// Starts the program `words[0]`.
    pub(super) fn start(words: &[String]) -> Result<Self, CameraError> {
        let [program, arguments @ ..] = words else {
            return Err(CameraError::Start {
                program: String::new(),
                source: io::ErrorKind::InvalidInput.into(),
            });
        };
        let failed = |source| CameraError::Start {
            program: program.clone(),
            source,
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // To be ended with what it started: a script's child would keep the camera.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let output = child.stdout.take();
        let output = output.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self::read(output, Some((program.clone(), child))))
    }

    /// Reads `bytes` until they end.
    pub(super) fn read(
        bytes: impl Read + Send + 'static,
        program: Option<(String, Child)>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let for_reader = Arc::clone(&shared);
        std::thread::spawn(move || {
            let ended = read_pictures(bytes, &for_reader);
            for_reader.put(|latest| latest.ended = Some(ended));
        });
        Self { shared, program }
    }

    pub(super) fn next(&mut self, wait: Duration) -> Result<Next, CameraError> {
        let waits = |latest: &mut Latest| latest.picture.is_none() && latest.ended.is_none();
        let (mut latest, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.latest(), wait, waits)
            .unwrap_or_else(|e| e.into_inner());
        if let Some(picture) = latest.picture.take() {
            return Ok(Next::Frame(Frame::Jpeg(picture)));
        }
        match latest.ended.take() {
            None => Ok(Next::Nothing),
            Some(ended) => {
                latest.ended = Some(Ok(()));
                ended.map_err(CameraError::Read)?;
                drop(latest);
                self.end()
            }
        }
    }

    /// The end of standard input is the end; a camera program is not expected to end.
    fn end(&mut self) -> Result<Next, CameraError> {
        let Some((program, child)) = &mut self.program else {
            return Ok(Next::End);
        };
        // It may have closed its output and go on; it is of no more use then.
        let status = end(child).map_or_else(|e| e.to_string(), |s| s.to_string());
        Err(CameraError::Ended {
            program: program.clone(),
            status,
        })
    }
}

/// Ends a program and what it started, which may have ended already.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let group = Pid::from_child(child);
    let _ = kill_process_group(group, Signal::TERM);
    let asked = Instant::now();
    while asked.elapsed() < GRACE {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = kill_process_group(group, Signal::KILL);
    child.wait()
}

fn read_pictures(mut bytes: impl Read, shared: &Shared) -> io::Result<()> {
    let mut jpegs = Jpegs::new(MAX_PICTURE);
    let mut piece = vec![0; PIECE];
    loop {
        let read = match bytes.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        jpegs.feed(&piece[..read], |picture| {
            shared.put(|latest| latest.picture = Some(picture.to_vec()));
        });
    }
}

impl Drop for StreamCamera {
    fn drop(&mut self) {
        if let Some((_, child)) = &mut self.program {
            // Out of reach: nothing is left to do then.
            let _ = end(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICTURE: &[u8] = b"\xFF\xD8\xFF\xDA\x00\x02\x11\xFF\xD9";
    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn the_last_picture_is_handed_out_before_the_end() {
        let bytes = [b"noise".as_slice(), PICTURE, b"more", PICTURE].concat();
        let mut camera = StreamCamera::read(io::Cursor::new(bytes), None);
        // The reader may be between the two pictures.
        let mut seen = 0;
        loop {
            match camera.next(SOON).unwrap() {
                Next::Frame(frame) => assert_eq!(frame, Frame::Jpeg(PICTURE.to_vec())),
                Next::Nothing => panic!("the stream has ended"),
                Next::End => break,
            }
            seen += 1;
        }
        assert!((1..=2).contains(&seen));
        assert_eq!(camera.next(SOON).unwrap(), Next::End);
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_ends_is_named_with_its_status() {
        let mut camera = StreamCamera::start(&words(&["sh", "-c", "exit 3"])).unwrap();
        let error = camera.next(SOON).unwrap_err().to_string();
        assert!(error.contains("sh ended") && error.contains('3'), "{error}");
        let error = StreamCamera::start(&words(&["/no/such/camera"])).unwrap_err();
        assert!(error.to_string().contains("/no/such/camera"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_program_is_ended_with_the_camera() {
        let camera = StreamCamera::start(&words(&["sleep", "600"])).unwrap();
        let child = camera.program.as_ref().unwrap().1.id();
        let entry = std::path::PathBuf::from(format!("/proc/{child}"));
        assert!(entry.exists());
        drop(camera);
        assert!(!entry.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_script_started_is_ended_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("child");
        let script = format!(
            "sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait",
            told.display()
        );
        let camera = StreamCamera::start(&words(&["sh", "-c", &script])).unwrap();
        let start = Instant::now();
        while !told.exists() && start.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(10));
        }
        let child = std::fs::read_to_string(&told).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        assert!(stat().is_ok());
        drop(camera);
        // Whoever adopts it may not have looked after it yet.
        while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(start.elapsed() < SOON, "{:?}", stat());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
