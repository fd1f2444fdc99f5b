//! The journal: every host resource is written here before it is acquired (design: rules of the engine, 3).
//!
//! ```text
//!  intend(resource) ─► acquire ─► fill(identity) ─► … ─► undo ─► release
//!        │ crash here: undo of something that may not exist is success
//! ```
//! One JSON object a line, appended and synced; a torn last line is ignored. A process with no memory can
//! undo everything from this file alone.
//!
//! Owns: the file and what is held. Never: undoing (see [`crate::Platform::undo`]).

use bulkhead_model::{ContainerId, HostProcess};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A thing on the host that must not outlive the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "resource", rename_all = "snake_case")]
pub enum Resource {
    /// A directory made by us, with all that is in it. Nothing is mounted below any more when it is undone.
    Directory {
        /// Absolute path.
        path: PathBuf,
    },
    /// Cgroup directories made by us, deepest first per hierarchy.
    Cgroup {
        /// Absolute paths.
        paths: Vec<PathBuf>,
    },
    /// A process started by us.
    Process {
        /// `vmm` or `fsd`.
        role: String,
        /// Absent between intent and start: then it is found by its environment marker.
        process: Option<HostProcess>,
    },
    /// A waiting VM, while it changes hands: the sandbox's if its directory is at `place`.
    Claim {
        /// Its directory in the pool, once it is claimed.
        place: PathBuf,
        /// Stands in the environment of its VMM.
        marker: String,
    },
    /// A mount in the supervisor's mount namespace.
    Mount {
        /// Mount point.
        path: PathBuf,
        /// Device and inode of the mount namespace it is in.
        namespace: (u64, u64),
        /// Whose mount it is; absent for the sandbox's own.
        container: Option<ContainerId>,
    },
    /// A mount of a container's root file system, at a mount point that is its engine's.
    RootMount {
        /// Mount point.
        path: PathBuf,
        /// Device and inode of the mount namespace it is in.
        namespace: (u64, u64),
        /// Whose it is.
        container: ContainerId,
    },
    /// A network interface made by us.
    Link {
        /// Interface name.
        name: String,
        /// Device and inode of its network namespace.
        namespace: (u64, u64),
        /// Path by which that namespace can be entered.
        path: PathBuf,
    },
    /// What arrives on an interface of somebody else's is sent to a link made by us.
    Redirect {
        /// Index of the interface: it may be renamed.
        index: u32,
        /// Its name when the redirection was made.
        interface: String,
        /// Name of our link.
        tap: String,
        /// Device and inode of their network namespace.
        namespace: (u64, u64),
        /// Path by which that namespace can be entered.
        path: PathBuf,
    },
}

impl Resource {
    /// What undoing it is called, by its class.
    #[must_use]
    pub const fn undoing(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "undo: directory",
            Self::Cgroup { .. } => "undo: cgroup",
            Self::Process { .. } => "undo: process",
            Self::Claim { .. } => "undo: claim",
            Self::Mount { .. } => "undo: mount",
            Self::Link { .. } => "undo: link",
            Self::RootMount { .. } => "undo: rootfs",
            Self::Redirect { .. } => "undo: redirection",
        }
    }

    /// Whether it belongs to `container`.
    #[must_use]
    pub(crate) fn belongs_to(&self, container: &ContainerId) -> bool {
        match self {
            Self::Mount {
                container: Some(owner),
                ..
            }
            | Self::RootMount { container: owner, .. } => owner == container,
            _ => false,
        }
    }
}

/// Names one entry of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry(u64);

#[derive(Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Line {
    Hold { n: u64, what: Resource },
    Release { n: u64 },
}

/// The journal of one sandbox.
#[derive(Debug)]
pub struct Journal {
    file: File,
    held: BTreeMap<u64, Resource>,
    next: u64,
}

