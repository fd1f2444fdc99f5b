//! Counting the files below a path, with a limit (contract M-10).
//!
//! Owns: the walk. Never: follows a link below the path. Called when deciding on watchable mounts (C-32).

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no count.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// More than the limit; the walk ended there.
    #[error("too many files below {}: expected at most {limit}", path.display())]
    TooMany {
        /// Where the walk began.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// Something could not be looked at.
    #[error("counting files: {}", path.display())]
    Stat {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Files below `path`, recursively, directories not counted; a single file counts 1, a link below counts 1.
///
/// # Errors
/// [`CountError::TooMany`] as soon as there are more than `limit`; [`CountError::Stat`] for what is missing or
/// cannot be read, at any depth.
pub fn count_files(path: &Path, limit: usize) -> Result<usize, CountError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CountError::Stat { path, source }
    };
    let too_many = || CountError::TooMany {
        path: path.to_owned(),
        limit,
    };
    let top = std::fs::metadata(path).map_err(failed(path))?;
    if !top.is_dir() {
        return if limit == 0 { Err(too_many()) } else { Ok(1) };
    }
    let mut count = 0;
    // A list in place of recursion: the depth is the user's choice, the stack is ours.
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).map_err(failed(&directory))? {
            let entry = entry.map_err(failed(&directory))?;
            if entry.file_type().map_err(failed(&entry.path()))?.is_dir() {
                directories.push(entry.path());
                continue;
            }
            count += 1;
            if count > limit {
                return Err(too_many());
            }
        }
    }
    Ok(count)
}
