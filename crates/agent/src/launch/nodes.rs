//! Device nodes and links of a container's /dev (runtime-spec "Default Devices", "Default Filesystems").
//!
//! Owns: which there are. In a user namespace nobody makes nodes: there the guest's own are bound. Called by `root`.

use super::plan::DevicePlan;
use super::root::{Root, RootError, failed};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod, stat};
use nix::unistd::{Gid, Uid, chown};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// Name, major and minor number of what every container has.
const STANDARD: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// What every container has.
pub(super) fn standard(root: &Root, bound: bool) -> Result<(), RootError> {
    for (name, major, minor) in STANDARD {
        let device = DevicePlan {
            path: Path::new("/dev").join(name),
            kind: libc::S_IFCHR,
            number: (major, minor),
            mode: 0o666,
            owner: (0, 0),
        };
        make(root, &device, bound)?;
    }
    // A node of that name in the image would be the guest's terminals.
    let ptmx = Path::new("/dev/ptmx");
    link("pts/ptmx", ptmx)
        .or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => fs::remove_file(ptmx).and_then(|()| link("pts/ptmx", ptmx)),
            _ => Err(error),
        })
        .map_err(failed("linking", ptmx))?;
    for (aim, path) in LINKS {
        match link(aim, Path::new(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("linking", path))?,
        }
    }
    Ok(())
}

fn link(aim: &str, path: &Path) -> io::Result<()> {
    symlink(aim, path)
}

/// One device. What is there already stays: opening it is a matter of the cgroup's rules, not of its number.
pub(super) fn make(root: &Root, device: &DevicePlan, bound: bool) -> Result<(), RootError> {
    let path = device.path.as_path();
    if bound {
        return bind(root, device).map_err(failed("binding the device", path));
    }
    match node(device) {
        Err(Errno::ENOENT) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed("making", parent))?;
            node(device)
        }
        other => other,
    }
    .map_err(failed("making the device", path))
}

fn node(device: &DevicePlan) -> nix::Result<()> {
    let kind = SFlag::from_bits_truncate(device.kind);
    let number = makedev(u64::from(device.number.0), u64::from(device.number.1));
    match mknod(&device.path, kind, Mode::from_bits_truncate(device.mode), number) {
        Err(Errno::EEXIST) => return Ok(()),
        other => other?,
    }
    let (uid, gid) = device.owner;
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    chown(&device.path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn bind(root: &Root, device: &DevicePlan) -> io::Result<()> {
    let (major, minor) = device.number;
    let same = stat(device.path.strip_prefix("/").unwrap_or(&device.path))
        .is_ok_and(|found| found.st_rdev == makedev(u64::from(major), u64::from(minor)));
    let source = if same { device.path.clone() } else { named(device)? };
    root.bind(&root.open_guest(&source)?, &device.path)
}

/// The guest's name for it: the working directory is the guest's root.
fn named(device: &DevicePlan) -> io::Result<PathBuf> {
    let class = if device.kind == libc::S_IFBLK {
        "block"
    } else {
        "char"
    };
    let (major, minor) = device.number;
    let text = fs::read_to_string(format!("sys/dev/{class}/{major}:{minor}/uevent"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .map(|name| Path::new("/dev").join(name))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}
