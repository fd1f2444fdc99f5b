//! Timelines on disk: one in the state directory of a sandbox, and those of the last sandboxes that are gone.
//!
//! ```text
//! <root>/sandboxes/<sandbox>/timeline.json      after every operation
//! <root>/timelines/<sandbox>                    once, at its end; the newest 16 are kept
//! ```
//!
//! Owns: those files. They are for people: nothing is synced, and nothing depends on them. Never: what is in them.
//! Called by the engine, and by the command line for what is gone.

use crate::layout::{Layout, SandboxPaths};
use bulkhead_model::ContainerId;
use bulkhead_model::timeline::{Timeline, VERSION};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most timelines of sandboxes that are gone.
pub const MOST_KEPT: usize = 16;

/// Why a timeline cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TimelineError {
    /// I/O.
    #[error("reading {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what was written.
    #[error("timeline {path}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// From a newer build.
    #[error("timeline {path} has version {version}: expected at most {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// Writes a timeline so that a reader sees all of it or the one before.
///
/// # Errors
/// I/O.
pub fn write(path: &Path, timeline: &Timeline) -> io::Result<()> {
    // Not `with_extension`: the name may be an id, which is as long as a name may be and has dots in it.
    let temporary = path.with_file_name(format!(".new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(timeline)?)?;
    std::fs::rename(&temporary, path)
}

/// Reads what was written; `None` if there is no such file.
///
/// # Errors
/// [`TimelineError`].
pub fn read(path: &Path) -> Result<Option<Timeline>, TimelineError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| TimelineError::Io {
            path: path.to_owned(),
            source,
        })?,
    };
    let format = |source| TimelineError::Format {
        path: path.to_owned(),
        source,
    };
    let Version { version } = serde_json::from_slice(&bytes).map_err(format)?;
    if version > VERSION {
        return Err(TimelineError::Version {
            path: path.to_owned(),
            version,
        });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(format)
}

#[derive(serde::Deserialize)]
struct Version {
    version: u32,
}

/// Keeps the timeline of a sandbox that is gone; the oldest of too many go.
///
/// # Errors
/// I/O.
pub fn keep(paths: &SandboxPaths, timeline: &Timeline) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&paths.timelines)?;
    write(&paths.timelines.join(timeline.sandbox.as_str()), timeline)?;
    let mut kept = kept(&paths.timelines)?;
    kept.sort();
    let surplus = kept.len().saturating_sub(MOST_KEPT);
    for (_, path) in kept.into_iter().take(surplus) {
        // Another sandbox's end may have been quicker.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// What is kept below `dir`, with when it was written.
fn kept(dir: &Path) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let dated = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
    };
    Ok(entries.filter_map(dated).collect())
}

/// The newest timeline of a sandbox that is gone in which `container` was; `None` if none is kept. One that cannot be
/// read is passed over unless it is the one named after the container.
///
/// # Errors
/// [`TimelineError`].
pub fn find(layout: &Layout, container: &ContainerId) -> Result<Option<Timeline>, TimelineError> {
    let dir = layout.timelines();
    if let Some(own) = read(&dir.join(container.as_str()))? {
        return Ok(Some(own));
    }
    let mut kept = kept(&dir).map_err(|source| TimelineError::Io { path: dir, source })?;
    kept.sort();
    let mut newest_first = kept
        .iter()
        .rev()
        .filter_map(|(_, path)| read(path).ok().flatten());
    Ok(newest_first.find(|timeline| timeline.names(container)))
}

/// Removes all timelines of sandboxes that are gone.
///
/// # Errors
/// I/O.
pub fn clear(layout: &Layout) -> io::Result<()> {
    match std::fs::remove_dir_all(layout.timelines()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::SandboxId;
    use bulkhead_model::timeline::Operation;

    fn timeline(sandbox: &str, container: &str) -> Timeline {
        let mut timeline = Timeline::new(SandboxId::new(sandbox).unwrap());
        timeline.operations.push(Operation {
            name: "create".into(),
            container: Some(ContainerId::new(container).unwrap()),
            exec: None,
            begin_ns: 1,
            end_ns: Some(2),
            spans: Vec::new(),
            dropped: 0,
        });
        timeline
    }

    #[test]
    fn the_newest_of_those_that_are_gone_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let container = |text: &str| ContainerId::new(text).unwrap();
        assert_eq!(find(&layout, &container("c")).unwrap(), None);
        let longest = "x".repeat(255);
        let names: Vec<String> = (0..20)
            .map(|number| format!("pod{number}"))
            .chain([longest.clone()])
            .collect();
        for (number, name) in names.iter().enumerate() {
            let paths = layout.sandbox(&SandboxId::new(name.as_str()).unwrap());
            keep(&paths, &timeline(name, &format!("c{number}"))).unwrap();
            // Two files of one moment have no order.
            let file = std::fs::File::options()
                .append(true)
                .open(paths.timelines.join(name))
                .unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64 + 1);
            file.set_modified(at).unwrap();
        }
        let left = std::fs::read_dir(layout.timelines()).unwrap().count();
        assert!(left <= MOST_KEPT, "{left}");
        assert_eq!(find(&layout, &container("c1")).unwrap(), None);
        assert_eq!(
            find(&layout, &container("c19")).unwrap(),
            Some(timeline("pod19", "c19"))
        );
        assert_eq!(
            find(&layout, &container(&longest))
                .unwrap()
                .unwrap()
                .sandbox
                .as_str(),
            longest
        );
        clear(&layout).unwrap();
        clear(&layout).unwrap();
        assert_eq!(find(&layout, &container("c19")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("timeline.json");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(read(&path), Err(TimelineError::Format { .. })));
        std::fs::write(&path, r#"{"version": 99}"#).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("version 99"), "{error}");
        assert!(matches!(read(root.path()), Err(TimelineError::Io { .. })));
    }
}
