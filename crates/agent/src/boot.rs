//! From `/init` in an initramfs to a system containers can run in.
//!
//! ```text
//!  initramfs ──mount──► /dev /proc /sys ──► tmpfs root (moved, chroot) ──► cgroup2, pts, shm, loopback
//! ```
//!
//! pivot_root(2) refuses an initramfs as the old root, and containers are made with it: so the agent lives on
//! a tmpfs. The modules of the initramfs stay where they are, bound into the new root.
//!
//! Owns: the guest's own mounts. Never: anything of one sandbox. Called once by `main`.

use crate::{cgroup, paths};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::io;
use std::path::Path;

/// Where the modules are after the move.
pub(crate) const MODULES: &str = "/lib/modules";

/// A step of the boot that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system call.
    #[error("{step} {path}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// On which path.
        path: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
}

fn failed(step: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> BootError {
    let path = path.as_ref().display().to_string();
    move |source| BootError::Step { step, path, source }
}

fn attach(kind: &str, path: &str, flags: MsFlags, data: &str) -> Result<(), BootError> {
    fs::create_dir_all(path).map_err(failed("making", path))?;
    mount(Some(kind), path, Some(kind), flags, Some(data))
        .map_err(|errno| failed("mounting", path)(errno.into()))
}

/// Mounts everything and moves to the tmpfs root.
///
/// # Errors
/// [`BootError`] with the step that failed.
pub(crate) fn prepare() -> Result<(), BootError> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("tmpfs", "/newroot", MsFlags::empty(), "mode=0755")?;
    attach("devtmpfs", "/newroot/dev", MsFlags::MS_NOSUID, "mode=0755")?;
    attach("proc", "/newroot/proc", safe, "")?;
    attach("sysfs", "/newroot/sys", safe, "")?;
    if Path::new(MODULES).is_dir() {
        let inside = format!("/newroot{MODULES}");
        fs::create_dir_all(&inside).map_err(failed("making", &inside))?;
        mount(
            Some(MODULES),
            inside.as_str(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .map_err(|errno| failed("binding", MODULES)(errno.into()))?;
    }
    move_root()?;
    attach("cgroup2", cgroup::MOUNT, safe, "")?;
    cgroup::prepare()?;
    attach(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "mode=0620,gid=5,ptmxmode=0666",
    )?;
    attach(
        "tmpfs",
        "/dev/shm",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=1777",
    )?;
    attach("mqueue", "/dev/mqueue", safe, "").or_else(|error| match &error {
        // A kernel without POSIX message queues.
        BootError::Step { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        _ => Err(error),
    })?;
    for directory in [paths::BASE, "/tmp", "/var", "/etc"] {
        fs::create_dir_all(directory).map_err(failed("making", directory))?;
    }
    // Nothing of a container is to be seen outside it, and propagation costs time.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|errno| failed("making private", "/")(errno.into()))?;
    loopback_up().map_err(failed("bringing up", "lo"))
}

fn move_root() -> Result<(), BootError> {
    let moving = |errno: nix::errno::Errno| failed("moving to", "/newroot")(errno.into());
    // The agent's own pages are mapped; its file and the rest of the initramfs are no longer needed.
    let _ = fs::remove_file("/init");
    chdir("/newroot").map_err(moving)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(moving)?;
    chroot(".").map_err(moving)?;
    chdir("/").map_err(moving)
}

/// netdevice(7): SIOCSIFFLAGS.
fn loopback_up() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    crate::sys::interface::up(&socket, c"lo")
}
