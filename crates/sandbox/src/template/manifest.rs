//! The record of a template, and checking its files against it.
//!
//! Owns: the manifest's form (add-only) and what makes a file the one that was saved. Never: removes anything.
//! Called by `store`.

use super::digests::{Stamp, digest};
use super::error::TemplateError;
use super::identity::{Asset, TemplateKey};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file as it was when the template was complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Where it is.
    pub path: PathBuf,
    /// What stat(2) said of it: any write, truncation or replacement since shows.
    stamp: Stamp,
    /// SHA-256, for a file that is small enough to be read at each start.
    #[serde(default)]
    sha256: Option<String>,
}

impl Sealed {
    /// Of a file that is complete. `digested` has its content read at each start.
    pub(super) fn of(path: &Path, at: &Path, digested: bool) -> Result<Self, TemplateError> {
        let io = |step| TemplateError::io(step, path);
        let mut file = File::open(path).map_err(io("opening"))?;
        let stamp = Stamp::of(&file).map_err(io("looking at"))?;
        let sha256 = match digested {
            true => Some(digest(&mut file).map_err(io("reading"))?),
            false => None,
        };
        Ok(Self {
            path: at.to_owned(),
            stamp,
            sha256,
        })
    }

    /// Opens it, if it is what it was.
    ///
    /// # Errors
    /// [`TemplateError::Damaged`].
    pub(super) fn open(&self) -> Result<File, TemplateError> {
        let damaged = |what| TemplateError::Damaged {
            path: self.path.clone(),
            what,
        };
        let io = |step| TemplateError::io(step, &self.path);
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(damaged("it is gone")),
            other => other.map_err(io("opening"))?,
        };
        let stamp = Stamp::of(&file).map_err(io("looking at"))?;
        if stamp.bytes != self.stamp.bytes {
            return Err(damaged("its length"));
        }
        if stamp != self.stamp {
            return Err(damaged("it was written to, or replaced"));
        }
        if let Some(sha256) = &self.sha256 {
            if digest(&mut file).map_err(io("reading"))? != *sha256 {
                return Err(damaged("its content"));
            }
            file.rewind().map_err(io("rewinding"))?;
        }
        Ok(file)
    }

    /// Bytes it takes: its length less its holes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.blocks() * 512)
    }
}

/// The record of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub form: u32,
    /// Its key.
    pub key: TemplateKey,
    /// Version of the program that made it.
    pub bulkhead: String,
    /// When: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// `uname -r` in it.
    pub kernel_release: String,
    /// Made by its agent at boot, in its memory only: a start from it shows the same.
    pub boot_nonce: String,
    /// vCPUs it booted with.
    pub vcpus: u32,
    /// Memory in MiB it booted with.
    pub memory_mib: u32,
    /// Files it depends on.
    pub assets: Vec<Asset>,
    /// The state of its devices.
    pub state: Sealed,
    /// Its memory.
    pub memory: Sealed,
}

impl Manifest {
    /// Reads the one at `path`; `None` when there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, TemplateError> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(TemplateError::io("reading", path))?,
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| TemplateError::Manifest {
                path: path.to_owned(),
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    fn why(sealed: &Sealed) -> &'static str {
        match sealed.open() {
            Err(TemplateError::Damaged { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn damage_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let sealed = || {
            std::fs::write(&path, [1; 10_000]).unwrap();
            Sealed::of(&path, &path, false).unwrap()
        };
        let write = || OpenOptions::new().write(true).open(&path).unwrap();
        sealed().open().unwrap();
        let it = sealed();
        write().set_len(9_999).unwrap();
        assert_eq!(why(&it), "its length");
        let mut it = sealed();
        // As the clock has ticked on between saving and damage.
        it.stamp = serde_json::from_value(serde_json::json!({
            "inode": serde_json::to_value(it.stamp).unwrap()["inode"],
            "bytes": 10_000, "modified": [1, 1], "changed": [1, 1]
        }))
        .unwrap();
        write().write_all_at(&[2], 5_000).unwrap();
        assert_eq!(why(&it), "it was written to, or replaced");
        let it = sealed();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(why(&it), "it is gone");
    }

    #[test]
    fn a_digest_finds_what_stat_does_not_tell() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, "one").unwrap();
        let mut it = Sealed::of(&path, &path, true).unwrap();
        std::fs::write(&path, "two").unwrap();
        it.stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
        assert_eq!(why(&it), "its content");
    }
}
