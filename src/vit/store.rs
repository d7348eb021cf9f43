//! Where imported models live, and how the default one gets there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use etcetera::BaseStrategy;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::import::{self, ImportError, Imported};
use super::{Geometry, Preprocessing, Weights, WeightsError};

/// Ending of a model file.
const ENDING: &str = "weights";
/// First part of the name of a folder that [`ModelStore::get`] works in.
const TEMPORARY: &str = ".get-";
/// First bytes of a zip archive, which a wheel is.
const ZIP: [u8; 4] = *b"PK\x03\x04";
/// A ViT that fits on a board is far smaller; beyond, an archive is a bomb.
const MAX_UNPACKED: u64 = 4 << 30;

/// What a model is and where it comes from, as `models/*.toml` describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub name: String,
    pub description: String,
    pub licence: String,
    pub source: Source,
    pub geometry: Geometry,
    pub preprocessing: Preprocessing,
}

/// A file inside a wheel on PyPI.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub package: String,
    pub version: String,
    /// SHA-256 of the wheel, in hexadecimal.
    pub wheel_sha256: String,
    /// Path of the ONNX file inside the wheel.
    pub file: String,
    /// SHA-256 of that file, in hexadecimal.
    pub file_sha256: String,
}

impl Description {
    /// The description of the default model.
    pub fn default_model() -> Self {
        toml::from_str(include_str!("../../models/vit-s14-focus.toml"))
            .expect("the embedded description parses: a test holds it to that")
    }
}

/// What [`ModelStore::get`] is doing, for whoever shows progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// pip downloads this requirement.
    Downloading(String),
    /// A checksum is computed.
    Verifying,
    /// The ONNX file is unpacked.
    Unpacking,
    /// The ViT is recognised, written and compared with the original.
    Importing,
}

/// A file to import: the default model's wheel, or any ONNX file.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    pub file: &'a Path,
    /// What to call it; `None` for the default model's own name or another file's stem.
    pub name: Option<&'a str>,
    /// How pixels become its input; `None` for the default model's own way or the ImageNet statistics.
    pub preprocessing: Option<Preprocessing>,
}

impl<'a> From<&'a Path> for Given<'a> {
    fn from(file: &'a Path) -> Self {
        Self {
            file,
            name: None,
            preprocessing: None,
        }
    }
}

/// A model that [`ModelStore::get`] made ready.
#[derive(Debug)]
pub struct Ready {
    pub name: String,
    pub path: PathBuf,
    pub preprocessing: Preprocessing,
    pub imported: Imported,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no home folder to keep models in; set FLEDGE_HOME")]
    NoHome,
    #[error("cannot use {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("`{name}` cannot name a model: use letters, digits, `-`, `_` and `.`")]
    BadName { name: String },
    #[error(
        "no model `{name}` is imported in {folder} ({}); `fledge model get` fetches the default \
         one, `fledge model get --from FILE.onnx` imports your own",
        listing(.imported)
    )]
    NotImported {
        name: String,
        folder: PathBuf,
        imported: Vec<String>,
    },
    #[error(
        "there is another model `{name}` already, and what was learned with it needs it: import this one under \
         another name with `fledge model get --from FILE --name NAME`, or remove {path}"
    )]
    NameTaken { name: String, path: PathBuf },
    #[error("cannot run `{python} -m pip` to download the default model: {source}; {REMEDY}")]
    NoPip { python: String, source: io::Error },
    #[error("pip could not download {requirement}: {reason}; {REMEDY}")]
    Download { requirement: String, reason: String },
    #[error(
        "{path} is not what was expected: its SHA-256 is {found}, it should be {expected}; \
         download it again"
    )]
    Checksum {
        path: PathBuf,
        expected: String,
        found: String,
    },
    #[error("{path} is a zip archive without a readable {file}: {reason}")]
    Wheel {
        path: PathBuf,
        file: String,
        reason: String,
    },
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

const REMEDY: &str = "connect to the network, or download the wheel elsewhere and pass it with \
                      `fledge model get --from WHEEL`";

fn listing(names: &[String]) -> String {
    if names.is_empty() {
        "nothing is".into()
    } else {
        format!("imported: {}", names.join(", "))
    }
}

