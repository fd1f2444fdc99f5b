//! VMs that went on from a template and wait, stopped, for the sandbox that takes them.
//!
//! ```text
//! <pools>/<mark>/owner                    of which template: readable without it
//! <pools>/<mark>/lock                     held while it is filled
//! <pools>/<mark>/.<nonce>/                being made, or being ended
//! <pools>/<mark>/<nonce>/                 waits: record.json and the sockets qmp, control, data, console
//! <pools>/<mark>/<nonce>-<sandbox>/       being taken by a sandbox, whose journal has it
//! ```
//! Every change of hands is one rename, so that of several who want the same VM one gets it, and a VM is taken once.
//! No process owns a waiting VM: it is found by its directory, and by the marker in its environment.
//!
//! Owns: names, the hand-over, the end of those nobody wants. Never: starts a VM (see `fill`). Called by the real host,
//! `boot`, `fill`, gc and the template verbs.

use super::digests::hex;
use super::error::TemplateError;
use super::identity::TemplateKey;
use super::store::lock_file;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, VmPlan};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Names of the sockets of a waiting VM.
pub(super) const SOCKETS: [&str; 4] = ["qmp", "control", "data", "console"];

/// What is known of a waiting VM; add-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its VMM.
    pub process: HostProcess,
    /// The machine.
    pub plan: VmPlan,
    /// How its guest code runs.
    pub accelerator: Accelerator,
    /// Since when it waits: nanoseconds since the Unix epoch.
    pub since_ns: u64,
}

/// A VM that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    place: PathBuf,
    /// Stands in the environment of its VMM.
    marker: String,
    /// What it is.
    pub record: Record,
}

impl Waiting {
    /// Where its directory is while the sandbox with this marker takes it.
    #[must_use]
    pub fn claimed(&self, sandbox: &str) -> PathBuf {
        let mut place = self.place.clone().into_os_string();
        place.push(format!("-{sandbox}"));
        place.into()
    }

    /// `BULKHEAD_SANDBOX=<marker>/vmm` stands in the environment of its VMM.
    #[must_use]
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// Takes it, for the sandbox with this marker; false when somebody else was faster.
    ///
    /// # Errors
    /// rename(2).
    pub fn claim(&self, sandbox: &str) -> io::Result<bool> {
        match std::fs::rename(&self.place, self.claimed(sandbox)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves the sockets of one that was claimed to where the sandbox has its own, and removes what is left.
    ///
    /// # Errors
    /// rename(2), rmdir(2).
    pub(crate) fn hand_over(&self, sandbox: &str, sockets: &Path) -> io::Result<()> {
        let place = self.claimed(sandbox);
        for name in SOCKETS {
            std::fs::rename(place.join(name), sockets.join(name))?;
        }
        std::fs::remove_dir_all(place)
    }
}

/// Whose a pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    templates: PathBuf,
    key: TemplateKey,
}

/// The waiting VMs of one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    dir: PathBuf,
    owner: Owner,
}

