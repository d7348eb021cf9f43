//! A task folder: one folder a class, named by the class, with its photos inside.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::decode::{self, DecodeError, Fault};

const LAYOUT: &str = "a task folder holds one folder a class, named by the class, with its photos \
                      inside, such as birds/robin/1.jpg and birds/sparrow/1.jpg";

/// Names that end like this are taken for images without a look inside.
const IMAGE_EXTENSIONS: [&str; 16] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "pbm", "pgm",
    "ppm", "pnm", "pam",
];

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("there is no folder {}; {LAYOUT}", .0.display())]
    Missing(PathBuf),
    #[error("{} is not a folder; {LAYOUT}", .0.display())]
    NotAFolder(PathBuf),
    #[error("the folder {} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// Nothing to learn from; `skipped` says what was there instead.
    #[error("{} holds no class folder with an image in it{}; {LAYOUT}", path.display(), first(skipped))]
    NoClasses {
        path: PathBuf,
        skipped: Vec<Skipped>,
    },
}

fn first(skipped: &[Skipped]) -> String {
    skipped.first().map_or_else(String::new, |first| {
        format!(
            " ({first}{})",
            if skipped.len() > 1 { "; and more" } else { "" }
        )
    })
}

/// A file or folder that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {reason}", path.display())]
pub struct Skipped {
    pub path: PathBuf,
    pub reason: SkipReason,
}

/// Reads as the end of a sentence that starts with the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    #[error("is not an image, neither by its name nor by its first bytes")]
    NotAnImage,
    #[error("lies beside the class folders; move it into the folder of its class")]
    OutsideClasses,
    #[error("is a folder within a class folder; only images directly in a class folder are read")]
    FolderInClass,
    #[error("holds no image")]
    EmptyClass,
    #[error("cannot be told apart from another class folder, as both are called {0:?}")]
    SameName(String),
    #[error("cannot be read ({0})")]
    Unreadable(String),
    #[error("is neither a file nor a folder")]
    Special,
    /// Found when decoding, which [`TaskFolder::scan`] does not do.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<DecodeError> for Skipped {
    fn from(error: DecodeError) -> Self {
        Self {
            path: error.path,
            reason: error.fault.into(),
        }
    }
}

impl SkipReason {
    /// Whether a photo may have been lost, so that the user should hear of it: everything but
    /// files that never were images.
    pub fn is_loss(&self) -> bool {
        !matches!(self, Self::NotAnImage)
    }
}

/// One class and the paths of its images, sorted by the bytes of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassFolder {
    /// The folder's name as it is, spaces and capitals included. A name that is not UTF-8 has each
    /// stray byte written `\xNN` and each backslash doubled, which loses nothing.
    pub name: String,
    pub images: Vec<PathBuf>,
}

/// What there is to learn in a folder, in the order of the bytes of the names.
///
/// - Each folder in it is a class; links to folders count, names that start with a dot do not.
/// - Each file directly in a class folder is an image when its name ends like one or its first
///   bytes begin like one. Hidden files are passed over; whatever else is there is listed as
///   skipped: other files, folders within class folders (they are not entered, so a loop of links
///   ends there), classes without images, and images beside the class folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFolder {
    /// Name of the folder, also when given as `birds/` or `.`.
    pub name: String,
    pub path: PathBuf,
    /// At least one, each with at least one image.
    pub classes: Vec<ClassFolder>,
    pub skipped: Vec<Skipped>,
}

