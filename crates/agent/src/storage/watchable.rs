//! Configuration volumes that change while a container watches them (contract C-32, driver `watchable-bind`).
//!
//! ```text
//!  share (virtiofs: no inotify across it) ──look every second──► copy on tmpfs: inotify works for containers
//! ```
//!
//! A change is brought over in the order its maker made it visible: new directories and files, then links (each
//! replaced by a rename, as Kubernetes swaps `..data`), then removals. A file that is there is written in place, so
//! that a bind mount of it goes on.
//!
//! Owns: the copies and their thread. Never: follows a link of the source.

use crate::paths;
use nix::fcntl::OFlag;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The file system across the host has no event for a change; this is how late one may be seen.
const INTERVAL: Duration = Duration::from_secs(1);
/// Deepest directory that is looked at.
const DEPTH: usize = 16;

/// What a change of a file shows in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(Stamp),
    Link(OsString),
}

/// One source and its copy.
#[derive(Debug)]
struct Copy {
    source: OwnedFd,
    target: PathBuf,
    known: BTreeMap<PathBuf, Node>,
}

/// All copies; one thread keeps them up to date while there are any.
#[derive(Debug, Default)]
pub(super) struct Watchables {
    copies: Arc<(Mutex<Table>, Condvar)>,
}

#[derive(Debug, Default)]
struct Table {
    copies: BTreeMap<String, Copy>,
    running: bool,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchables {
    /// Copies directory `source` to `target`, the root of a mount of the agent's own, and keeps it up to date.
    pub(super) fn add(&self, mount_point: &str, source: OwnedFd, target: PathBuf) -> io::Result<()> {
        let mut copy = Copy {
            source,
            target,
            known: BTreeMap::new(),
        };
        copy.update()?;
        let mut table = lock(&self.copies.0);
        table.copies.insert(mount_point.to_owned(), copy);
        if !table.running {
            let shared = self.copies.clone();
            std::thread::Builder::new()
                .name("watchable".to_owned())
                .stack_size(256 << 10)
                .spawn(move || keep_up(&shared))?;
            table.running = true;
        }
        Ok(())
    }

    /// Ends the copying; unknown is fine.
    pub(super) fn remove(&self, mount_point: &str) {
        if lock(&self.copies.0).copies.remove(mount_point).is_some() {
            self.copies.1.notify_all();
        }
    }
}

fn keep_up((table, changed): &(Mutex<Table>, Condvar)) {
    let mut table = lock(table);
    while !table.copies.is_empty() {
        table = changed
            .wait_timeout(table, INTERVAL)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        for (mount_point, copy) in &mut table.copies {
            if let Err(error) = copy.update() {
                // A source in the middle of a change; the next look finds it settled.
                eprintln!("bulkhead-agent: warn: copying {mount_point}: {error}");
            }
        }
    }
    table.running = false;
}

fn scan(root: &OwnedFd) -> io::Result<BTreeMap<PathBuf, Node>> {
    let mut nodes = BTreeMap::new();
    let mut open = vec![(PathBuf::new(), 0)];
    while let Some((directory, depth)) = open.pop() {
        // Names below go through this descriptor, so it lives as long as they are used.
        let below = match directory.as_os_str().is_empty() {
            true => None,
            false => Some(paths::open_below(root, &directory, OFlag::O_DIRECTORY)?),
        };
        for entry in fs::read_dir(paths::handle(below.as_ref().unwrap_or(root)))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let kind = entry.file_type()?;
            let node = if kind.is_dir() {
                if depth < DEPTH {
                    open.push((path.clone(), depth + 1));
                }
                Node::Directory(entry.metadata()?.mode())
            } else if kind.is_symlink() {
                Node::Link(fs::read_link(entry.path())?.into_os_string())
            } else if kind.is_file() {
                Node::File(Stamp::of(&entry.metadata()?))
            } else {
                continue;
            };
            nodes.insert(path, node);
        }
    }
    Ok(nodes)
}

impl Copy {
    fn update(&mut self) -> io::Result<()> {
        let now = scan(&self.source)?;
        if now == self.known {
            return Ok(());
        }
        // A BTreeMap gives directories before what is in them.
        for (path, node) in &now {
            let before = self.known.get(path);
            if before == Some(node) {
                continue;
            }
            match node {
                Node::Directory(mode) => {
                    let target = self.target.join(path);
                    if !matches!(before, Some(Node::Directory(_))) {
                        self.clear(path, before);
                        match fs::create_dir(&target) {
                            // Left by an update that did not get to its end.
                            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                            other => other?,
                        }
                    }
                    fs::set_permissions(&target, Permissions::from_mode(mode & 0o7777))?;
                }
                Node::File(_) => {
                    if !matches!(before, Some(Node::File(_))) {
                        self.clear(path, before);
                    }
                    self.copy_file(path)?;
                }
                Node::Link(_) => {}
            }
        }
        for (path, node) in &now {
            if let Node::Link(to) = node
                && self.known.get(path) != Some(node)
            {
                self.swap_link(path, to, self.known.get(path))?;
            }
        }
        for (path, node) in self.known.iter().rev() {
            if !now.contains_key(path) {
                self.clear(path, Some(node));
            }
        }
        self.known = now;
        Ok(())
    }

