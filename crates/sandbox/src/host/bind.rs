//! Binding a source into the share (C-31, M-06).
//!
//! Owns: the mount and its mount point. Never: the share's own mount, the journal. Called by the real host.

use crate::platform::Bind;
use bulkhead_host::mount::{Propagation, Tree, bind_source};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

pub(super) fn make_guest_dir(path: &Path) -> io::Result<()> {
    const MODE: u32 = 0o750;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(path)?;
    // Whatever the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
}

pub(super) fn bind(bind: Bind<'_>) -> io::Result<()> {
    let resolved = bind.source.canonicalize()?;
    let sandbox = bind.share.parent().unwrap_or(bind.share);
    if resolved.starts_with(sandbox) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} is the sandbox's own directory: it cannot be mounted into itself",
                sandbox.display()
            ),
        ));
    }
    bind_source(&resolved, bind.target).map_err(io::Error::other)?;
    let tree = Tree::bind(&resolved, bind.recursive).map_err(io::Error::other)?;
    let below = bind.share.strip_prefix(&resolved).ok().filter(|_| bind.recursive);
    if below.is_some() {
        // What is taken from the copy stays where it was copied from.
        tree.propagate(Propagation::Slave, true)
            .map_err(io::Error::other)?;
    }
    tree.attach_at(bind.target).map_err(io::Error::other)?;
    // A source above the share (`/`) brings the share along, and in it all that is shared already: without this
    // the guest would see it nested, and each such mount would double the next.
    if let Some(below) = below {
        detach_all(&bind.target.join(below))?;
    }
    Ok(())
}

/// One mount and all below it.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn detach_all(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