/// fledge's home: `$FLEDGE_HOME`, or else `fledge` in the platform's data folder.
///
/// # Errors
/// When there is neither `$FLEDGE_HOME` nor a home folder.
pub fn user_home() -> Result<PathBuf, StoreError> {
    if let Some(home) = std::env::var_os("FLEDGE_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    let strategy = etcetera::choose_base_strategy().map_err(|_| StoreError::NoHome)?;
    Ok(strategy.data_dir().join("fledge"))
}

/// The folder of imported models, one `NAME.weights` each.
#[derive(Debug, Clone)]
pub struct ModelStore {
    folder: PathBuf,
    python: OsString,
}

impl ModelStore {
    /// The store in `$FLEDGE_HOME`, or else in `fledge` in the platform's data folder. Creates
    /// nothing.
    ///
    /// # Errors
    /// When there is neither `$FLEDGE_HOME` nor a home folder.
    pub fn of_user() -> Result<Self, StoreError> {
        Ok(Self::at(&user_home()?))
    }

    /// The store under a given home: `home/models`.
    pub fn at(home: &Path) -> Self {
        Self {
            folder: home.join("models"),
            python: "python3".into(),
        }
    }

    /// Uses another Python for its pip.
    #[must_use]
    pub fn with_python(self, python: impl Into<OsString>) -> Self {
        Self {
            python: python.into(),
            ..self
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of the imported models, sorted.
    ///
    /// # Errors
    /// When the folder exists but cannot be read.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error(&self.folder, source)),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Where the model `name` is or would be.
    ///
    /// # Errors
    /// When `name` could lead out of the folder.
    pub fn path(&self, name: &str) -> Result<PathBuf, StoreError> {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(StoreError::BadName { name: name.into() });
        }
        Ok(self.folder.join(format!("{name}.{ENDING}")))
    }

    /// Maps the model `name`; without a name the default one, or else the only one there is.
    ///
    /// # Errors
    /// When it is not imported or its file is damaged.
    pub fn open(&self, name: Option<&str>) -> Result<Weights, StoreError> {
        let imported = self.list()?;
        let name = match (name, imported.as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, [only]) => only.clone(),
            (None, _) => Description::default_model().name,
        };
        let path = self.path(&name)?;
        if !path.exists() {
            return Err(StoreError::NotImported {
                name,
                folder: self.folder.clone(),
                imported,
            });
        }
        Ok(Weights::open(&path)?)
    }

    /// Makes a model ready: the default one, downloaded with the user's own pip, or one `from` a file.
    ///
    /// `forward` is what the import is compared with, see [`import::import_with`].
    ///
    /// # Errors
    /// When the download fails, a checksum is wrong, the import is refused, or another model has the name.
    /// Temporary files are removed, those of a process that was stopped the next time.
    pub fn get(
        &self,
        from: Option<Given<'_>>,
        forward: impl Fn(&Weights, &[f32]) -> Vec<Vec<f32>>,
        progress: impl FnMut(Step),
    ) -> Result<Ready, StoreError> {
        self.get_described(&Description::default_model(), from, forward, progress)
    }

    /// As [`ModelStore::get`], for another default.
    ///
    /// # Errors
    /// As [`ModelStore::get`].
    pub fn get_described(
        &self,
        description: &Description,
        from: Option<Given<'_>>,
        forward: impl Fn(&Weights, &[f32]) -> Vec<Vec<f32>>,
        mut progress: impl FnMut(Step),
    ) -> Result<Ready, StoreError> {
        let failed = |source| io_error(&self.folder, source);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        // Who is at work here shares the lock to the end, and only who is alone clears up.
        let lock = File::open(&self.folder).map_err(failed)?;
        if lock.try_lock().is_ok() {
            self.remove_leftovers();
            let _ = lock.unlock();
        }
        // A file system without locks is no reason to fail.
        let _ = lock.lock_shared();
        // Beside the models rather than in the system's folder for temporary files, which is in
        // memory on many boards.
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&self.folder)
            .map_err(failed)?;
        let source = &description.source;
        let file = match from {
            Some(given) => given.file.to_owned(),
            None => {
                let wheel = self.download(source, temporary.path(), &mut progress)?;
                progress(Step::Verifying);
                verify(&wheel, &source.wheel_sha256)?;
                wheel
            }
        };
        let (onnx, name, preprocessing) = if is_zip(&file)? {
            progress(Step::Unpacking);
            let onnx = unpack(&file, &source.file, temporary.path())?;
            progress(Step::Verifying);
            verify(&onnx, &source.file_sha256)?;
            (onnx, description.name.clone(), description.preprocessing)
        } else {
            progress(Step::Verifying);
            if sha256(&file)? == source.file_sha256 {
                (file, description.name.clone(), description.preprocessing)
            } else {
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                let name = stem.into_owned();
                (file, name, Preprocessing::IMAGENET)
            }
        };
        let name = from
            .and_then(|given| given.name)
            .map_or(name, str::to_owned);
        let preprocessing = from
            .and_then(|given| given.preprocessing)
            .unwrap_or(preprocessing);
        let path = self.path(&name)?;
        progress(Step::Importing);
        let candidate = temporary.path().join("imported");
        let imported = import::import_with(&onnx, preprocessing, &candidate, forward)?;
        // A damaged file may be replaced.
        if Weights::open(&path).is_ok_and(|there| there.hash() != imported.hash) {
            return Err(StoreError::NameTaken { name, path });
        }
        fs::rename(&candidate, &path).map_err(|source| io_error(&path, source))?;
        Ok(Ready {
            name,
            path,
            preprocessing,
            imported,
        })
    }

    /// Removes what a process left that was stopped in [`ModelStore::get`].
    fn remove_leftovers(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_left = name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
            // To be rid of them is not worth failing for.
            let _ = is_left.then(|| fs::remove_dir_all(entry.path()));
        }
    }

    /// Lets the user's own pip download the wheel, so that proxies, mirrors and certificates are
    /// what the user has set up.
    fn download(
        &self,
        source: &Source,
        folder: &Path,
        progress: &mut impl FnMut(Step),
    ) -> Result<PathBuf, StoreError> {
        let requirement = format!("{}=={}", source.package, source.version);
        progress(Step::Downloading(requirement.clone()));
        let output = Command::new(&self.python)
            .args(["-m", "pip", "download", "--no-deps", "--no-input"])
            // A source distribution would run its build script; only the wheel is wanted.
            .args([
                "--only-binary",
                ":all:",
                "--disable-pip-version-check",
                "-d",
            ])
            .arg(folder)
            // It would keep a second copy, and unpack in the system's folder for temporary files.
            .arg("--no-cache-dir")
            .env("TMPDIR", folder)
            .arg(&requirement)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| StoreError::NoPip {
                python: self.python.to_string_lossy().into_owned(),
                source,
            })?;
        let failed = |reason: String| StoreError::Download {
            requirement: requirement.clone(),
            reason,
        };
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            let last = messages.lines().rev().find(|line| !line.trim().is_empty());
            return Err(failed(
                last.unwrap_or("it gave no reason").trim().to_owned(),
            ));
        }
        let entries = fs::read_dir(folder).map_err(|source| io_error(folder, source))?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
            .ok_or_else(|| failed("it left no wheel".into()))
    }
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source,
    }
}

fn is_zip(path: &Path) -> Result<bool, StoreError> {
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(ZIP.len() as u64).read_to_end(&mut first))
        .map_err(|source| io_error(path, source))?;
    Ok(first == ZIP)
}

/// Unpacks one member of a wheel into `folder`.
fn unpack(wheel: &Path, member: &str, folder: &Path) -> Result<PathBuf, StoreError> {
    let broken = |reason: String| StoreError::Wheel {
        path: wheel.to_owned(),
        file: member.to_owned(),
        reason,
    };
    let file = File::open(wheel).map_err(|source| io_error(wheel, source))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| broken(e.to_string()))?;
    let content = archive.by_name(member).map_err(|e| broken(e.to_string()))?;
    let path = folder.join("model.onnx");
    let mut out = File::create(&path).map_err(|source| io_error(&path, source))?;
    io::copy(&mut content.take(MAX_UNPACKED), &mut out).map_err(|e| broken(e.to_string()))?;
    Ok(path)
}

fn verify(path: &Path, expected: &str) -> Result<(), StoreError> {
    let found = sha256(path)?;
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Checksum {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

/// SHA-256 of a file, in hexadecimal.
fn sha256(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(|source| io_error(path, source))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(|source| io_error(path, source))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
