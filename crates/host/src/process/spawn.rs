//! Starting a process with exact surroundings.
//!
//! ```text
//!  parent: prepare ─ clone3(PIDFD, new namespaces) ─ read reports until exec closes the pipe ─► Started
//!  child:            signals ─ cgroups ─ limits ─ session ─ setns ─ chdir ─ descriptors ─ exec
//! ```
//!
//! Owns: the parent's side. The environment starts empty, descriptors not named are closed, standard
//! streams not named are `/dev/null`. Never: sets a parent-death signal. Called by `vmm`, `shim`, `cli`.

use super::exec::{self, Prepared, REPORT_BYTES, Step, Target};
use super::{Child, identity};
use crate::deadline::{self, Deadline};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use nix::sys::signal::{SigSet, SigmaskHow};
use std::ffi::{CString, OsStr, OsString, c_char};
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between clone and exec only a few system calls are made; this much is for a machine out of memory.
const EXEC_DEADLINE: Duration = Duration::from_secs(60);

/// Kind of a namespace (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Mounts.
    Mount,
    /// Process ids; the started process is its pid 1 when new.
    Pid,
    /// Network.
    Network,
    /// System V IPC and message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Cgroup root.
    Cgroup,
}

impl Namespace {
    /// The `CLONE_NEW*` flag.
    #[must_use]
    pub const fn flag(self) -> i32 {
        match self {
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
        }
    }

