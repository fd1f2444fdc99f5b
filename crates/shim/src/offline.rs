//! What can be done about sandboxes whose supervisor is gone, without starting one.
//!
//! ```text
//!  state directory ─ lock held? ─ yes ─► alive, or being started: not ours
//!                               └ no ──► sweep: journal, marked processes, sockets, state, map entries
//! ```
//!
//! Owns: finding them. Never: undoing (the engine's). Called by `bulkhead gc`, `delete` and `inspect`, a create that failed,
//! and containerd's `delete`.

use bulkhead_model::failure::chain;
use bulkhead_model::{Failure, FailureKind, SandboxId};
use bulkhead_sandbox::host::sweep;
use bulkhead_sandbox::{ContainerMap, Layout, SandboxPaths, SavedSandbox};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// A state directory without a lock file is being made; older than this it was abandoned.
const ABANDONED: Duration = Duration::from_secs(60);

/// Between two tries to take a lock that somebody has: one who is starting a supervisor, or a supervisor that ends.
pub(crate) const RETRY: Duration = Duration::from_millis(20);

/// Takes the lock of a sandbox; it is held until the file is closed by every process that has it. (Not by
/// `nix::fcntl::Flock`, which unlocks when dropped: a supervisor that inherited the file would lose the lock with it.)
///
/// # Errors
/// `WouldBlock` when a supervisor holds it.
pub fn lock(paths: &SandboxPaths) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.lock())?;
    file.try_lock()?;
    Ok(file)
}

/// [`lock`], tried until `within` has passed: a supervisor that was killed may have closed its sockets already and hold
/// its lock a moment longer, while nothing else tells of it any more.
///
/// # Errors
/// As [`lock`].
pub fn lock_within(paths: &SandboxPaths, within: Duration) -> io::Result<File> {
    let end = Instant::now() + within;
    loop {
        match lock(paths) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}

/// What gc did about one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Collected {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What could not be removed; empty when all of it is gone.
    pub left: Vec<String>,
}

/// Removes everything of sandboxes under `layout` whose supervisor is gone.
///
/// # Errors
/// When the state directory cannot be listed.
pub fn collect(layout: &Layout) -> Result<Vec<Collected>, Failure> {
    let mut collected = Vec::new();
    for id in sandboxes(layout)? {
        let paths = layout.sandbox(&id);
        if !paths.lock().exists() && !abandoned(&paths) {
            continue;
        }
        collected.extend(remove(layout, id, Duration::ZERO));
    }
    forget_strays(layout);
    Ok(collected)
}

/// Removes everything of one sandbox; `None` when a supervisor still has it after `within`, or there is none of the name.
#[must_use]
pub fn remove(layout: &Layout, id: SandboxId, within: Duration) -> Option<Collected> {
    let paths = layout.sandbox(&id);
    let _lock = lock_within(&paths, within).ok()?;
    let left = sweep(&paths);
    forget(layout, &id);
    Some(Collected { sandbox: id, left })
}

/// All sandboxes under `layout`, dead or alive, sorted.
///
/// # Errors
/// When the state directory cannot be listed; a missing one is empty.
pub fn sandboxes(layout: &Layout) -> Result<Vec<SandboxId>, Failure> {
    let dir = layout.sandboxes();
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| {
            Failure::new(
                FailureKind::Internal,
                format!("reading {}: {error}", dir.display()),
            )
        })?,
    };
    let mut ids: Vec<SandboxId> = entries
        .filter_map(|entry| SandboxId::new(entry.ok()?.file_name().to_string_lossy().into_owned()).ok())
        .collect();
    ids.sort();
    Ok(ids)
}

/// What the files of a sandbox say, for readers, when its supervisor cannot be asked.
#[must_use]
pub fn tree(layout: &Layout, id: &SandboxId) -> serde_json::Value {
    let paths = layout.sandbox(id);
    let saved = SavedSandbox::read(&paths.state());
    let plan = std::fs::read(paths.plan())
        .ok()
        .and_then(|bytes| serde_json::from_slice::<bulkhead_model::SandboxPlan>(&bytes).ok());
    match (saved, plan) {
        (Ok(saved), Some(plan)) => {
            bulkhead_sandbox::inspect::tree(&saved.dead_snapshot(), &plan, &paths, false)
        }
        (saved, plan) => serde_json::json!({
            "id": id,
            "supervisor": "gone",
            "saved_state_error": saved.err().map(|error| chain(&error)),
            "plan": plan,
            "paths": { "state": paths.dir, "sockets": paths.sockets, "log": paths.log() },
        }),
    }
}

fn abandoned(paths: &SandboxPaths) -> bool {
    std::fs::metadata(&paths.dir)
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|modified| modified.elapsed().ok())
        .is_some_and(|age| age > ABANDONED)
}

/// Takes those out of the map whose sandbox is gone: of a verb that was killed before it had asked for its container.
fn forget_strays(layout: &Layout) {
    let map = ContainerMap::new(layout.containers());
    for container in map.containers().unwrap_or_default() {
        let Ok(Some(sandbox)) = map.sandbox_of(&container) else {
            continue;
        };
        let dir = layout.sandbox(&sandbox).dir;
        if dir.exists() || map.remove(&container).is_err() {
            continue;
        }
        // A create makes the sandbox before the entry: if there is one by now, the entry was of the new.
        if dir.exists() {
            let _ = map.add(&container, &sandbox);
        }
    }
}

/// Takes the containers of a sandbox out of the map.
fn forget(layout: &Layout, id: &SandboxId) {
    let map = ContainerMap::new(layout.containers());
    for container in map.containers().unwrap_or_default() {
        if matches!(map.sandbox_of(&container), Ok(Some(sandbox)) if sandbox == *id) {
            // One that stays is an entry without a sandbox: the next create of the id replaces it.
            let _ = map.remove(&container);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_let_go_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let id = SandboxId::new("a").unwrap();
        let paths = layout.sandbox(&id);
        std::fs::create_dir_all(&paths.dir).unwrap();
        let held = lock(&paths).unwrap();
        assert!(remove(&layout, id.clone(), Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| remove(&layout, id.clone(), Duration::from_secs(60)));
            // It has to come to its first try: without the wait it is over before the lock is let go.
            std::thread::sleep(3 * RETRY);
            drop(held);
            let collected = removing.join().unwrap().unwrap();
            assert_eq!(collected.left, Vec::<String>::new());
        });
        assert!(!paths.dir.exists());
    }
}
