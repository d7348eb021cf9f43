//! Pictures as they come: from a program that writes JPEGs to its standard output, from our own
//! standard input, or from a folder that another program fills.

mod folder;
mod jpegs;
mod stream;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::data::{DecodeError, Fault, Limits, Rgb, decode, decode_bytes};

pub use jpegs::Jpegs;

/// Where pictures come from. Written `dir:FOLDER`, `cmd:PROGRAM ARGUMENT …` or `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder in which new pictures appear.
    Folder(PathBuf),
    /// A program, with its arguments, that writes JPEGs one after another to standard output.
    Command(Vec<String>),
    /// JPEGs one after another on standard input.
    Input,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self::Input);
        }
        if let Some(folder) = text.strip_prefix("dir:").filter(|f| !f.is_empty()) {
            return Ok(Self::Folder(folder.into()));
        }
        let words: Option<Vec<String>> = text
            .strip_prefix("cmd:")
            .map(|command| command.split_whitespace().map(str::to_owned).collect());
        match words {
            Some(words) if !words.is_empty() => Ok(Self::Command(words)),
            _ => Err(
                "expected dir:FOLDER, cmd:PROGRAM with its arguments, or - for standard input"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "dir:{}", folder.display()),
            Self::Command(words) => write!(f, "cmd:{}", words.join(" ")),
            Self::Input => f.write_str("-"),
        }
    }
}

/// One picture, not yet decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    File(PathBuf),
    Jpeg(Vec<u8>),
}

impl Frame {
    /// # Errors
    /// When this is no whole picture.
    pub fn decode(&self, limits: &Limits) -> Result<Rgb, FrameError> {
        match self {
            Self::File(path) => decode(path, limits).map_err(FrameError::File),
            Self::Jpeg(bytes) => decode_bytes(bytes, limits).map_err(FrameError::Stream),
        }
    }
}

/// A picture that cannot be used; the next one may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    File(DecodeError),
    #[error("the camera's picture {0}")]
    Stream(Fault),
}

/// A camera cannot be used, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum CameraError {
    #[error("cannot look for pictures in {}: {source}; make the folder, or name another", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot start the camera program {program}: {source}; install it, or name another")]
    Start { program: String, source: io::Error },
    #[error("cannot read the camera's pictures: {0}")]
    Read(io::Error),
    #[error("the camera program {program} ended ({status}); its own messages say why")]
    Ended { program: String, status: String },
}

/// What a camera has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Frame(Frame),
    /// No new picture so far.
    Nothing,
    /// There will be no more pictures.
    End,
}

/// An open camera. Dropping it ends the program it started.
#[derive(Debug)]
pub struct Camera(Kind);

#[derive(Debug)]
enum Kind {
    Folder(folder::FolderCamera),
    Stream(stream::StreamCamera),
}

impl Camera {
    /// # Errors
    /// When the folder cannot be read or the program cannot be started.
    pub fn open(source: &Source) -> Result<Self, CameraError> {
        Ok(Self(match source {
            Source::Folder(folder) => Kind::Folder(folder::FolderCamera::open(folder)?),
            Source::Command(words) => Kind::Stream(stream::StreamCamera::start(words)?),
            Source::Input => Kind::Stream(stream::StreamCamera::read(io::stdin(), None)),
        }))
    }

    /// The newest picture that was not handed out before; waits up to `wait` for one.
    ///
    /// A stream's pictures that came in between are dropped: an answer about now is worth more
    /// than one about every picture. A folder's pictures are handed out one by one.
    ///
    /// # Errors
    /// When the camera has failed.
    pub fn next(&mut self, wait: Duration) -> Result<Next, CameraError> {
        match &mut self.0 {
            Kind::Folder(camera) => camera.next(wait),
            Kind::Stream(camera) => camera.next(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_folder_a_command_or_standard_input() {
        for text in ["dir:/var/lib/fledge/frames", "cmd:rpicam-vid -o -", "-"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for wrong in ["", "dir:", "cmd:", "cmd:  ", "/dev/video0", "rpicam-vid"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong:?}");
        }
    }
}
