//! Settings that hold for a machine: what a flag does not say, the environment says, then a
//! configuration file, then what is known of the board, then fledge's defaults.

mod boards;
mod key;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use fledge::board::Machine;
use fledge::vit::store::user_home;
use toml::Value;

use super::BadUsage;

pub use key::Key;

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Environment(&'static str),
    File(PathBuf),
    /// The board's name in the device tree.
    Board(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Board(model) => write!(f, "board {model}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The settings of a file and of the board, the file's first.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// As a flag would be written; checked with the flag's own rules.
    values: BTreeMap<Key, (String, Origin)>,
    pub file: Option<PathBuf>,
    /// The board, where the device tree names one that is known.
    pub board: Option<String>,
}

impl Config {
    /// Reads `file` and what is known of the board.
    pub fn load(file: Option<&Path>, machine: &Machine) -> anyhow::Result<Self> {
        let mut config = Self::default();
        if let Some(model) = machine.device_tree_model()
            && let Some(board) = boards::find(&model)
        {
            config.board = Some(model.clone());
            let name = Path::new(board.name);
            for (key, value) in parse(board.text, name)? {
                // A board says what the machine can do, not where its owner keeps things.
                if !key.is_path() {
                    config
                        .values
                        .insert(key, (value, Origin::Board(model.clone())));
                }
            }
        }
        if let Some(file) = file {
            let text = fs::read_to_string(file).with_context(|| {
                format!(
                    "cannot read the configuration file {}; check the path",
                    file.display()
                )
            })?;
            let folder = file.parent().unwrap_or(Path::new(""));
            for (key, value) in parse(&text, file)? {
                let value = key.relative_to(folder, value);
                config
                    .values
                    .insert(key, (value, Origin::File(file.to_owned())));
            }
            config.file = Some(file.to_owned());
        }
        Ok(config)
    }

    /// A setting of the file or the board.
    pub fn get<T: FromStr>(&self, key: Key) -> Option<T> {
        self.values.get(&key)?.0.parse().ok()
    }

    /// The folder of imported models: `FLEDGE_HOME`, the configured one, or the platform's.
    pub fn home(&self) -> anyhow::Result<PathBuf> {
        match self.get(Key::Home) {
            Some(home) if environment(Key::Home).is_none() => Ok(home),
            _ => Ok(user_home()?),
        }
    }

    /// The state file; `asked` is the flag's or the environment's.
    pub fn state(&self, asked: Option<PathBuf>) -> PathBuf {
        asked
            .or_else(|| self.get(Key::State))
            .unwrap_or_else(|| Key::State.default().into())
    }

    /// What holds for `key` without a flag, and why.
    pub fn effective(&self, key: Key) -> anyhow::Result<(String, Origin)> {
        if let Some((name, value)) = environment(key) {
            return Ok((
                value.to_string_lossy().into_owned(),
                Origin::Environment(name),
            ));
        }
        if let Some(found) = self.values.get(&key) {
            return Ok(found.clone());
        }
        let value = match key {
            Key::Home => user_home()?.display().to_string(),
            _ => key.default(),
        };
        Ok((value, Origin::Default))
    }
}

/// The environment variable of `key`, where it is set and not empty.
fn environment(key: Key) -> Option<(&'static str, OsString)> {
    let name = key.variable()?;
    let value = env::var_os(name).filter(|value| !value.is_empty())?;
    Some((name, value))
}

/// The settings in `text`, checked. `file` names it in errors.
fn parse(text: &str, file: &Path) -> Result<Vec<(Key, String)>, BadUsage> {
    let wrong = |told: String| BadUsage::new(format!("{}{told}", file.display()));
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(format!(" is no TOML: {error}")))?;
    let mut settings = Vec::new();
    for (name, value) in &table {
        if name == boards::DEVICE_TREE {
            continue;
        }
        let key = Key::named(name).ok_or_else(|| match Key::nearest(name) {
            Some(near) => wrong(format!(": unknown key {name:?}; did you mean {near:?}?")),
            None => wrong(format!(
                ": unknown key {name:?}; the keys are {}",
                Key::ALL.map(Key::name).join(", ")
            )),
        })?;
        let refused = |expected: &str| wrong(format!(": {name} = {value}: {expected}"));
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            _ => return Err(refused("expected a number or a text in quotes")),
        };
        key.check(&text).map_err(|expected| refused(&expected))?;
        settings.push((key, text));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(model: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/device-tree");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model"), format!("{model}\0")).unwrap();
        root
    }

    fn load(text: &str, machine: &Machine) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fledge.toml");
        fs::write(&file, text).unwrap();
        Config::load(Some(&file), machine)
    }

    fn refused(text: &str) -> String {
        let nowhere = tempfile::tempdir().unwrap();
        load(text, &Machine::at(nowhere.path()))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_file_goes_before_the_board_and_the_board_before_the_defaults() {
        let root = board("Raspberry Pi Zero 2 W Rev 1.0");
        let machine = Machine::at(root.path());
        let config = load("resolution = 224\nadapt_blocks = \"all\"", &machine).unwrap();
        let shown = |key| config.effective(key).unwrap();
        assert_eq!(shown(Key::Resolution).0, "224");
        assert!(matches!(shown(Key::Resolution).1, Origin::File(_)));
        assert_eq!(
            shown(Key::Threads),
            (
                "2".into(),
                Origin::Board("Raspberry Pi Zero 2 W Rev 1.0".into())
            )
        );
        let bare = tempfile::tempdir().unwrap();
        let config = Config::load(None, &Machine::at(bare.path())).unwrap();
        assert_eq!(
            config.effective(Key::Resolution).unwrap(),
            ("112".into(), Origin::Default)
        );
        assert_eq!((config.file, config.board), (None, None));
    }

    #[test]
    fn a_board_that_is_detected_moves_no_paths() {
        let root = board("NVIDIA Jetson Nano Developer Kit");
        let config = Config::load(None, &Machine::at(root.path())).unwrap();
        assert_eq!(config.state(None), Path::new("./learned.fledge"));
        assert!(config.board.is_some());
    }

    #[test]
    fn paths_in_a_file_start_where_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fledge.toml");
        fs::write(
            &file,
            "state = \"x.fledge\"\nhome = \"/models\"\ncamera = \"dir:frames\"",
        )
        .unwrap();
        let config = Config::load(Some(&file), &Machine::at(folder.path())).unwrap();
        assert_eq!(config.state(None), folder.path().join("x.fledge"));
        assert_eq!(config.state(Some("y".into())), Path::new("y"));
        assert_eq!(config.get(Key::Home), Some(PathBuf::from("/models")));
        let camera: String = config.get(Key::Camera).unwrap();
        assert_eq!(
            camera,
            format!("dir:{}", folder.path().join("frames").display())
        );
    }

    #[test]
    fn a_wrong_key_is_an_error_that_names_the_nearest_right_one() {
        let told = refused("thread = 2");
        assert!(
            told.contains("fledge.toml") && told.contains("did you mean \"threads\""),
            "{told}"
        );
        let told = refused("adapt-blocks = 2");
        assert!(told.contains("did you mean \"adapt_blocks\""), "{told}");
        let told = refused("wings = 2");
        assert!(told.contains("the keys are"), "{told}");
    }

    #[test]
    fn a_wrong_value_is_refused_by_the_flags_own_rule() {
        for (text, part) in [
            ("threads = 0", "threads = 0"),
            ("adapt_blocks = \"most\"", "\"all\" or a number"),
            ("thermal_ceiling = 20", "from 30 to 120"),
            ("camera = \"/dev/video0\"", "dir:FOLDER"),
            ("threads = [2]", "expected a number or a text"),
            ("threads = true", "expected a number or a text"),
            ("threads 2", "no TOML"),
        ] {
            let told = refused(text);
            assert!(told.contains(part), "{text}: {told}");
        }
        let nowhere = Path::new("no/such.toml");
        let told = Config::load(Some(nowhere), &Machine::here()).unwrap_err();
        assert!(told.to_string().contains("no/such.toml"), "{told}");
    }

    #[test]
    fn every_board_has_a_file_that_holds_every_key() {
        for board in &boards::BOARDS {
            let settings = parse(board.text, Path::new(board.name)).unwrap();
            for key in Key::ALL {
                assert!(
                    settings.iter().any(|(found, _)| *found == key),
                    "{}: {}",
                    board.name,
                    key.name()
                );
            }
        }
    }
}