impl Pool {
    /// That of a template in the directory `templates`; `pools` is the directory of all.
    #[must_use]
    pub fn of(pools: &Path, templates: &Path, key: &TemplateKey) -> Self {
        let mut hash = Sha256::new();
        hash.update(templates.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(key.as_str());
        Self {
            dir: pools.join(hex(&hash.finalize()[..7])),
            owner: Owner {
                templates: templates.to_owned(),
                key: key.clone(),
            },
        }
    }

    /// Every pool there is below `pools`, of whatever templates.
    pub(super) fn all(pools: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(pools).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let dir = entry.path();
                let owner = serde_json::from_slice(&std::fs::read(dir.join("owner")).ok()?).ok()?;
                Some(Self { dir, owner })
            })
            .collect()
    }

    /// The directory its template is in, and its key.
    pub(super) fn template(&self) -> (&Path, &TemplateKey) {
        (&self.owner.templates, &self.owner.key)
    }

    /// Those that wait, the oldest first; `runs` tells whether a process does.
    pub fn waiting(&self, runs: impl Fn(HostProcess) -> bool) -> Vec<Waiting> {
        let mut all: Vec<Waiting> = self.entries().iter().filter_map(|name| self.read(name)).collect();
        all.retain(|one| runs(one.record.process));
        all.sort_by_key(|one| one.record.since_ns);
        all
    }

    fn read(&self, name: &str) -> Option<Waiting> {
        is_nonce(name).then_some(())?;
        let place = self.dir.join(name);
        let record = serde_json::from_slice(&std::fs::read(place.join("record.json")).ok()?).ok()?;
        Some(Waiting {
            marker: self.marker(name),
            place,
            record,
        })
    }

    /// Makes the directory, for the owner only.
    pub(super) fn make_dir(&self) -> Result<(), TemplateError> {
        let made = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let unfinished = self.dir.join(format!(".owner.{}", std::process::id()));
            std::fs::write(&unfinished, serde_json::to_vec(&self.owner)?)?;
            std::fs::rename(unfinished, self.dir.join("owner"))
        };
        made().map_err(TemplateError::io("making", &self.dir))
    }

    /// The right to fill it; `None` when somebody has it.
    pub(super) fn lock(&self) -> Result<Option<File>, TemplateError> {
        lock_file(self.dir.join("lock"))
    }

    /// Where one is made.
    pub(super) fn unfinished(&self, nonce: &str) -> PathBuf {
        self.dir.join(format!(".{nonce}"))
    }

    /// Lets one that was made wait.
    pub(super) fn publish(&self, nonce: &str, record: &Record) -> Result<(), TemplateError> {
        let unfinished = self.unfinished(nonce);
        let written = || {
            std::fs::write(unfinished.join("record.json"), serde_json::to_vec(record)?)?;
            std::fs::rename(&unfinished, self.dir.join(nonce))
        };
        written().map_err(TemplateError::io("publishing", &unfinished))
    }

    /// Stands in the environment of a VMM.
    pub(super) fn marker(&self, nonce: &str) -> String {
        let mark = self
            .dir
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        format!("p-{mark}-{nonce}")
    }

    /// Ends those that are half made, or dead. The caller holds the lock.
    pub(super) fn sweep(
        &self,
        runs: impl Fn(HostProcess) -> bool,
        end: &dyn Fn(&str) -> io::Result<()>,
    ) -> io::Result<()> {
        for name in self.entries() {
            if let Some(nonce) = name.strip_prefix('.').filter(|nonce| is_nonce(nonce)) {
                self.end(nonce, end)?;
            } else if is_nonce(&name) && !self.read(&name).is_some_and(|one| runs(one.record.process)) {
                self.withdraw(&name, end)?;
            }
        }
        Ok(())
    }

    /// Ends those that wait beyond the `keep` oldest. Returns how many.
    pub(super) fn shrink(&self, keep: usize, end: &dyn Fn(&str) -> io::Result<()>) -> io::Result<usize> {
        let mut ended = 0;
        for one in self.waiting(|_| true).into_iter().skip(keep) {
            let name = one
                .place
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            ended += usize::from(self.withdraw(name, end)?);
        }
        Ok(ended)
    }

    /// Ends all that wait, and what a filler that is gone left; returns how many waited. `end` ends the processes with
    /// a marker.
    ///
    /// # Errors
    /// What could not be ended stays, for the next time.
    pub fn drain(&self, end: &dyn Fn(&str) -> io::Result<()>) -> io::Result<usize> {
        let ended = self.shrink(0, end)?;
        if !self.dir.is_dir() {
            return Ok(ended);
        }
        // Held: whoever fills it finds that its template is gone, or the next drain ends what it makes.
        let Ok(Some(_lock)) = self.lock() else {
            return Ok(ended);
        };
        self.sweep(|_| false, end)?;
        for name in ["owner", "lock"] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        // Something is being taken, or was made just now: it is not empty.
        let _ = std::fs::remove_dir(&self.dir);
        Ok(ended)
    }

    /// Takes one away from those who might want it, and ends it; false when it was taken meanwhile.
    fn withdraw(&self, name: &str, end: &dyn Fn(&str) -> io::Result<()>) -> io::Result<bool> {
        match std::fs::rename(self.dir.join(name), self.unfinished(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        }
        self.end(name, end).map(|()| true)
    }

    fn end(&self, nonce: &str, end: &dyn Fn(&str) -> io::Result<()>) -> io::Result<()> {
        end(&self.marker(nonce))?;
        match std::fs::remove_dir_all(self.unfinished(nonce)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}

fn is_nonce(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit())
}