impl TaskFolder {
    /// Lists the classes and images of the task folder at `path`. No image is decoded.
    ///
    /// # Errors
    /// When `path` is missing, no folder, unreadable, or has no class with an image.
    pub fn scan(path: &Path) -> Result<Self, FolderError> {
        let owned = || path.to_owned();
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(FolderError::NotAFolder(owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FolderError::Missing(owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(FolderError::NotAFolder(owned()));
            }
            Err(source) => {
                return Err(FolderError::Unreadable {
                    path: owned(),
                    source,
                });
            }
        }
        let names = visible_names(path).map_err(|source| FolderError::Unreadable {
            path: owned(),
            source,
        })?;
        let mut classes = Vec::new();
        let mut skipped = Vec::new();
        let mut taken = BTreeSet::new();
        for name in names {
            let entry = path.join(&name);
            let reason = match kind(&entry) {
                Kind::Image => SkipReason::OutsideClasses,
                Kind::Other(reason) => reason,
                Kind::Folder => {
                    let class = escaped(&name);
                    if taken.contains(&class) {
                        SkipReason::SameName(class)
                    } else {
                        match images_of(&entry, &mut skipped) {
                            Err(error) => SkipReason::Unreadable(error.to_string()),
                            Ok(images) if images.is_empty() => SkipReason::EmptyClass,
                            Ok(images) => {
                                taken.insert(class.clone());
                                classes.push(ClassFolder {
                                    name: class,
                                    images,
                                });
                                continue;
                            }
                        }
                    }
                }
            };
            skipped.push(Skipped {
                path: entry,
                reason,
            });
        }
        if classes.is_empty() {
            return Err(FolderError::NoClasses {
                path: owned(),
                skipped,
            });
        }
        Ok(Self {
            name: folder_name(path),
            path: owned(),
            classes,
            skipped,
        })
    }

    /// Number of images over all classes.
    pub fn images(&self) -> usize {
        self.classes.iter().map(|class| class.images.len()).sum()
    }
}

fn images_of(class: &Path, skipped: &mut Vec<Skipped>) -> io::Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for name in visible_names(class)? {
        let path = class.join(name);
        let reason = match kind(&path) {
            Kind::Image => {
                images.push(path);
                continue;
            }
            Kind::Folder => SkipReason::FolderInClass,
            Kind::Other(reason) => reason,
        };
        skipped.push(Skipped { path, reason });
    }
    Ok(images)
}

/// Whether an image lies directly in `folder`.
pub(crate) fn holds_images(folder: &Path) -> bool {
    let names = visible_names(folder).unwrap_or_default();
    names
        .iter()
        .any(|name| matches!(kind(&folder.join(name)), Kind::Image))
}

/// Names in a folder but for hidden ones, sorted by their bytes.
fn visible_names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
    Ok(names)
}

enum Kind {
    Folder,
    Image,
    Other(SkipReason),
}

/// Follows links; a dangling one or a loop is unreadable.
fn kind(path: &Path) -> Kind {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Kind::Other(SkipReason::Unreadable(error.to_string())),
    };
    if metadata.is_dir() {
        return Kind::Folder;
    }
    if !metadata.is_file() {
        return Kind::Other(SkipReason::Special);
    }
    if has_image_extension(path) {
        return Kind::Image;
    }
    // Kernel files claim no bytes and may block when read; an empty file begins like nothing.
    if metadata.len() == 0 {
        return Kind::Other(SkipReason::NotAnImage);
    }
    match begins_like_an_image(path) {
        Ok(true) => Kind::Image,
        Ok(false) => Kind::Other(SkipReason::NotAnImage),
        Err(error) => Kind::Other(SkipReason::Unreadable(error.to_string())),
    }
}

fn has_image_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        IMAGE_EXTENSIONS
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}

fn begins_like_an_image(path: &Path) -> io::Result<bool> {
    let mut head = Vec::with_capacity(decode::SIGNATURE);
    File::open(path)?
        .take(decode::SIGNATURE as u64)
        .read_to_end(&mut head)?;
    Ok(decode::recognise(&head).is_some())
}

fn folder_name(path: &Path) -> String {
    let ends_in_a_name = matches!(path.components().next_back(), Some(Component::Normal(_)));
    let resolved = if ends_in_a_name {
        path.to_owned()
    } else {
        path.canonicalize().unwrap_or_else(|_| path.to_owned())
    };
    escaped(resolved.file_name().unwrap_or(resolved.as_os_str()))
}

/// A name as text: itself when it is UTF-8, else with `\xNN` for stray bytes and `\\` for `\`.
fn escaped(name: &OsStr) -> String {
    if let Some(name) = name.to_str() {
        return name.to_owned();
    }
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', r"\\"));
        for byte in chunk.invalid() {
            text.push_str(&format!(r"\x{byte:02x}"));
        }
    }
    text
}
