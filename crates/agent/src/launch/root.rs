//! The container's view of files: its root, its mounts, what is hidden from it.
//!
//! ```text
//!  enter: root bound on itself ─► chroot ─► the guest's root stays as working directory, under no name
//!  furnish: mounts ─► devices ─► (terminal) ─► masked, read-only ─► leave: pivot, the guest's root goes
//! ```
//! The pivot is last: it leaves the guest's root mounted over the container's, and `..` in a root leads onto what is
//! mounted over it. In a chroot nothing is, so a path that begins with `/` cannot lead out of the container, whatever links its image holds, and
//! what comes from the guest is named relative to the working directory. The guest's /proc stays visible until the end:
//! a user namespace may mount a new one only where a whole one is.
//!
//! Owns: the order. Runs in the container's own process. Called by `birth`.

use super::copy_up;
use super::mount_plan::{MountPlan, Source};
use super::nodes;
use super::plan::Plan;
use crate::sys::mounts;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Links that lead to links, at most; as the kernel has it.
const MOST_LINKS: u32 = 40;

/// Why the view could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    /// A step on one path.
    #[error("{step} {path:?}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A mount.
    #[error("mounting {what} to {target:?}")]
    Mount {
        /// A type or a path of the guest.
        what: String,
        /// Where to.
        target: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A way to a mount's place that the image could bend.
    #[error("mounting {what} to {target:?}: expected a directory that no link leads to")]
    Link {
        /// A type.
        what: String,
        /// Where to.
        target: PathBuf,
    },
}

