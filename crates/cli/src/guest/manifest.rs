//! What is installed as the guest: the record beside `vmlinux` and `initrd`.
//!
//! Owns: the manifest's form (add-only) and checking files against it. Never: building. Called by the guest
//! verbs and `doctor`.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Where a guest is installed unless told otherwise.
pub(crate) const DEFAULT_DIR: &str = "/var/lib/bulkhead/guest";

/// File name of the manifest.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Version of the manifest written by this program.
const VERSION: u32 = 1;

/// Size and digest of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asset {
    /// SHA-256, 64 lower-case hexadecimal digits.
    pub(crate) sha256: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
}

impl Asset {
    /// The asset these bytes are.
    #[must_use]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: hex(&Sha256::digest(bytes)),
            bytes: bytes.len() as u64,
        }
    }

    /// The asset a file is.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let bytes = io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
        Ok(Self {
            sha256: hex(&hash.finalize()),
            bytes,
        })
    }
}

/// The record of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of this form.
    pub(crate) version: u32,
    /// What `uname -r` prints in the guest.
    pub(crate) release: String,
    /// Where the kernel came from, for people.
    pub(crate) source: String,
    /// The uncompressed kernel.
    pub(crate) kernel: Asset,
    /// The initial RAM disk.
    pub(crate) initrd: Asset,
    /// The agent in it.
    pub(crate) agent: Asset,
    /// Modules in it.
    pub(crate) modules: Vec<String>,
    /// Wanted modules that are part of the kernel.
    #[serde(default)]
    pub(crate) built_in: Vec<String>,
    /// Wanted modules that this kernel does not have.
    #[serde(default)]
    pub(crate) absent: Vec<String>,
    /// What kernel and modules were made from: an equal one needs no new download.
    #[serde(default)]
    pub(crate) kernel_key: String,
}

/// Why there is no usable guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// None installed.
    #[error("no guest is installed in {dir} (make one with: bulkhead guest build)")]
    Missing {
        /// Where it should be.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest is none.
    #[error("{path}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A file is not the one that was installed.
    #[error("{path} is not the file that was installed: sha256 {found}, expected {expected}")]
    Digest {
        /// Which.
        path: PathBuf,
        /// Its digest.
        found: String,
        /// The manifest's.
        expected: String,
    },
    /// A file has another size than the one that was installed.
    #[error("{path} is not the file that was installed: {found} bytes, expected {expected}")]
    Size {
        /// Which.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The manifest's.
        expected: u64,
    },
}

impl Manifest {
    /// A manifest of the current version with the given contents and no module lists.
    #[must_use]
    pub(crate) fn new(release: String, source: String, kernel: Asset, initrd: Asset, agent: Asset) -> Self {
        Self {
            version: VERSION,
            release,
            source,
            kernel,
            initrd,
            agent,
            modules: Vec::new(),
            built_in: Vec::new(),
            absent: Vec::new(),
            kernel_key: String::new(),
        }
    }

    /// Reads the manifest of the guest in `dir`.
    ///
    /// # Errors
    /// `Missing` when there is none.
    pub(crate) fn load(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing { dir: dir.to_owned() });
            }
            Err(source) => return Err(ManifestError::Io { path, source }),
        };
        serde_json::from_slice(&bytes).map_err(|source| ManifestError::Malformed { path, source })
    }

    /// Compares sizes only: microseconds.
    ///
    /// # Errors
    /// The first file that is missing or differs.
    pub(crate) fn check_sizes(&self, dir: &Path) -> Result<(), ManifestError> {
        for (name, asset) in self.files() {
            let path = dir.join(name);
            match std::fs::metadata(&path) {
                Ok(meta) if meta.len() == asset.bytes => {}
                Ok(meta) => {
                    return Err(ManifestError::Size {
                        path,
                        found: meta.len(),
                        expected: asset.bytes,
                    });
                }
                Err(source) => return Err(ManifestError::Io { path, source }),
            }
        }
        Ok(())
    }

    /// Reads and digests both files.
    ///
    /// # Errors
    /// The first file that is missing or differs.
    pub(crate) fn verify(&self, dir: &Path) -> Result<(), ManifestError> {
        self.check_sizes(dir)?;
        for (name, asset) in self.files() {
            let path = dir.join(name);
            let found = Asset::read(&path).map_err(|source| ManifestError::Io {
                path: path.clone(),
                source,
            })?;
            if found != *asset {
                return Err(ManifestError::Digest {
                    path,
                    found: found.sha256,
                    expected: asset.sha256.clone(),
                });
            }
        }
        Ok(())
    }

    fn files(&self) -> [(&'static str, &Asset); 2] {
        [("vmlinux", &self.kernel), ("initrd", &self.initrd)]
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinux"), b"kernel").unwrap();
        std::fs::write(dir.path().join("initrd"), b"initrd").unwrap();
        let manifest = Manifest::new(
            "1".into(),
            "test".into(),
            Asset::of(b"kernel"),
            Asset::of(b"initrd"),
            Asset::of(b""),
        );
        manifest.verify(dir.path()).unwrap();
        std::fs::write(dir.path().join("initrd"), b"inItrd").unwrap();
        manifest.check_sizes(dir.path()).unwrap();
        assert!(matches!(
            manifest.verify(dir.path()),
            Err(ManifestError::Digest { .. })
        ));
        std::fs::write(dir.path().join("initrd"), b"longer than before").unwrap();
        assert!(matches!(
            manifest.check_sizes(dir.path()),
            Err(ManifestError::Size { .. })
        ));
    }

    #[test]
    fn no_guest_says_how_to_get_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = Manifest::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("bulkhead guest build"), "{error}");
    }

    /// A manifest of version 1 stays readable.
    #[test]
    fn golden_version_1() {
        let text = r#"{"version":1,"release":"6.12.1","source":"x","kernel":{"sha256":"00","bytes":1},
            "initrd":{"sha256":"01","bytes":2},"agent":{"sha256":"02","bytes":3},"modules":["overlay"]}"#;
        let manifest: Manifest = serde_json::from_str(text).unwrap();
        assert_eq!(manifest.release, "6.12.1");
        assert_eq!(manifest.modules, ["overlay"]);
    }
}
