//! The file system, with programs that stay in the guest's memory.
//!
//! ```text
//!  open for reading ─► executable, as it was when it was last opened, and not just written? ─► the guest keeps its contents
//!                                                                             └─ no ─► it reads them anew
//! ```
//! In cache mode `auto` a guest drops what it has of a file's contents at each open, so that it sees what the host wrote
//! meanwhile. A program is opened each time it is started, and would be read, and where guest code is translated be translated,
//! anew each time. That it is the same is told by its length and the times of its last changes; those have the resolution
//! of the file system, so one that was changed a moment ago is not trusted. Others than programs are left alone: somebody on
//! the host may have them mapped and change them without any time changing.
//!
//! Owns: that decision. Never: anything else of the file system, which is the library's. Called by the library.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// Coarser than the times of any file system in use (FAT's).
const RESOLUTION: Duration = Duration::from_secs(2);

/// What tells one state of a file from another: length, and seconds and nanoseconds of its last changes.
type Stamp = [u64; 5];

fn stamp(attr: &Attr) -> Stamp {
    [
        attr.size,
        attr.mtime,
        attr.mtimensec.into(),
        attr.ctime,
        attr.ctimensec.into(),
    ]
}

/// Whether it is a file that somebody may execute, stat(2).
fn is_program(attr: &Attr) -> bool {
    attr.mode & nix::libc::S_IFMT == nix::libc::S_IFREG && attr.mode & 0o111 != 0
}

/// Programs as they were when they were last opened.
#[derive(Debug, Default)]
struct Seen(Mutex<HashMap<Inode, Stamp>>);

impl Seen {
    /// Whether the guest may keep what it has of the file; `now` since the epoch.
    fn is_unchanged(&self, inode: Inode, attr: &Attr, now: Duration) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Duration::new(attr.ctime, attr.ctimensec);
        if !is_program(attr) || changed + RESOLUTION > now {
            seen.remove(&inode);
            return false;
        }
        let stamp = stamp(attr);
        seen.insert(inode, stamp) == Some(stamp)
    }

    fn forget(&self, inode: Inode) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&inode);
    }
}

/// The file system of one sandbox.
pub(super) struct Programs {
    files: PassthroughFs,
    seen: Option<Seen>,
}

impl Programs {
    /// Serves `files`; with `keep` programs stay in the guest's memory.
    pub(super) fn new(files: PassthroughFs, keep: bool) -> Self {
        Self {
            files,
            seen: keep.then(Seen::default),
        }
    }

    fn is_unchanged(&self, context: Context, inode: Inode) -> bool {
        let Some(seen) = &self.seen else { return false };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        match (self.files.getattr(context, inode, None), now) {
            (Ok((attr, _)), Ok(now)) => seen.is_unchanged(inode, &attr, now),
            _ => false,
        }
    }
}

/// Methods that are the library's as they are.
macro_rules! passed_on {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $kind),*) $(-> $result)? {
            self.files.$name($($argument),*)
        })*
    };
}

impl FileSystem for Programs {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn open(
        &self,
        context: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        let (handle, mut options) = self.files.open(context, inode, kill_priv, flags)?;
        let reads = flags.cast_signed() & nix::libc::O_ACCMODE == nix::libc::O_RDONLY;
        if reads && self.is_unchanged(context, inode) {
            options |= OpenOptions::KEEP_CACHE;
        }
        Ok((handle, options))
    }

    fn forget(&self, context: Context, inode: Inode, count: u64) {
        if let Some(seen) = &self.seen {
            seen.forget(inode);
        }
        self.files.forget(context, inode, count);
    }