pub(super) fn failed<E: Into<io::Error>>(
    step: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> RootError {
    let path = path.into();
    move |error| RootError::Step {
        step,
        path,
        source: error.into(),
    }
}

/// The container's root, entered.
pub(super) struct Root {
    guest: OwnedFd,
    container: OwnedFd,
    moved: bool,
}

impl Root {
    /// Makes the directory of the plan this process's root.
    pub(super) fn enter(plan: &Plan) -> Result<Self, RootError> {
        let root = plan.root.as_path();
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(root), root, None::<&str>, bind, None::<&str>)
            .map_err(failed("binding the root", root))?;
        let here = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let guest = open("/", here, Mode::empty()).map_err(failed("opening", "/"))?;
        chdir(root).map_err(failed("entering the root", root))?;
        if plan.no_pivot {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
                .map_err(failed("moving the root", root))?;
        }
        let container = open(".", here, Mode::empty()).map_err(failed("opening", root))?;
        chroot(".").map_err(failed("changing to the root", root))?;
        fchdir(&guest).map_err(failed("returning to", "/"))?;
        umask(Mode::empty());
        let entered = Self {
            guest,
            container,
            moved: plan.no_pivot,
        };
        if !entered.shares_last(plan) {
            propagate(plan.root_propagation)?;
        }
        Ok(entered)
    }

    /// A root whose mounts propagate cannot be pivoted to, pivot_root(2): it becomes one afterwards.
    fn shares_last(&self, plan: &Plan) -> bool {
        !self.moved && MsFlags::from_bits_retain(plan.root_propagation).contains(MsFlags::MS_SHARED)
    }

    /// Mounts and devices.
    pub(super) fn furnish(&self, plan: &Plan) -> Result<(), RootError> {
        for one in &plan.mounts {
            self.mount(plan, one)?;
        }
        let bound = plan.foreign() & super::plan::flag(libc::CLONE_NEWUSER) != 0;
        if plan.own_devices {
            nodes::standard(self, bound)?;
        }
        for device in &plan.devices {
            nodes::make(self, device, bound)?;
        }
        Ok(())
    }

    /// Hides what is to be hidden and lets go of the guest's root.
    pub(super) fn seal(self, plan: &Plan) -> Result<(), RootError> {
        for one in plan.mounts.iter().filter(|one| one.seal) {
            make_read_only(&one.target, false)?;
        }
        for path in &plan.read_only {
            make_read_only(path, true)?;
        }
        for path in &plan.masked {
            mask(path)?;
        }
        if plan.root_read_only {
            make_read_only(Path::new("/"), false)?;
        }
        if !self.moved {
            fchdir(&self.guest)
                .and_then(|()| chroot("."))
                .and_then(|()| fchdir(&self.container))
                .and_then(|()| pivot_root(".", "."))
                .map_err(failed("pivoting to the root", plan.root.as_path()))?;
            fchdir(&self.guest)
                .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
                .map_err(failed("leaving", "/"))?;
        }
        if self.shares_last(plan) {
            // What is mounted below a root that propagates does so too.
            propagate(plan.root_propagation | MsFlags::MS_REC.bits())?;
        }
        chdir("/").map_err(failed("entering", "/"))
    }

    /// Opens a file of the guest as it is.
    pub(super) fn open_guest(&self, path: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(self.guest.as_fd(), path, how)
    }

    /// Binds a file or directory of the guest to `target`, which is made if it is missing.
    pub(super) fn bind(&self, from: &OwnedFd, target: &Path) -> io::Result<()> {
        let tree = mounts::copy(from.as_fd(), false)?;
        let onto = place(target, is_directory(from)?)?;
        mounts::attach(tree.as_fd(), onto.as_fd())
    }

    fn bind_cgroup(&self, cgroup: &Path, plan: &MountPlan, onto: &OwnedFd) -> io::Result<()> {
        let inside = cgroup.strip_prefix("/").unwrap_or(cgroup);
        let from = self.open_guest(&Path::new(crate::cgroup::MOUNT).join(inside))?;
        let tree = mounts::copy(from.as_fd(), false)?;
        adjust(&tree, plan)?;
        mounts::attach(tree.as_fd(), onto.as_fd())
    }

    fn mount(&self, container: &Plan, plan: &MountPlan) -> Result<(), RootError> {
        let target = plan.target.as_path();
        match &plan.source {
            Source::Bind { path, recursive } => {
                let refused = |source: io::Error| RootError::Mount {
                    what: path.display().to_string(),
                    target: target.to_owned(),
                    source,
                };
                let from = self.open_guest(path).map_err(|errno| refused(errno.into()))?;
                let tree = mounts::copy(from.as_fd(), *recursive).map_err(refused)?;
                adjust(&tree, plan).map_err(refused)?;
                let directory = is_directory(&from).map_err(refused)?;
                let onto = place(target, directory).map_err(refused)?;
                mounts::attach(tree.as_fd(), onto.as_fd()).map_err(refused)
            }
            Source::New {
                kind,
                source,
                flags,
                data,
            } => {
                let refused = |error: io::Error| RootError::Mount {
                    what: kind.clone(),
                    target: target.to_owned(),
                    source: error,
                };
                let onto = place(target, true).map_err(refused)?;
                if matches!(kind.as_str(), "proc" | "sysfs") {
                    no_links(target).map_err(|errno| match errno {
                        Errno::ELOOP => RootError::Link {
                            what: kind.clone(),
                            target: target.to_owned(),
                        },
                        errno => refused(errno.into()),
                    })?;
                }
                let image = if plan.copy_up {
                    Some(copy_up::take(target))
                } else {
                    None
                };
                let data = data_for(kind, data, &onto).map_err(refused)?;
                // Relative: the guest's /proc, in which this process is visible whatever its own pid namespace.
                let by_descriptor = format!("proc/self/fd/{}", onto.as_raw_fd());
                mount(
                    Some(source.as_str()),
                    by_descriptor.as_str(),
                    Some(kind.as_str()),
                    MsFlags::from_bits_retain(*flags),
                    Some(data.as_str()),
                )
                .or_else(|errno| match (errno, &container.cgroup) {
                    // The guest's is there already, with the /sys that a user namespace is given.
                    (Errno::EBUSY, Some(cgroup)) if kind == "cgroup2" => {
                        self.bind_cgroup(cgroup, plan, &onto)
                    }
                    (errno, _) => Err(errno.into()),
                })
                .map_err(refused)?;
                if let Some(image) = image {
                    image
                        .and_then(|image| copy_up::put(&image, target))
                        .map_err(failed("copying the image's files to", target))?;
                }
                if plan.propagation != 0 || plan.change_all != super::mount_plan::Change::default() {
                    let mounted = open_path(target).map_err(|errno| refused(errno.into()))?;
                    adjust(&mounted, plan).map_err(refused)?;
                }
                Ok(())
            }
        }
    }
}

