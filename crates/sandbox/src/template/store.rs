//! Where templates lie on the host, and which of them are good.
//!
//! ```text
//! <dir>/digests.json                  digests of kernels, initrds, VMMs
//! <dir>/<key>/manifest.json state     one template; appears by a rename, complete
//! <dir>/<key>/used                    touched by each start from it
//! <dir>/<key>.lock                    held while it is made
//! <dir>/<key>.failed                  why the last try to make it failed
//! <dir>/.<key>.new/                   being made
//! <memory>/<key>.<store><nonce>       memory of a template; one that no manifest names is of no use
//! <memory>/<store>.owner              link to the directory whose templates' memories are named so
//! ```
//!
//! Owns: names, locks, the check before use, removal. Never: makes a template (see `make`). Called by the real
//! host, `make`, gc and the template verbs.

use super::digests::Digests;
use super::error::TemplateError;
use super::identity::{FORM, Identity, TemplateKey};
use super::manifest::Manifest;
use super::order::shape;
use super::pool::{Pool, Record};
use crate::layout::SOCKET_BASE;
use bulkhead_model::SandboxPlan;
use bulkhead_model::plan::FactoryPlan;
use bulkhead_model::vm::{Accelerator, SharedFs};
use bulkhead_vmm::{MemoryReuse, Vmm};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A template nobody has started from for this long goes at the next gc.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// After a try to make one failed, none is made for this long.
const REST: Duration = Duration::from_secs(600);

/// A file system with less free than this is full: the state alone takes more.
const ROOM: u64 = 256 << 10;

/// Nonce of the file that shows whether there can be holes.
const PROBE: &str = "holes";

/// Extension of the link from a store's memories to the store.
const OWNER: &str = "owner";

/// A template opened for one start.
#[derive(Debug)]
pub struct Template {
    /// Its key.
    pub key: TemplateKey,
    /// State of its devices.
    pub state: OwnedFd,
    /// Its memory.
    pub memory: OwnedFd,
}

/// What a start finds.
#[derive(Debug)]
pub enum Found {
    /// One that fits.
    Ready(Template),
    /// None that can be used.
    Absent {
        /// Why, for readers.
        why: String,
        /// Whether one is to be made for those that come.
        order: bool,
    },
}

/// How a template is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Good.
    Ready,
    /// Somebody is making it.
    BeingMade,
    /// The last try to make it failed, for this reason.
    Failed(String),
    /// It cannot be used, for this reason.
    Damaged(String),
    /// Nothing but its lock.
    Gone,
}

/// One template, for readers.
#[derive(Debug, serde::Serialize)]
pub struct Kept {
    /// Its key.
    pub key: TemplateKey,
    /// How it is.
    pub condition: Condition,
    /// Bytes on disk or in memory.
    pub used_bytes: u64,
    /// VMs that wait for a sandbox.
    pub waiting: Vec<Record>,
    /// Its record.
    pub manifest: Option<Manifest>,
}

/// The templates of one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateStore {
    dir: PathBuf,
    memory: PathBuf,
    pools: PathBuf,
    /// VMs that are to wait for a template of this store.
    pool: u32,
}

impl TemplateStore {
    /// The store of these settings.
    #[must_use]
    pub fn of(factory: &FactoryPlan) -> Self {
        Self {
            dir: factory.template_path.clone(),
            memory: factory.template_memory.clone(),
            pools: factory.pool_path.clone(),
            pool: factory.pool,
        }
    }

    /// Looks for the template of a machine: a few small reads, never a digest of a large file.
    #[must_use]
    pub fn find(&self, identity: &Identity) -> Found {
        let absent = |why: &str| Found::Absent {
            why: why.to_owned(),
            order: true,
        };
        let Some(key) = identity.known(&Digests::load(&self.digests())) else {
            return absent("no template was made of these files");
        };
        match self.open(&key) {
            Ok(Some((_, template))) => {
                self.touch(&key);
                Found::Ready(template)
            }
            Ok(None) if age(&self.failure(&key)).is_some_and(|age| age < REST) => Found::Absent {
                why: "making a template failed a short while ago: see `bulkhead template list`".into(),
                order: false,
            },
            Ok(None) => absent("there is no template yet"),
            Err(error) => {
                let why = bulkhead_model::failure::chain(&error);
                tracing::warn!(%key, error = why, "throwing a template away");
                self.destroy(&key);
                absent(&why)
            }
        }
    }

