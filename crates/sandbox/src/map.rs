//! The container → sandbox map on the host: `<root>/containers/<container>/<sandbox>/` (contract K-01).
//!
//! Owns: those directories. Never: what they mean. Called by the command line and the shim.

use bulkhead_model::id::IdError;
use bulkhead_model::{ContainerId, SandboxId};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Why the map could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Not exactly one sandbox below a container.
    #[error("{path} has {count} entries: expected exactly one sandbox")]
    NotOne {
        /// The container's directory.
        path: PathBuf,
        /// What is in it.
        count: usize,
    },
    /// An entry that is no id.
    #[error("{path}")]
    Id {
        /// The container's directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdError,
    },
    /// Host I/O.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The map under one directory.
#[derive(Debug, Clone)]
pub struct ContainerMap {
    dir: PathBuf,
}

impl ContainerMap {
    /// A map kept in `dir` (see [`crate::Layout::containers`]).
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Adds or replaces: `container` is in `sandbox`.
    ///
    /// # Errors
    /// [`MapError::Io`].
    pub fn add(&self, container: &ContainerId, sandbox: &SandboxId) -> Result<(), MapError> {
        self.remove(container)?;
        let path = self.dir.join(container.as_str()).join(sandbox.as_str());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&path)
            .map_err(|source| MapError::Io {
                action: "creating",
                path,
                source,
            })
    }

    /// Removes a container; an unknown one is success.
    ///
    /// # Errors
    /// [`MapError::Io`].
    pub fn remove(&self, container: &ContainerId) -> Result<(), MapError> {
        let path = self.dir.join(container.as_str());
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(MapError::Io {
                action: "removing",
                path,
                source: e,
            }),
            _ => Ok(()),
        }
    }

    /// The sandbox of a container, `None` if the container is unknown.
    ///
    /// # Errors
    /// [`MapError::NotOne`] when the directory does not hold exactly one entry.
    pub fn sandbox_of(&self, container: &ContainerId) -> Result<Option<SandboxId>, MapError> {
        let path = self.dir.join(container.as_str());
        let Some(names) = list(&path)? else {
            return Ok(None);
        };
        match names.as_slice() {
            [one] => SandboxId::new(one.clone())
                .map(Some)
                .map_err(|source| MapError::Id { path, source }),
            many => Err(MapError::NotOne {
                path,
                count: many.len(),
            }),
        }
    }

    /// All containers, sorted.
    ///
    /// # Errors
    /// [`MapError::Io`].
    pub fn containers(&self) -> Result<Vec<ContainerId>, MapError> {
        let mut all: Vec<_> = list(&self.dir)?
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| ContainerId::new(name).ok())
            .collect();
        all.sort();
        Ok(all)
    }
}

fn list(path: &Path) -> Result<Option<Vec<String>>, MapError> {
    let fail = |source| MapError::Io {
        action: "reading",
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
    }
    Ok(Some(names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn ids() -> (ContainerId, SandboxId, SandboxId) {
        (
            ContainerId::new("c").unwrap(),
            SandboxId::new("s").unwrap(),
            SandboxId::new("t").unwrap(),
        )
    }

    /// K-01: add replaces, delete removes, unknown is none, mode 0750.
    #[test]
    fn k01_add_replace_remove() {
        let dir = tempfile::tempdir().unwrap();
        let map = ContainerMap::new(dir.path().join("containers"));
        let (c, s, t) = ids();
        assert_eq!(map.sandbox_of(&c).unwrap(), None);
        map.add(&c, &s).unwrap();
        map.add(&c, &t).unwrap();
        assert_eq!(map.sandbox_of(&c).unwrap(), Some(t));
        let mode = std::fs::metadata(dir.path().join("containers/c/t"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o750);
        assert_eq!(map.containers().unwrap(), vec![c.clone()]);
        map.remove(&c).unwrap();
        map.remove(&c).unwrap();
        assert_eq!(map.sandbox_of(&c).unwrap(), None);
    }

    /// K-01: anything but exactly one entry is an error.
    #[test]
    fn k01_exactly_one_entry() {
        let dir = tempfile::tempdir().unwrap();
        let map = ContainerMap::new(dir.path());
        let (c, s, _) = ids();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        assert!(matches!(
            map.sandbox_of(&c),
            Err(MapError::NotOne { count: 0, .. })
        ));
        map.add(&c, &s).unwrap();
        std::fs::create_dir(dir.path().join("c/t")).unwrap();
        assert!(matches!(
            map.sandbox_of(&c),
            Err(MapError::NotOne { count: 2, .. })
        ));
    }
}