impl Journal {
    /// Opens or makes the journal at `path` and reads what is held.
    ///
    /// # Errors
    /// I/O errors of the file; a torn or unknown line is skipped, as the write it belongs to was never
    /// followed by an acquisition.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let mut held = BTreeMap::new();
        let mut next = 1;
        for line in BufReader::new(&file).split(b'\n') {
            match serde_json::from_slice(&line?) {
                Ok(Line::Hold { n, what }) => {
                    held.insert(n, what);
                    next = next.max(n + 1);
                }
                Ok(Line::Release { n }) => {
                    held.remove(&n);
                    next = next.max(n + 1);
                }
                Err(_) => {}
            }
        }
        Ok(Self { file, held, next })
    }

    /// Records that `resource` is about to be acquired.
    ///
    /// # Errors
    /// The write's; then nothing may be acquired.
    pub fn intend(&mut self, resource: Resource) -> io::Result<Entry> {
        let n = self.next;
        self.append(&Line::Hold {
            n,
            what: resource.clone(),
        })?;
        self.next += 1;
        self.held.insert(n, resource);
        Ok(Entry(n))
    }

    /// Records that all of `resources` are about to be acquired, in this order, in one write.
    ///
    /// # Errors
    /// The write's; then nothing may be acquired.
    pub(crate) fn intend_all(&mut self, resources: Vec<Resource>) -> io::Result<Vec<Entry>> {
        let first = self.next;
        let numbered = || (first..).zip(&resources);
        self.append_all(numbered().map(|(n, what)| Line::Hold {
            n,
            what: what.clone(),
        }))?;
        let entries = numbered().map(|(n, _)| Entry(n)).collect();
        for what in resources {
            self.held.insert(self.next, what);
            self.next += 1;
        }
        Ok(entries)
    }

    /// Records that all of `entries` are undone, in one write.
    ///
    /// # Errors
    /// The write's; the entries are forgotten in memory all the same.
    pub(crate) fn release_all(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            self.held.remove(&entry.0);
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.append_all(entries.iter().map(|entry| Line::Release { n: entry.0 }))
    }

    /// Completes an entry with what is known only after the acquisition.
    ///
    /// # Errors
    /// The write's; the entry in memory is complete all the same, so that an undo finds it.
    pub fn fill(&mut self, entry: Entry, resource: Resource) -> io::Result<()> {
        self.held.insert(entry.0, resource.clone());
        self.append(&Line::Hold {
            n: entry.0,
            what: resource,
        })
    }

    /// [`Self::fill`] for several, in one write.
    ///
    /// # Errors
    /// The write's; the entries in memory are complete all the same.
    pub(crate) fn fill_all(&mut self, known: Vec<(Entry, Resource)>) -> io::Result<()> {
        if known.is_empty() {
            return Ok(());
        }
        for (entry, resource) in &known {
            self.held.insert(entry.0, resource.clone());
        }
        self.append_all(
            known
                .into_iter()
                .map(|(entry, what)| Line::Hold { n: entry.0, what }),
        )
    }

    /// Records that an entry is undone.
    ///
    /// # Errors
    /// The write's; the entry is forgotten in memory all the same.
    pub fn release(&mut self, entry: Entry) -> io::Result<()> {
        self.held.remove(&entry.0);
        self.append(&Line::Release { n: entry.0 })
    }

    /// What is held, newest first.
    #[must_use]
    pub fn held(&self) -> Vec<(Entry, Resource)> {
        self.held
            .iter()
            .rev()
            .map(|(n, what)| (Entry(*n), what.clone()))
            .collect()
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode(&mut bytes, line)?;
        self.write(&bytes)
    }

    fn append_all(&mut self, lines: impl Iterator<Item = Line>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            encode(&mut bytes, &line)?;
        }
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }
}

fn encode(bytes: &mut Vec<u8>, line: &Line) -> io::Result<()> {
    // A leading newline seals off a line that an earlier write tore.
    bytes.push(b'\n');
    serde_json::to_writer(&mut *bytes, line)?;
    bytes.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(path: &str) -> Resource {
        Resource::Directory { path: path.into() }
    }

    #[test]
    fn what_is_held_survives_and_comes_back_newest_first() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        let a = journal.intend(dir("/a")).unwrap();
        journal.intend(dir("/b")).unwrap();
        journal.intend(dir("/c")).unwrap();
        journal.release(a).unwrap();
        drop(journal);
        let again = Journal::open(&path).unwrap();
        let held: Vec<_> = again.held().into_iter().map(|(_, r)| r).collect();
        assert_eq!(held, vec![dir("/c"), dir("/b")]);
    }

    #[test]
    fn many_are_held_and_released_in_one_write() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.intend(dir("/a")).unwrap();
        let some = journal.intend_all(vec![dir("/b"), dir("/c"), dir("/d")]).unwrap();
        journal.intend(dir("/e")).unwrap();
        journal.release_all(&some[..2]).unwrap();
        drop(journal);
        let again = Journal::open(&path).unwrap();
        let held: Vec<_> = again.held().into_iter().map(|(_, r)| r).collect();
        assert_eq!(held, vec![dir("/e"), dir("/d"), dir("/a")]);
    }

    #[test]
    fn a_torn_line_loses_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.intend(dir("/a")).unwrap();
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"\n{\"op\":\"hold\",\"n\":2,\"wh").unwrap();
        drop(file);
        let mut journal = Journal::open(&path).unwrap();
        journal.intend(dir("/b")).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().held().len(), 2);
    }

    #[test]
    fn fill_replaces_the_intent() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        let entry = journal
            .intend(Resource::Process {
                role: "vmm".into(),
                process: None,
            })
            .unwrap();
        let filled = Resource::Process {
            role: "vmm".into(),
            process: Some(HostProcess {
                pid: 7,
                start_time: 9,
            }),
        };
        journal.fill(entry, filled.clone()).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().held()[0].1, filled);
    }
}
