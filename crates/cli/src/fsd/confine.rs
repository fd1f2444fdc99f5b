//! Own namespaces with the share as root.
//!
//! ```text
//! before:  /  …  /run/…/share (shared mount)         supervisor's mount namespace
//! after:   / = share (slave of it), nothing else      the daemon's
//! ```
//! A slave receives every mount and unmount made in the share from then on and sends none back.
//!
//! Owns: the order of unshare, propagation, pivot. Never: the file system served. Called by [`super::run`].

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root, setgroups};
use std::fs::File;
use std::path::Path;

/// What is left of the world outside.
#[derive(Debug)]
pub(crate) struct Confined {
    /// `/proc/self/fd`, cut off from the rest of proc.
    pub(crate) descriptors: File,
    /// `/proc/self/mountinfo`, to find where a mount id is mounted.
    pub(crate) mountinfo: File,
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {errno}")]
pub(crate) struct ConfineError {
    /// What was being done.
    pub(crate) step: &'static str,
    /// Why it failed.
    pub(crate) errno: Errno,
}

fn step(step: &'static str) -> impl Fn(Errno) -> ConfineError {
    move |errno| ConfineError { step, errno }
}

/// Leaves everything but the share behind; the calling process must have one thread. A `plain` share is not a mount point.
pub(crate) fn enter(share: &Path, plain: bool) -> Result<Confined, ConfineError> {
    const NONE: Option<&str> = None;
    // Groups of whoever started the supervisor would give access by group.
    setgroups(&[]).map_err(step("dropping groups"))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(step("entering own namespaces"))?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(step("making / a slave mount"))?;
    let path_only = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let this = open("/proc/self", path_only, Mode::empty()).map_err(step("opening /proc/self"))?;
    // Of proc only the descriptors stay reachable: `..` of a mount's root leads nowhere once detached.
    mount(Some("/proc/self/fd"), "/proc", NONE, MsFlags::MS_BIND, NONE)
        .map_err(step("binding /proc/self/fd"))?;
    let descriptors = open("/proc", path_only, Mode::empty()).map_err(step("opening /proc/self/fd"))?;
    if plain {
        mount(Some(share), share, NONE, MsFlags::MS_BIND, NONE).map_err(step("binding the share"))?;
    }
    chdir(share).map_err(step("entering the share"))?;
    // With "." for both, the old root lies on top of the new one afterwards, pivot_root(2).
    pivot_root(".", ".").map_err(|errno| ConfineError {
        step: match errno {
            Errno::EINVAL => "making it the root (is it a mount point of its own?)",
            _ => "making it the root",
        },
        errno,
    })?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detaching the old root"))?;
    chdir("/").map_err(step("entering the new root"))?;
    let mountinfo = openat(
        &this,
        "mountinfo",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(step("opening mountinfo"))?;
    Ok(Confined {
        descriptors: File::from(descriptors),
        mountinfo: File::from(mountinfo),
    })
}
