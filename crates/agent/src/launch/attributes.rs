//! What a process sets on itself on its way from the agent's privileges to the user's.
//!
//! Owns: the order, which is the whole point: resource limits and files while still root, seccomp before the
//! capabilities go unless no-new-privileges stands, user last. Called by exec's child.

use bulkhead_model::oci::{LinuxSeccomp, Process};
use libcontainer::capabilities;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use nix::sys::prctl::{set_keepcaps, set_no_new_privs};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid};

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttributeError {
    /// The working directory.
    #[error("chdir to cwd ({path:?}) set in config.json failed")]
    Directory {
        /// Where to.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: nix::errno::Errno,
    },
    /// A system call of the library.
    #[error("{what}")]
    Library {
        /// Which step.
        what: &'static str,
        /// Its reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// no_new_privs.
    #[error("no-new-privileges")]
    NoNewPrivileges(#[source] std::io::Error),
}

fn library<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> AttributeError {
    move |source| AttributeError::Library {
        what,
        source: Box::new(source),
    }
}

/// Becomes what `process` says, all but the program.
pub(super) fn apply(process: &Process, seccomp: Option<&LinuxSeccomp>) -> Result<(), AttributeError> {
    let syscall = create_syscall();
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(library("rlimit"))?;
    }
    umask(Mode::from_bits_truncate(process.user().umask().unwrap_or(0o022)));
    let confined = process.no_new_privileges().unwrap_or(false);
    if confined {
        set_no_new_privs().map_err(|errno| AttributeError::NoNewPrivileges(errno.into()))?;
    }
    // First as root: the user may not be allowed to pass through a parent directory. Some file systems
    // deny root (root_squash): then once more as the user.
    let early = chdir(process.cwd());
    if !confined && let Some(filter) = seccomp {
        initialize_seccomp(filter).map_err(library("seccomp filter"))?;
    }
    let user = process.user();
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    setgroups(&groups).map_err(library("supplementary groups"))?;
    // Capabilities are taken away below, exactly; a change of user alone must not drop those to be kept.
    set_keepcaps(true).map_err(library("keep-capabilities"))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid).map_err(library("group"))?;
    setresuid(uid, uid, uid).map_err(library("user"))?;
    set_keepcaps(false).map_err(library("keep-capabilities"))?;
    capabilities::reset_effective(syscall.as_ref()).map_err(library("capabilities"))?;
    if let Some(wanted) = process.capabilities() {
        capabilities::drop_privileges(wanted, syscall.as_ref()).map_err(library("capabilities"))?;
    }
    if early.is_err() {
        chdir(process.cwd()).map_err(|source| AttributeError::Directory {
            path: process.cwd().clone(),
            source,
        })?;
    }
    if confined && let Some(filter) = seccomp {
        initialize_seccomp(filter).map_err(library("seccomp filter"))?;
    }
    Ok(())
}
