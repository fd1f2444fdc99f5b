//! Where configuration comes from.

use std::path::{Path, PathBuf};

/// The files to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `config.toml` in a directory, then the `*.toml` files of `config.d` below it in the order of their
    /// names. Nothing of it needs to exist.
    Directory(PathBuf),
    /// Exactly this file, which must exist.
    File(PathBuf),
}

impl Source {
    /// `/etc/bulkhead`.
    #[must_use]
    pub fn standard() -> Self {
        Self::Directory(PathBuf::from("/etc/bulkhead"))
    }

    /// The file named by `--config` when there is one, the standard place otherwise.
    #[must_use]
    pub fn named(file: Option<&Path>) -> Self {
        file.map_or_else(Self::standard, |file| Self::File(file.to_owned()))
    }
}