    /// Takes away what was at `path`; what cannot be removed shows when its place is taken.
    fn clear(&self, path: &Path, before: Option<&Node>) {
        let target = self.target.join(path);
        let _ = match before {
            None => return,
            Some(Node::Directory(_)) => fs::remove_dir_all(target),
            Some(Node::File(_) | Node::Link(_)) => fs::remove_file(target),
        };
    }

    fn copy_file(&self, path: &Path) -> io::Result<()> {
        let mut from = File::from(paths::open_below(&self.source, path, OFlag::O_RDONLY)?);
        let meta = from.metadata()?;
        let target = self.target.join(path);
        let mut to = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&target)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
        chown(&target, Some(meta.uid()), Some(meta.gid()))
    }

    fn swap_link(&self, path: &Path, to: &OsString, before: Option<&Node>) -> io::Result<()> {
        if matches!(before, Some(Node::Directory(_))) {
            self.clear(path, before);
        }
        let target = self.target.join(path);
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".bulkhead-new");
        let new = target.with_file_name(name);
        let _ = fs::remove_file(&new);
        symlink(to, &new)?;
        fs::rename(&new, &target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        source: tempfile::TempDir,
        target: tempfile::TempDir,
        copy: Copy,
    }

    fn fixture() -> Fixture {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let copy = Copy {
            source: File::open(source.path()).unwrap().into(),
            target: target.path().to_owned(),
            known: BTreeMap::new(),
        };
        Fixture { source, target, copy }
    }

    /// What the kubelet writes: a dated directory, `..data` to it, and links through `..data`.
    fn publish(root: &Path, date: &str, content: &str) {
        fs::create_dir(root.join(date)).unwrap();
        fs::write(root.join(date).join("key"), content).unwrap();
        symlink(date, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if !root.join("key").exists() {
            symlink("..data/key", root.join("key")).unwrap();
        }
    }

    #[test]
    fn c32_a_swap_of_data_is_brought_over_by_a_rename() {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        let mut fixture = fixture();
        publish(fixture.source.path(), "..1", "one");
        fixture.copy.update().unwrap();
        let key = fixture.target.path().join("key");
        assert_eq!(fs::read_to_string(&key).unwrap(), "one");

        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let all = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        inotify.add_watch(fixture.target.path(), all).unwrap();
        publish(fixture.source.path(), "..2", "two");
        fs::remove_dir_all(fixture.source.path().join("..1")).unwrap();
        fixture.copy.update().unwrap();
        assert_eq!(fs::read_to_string(&key).unwrap(), "two");
        assert!(!fixture.target.path().join("..1").exists());
        let seen: Vec<(String, AddWatchFlags)> = inotify
            .read_events()
            .unwrap()
            .into_iter()
            .map(|event| (event.name.unwrap().into_string().unwrap(), event.mask))
            .collect();
        let at = |name: &str, flag| {
            seen.iter()
                .position(|(n, mask)| n == name && mask.contains(flag))
                .unwrap_or_else(|| panic!("{name}: {seen:?}"))
        };
        let order = [
            at("..2", AddWatchFlags::IN_CREATE),
            at("..data", AddWatchFlags::IN_MOVED_TO),
            at("..1", AddWatchFlags::IN_DELETE),
        ];
        assert!(order.is_sorted(), "{seen:?}");
    }

    #[test]
    fn c32_a_changed_file_keeps_its_inode_and_kinds_may_change() {
        let mut fixture = fixture();
        let (from, to) = (fixture.source.path().join("f"), fixture.target.path().join("f"));
        fs::write(&from, "a").unwrap();
        fixture.copy.update().unwrap();
        let inode = fs::metadata(&to).unwrap().ino();
        fs::write(&from, "bb").unwrap();
        fixture.copy.update().unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "bb");
        assert_eq!(fs::metadata(&to).unwrap().ino(), inode);

        fs::remove_file(&from).unwrap();
        fs::create_dir(&from).unwrap();
        fs::write(from.join("x"), "deep").unwrap();
        fixture.copy.update().unwrap();
        assert_eq!(fs::read_to_string(to.join("x")).unwrap(), "deep");
        fs::remove_dir_all(&from).unwrap();
        symlink("/etc/passwd", &from).unwrap();
        fixture.copy.update().unwrap();
        assert_eq!(fs::read_link(&to).unwrap(), Path::new("/etc/passwd"));
        fs::remove_file(&from).unwrap();
        fixture.copy.update().unwrap();
        assert!(fs::symlink_metadata(&to).is_err());
    }
}
