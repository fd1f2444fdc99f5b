//! The terminal of a process that is being started.
//!
//! Owns: making it in the container's own devpts, so that `tty` finds it, and becoming its session's leader. Runs in the
//! container's process. Called by `birth` and `exec`.

use super::attributes::Attributes;
use crate::sys::tty;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setsid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Where a terminal may come from: the container's own, then one that the image or the spec has put elsewhere, then the
/// guest's, as long as that is the working directory.
const MAKERS: [&str; 3] = ["/dev/pts/ptmx", "/dev/ptmx", "dev/pts/ptmx"];

/// Master and slave.
pub(super) fn open(attributes: &Attributes) -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |path: &&str| File::options().read(true).write(true).open(Path::new(*path));
    let mut found = Err(io::Error::from(io::ErrorKind::NotFound));
    for path in &MAKERS {
        found = open(path);
        if found.is_ok() {
            break;
        }
    }
    let master = OwnedFd::from(found?);
    let slave = tty::open_peer(master.as_fd())?;
    let group = fstat(&slave)?.st_gid;
    fchown(
        &slave,
        Some(Uid::from_raw(attributes.uid)),
        Some(Gid::from_raw(group)),
    )?;
    if let Some((width, height)) = attributes.size {
        tty::set_size(slave.as_fd(), width, height)?;
    }
    Ok((master, slave))
}

/// Makes the three descriptors the standard ones of a session of its own; `terminal`: the first is its terminal.
pub(super) fn take(stdio: &[OwnedFd; 3], terminal: bool) -> io::Result<()> {
    setsid()?;
    if terminal {
        tty::make_controlling(stdio[0].as_fd())?;
    }
    dup2_stdin(&stdio[0])?;
    dup2_stdout(&stdio[1])?;
    dup2_stderr(&stdio[2])?;
    Ok(())
}

/// The slave as all three.
pub(super) fn triple(slave: OwnedFd) -> io::Result<[OwnedFd; 3]> {
    Ok([slave.try_clone()?, slave.try_clone()?, slave])
}
