//! What a start needs laid out before clone: the child may not allocate.
//!
//! Owns: the strings and descriptors of one start, until the child has its copy. Never: runs in the child.
//! Called by [`super::Spawn`].

use super::spawn::{Program, Spawn};
use super::{CgroupRefusal, SpawnError};
use nix::fcntl::{FcntlArg, OFlag};
use std::ffi::{CString, OsStr, OsString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Everything of a start that is text, as the kernel wants it.
pub(super) struct Words {
    pub(super) argv: Vec<CString>,
    pub(super) envp: Vec<CString>,
    /// `None`: the program is a descriptor.
    pub(super) path: Option<CString>,
    pub(super) directory: Option<CString>,
}

impl Words {
    pub(super) fn of(spawn: &Spawn) -> Result<Self, SpawnError> {
        let path = match &spawn.program {
            Program::Path(path) => Some(c_string("program", spawn.resolve(path)?.as_os_str())?),
            Program::Fd(_) => None,
        };
        let directory = spawn.directory.as_ref();
        Ok(Self {
            argv: c_strings("argument", &spawn.args)?,
            envp: c_strings("environment variable", &spawn.env)?,
            path,
            directory: directory
                .map(|path| c_string("directory", path.as_os_str()))
                .transpose()?,
        })
    }
}

/// Everything of a start that is a descriptor. All of it lies above every fixed number, so that no dup2 in the
/// child overwrites one that is still needed.
pub(super) struct Plumbing {
    /// Keeps the numbers below open.
    held: Vec<OwnedFd>,
    pub(super) fds: Vec<(RawFd, RawFd)>,
    pub(super) namespaces: Vec<(RawFd, i32)>,
    pub(super) cgroups: Vec<RawFd>,
    pub(super) cgroup_paths: Vec<PathBuf>,
    pub(super) refusals: Vec<CgroupRefusal>,
    pub(super) program: Option<OwnedFd>,
    pub(super) report: OwnedFd,
    reports: OwnedFd,
}

impl Plumbing {
    pub(super) fn lay(spawn: &Spawn) -> Result<Self, SpawnError> {
        let highest = spawn.highest_number()?;
        let above = |fd: BorrowedFd<'_>| {
            duplicate_above(fd, highest).map_err(|source| spawn.failed("duplicating a descriptor", source))
        };
        let (reports, report) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|errno| spawn.failed("making a pipe", errno.into()))?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|source| spawn.failed("opening /dev/null", source))?;
        let mut laid = Self {
            held: Vec::new(),
            fds: Vec::new(),
            namespaces: Vec::new(),
            cgroups: Vec::new(),
            cgroup_paths: Vec::new(),
            refusals: Vec::new(),
            program: None,
            report: above(report.as_fd())?,
            reports,
        };
        if let Program::Fd(fd) = &spawn.program {
            laid.program = Some(above(fd.as_fd())?);
        }
        let missing = (0..3).filter(|n| !spawn.fds.iter().any(|(_, number)| number == n));
        let given = spawn.fds.iter().map(|(fd, number)| (fd.as_fd(), *number));
        for (source, number) in given.chain(missing.map(|number| (null.as_fd(), number))) {
            let source = laid.hold(above(source)?);
            laid.fds.push((source, number));
        }
        for (kind, target) in &spawn.enter {
            let target = laid.hold(above(target.as_fd())?);
            laid.namespaces.push((target, kind.flag()));
        }
        for path in &spawn.cgroups {
            match File::options().write(true).open(path) {
                Ok(file) => {
                    let file = laid.hold(above(file.as_fd())?);
                    laid.cgroups.push(file);
                    laid.cgroup_paths.push(path.clone());
                }
                Err(source) => laid.refusals.push(CgroupRefusal {
                    path: path.clone(),
                    source,
                }),
            }
        }
        Ok(laid)
    }

    fn hold(&mut self, fd: OwnedFd) -> RawFd {
        let raw = fd.as_raw_fd();
        self.held.push(fd);
        raw
    }

    /// Closes everything but the read end of the report pipe.
    pub(super) fn into_reports(self) -> File {
        self.reports.into()
    }
}

fn c_string(what: &'static str, value: &OsStr) -> Result<CString, SpawnError> {
    CString::new(value.as_bytes()).map_err(|_| SpawnError::ZeroByte {
        what,
        value: value.to_owned(),
    })
}

fn c_strings(what: &'static str, values: &[OsString]) -> Result<Vec<CString>, SpawnError> {
    values.iter().map(|value| c_string(what, value)).collect()
}

/// Null-terminated, for execve(2); valid as long as `strings`.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain(std::iter::once(std::ptr::null()))
        .collect()
}

fn duplicate_above(fd: BorrowedFd<'_>, highest: RawFd) -> io::Result<OwnedFd> {
    let new = nix::fcntl::fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(highest.saturating_add(1)))?;
    // SAFETY: fcntl just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// The ranges between and after the fixed numbers.
pub(super) fn gaps(fds: &[(RawFd, RawFd)]) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = fds.iter().filter_map(|(_, n)| u32::try_from(*n).ok()).collect();
    kept.sort_unstable();
    let mut next = 0;
    let mut ranges = Vec::new();
    for number in kept {
        if number > next {
            ranges.push((next, number - 1));
        }
        next = number + 1;
    }
    ranges.push((next, u32::MAX));
    ranges
}