/// A tmpfs has the mode of the directory it covers, as runc does it, unless its options say another.
fn data_for(kind: &str, data: &str, onto: &OwnedFd) -> io::Result<String> {
    let named = data.split(',').any(|option| option.starts_with("mode="));
    if kind != "tmpfs" || named {
        return Ok(data.to_owned());
    }
    let mode = fstat(onto)?.st_mode & 0o7777;
    let separator = if data.is_empty() { "" } else { "," };
    Ok(format!("{data}{separator}mode={mode:o}"))
}

fn adjust(tree: &OwnedFd, plan: &MountPlan) -> io::Result<()> {
    let (one, all) = (plan.change, plan.change_all);
    let (for_one, for_all) = if plan.propagate_all {
        (0, plan.propagation)
    } else {
        (plan.propagation, 0)
    };
    if one.set | one.clear | for_one != 0 {
        mounts::change(tree.as_fd(), false, one.set, one.clear, for_one)?;
    }
    if all.set | all.clear | for_all != 0 {
        mounts::change(tree.as_fd(), true, all.set, all.clear, for_all)?;
    }
    Ok(())
}

/// How mounts of the root propagate; 0 leaves it.
fn propagate(flags: u64) -> Result<(), RootError> {
    if flags == 0 {
        return Ok(());
    }
    let flags = MsFlags::from_bits_retain(flags);
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(failed("propagation of", "/"))
}

fn is_directory(file: &OwnedFd) -> io::Result<bool> {
    Ok(fstat(file)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn open_path(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// The file or directory `path` of the container, made if it is missing.
fn place(path: &Path, directory: bool) -> io::Result<OwnedFd> {
    match open_path(path) {
        Err(Errno::ENOENT) => {
            make(path, directory, 0)?;
            Ok(open_path(path)?)
        }
        other => Ok(other?),
    }
}

/// Makes `path` and the directories above it, through links to nothing where they are some: what they name is in
/// the container too.
fn make(path: &Path, directory: bool, links: u32) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        make(parent, true, links)?;
    }
    if let Ok(aim) = fs::read_link(path) {
        if links == MOST_LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        return make(&parent.join(aim), directory, links + 1);
    }
    if directory {
        return match DirBuilder::new().mode(0o755).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        };
    }
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o755)
        .open(path);
    file.map(drop)
}

/// An image that bends the way to /proc could have the masks below land elsewhere.
fn no_links(path: &Path) -> nix::Result<()> {
    let root = open_path(Path::new("/"))?;
    let inside: PathBuf = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root.as_fd(), &inside, how).map(drop)
}

/// One that is not there needs no protection. `covered`: by a read-only copy of itself, else the mount it is.
fn make_read_only(path: &Path, covered: bool) -> Result<(), RootError> {
    let refused = |source: io::Error| failed("making read-only", path)(source);
    let file = match open_path(path) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other.map_err(failed("opening", path))?,
    };
    if !covered {
        return mounts::change(file.as_fd(), false, mounts::READ_ONLY, 0, 0).map_err(refused);
    }
    let tree = mounts::copy(file.as_fd(), true).map_err(refused)?;
    mounts::change(tree.as_fd(), true, mounts::READ_ONLY, 0, 0).map_err(refused)?;
    mounts::attach(tree.as_fd(), file.as_fd()).map_err(refused)
}

/// A file is covered by /dev/null, a directory by an empty one.
fn mask(path: &Path) -> Result<(), RootError> {
    let null = Some("dev/null");
    match mount(null, path, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTDIR) => {
            let empty = Some("tmpfs");
            let size = Some("size=4k,mode=0555");
            mount(empty, path, Some("tmpfs"), MsFlags::MS_RDONLY, size).map_err(failed("masking", path))
        }
        Err(errno) => Err(failed("masking", path)(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_made_through_links_to_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("gone/deep", at("out")).unwrap();
        make(&at("out/escaped"), true, 0).unwrap();
        assert!(at("gone/deep/escaped").is_dir());
        symlink("late", at("file")).unwrap();
        make(&at("file"), false, 0).unwrap();
        assert!(at("late").is_file());
        make(&at("out"), true, 0).unwrap();
        symlink("loop", at("loop")).unwrap();
        let error = make(&at("loop/x"), true, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = make(&at("late/x"), true, 0).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTDIR)),
            "{error}"
        );
    }
}