    /// Its name below `/proc/<pid>/ns`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Why a process could not be started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program is missing, not executable or not a program: see the source's kind.
    #[error("cannot execute {}", program.display())]
    Program {
        /// As asked for.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A string with a zero byte in it.
    #[error("{what} {value:?} contains a zero byte")]
    ZeroByte {
        /// Argument, variable or path.
        what: &'static str,
        /// The string.
        value: OsString,
    },
    /// Two descriptors for one number, or a negative number.
    #[error("descriptor number {number}: expected each number from 0 up at most once")]
    Number {
        /// The number.
        number: RawFd,
    },
    /// A namespace could not be entered.
    #[error("cannot enter the {} namespace", kind.name())]
    Namespace {
        /// Which one.
        kind: Namespace,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another step failed.
    #[error("starting {}: {step}", program.display())]
    Step {
        /// As asked for.
        program: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A `cgroup.procs` file that did not take the process; the process runs all the same.
#[derive(Debug)]
pub struct CgroupRefusal {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A started process and what the host refused on the way.
#[derive(Debug)]
pub struct Started {
    /// The process, past its exec.
    pub child: Child,
    /// Cgroups it could not join.
    pub cgroup_refusals: Vec<CgroupRefusal>,
    /// Resource limits that could not be set: number of the limit (`RLIMIT_*`) and why.
    pub limit_refusals: Vec<(u32, io::Error)>,
}

#[derive(Debug)]
enum Program {
    Path(PathBuf),
    Fd(OwnedFd),
}

/// A process to be started.
#[derive(Debug)]
pub struct Spawn {
    program: Program,
    name: PathBuf,
    args: Vec<OsString>,
    env: Vec<OsString>,
    fds: Vec<(OwnedFd, RawFd)>,
    cgroups: Vec<PathBuf>,
    enter: Vec<(Namespace, OwnedFd)>,
    unshare: i32,
    limits: Vec<(u32, u64, u64)>,
    directory: Option<PathBuf>,
    new_session: bool,
}

impl Spawn {
    /// Of a path, or of a name without `/` that is looked up in this process's `PATH`. The name is the
    /// first argument.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let name = program.into();
        Self::of(Program::Path(name.clone()), name)
    }

    /// Of an open file (execveat(2)): works whatever the mounts look like. `name` is the first argument.
    #[must_use]
    pub fn from_fd(program: OwnedFd, name: impl Into<PathBuf>) -> Self {
        Self::of(Program::Fd(program), name.into())
    }

    fn of(program: Program, name: PathBuf) -> Self {
        Self {
            program,
            args: vec![name.clone().into_os_string()],
            name,
            env: Vec::new(),
            fds: Vec::new(),
            cgroups: Vec::new(),
            enter: Vec::new(),
            unshare: 0,
            limits: Vec::new(),
            directory: None,
            new_session: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable; the environment starts empty.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let mut entry = key.as_ref().to_owned();
        entry.push("=");
        entry.push(value);
        self.env.push(entry);
        self
    }

    /// Gives the process `source` as descriptor `number`; 0, 1 and 2 not given are `/dev/null`, every other
    /// one is closed.
    #[must_use]
    pub fn fd(mut self, source: OwnedFd, number: RawFd) -> Self {
        self.fds.push((source, number));
        self
    }

    /// Joins a cgroup before exec, by its `cgroup.procs` file. A refusal is reported, not fatal.
    #[must_use]
    pub fn cgroup(mut self, procs: impl Into<PathBuf>) -> Self {
        self.cgroups.push(procs.into());
        self
    }

    /// Enters a namespace, in the order of the calls; `target` is a namespace file or the pidfd of a
    /// process in it. A pid namespace is entered by a thread of this process, so that the child is in it.
    #[must_use]
    pub fn enter(mut self, kind: Namespace, target: OwnedFd) -> Self {
        self.enter.push((kind, target));
        self
    }

    /// Starts the process in a new namespace of this kind.
    #[must_use]
    pub fn unshare(mut self, kind: Namespace) -> Self {
        self.unshare |= kind.flag();
        self
    }

    /// Sets a resource limit (`libc::RLIMIT_*`), soft and hard, in the unit of getrlimit(2).
    /// A refusal is reported, not fatal.
    #[must_use]
    pub fn limit(mut self, resource: u32, soft: u64, hard: u64) -> Self {
        self.limits.push((resource, soft, hard));
        self
    }

    /// Working directory, looked up after namespaces were entered; this process's own if not set.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// Makes it the leader of a new session (setsid(2)).
    #[must_use]
    pub fn new_session(mut self) -> Self {
        self.new_session = true;
        self
    }

    /// Starts it and waits until it runs the program.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left then, the child included.
    pub fn spawn(mut self) -> Result<Started, SpawnError> {
        let Some(at) = self.enter.iter().position(|(kind, _)| *kind == Namespace::Pid) else {
            return self.start();
        };
        let (kind, target) = self.enter.remove(at);
        // setns(CLONE_NEWPID) applies to the children of the calling thread, for good: a thread that ends
        // right afterwards takes it along, and its child is still this process's child.
        std::thread::scope(|scope| {
            let name = self.name.clone();
            let worker = std::thread::Builder::new().spawn_scoped(scope, move || {
                set_namespace(target.as_fd(), kind.flag())
                    .map_err(|errno| SpawnError::Namespace {
                        kind,
                        source: errno.into(),
                    })
                    .and_then(|()| self.start())
            });
            match worker.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(result)) => result,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(source) => Err(SpawnError::Step {
                    program: name,
                    step: "starting a thread",
                    source,
                }),
            }
        })
    }

    fn start(self) -> Result<Started, SpawnError> {
        let step = |step| {
            let program = self.name.clone();
            move |source: io::Error| SpawnError::Step {
                program,
                step,
                source,
            }
        };
        let argv = c_strings("argument", &self.args)?;
        let envp = c_strings("environment variable", &self.env)?;
        let path = match &self.program {
            Program::Path(path) => Some(c_string("program", self.resolve(path)?.as_os_str())?),
            Program::Fd(_) => None,
        };
        let directory = match &self.directory {
            Some(path) => Some(c_string("directory", path.as_os_str())?),
            None => None,
        };
        let highest = self.highest_number()?;
        let (reports, low_report) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| step("making a pipe")(e.into()))?;

        // Sources move above every fixed number, so that no dup2 overwrites one still needed.
        let above =
            |fd: BorrowedFd<'_>| duplicate_above(fd, highest).map_err(step("duplicating a descriptor"));
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(step("opening /dev/null"))?;
        let mut held = Vec::new();
        let mut fds = Vec::new();
        let missing = (0..3).filter(|n| !self.fds.iter().any(|(_, number)| number == n));
        for (source, number) in self
            .fds
            .iter()
            .map(|(fd, number)| (fd.as_fd(), *number))
            .chain(missing.map(|number| (null.as_fd(), number)))
        {
            let moved = above(source)?;
            fds.push((moved.as_raw_fd(), number));
            held.push(moved);
        }
        let mut namespaces = Vec::new();
        for (kind, target) in &self.enter {
            let moved = above(target.as_fd())?;
            namespaces.push((moved.as_raw_fd(), kind.flag()));
            held.push(moved);
        }
        let report = above(low_report.as_fd())?;
        drop(low_report);
        let target_fd = match &self.program {
            Program::Fd(fd) => Some(above(fd.as_fd())?),
            Program::Path(_) => None,
        };

        let mut refusals = Vec::new();
        let mut cgroup_fds = Vec::new();
        let mut cgroup_paths = Vec::new();
        for path in &self.cgroups {
            match File::options().write(true).open(path) {
                Ok(file) => {
                    let moved = above(file.as_fd())?;
                    cgroup_fds.push(moved.as_raw_fd());
                    cgroup_paths.push(path);
                    held.push(moved);
                }
                Err(source) => refusals.push(CgroupRefusal {
                    path: path.clone(),
                    source,
                }),
            }
        }
        let limits: Vec<(u32, libc::rlimit)> = self
            .limits
            .iter()
            .map(|(resource, soft, hard)| {
                let limit = libc::rlimit {
                    rlim_cur: *soft,
                    rlim_max: *hard,
                };
                (*resource, limit)
            })
            .collect();
        let close = gaps(&fds);
        let argv_pointers = pointers(&argv);
        let envp_pointers = pointers(&envp);
        let target = match (&path, &target_fd) {
            (Some(path), _) => Target::Path(path),
            (None, Some(fd)) => Target::Fd(fd.as_raw_fd()),
            (None, None) => Target::Fd(-1),
        };
        let prepared = Prepared {
            target,
            argv: &argv_pointers,
            envp: &envp_pointers,
            fds: &fds,
            close: &close,
            cgroups: &cgroup_fds,
            namespaces: &namespaces,
            limits: &limits,
            directory: directory.as_deref(),
            new_session: self.new_session,
            report: report.as_raw_fd(),
        };
        let (pid, pidfd) =
            clone_and_exec(&prepared, self.unshare).map_err(|e| step("cloning the process")(e.into()))?;
        drop(report);
        drop(held);

        // Not yet reaped, so the pid is still its own.
        let at = identity::start_time(pid).ok().flatten().unwrap_or(0);
        let child = Child::new(pid, at, pidfd);
        let outcome = read_reports(File::from(reports)).map_err(step("waiting for its exec"));
        let fatal = match outcome {
            Err(error) => Some(error),
            Ok(reports) => {
                let mut limit_refusals = Vec::new();
                let mut fatal = None;
                for (what, index, source) in reports {
                    match what {
                        Step::Cgroup => refusals.extend(cgroup_paths.get(index).map(|path| CgroupRefusal {
                            path: (*path).clone(),
                            source,
                        })),
                        Step::Limit => {
                            limit_refusals.extend(self.limits.get(index).map(|limit| (limit.0, source)));
                        }
                        other => fatal = Some(self.fatal(other, index, source)),
                    }
                }
                match fatal {
                    None => {
                        return Ok(Started {
                            child,
                            cgroup_refusals: refusals,
                            limit_refusals,
                        });
                    }
                    fatal => fatal,
                }
            }
        };
        // It is about to exit by itself, or stuck: either way it must not stay.
        let _ = child.kill_and_wait(EXEC_DEADLINE);
        Err(fatal.unwrap_or_else(|| step("waiting for its exec")(io::ErrorKind::Other.into())))
    }

    fn fatal(&self, step: Step, index: usize, source: io::Error) -> SpawnError {
        let named = |step| SpawnError::Step {
            program: self.name.clone(),
            step,
            source: io::Error::from_raw_os_error(source.raw_os_error().unwrap_or(libc::EIO)),
        };
        match step {
            Step::Exec => SpawnError::Program {
                program: self.name.clone(),
                source,
            },
            Step::Namespace => match self.enter.get(index) {
                Some((kind, _)) => SpawnError::Namespace { kind: *kind, source },
                None => named("entering a namespace"),
            },
            Step::Session => named("making a new session"),
            Step::Directory => named("changing directory"),
            Step::Descriptor => named("placing a descriptor"),
            Step::CloseRange => named("closing other descriptors"),
            Step::Cgroup | Step::Limit => named("preparing"),
        }
    }

    /// The file to execute: names without `/` are looked up in `PATH`.
    fn resolve(&self, program: &Path) -> Result<PathBuf, SpawnError> {
        if program.as_os_str().as_bytes().contains(&b'/') {
            return Ok(program.to_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let mut source = Errno::ENOENT;
        for directory in std::env::split_paths(&path) {
            let candidate = directory.join(program);
            match nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK) {
                Ok(()) if candidate.is_file() => return Ok(candidate),
                Err(Errno::EACCES) => source = Errno::EACCES,
                _ => {}
            }
        }
        Err(SpawnError::Program {
            program: program.to_owned(),
            source: source.into(),
        })
    }

    fn highest_number(&self) -> Result<RawFd, SpawnError> {
        let mut numbers: Vec<RawFd> = self.fds.iter().map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        let twice = numbers
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| pair[0]);
        let negative = numbers.first().copied().filter(|n| *n < 0);
        match twice.or(negative) {
            Some(number) => Err(SpawnError::Number { number }),
            None => Ok(numbers.last().copied().unwrap_or(0).max(2)),
        }
    }
}

/// setns(2) for the calling thread.
pub(crate) fn set_namespace(target: BorrowedFd<'_>, flag: i32) -> nix::Result<()> {
    nix::sched::setns(target, nix::sched::CloneFlags::from_bits_retain(flag))
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

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
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
fn gaps(fds: &[(RawFd, RawFd)]) -> Vec<(u32, u32)> {
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

fn clone_and_exec(prepared: &Prepared<'_>, namespaces: i32) -> nix::Result<(i32, OwnedFd)> {
    // A handler of ours must not run in the child before its dispositions were reset.
    let mut before = SigSet::empty();
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let result = clone3(prepared, namespaces);
    nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    result
}

fn clone3(prepared: &Prepared<'_>, namespaces: i32) -> nix::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD | namespaces) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is fork(2): the child gets a copy of this memory and of this thread.
    // The child makes nothing but system calls before exec or _exit, so locks held by other threads of the
    // parent are never touched.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        // SAFETY: this is the new process, signals are blocked, `prepared` was copied along.
        unsafe { exec::become_program(prepared) }
    }
    let pid = i32::try_from(Errno::result(pid)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: with CLONE_PIDFD a successful clone3 stored a new close-on-exec descriptor there.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Reads until exec (or the child's end) closes the pipe.
fn read_reports(mut pipe: File) -> io::Result<Vec<(Step, usize, io::Error)>> {
    let deadline = Deadline::after(EXEC_DEADLINE);
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * REPORT_BYTES];
    loop {
        if !deadline::readable(pipe.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match pipe.read(&mut buffer)? {
            0 => break,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
    let word = |chunk: &[u8], at: usize| {
        chunk
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    };
    Ok(bytes
        .chunks_exact(REPORT_BYTES)
        .filter_map(|chunk| {
            let step = Step::from_number(word(chunk, 0))?;
            let errno = i32::try_from(word(chunk, 8)).unwrap_or(libc::EIO);
            Some((step, word(chunk, 4) as usize, io::Error::from_raw_os_error(errno)))
        })
        .collect())
}
