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
use super::prepare::{Plumbing, Words, gaps, pointers};
use super::{Child, Namespace, identity};
use crate::deadline::{self, Deadline};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between clone and exec only a few system calls are made; this much is for a machine out of memory.
const EXEC_DEADLINE: Duration = Duration::from_secs(60);

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
pub(super) enum Program {
    Path(PathBuf),
    Fd(OwnedFd),
}

/// A process to be started.
#[derive(Debug)]
pub struct Spawn {
    pub(super) program: Program,
    pub(super) name: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<OsString>,
    pub(super) fds: Vec<(OwnedFd, RawFd)>,
    pub(super) cgroups: Vec<PathBuf>,
    pub(super) enter: Vec<(Namespace, OwnedFd)>,
    pub(super) unshare: i32,
    pub(super) limits: Vec<(u32, u64, u64)>,
    pub(super) directory: Option<PathBuf>,
    pub(super) new_session: bool,
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

    /// Gives it several descriptors, or one that may be absent.
    #[must_use]
    pub fn fds(mut self, fds: impl IntoIterator<Item = (OwnedFd, RawFd)>) -> Self {
        self.fds.extend(fds);
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
        let words = Words::of(&self)?;
        let mut plumbing = Plumbing::lay(&self)?;
        let limits = self.kernel_limits();
        let close = gaps(&plumbing.fds);
        let (argv, envp) = (pointers(&words.argv), pointers(&words.envp));
        let target = match (&words.path, &plumbing.program) {
            (Some(path), _) => Target::Path(path),
            (None, Some(fd)) => Target::Fd(fd.as_raw_fd()),
            // One of the two is always there; execveat refuses this one.
            (None, None) => Target::Fd(-1),
        };
        let prepared = Prepared {
            target,
            argv: &argv,
            envp: &envp,
            fds: &plumbing.fds,
            close: &close,
            cgroups: &plumbing.cgroups,
            namespaces: &plumbing.namespaces,
            limits: &limits,
            directory: words.directory.as_deref(),
            new_session: self.new_session,
            report: plumbing.report.as_raw_fd(),
        };
        let (pid, pidfd) = clone_and_exec(&prepared, self.unshare)
            .map_err(|errno| self.failed("cloning the process", errno.into()))?;
        let refusals = std::mem::take(&mut plumbing.refusals);
        let cgroup_paths = std::mem::take(&mut plumbing.cgroup_paths);
        // The write end among it: reading ends when the child's copy closes.
        let reports = plumbing.into_reports();

        // Not yet reaped, so the pid is still its own.
        let at = identity::start_time(pid).ok().flatten().unwrap_or(0);
        let started = Started {
            child: Child::new(pid, at, pidfd),
            cgroup_refusals: refusals,
            limit_refusals: Vec::new(),
        };
        self.outcome(started, reports, &cgroup_paths)
    }

    /// Waits until the child runs its program and sorts its reports. A child that failed is gone afterwards.
    fn outcome(
        &self,
        mut started: Started,
        reports: File,
        cgroups: &[PathBuf],
    ) -> Result<Started, SpawnError> {
        let mut fatal = None;
        match read_reports(reports) {
            Err(source) => fatal = Some(self.failed("waiting for its exec", source)),
            Ok(reports) => {
                for (step, index, source) in reports {
                    match step {
                        Step::Cgroup => {
                            let refusal = |path: &PathBuf| CgroupRefusal {
                                path: path.clone(),
                                source,
                            };
                            started.cgroup_refusals.extend(cgroups.get(index).map(refusal));
                        }
                        Step::Limit => {
                            let limit = self.limits.get(index).map(|limit| (limit.0, source));
                            started.limit_refusals.extend(limit);
                        }
                        other => fatal = Some(self.fatal(other, index, source)),
                    }
                }
            }
        }
        match fatal {
            None => Ok(started),
            Some(error) => {
                // It is about to exit by itself, or stuck: either way it must not stay.
                let _ = started.child.kill_and_wait(EXEC_DEADLINE);
                Err(error)
            }
        }
    }

    fn kernel_limits(&self) -> Vec<(u32, libc::rlimit)> {
        self.limits
            .iter()
            .map(|(resource, soft, hard)| {
                let limit = libc::rlimit {
                    rlim_cur: *soft,
                    rlim_max: *hard,
                };
                (*resource, limit)
            })
            .collect()
    }

    pub(super) fn failed(&self, step: &'static str, source: io::Error) -> SpawnError {
        SpawnError::Step {
            program: self.name.clone(),
            step,
            source,
        }
    }

    fn fatal(&self, step: Step, index: usize, source: io::Error) -> SpawnError {
        let what = match step {
            Step::Exec => {
                return SpawnError::Program {
                    program: self.name.clone(),
                    source,
                };
            }
            Step::Namespace => match self.enter.get(index) {
                Some((kind, _)) => return SpawnError::Namespace { kind: *kind, source },
                None => "entering a namespace",
            },
            Step::Session => "making a new session",
            Step::Directory => "changing directory",
            Step::Descriptor => "placing a descriptor",
            Step::CloseRange => "closing other descriptors",
            Step::Cgroup | Step::Limit => "preparing",
        };
        self.failed(what, source)
    }

    /// The file to execute: names without `/` are looked up in `PATH`.
    pub(super) fn resolve(&self, program: &Path) -> Result<PathBuf, SpawnError> {
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

    pub(super) fn highest_number(&self) -> Result<RawFd, SpawnError> {
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