    /// Opens a template after checking it; `None` when there is none.
    pub(super) fn open(&self, key: &TemplateKey) -> Result<Option<(Manifest, Template)>, TemplateError> {
        let path = self.manifest(key);
        let Some(manifest) = Manifest::read(&path)? else {
            return Ok(None);
        };
        if manifest.form != FORM || manifest.key != *key {
            return Err(TemplateError::Damaged {
                path,
                what: "it is another's, or of another version",
            });
        }
        let template = Template {
            key: key.clone(),
            state: manifest.state.open()?.into(),
            memory: manifest.memory.open()?.into(),
        };
        Ok(Some((manifest, template)))
    }

    /// The VMs that went on from a template and wait.
    #[must_use]
    pub fn pool(&self, key: &TemplateKey) -> Pool {
        Pool::of(&self.pools, &self.dir, key)
    }

    /// Removes a template; starts that have it open go on, and VMs that wait do until [`Pool::drain`]. Missing is fine.
    pub fn destroy(&self, key: &TemplateKey) {
        let memory = Manifest::read(&self.manifest(key)).ok().flatten();
        // The manifest first: without it the rest is of no use to anybody.
        let _ = std::fs::remove_file(self.manifest(key));
        let _ = std::fs::remove_dir_all(self.place(key));
        if let Some(manifest) = memory {
            let _ = std::fs::remove_file(&manifest.memory.path);
        }
        self.leave_memory();
        let _ = std::fs::remove_file(self.failure(key));
    }

    /// Everything there is, good or not, by key.
    #[must_use]
    pub fn list(&self) -> Vec<Kept> {
        let mut all: Vec<Kept> = self.keys().into_iter().map(|key| self.look(key)).collect();
        all.retain(|kept| kept.condition != Condition::Gone);
        all
    }

    fn look(&self, key: TemplateKey) -> Kept {
        let manifest = Manifest::read(&self.manifest(&key)).ok().flatten();
        let condition = match self.open(&key) {
            Ok(Some(_)) => Condition::Ready,
            Ok(None) if matches!(self.lock(&key), Ok(None)) => Condition::BeingMade,
            Ok(None) => match std::fs::read_to_string(self.failure(&key)) {
                Ok(why) => Condition::Failed(why.trim_end().to_owned()),
                Err(_) => Condition::Gone,
            },
            Err(error) => Condition::Damaged(bulkhead_model::failure::chain(&error)),
        };
        let used_bytes = manifest
            .as_ref()
            .map_or(0, |m| m.memory.used_bytes() + m.state.used_bytes());
        let waiting = self.pool(&key).waiting(crate::host::is_alive);
        Kept {
            key,
            condition,
            used_bytes,
            waiting: waiting.into_iter().map(|one| one.record).collect(),
            manifest,
        }
    }

    /// Removes what is of no use: templates that are damaged, whose kernel, initrd or VMM has changed, that another
    /// version made or nobody used for a week; what a maker that was killed left behind. `end` ends the processes
    /// that carry a mark. Returns the keys removed and what could not be.
    pub fn collect(&self, end: impl Fn(&str) -> io::Result<()>) -> (Vec<TemplateKey>, Vec<String>) {
        let (mut removed, mut left) = (Vec::new(), Vec::new());
        let mut digests = Digests::load(&self.digests());
        for key in self.keys() {
            // Held: it is being made.
            let Ok(Some(_lock)) = self.lock(&key) else {
                continue;
            };
            if let Err(error) = end(&self.mark(&key)) {
                left.push(format!("processes of template {key}: {error}"));
                continue;
            }
            self.sweep(&key);
            if self.is_of_use(&key, &mut digests) {
                continue;
            }
            self.destroy(&key);
            let _ = std::fs::remove_file(self.lock_path(&key));
            removed.push(key);
        }
        let _ = digests.save(&self.digests());
        self.forget_memories();
        for pool in Pool::all(&self.pools) {
            let (templates, key) = pool.template();
            let ours = templates == self.dir;
            let wanted = self.pool > 0 && ours && self.place(key).exists();
            // Those of another configuration are its business, while its templates are there.
            if wanted || (!ours && templates.join(key.as_str()).exists()) {
                continue;
            }
            if let Err(error) = pool.drain(&end) {
                left.push(format!("waiting VMs of template {key}: {error}"));
            }
        }
        (removed, left)
    }

