//! What had to be measured, kept until the next boot.
//!
//! Owns: the file. Never: keeps what is cheap to ask again (a module may be loaded at any time). A file that
//! is not readable, not ours or of another boot is as good as none.

use super::facts::Speed;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// The measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Of `/dev/kvm`, once it was worth measuring.
    pub(super) speed: Option<Speed>,
    /// Of the time-stamp counter.
    pub(super) tsc_khz: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    boot_id: String,
    measured: Measured,
}

pub(super) fn load(path: &Path, boot_id: &str) -> Option<Measured> {
    let saved: Saved = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (saved.boot_id == boot_id && !boot_id.is_empty()).then_some(saved.measured)
}

pub(super) fn store(path: &Path, boot_id: &str, measured: &Measured) -> io::Result<()> {
    let saved = Saved {
        boot_id: boot_id.into(),
        measured: measured.clone(),
    };
    // Renamed into place, so that a concurrent probe reads a whole file or none. Two that write at once
    // have measured the same host.
    let unfinished = path.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::write(&unfinished, serde_json::to_vec(&saved)?)
        .and_then(|()| std::fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_boots_measurements_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe.json");
        let measured = Measured {
            speed: Some(Speed::Micros(5)),
            tsc_khz: Some(2_300_000),
        };
        assert_eq!(load(&path, "a"), None);
        store(&path, "a", &measured).unwrap();
        assert_eq!(load(&path, "a"), Some(measured));
        assert_eq!(load(&path, "b"), None);
        std::fs::write(&path, "{\"boot_id\": \"a\"").unwrap();
        assert_eq!(load(&path, "a"), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
