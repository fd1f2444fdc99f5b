//! Configuration files → settings.
//!
//! Owns: reading, merging (a later file wins, key by key), unknown keys, contradictions. Never: annotations.
//! Called by the CLI and the shim once per start.

use crate::line::line;
use crate::opt::Section;
use crate::options::{OPTIONS, Settings};
use crate::source::Source;
use crate::suggest::{hint, nearest};
use crate::validate::{Invalid, validate};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a configuration cannot be used. The message names file, key, value and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: cannot read the configuration", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{}:{line}: not TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// A key or table that does not exist.
    #[error("{}: unknown key {key}{}", path.display(), hint(suggestion.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The nearest key there is.
        suggestion: Option<String>,
    },
    /// A value that the key does not take.
    #[error("{}: {key} is {value}: expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What it takes.
        expected: String,
    },
    /// Values that do not go together or cannot have their effect.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The resolved configuration of a host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    settings: Settings,
    origins: BTreeMap<String, PathBuf>,
}

impl Config {
    /// Reads `source`; what no file sets has its default.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn load(source: &Source) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for path in files(source)? {
            let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
            if let Some(error) = config.apply(&path, &text).into_iter().next() {
                return Err(error);
            }
        }
        validate(&config.settings)?;
        Ok(config)
    }

    /// Reads one text as if it were the file `path`, on top of the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the table.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<ConfigError>> {
        let mut config = Self::default();
        let mut errors = config.apply(path, text);
        if errors.is_empty()
            && let Err(invalid) = validate(&config.settings)
        {
            errors.push(invalid.into());
        }
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(errors)
        }
    }

    /// Reads one file and says everything that is wrong with it.
    ///
    /// # Errors
    /// At least one [`ConfigError`].
    pub fn check(path: &Path) -> Result<Self, Vec<ConfigError>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(source) => Err(vec![ConfigError::Read {
                path: path.to_owned(),
                source,
            }]),
        }
    }

    /// The options' values.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The file that set an option (`section.key`); `None` for a default.
    #[must_use]
    pub fn origin(&self, name: &str) -> Option<&Path> {
        self.origins.get(name).map(PathBuf::as_path)
    }

    fn apply(&mut self, path: &Path, text: &str) -> Vec<ConfigError> {
        let table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(error) => return vec![syntax(path, text, &error)],
        };
        let mut errors = Vec::new();
        for (name, value) in &table {
            let section = Section::ALL
                .into_iter()
                .find(|section| section.in_toml() && section.name() == name);
            match (section, value) {
                (Some(section), toml::Value::Table(keys)) => {
                    for (key, value) in keys {
                        if let Err(error) = self.set(path, section, key, value) {
                            errors.push(error);
                        }
                    }
                }
                (Some(_), other) => errors.push(ConfigError::Value {
                    path: path.to_owned(),
                    key: name.clone(),
                    value: line(&other.to_string()),
                    expected: format!("a table: [{name}]"),
                }),
                (None, _) => errors.push(unknown(path, name.clone(), name)),
            }
        }
        errors
    }

    fn set(
        &mut self,
        path: &Path,
        section: Section,
        key: &str,
        value: &toml::Value,
    ) -> Result<(), ConfigError> {
        let name = format!("{}.{key}", section.name());
        let Some(opt) = OPTIONS.iter().find(|o| o.section == section && o.key == key) else {
            return Err(unknown(path, name, key));
        };
        (opt.set_toml)(&mut self.settings, value, &opt.columns.rule).map_err(|refused| {
            ConfigError::Value {
                path: path.to_owned(),
                key: name.clone(),
                value: line(&refused.value),
                expected: refused.expected,
            }
        })?;
        self.origins.insert(name, path.to_owned());
        Ok(())
    }
}

/// An unknown key; the suggestion is the nearest full name, also when only the table is wrong or missing.
fn unknown(path: &Path, name: String, key: &str) -> ConfigError {
    let names: Vec<(String, &str)> = OPTIONS
        .iter()
        .filter(|o| o.section.in_toml())
        .map(|o| (o.name(), o.key))
        .collect();
    let sections = Section::ALL
        .into_iter()
        .filter(|s| s.in_toml())
        .map(Section::name);
    let suggestion = names
        .iter()
        .find(|(_, k)| *k == key)
        .map(|(full, _)| full.as_str())
        .or_else(|| {
            let nearest_key = nearest(key, names.iter().map(|(_, k)| *k).chain(sections))?;
            let same_section = |full: &str| full.split('.').next() == name.split('.').next();
            names
                .iter()
                .filter(|(_, k)| *k == nearest_key)
                .map(|(full, _)| full.as_str())
                .max_by_key(|full| same_section(full))
                .or(Some(nearest_key))
        })
        .map(str::to_owned);
    ConfigError::UnknownKey {
        path: path.to_owned(),
        key: line(&name),
        suggestion,
    }
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(start).filter(|b| *b == b'\n').count();
    ConfigError::Syntax {
        path: path.to_owned(),
        line,
        message: error.message().replace('\n', " "),
    }
}

fn files(source: &Source) -> Result<Vec<PathBuf>, ConfigError> {
    let directory = match source {
        Source::File(path) => return Ok(vec![path.clone()]),
        Source::Directory(path) => path,
    };
    let mut files = Vec::new();
    let main = directory.join("config.toml");
    // Anything but "not there" must be seen by the reader: a configuration that cannot be read is no default.
    match std::fs::symlink_metadata(&main) {
        Ok(_) => files.push(main),
        Err(error) if absent(&error) => {}
        Err(source) => return Err(ConfigError::Read { path: main, source }),
    }
    let drop_ins = directory.join("config.d");
    match std::fs::read_dir(&drop_ins) {
        Ok(entries) => {
            let mut paths = entries
                .map(|entry| entry.map(|e| e.path()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| ConfigError::Read {
                    path: drop_ins,
                    source,
                })?;
            paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
            paths.sort();
            files.extend(paths);
        }
        Err(error) if absent(&error) => {}
        Err(source) => {
            return Err(ConfigError::Read {
                path: drop_ins,
                source,
            });
        }
    }
    Ok(files)
}

fn absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}
