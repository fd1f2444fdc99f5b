//! Digests of files that seldom change, remembered by what stat(2) says of them.
//!
//! Owns: the file they are kept in. Never: trusts an entry whose file was touched since, or so lately that a
//! change may not show. Called by `identity`: a start only looks them up, whoever makes a template learns them.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Time stamps move in ticks: a file changed within this of being digested may look unchanged afterwards.
const TICK: Duration = Duration::from_secs(1);

/// What stat(2) says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    inode: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of an open file.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether a further change would show in a new stamp: it is long ago, or, by a clock that was set back, to come.
    fn is_settled(&self) -> bool {
        let changed = u64::try_from(self.changed.0).map_or(SystemTime::UNIX_EPOCH, |seconds| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        });
        let apart = changed.elapsed().unwrap_or_else(|ahead| ahead.duration());
        apart > 2 * TICK
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    sha256: String,
}

/// What is known of files by their path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Digests(BTreeMap<PathBuf, Known>);

impl Digests {
    /// Reads what is remembered; nothing when there is no file, or none that can be read.
    pub(super) fn load(path: &Path) -> Self {
        std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Replaces what is remembered.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension(format!("{}.new", std::process::id()));
        std::fs::write(&unfinished, serde_json::to_vec(self)?)?;
        std::fs::rename(&unfinished, path)
    }

    /// The digest of a file that has not changed since it was learnt.
    pub(super) fn known(&self, path: &Path) -> Option<String> {
        let known = self.0.get(path)?;
        let stamp = Stamp::of(&File::open(path).ok()?).ok()?;
        (stamp == known.stamp).then(|| known.sha256.clone())
    }

    /// The digest of a file, from memory or by reading it.
    pub(super) fn learn(&mut self, path: &Path) -> io::Result<String> {
        if let Some(known) = self.known(path) {
            return Ok(known);
        }
        let mut file = File::open(path)?;
        let stamp = Stamp::of(&file)?;
        let sha256 = digest(&mut file)?;
        if stamp.is_settled() && Stamp::of(&file)? == stamp {
            let known = Known {
                stamp,
                sha256: sha256.clone(),
            };
            self.0.insert(path.to_owned(), known);
        }
        Ok(sha256)
    }
}

/// SHA-256 of the rest of a file, in lower-case hexadecimal.
pub(super) fn digest(file: &mut File) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(file, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a file look as if it had not been changed lately.
    fn old_file(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_file_that_was_touched_is_digested_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        old_file(&path, "one");
        let mut digests = Digests::default();
        let one = digests.learn(&path).unwrap();
        // So fresh that its next change might not show.
        assert_eq!(digests.known(&path), None);
        // As if it had been learnt long after its last change.
        let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
        let sha256 = one.clone();
        digests.0.insert(path.clone(), Known { stamp, sha256 });
        assert_eq!(digests.known(&path), Some(one.clone()));
        let kept = dir.path().join("digests.json");
        digests.save(&kept).unwrap();
        assert_eq!(Digests::load(&kept).known(&path), Some(one.clone()));
        old_file(&path, "other");
        assert_eq!(digests.known(&path), None);
        assert_ne!(digests.learn(&path).unwrap(), one);
    }

    #[test]
    fn a_stamp_is_settled_when_it_cannot_come_again() {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let settled = |seconds: u64| {
            let stamp: Stamp = serde_json::from_value(serde_json::json!({
                "inode": 1, "bytes": 1, "modified": [1, 1], "changed": [seconds, 0]
            }))
            .unwrap();
            stamp.is_settled()
        };
        assert!(!settled(now), "the next change may have the same stamp");
        assert!(settled(now - 60));
        assert!(settled(now + 3600), "the clock was set back");
    }

    #[test]
    fn damaged_memory_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("digests.json");
        std::fs::write(&path, "{").unwrap();
        assert!(Digests::load(&path).0.is_empty());
    }
}