    fn is_of_use(&self, key: &TemplateKey, digests: &mut Digests) -> bool {
        let Ok(Some((manifest, _))) = self.open(key) else {
            return false;
        };
        let used = self.place(key).join("used");
        // Of another time than the clock shows: as good as now.
        let unused = !used.exists() || age(&used).is_some_and(|age| age > UNUSED);
        let current = manifest
            .assets
            .iter()
            .all(|asset| digests.learn(&asset.path).is_ok_and(|now| now == asset.sha256));
        current && !unused && manifest.bulkhead == env!("CARGO_PKG_VERSION")
    }

    /// Takes the right to make a template; `None` when somebody has it.
    pub(super) fn lock(&self, key: &TemplateKey) -> Result<Option<File>, TemplateError> {
        lock_file(self.lock_path(key))
    }

    /// Removes what an earlier maker of this template left. The caller holds the lock.
    pub(super) fn sweep(&self, key: &TemplateKey) {
        let _ = std::fs::remove_dir_all(self.unfinished(key));
        let _ = std::fs::remove_dir_all(self.sockets(key));
        let named = Manifest::read(&self.manifest(key)).ok().flatten();
        for path in self.memories_of(key) {
            if named.as_ref().is_none_or(|manifest| manifest.memory.path != path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Removes memories of templates that do not exist any more: of this store, and of those that are gone altogether.
    fn forget_memories(&self) {
        let keys = self.keys();
        for path in self.memories(&self.word()) {
            if owner(&path).is_some_and(|key| !keys.contains(&key)) {
                let _ = std::fs::remove_file(path);
            }
        }
        self.leave_memory();
        for link in files(&self.memory) {
            let Some(word) =
                store_of(&link).filter(|_| std::fs::read_link(&link).is_ok_and(|dir| !dir.exists()))
            else {
                continue;
            };
            for path in self.memories(word).iter().chain([&link]) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Takes the link away when nothing is left that it tells of.
    fn leave_memory(&self) {
        if self.memories(&self.word()).is_empty() {
            let _ = std::fs::remove_file(self.link());
        }
    }

    fn memories_of(&self, key: &TemplateKey) -> Vec<PathBuf> {
        let mut all = self.memories(&self.word());
        all.retain(|path| owner(path).as_ref() == Some(key));
        all
    }

    /// What is named as a memory of this store's is: several may have one directory for theirs, and that may be the one
    /// of the templates, where locks lie too.
    fn memories(&self, store: &str) -> Vec<PathBuf> {
        let is_nonce = |nonce: &str| {
            nonce == PROBE || (nonce.len() == 16 && nonce.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        let mut all = files(&self.memory);
        all.retain(|path| {
            let extension = path.extension().and_then(|text| text.to_str());
            extension
                .and_then(|text| text.strip_prefix(store))
                .is_some_and(is_nonce)
        });
        all
    }

    /// Names the store in file names.
    fn word(&self) -> String {
        let hash = Sha256::digest(self.dir.as_os_str().as_encoded_bytes());
        super::digests::hex(&hash[..4])
    }

    fn link(&self) -> PathBuf {
        self.memory.join(format!("{}.{OWNER}", self.word()))
    }

    /// Every key anything is named after.
    fn keys(&self) -> BTreeSet<TemplateKey> {
        files(&self.dir).iter().filter_map(|path| owner(path)).collect()
    }

    fn touch(&self, key: &TemplateKey) {
        // Only gc looks at it, and only for days.
        let _ = File::create(self.place(key).join("used"));
    }

    /// Makes both directories, for the owner only.
    pub(super) fn make_dirs(&self) -> Result<(), TemplateError> {
        for dir in [&self.dir, &self.memory] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(TemplateError::io("making", dir))?;
        }
        let link = self.link();
        match std::os::unix::fs::symlink(&self.dir, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(TemplateError::io("making", link)(error))
            }
            _ => Ok(()),
        }
    }

    /// Memory without holes is of no use: it could not be copied at every start.
    pub(super) fn check_holes(&self, key: &TemplateKey) -> Result<(), TemplateError> {
        bulkhead_host::memory::check_holes(&self.memory(key, PROBE)).map_err(|source| {
            TemplateError::NoHoles {
                dir: self.memory.clone(),
                source,
            }
        })
    }

    /// Says so when `error` happened while one of the directories is full.
    pub(super) fn full(&self, error: TemplateError) -> TemplateError {
        let full = |dir: &&PathBuf| bulkhead_host::memory::is_short_of(dir, ROOM).unwrap_or(false);
        match [&self.memory, &self.dir].into_iter().find(full) {
            Some(dir) => TemplateError::Full {
                dir: dir.clone(),
                source: Box::new(error),
            },
            None => error,
        }
    }

    pub(super) fn digests(&self) -> PathBuf {
        self.dir.join("digests.json")
    }

    /// Directory of a complete template.
    pub(super) fn place(&self, key: &TemplateKey) -> PathBuf {
        self.dir.join(key.as_str())
    }

    fn manifest(&self, key: &TemplateKey) -> PathBuf {
        self.place(key).join("manifest.json")
    }

    pub(super) fn unfinished(&self, key: &TemplateKey) -> PathBuf {
        self.dir.join(format!(".{key}.new"))
    }

    fn lock_path(&self, key: &TemplateKey) -> PathBuf {
        self.dir.join(format!("{key}.lock"))
    }

    pub(super) fn failure(&self, key: &TemplateKey) -> PathBuf {
        self.dir.join(format!("{key}.failed"))
    }

    pub(super) fn memory(&self, key: &TemplateKey, nonce: &str) -> PathBuf {
        self.memory.join(format!("{key}.{}{nonce}", self.word()))
    }

    /// Directory of the sockets of the machine that is saved.
    pub(super) fn sockets(&self, key: &TemplateKey) -> PathBuf {
        Path::new(SOCKET_BASE).join(self.mark(key))
    }

    /// `BULKHEAD_SANDBOX=<mark>/<role>` stands in the environment of the processes that make a template.
    #[must_use]
    pub fn mark(&self, key: &TemplateKey) -> String {
        let mut hash = Sha256::new();
        hash.update(self.dir.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(key.as_str());
        format!("t-{}", super::digests::hex(&hash.finalize()[..7]))
    }
}

/// The saved machine a VM of this plan can go on from.
#[must_use]
pub fn find(plan: &SandboxPlan, vmm: &dyn Vmm, accelerator: Accelerator) -> Found {
    let absent = |why: String| Found::Absent { why, order: false };
    if !plan.factory.template {
        return absent("templates are switched off".into());
    }
    match Identity::of(vmm, &shape(&plan.vm), accelerator) {
        Ok(identity) => TemplateStore::of(&plan.factory).find(&identity),
        Err(error) => absent(error.to_string()),
    }
}

/// Locks a file, which is made if it is missing, for as long as it is open; `None` when somebody has it.
pub(super) fn lock_file(path: PathBuf) -> Result<Option<File>, TemplateError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(TemplateError::io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(source)) => Err(TemplateError::io("locking", path)(source)),
    }
}

/// How a VM with this shared file system gets its memory from a template.
#[must_use]
pub(crate) fn reuse(shared_fs: &SharedFs) -> MemoryReuse {
    match shared_fs {
        SharedFs::VirtioFs { .. } => MemoryReuse::Copy,
        SharedFs::Virtio9p { .. } | SharedFs::None => MemoryReuse::CopyOnWrite,
    }
}

/// The key a file is named after.
fn owner(path: &Path) -> Option<TemplateKey> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_prefix('.').unwrap_or(name);
    TemplateKey::parse(name.split('.').next()?)
}

/// The store a link tells of.
fn store_of(link: &Path) -> Option<&str> {
    let name = link.file_name()?.to_str()?;
    name.strip_suffix(OWNER)?.strip_suffix('.')
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Time since a file was last written; none when that is to come, by a clock that was set back.
fn age(path: &Path) -> Option<Duration> {
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    SystemTime::now().duration_since(modified).ok()
}