    fn batch_forget(&self, context: Context, requests: Vec<(Inode, u64)>) {
        if let Some(seen) = &self.seen {
            requests.iter().for_each(|(inode, _)| seen.forget(*inode));
        }
        self.files.batch_forget(context, requests);
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        context: Context,
        inode: Inode,
        handle: Handle,
        to: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.files
            .read(context, inode, handle, to, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        context: Context,
        inode: Inode,
        handle: Handle,
        from: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        self.files.write(
            context,
            inode,
            handle,
            from,
            size,
            offset,
            lock_owner,
            delayed_write,
            kill_priv,
            flags,
        )
    }

    passed_on! {
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy();
        fn statfs(context: Context, inode: Inode) -> io::Result<nix::libc::statvfs64>;
        fn lookup(context: Context, parent: Inode, name: &CStr) -> io::Result<Entry>;
        fn opendir(context: Context, inode: Inode, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)>;
        fn releasedir(context: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        fn mkdir(context: Context, parent: Inode, name: &CStr, mode: u32, umask: u32, more: Extensions) -> io::Result<Entry>;
        fn rmdir(context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn readdir(context: Context, inode: Inode, handle: Handle, size: u32, offset: u64) -> io::Result<Self::DirIter>;
        fn release(context: Context, inode: Inode, flags: u32, handle: Handle, flush: bool, unlock: bool, owner: Option<u64>) -> io::Result<()>;
        fn create(context: Context, parent: Inode, name: &CStr, mode: u32, kill_priv: bool, flags: u32, umask: u32, more: Extensions) -> io::Result<(Entry, Option<Handle>, OpenOptions)>;
        fn unlink(context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn getattr(context: Context, inode: Inode, handle: Option<Handle>) -> io::Result<(Attr, Duration)>;
        fn setattr(context: Context, inode: Inode, attr: SetattrIn, handle: Option<Handle>, valid: SetattrValid) -> io::Result<(Attr, Duration)>;
        fn rename(context: Context, from: Inode, old: &CStr, to: Inode, new: &CStr, flags: u32) -> io::Result<()>;
        fn mknod(context: Context, parent: Inode, name: &CStr, mode: u32, device: u32, umask: u32, more: Extensions) -> io::Result<Entry>;
        fn link(context: Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry>;
        fn symlink(context: Context, target: &CStr, parent: Inode, name: &CStr, more: Extensions) -> io::Result<Entry>;
        fn readlink(context: Context, inode: Inode) -> io::Result<Vec<u8>>;
        fn flush(context: Context, inode: Inode, handle: Handle, lock_owner: u64) -> io::Result<()>;
        fn fsync(context: Context, inode: Inode, data: bool, handle: Handle) -> io::Result<()>;
        fn fsyncdir(context: Context, inode: Inode, data: bool, handle: Handle) -> io::Result<()>;
        fn access(context: Context, inode: Inode, mask: u32) -> io::Result<()>;
        fn setxattr(context: Context, inode: Inode, name: &CStr, value: &[u8], flags: u32, more: SetxattrFlags) -> io::Result<()>;
        fn getxattr(context: Context, inode: Inode, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        fn listxattr(context: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(context: Context, inode: Inode, name: &CStr) -> io::Result<()>;
        fn fallocate(context: Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64) -> io::Result<()>;
        fn lseek(context: Context, inode: Inode, handle: Handle, offset: u64, whence: u32) -> io::Result<u64>;
        fn copyfilerange(context: Context, from: Inode, source: Handle, at: u64, to: Inode, target: Handle, offset: u64, length: u64, flags: u64) -> io::Result<usize>;
        fn syncfs(context: Context, inode: Inode) -> io::Result<()>;
    }
}

impl SerializableFileSystem for Programs {
    passed_on! {
        fn prepare_serialization(cancel: Arc<AtomicBool>);
        fn serialize(to: File) -> io::Result<()>;
        fn deserialize_and_apply(from: File) -> io::Result<()>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(ctime: u64) -> Attr {
        Attr {
            mode: nix::libc::S_IFREG | 0o755,
            size: 1000,
            mtime: 5,
            ctime,
            ..Attr::default()
        }
    }

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_program_is_kept_from_its_second_opening_on() {
        let seen = Seen::default();
        let attr = program(10);
        assert!(!seen.is_unchanged(1, &attr, NOW));
        assert!(seen.is_unchanged(1, &attr, NOW));
        assert!(!seen.is_unchanged(2, &attr, NOW), "another's");
        seen.forget(1);
        assert!(!seen.is_unchanged(1, &attr, NOW));
    }

    #[test]
    fn what_changed_is_not_kept() {
        let seen = Seen::default();
        let changes: [fn(&mut Attr); 5] = [
            |attr| attr.size += 1,
            |attr| attr.mtime += 1,
            |attr| attr.mtimensec += 1,
            |attr| attr.ctime += 1,
            |attr| attr.ctimensec += 1,
        ];
        for change in changes {
            let mut attr = program(10);
            let _ = seen.is_unchanged(1, &attr, NOW);
            assert!(seen.is_unchanged(1, &attr, NOW));
            change(&mut attr);
            assert!(!seen.is_unchanged(1, &attr, NOW), "{attr:?}");
        }
    }

    #[test]
    fn what_may_change_again_within_the_same_tick_is_not_kept() {
        let seen = Seen::default();
        let attr = program(999);
        assert!(!seen.is_unchanged(1, &attr, NOW));
        assert!(!seen.is_unchanged(1, &attr, NOW));
        let later = NOW + RESOLUTION;
        assert!(
            !seen.is_unchanged(1, &attr, later),
            "nothing is known of what it was"
        );
        assert!(seen.is_unchanged(1, &attr, later));
    }

    #[test]
    fn only_programs_are_kept() {
        let seen = Seen::default();
        for mode in [nix::libc::S_IFREG | 0o644, nix::libc::S_IFDIR | 0o755] {
            let attr = Attr { mode, ..program(10) };
            let _ = seen.is_unchanged(1, &attr, NOW);
            assert!(!seen.is_unchanged(1, &attr, NOW), "{mode:o}");
        }
    }
}
