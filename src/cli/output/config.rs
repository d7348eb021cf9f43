//! Settings and where they come from.

use std::io::{self, Write};

use serde::Serialize;

use super::Report;
use crate::cli::config::{Config, Key};

/// `config show`.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigReport {
    /// The configuration file that was read.
    pub file: Option<String>,
    /// The board that was recognised.
    pub board: Option<String>,
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    pub key: &'static str,
    /// As the flag or the file would be written.
    pub value: String,
    pub origin: String,
}

impl ConfigReport {
    pub fn of(config: &Config) -> anyhow::Result<Self> {
        let setting = |key: Key| {
            let (value, origin) = config.effective(key)?;
            Ok(Setting {
                key: key.name(),
                value,
                origin: origin.to_string(),
            })
        };
        Ok(Self {
            file: config.file.as_ref().map(|file| file.display().to_string()),
            board: config.board.clone(),
            settings: Key::ALL
                .into_iter()
                .map(setting)
                .collect::<anyhow::Result<_>>()?,
        })
    }
}

impl Report for ConfigReport {
    fn describe(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = |text: fn(&Setting) -> &str| {
            let lengths = self.settings.iter().map(|s| text(s).chars().count());
            // One long command does not push all origins off the screen.
            lengths.filter(|&length| length < 40).max().unwrap_or(0)
        };
        let (keys, values) = (width(|s| s.key), width(|s| &s.value));
        for Setting { key, value, origin } in &self.settings {
            writeln!(out, "{key:<keys$}  {value:<values$}  ({origin})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::{fields, text};
    use super::*;

    #[test]
    fn every_key_is_shown_with_its_origin() {
        let report = ConfigReport::of(&Config::default()).unwrap();
        assert_eq!(fields(&report), ["board", "file", "settings"]);
        let shown = text(&report);
        for key in Key::ALL {
            let line = shown.lines().find(|line| line.starts_with(key.name()));
            assert!(line.is_some_and(|line| line.ends_with(')')), "{shown}");
        }
        assert!(shown.contains("112"), "{shown}");
    }
}
