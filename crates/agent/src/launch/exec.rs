//! A worker's job: a further process in a running container.
//!
//! ```text
//! worker: cgroup → namespaces of the target → terminal → fork
//! child:  session, stdio, attributes, program → execve; a failure goes into a pipe that execve closes
//! ```

use super::attributes;
use super::order::{ExecOrder, Launched, Refusal};
use super::server::three;
use crate::program::Program;
use crate::sys::fork::{self, Side};
use crate::sys::{pidfd, signals, tty};
use bulkhead_model::FailureKind;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::unistd::{
    Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setgroups, setresgid, setresuid, setsid,
};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// CLONE_NEWTIME of linux/sched.h.
const NEW_TIME: i32 = 0x80;

const NAMESPACES: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("time", NEW_TIME),
    ("mnt", libc::CLONE_NEWNS),
];

fn refuse(what: &'static str) -> impl Fn(std::io::Error) -> Refusal {
    move |error| Refusal::internal(what, &error)
}

pub(super) fn run(order: &ExecOrder, descriptors: Vec<OwnedFd>) -> Result<Launched, Refusal> {
    let target = pidfd::open(order.target).map_err(|_| not_running())?;
    let flags = foreign_namespaces(order.target).map_err(|_| not_running())?;
    if let Some(score) = order.process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(refuse("oom_score_adj"))?;
    }
    join_cgroup(&order.cgroup, order.target).map_err(refuse("joining the container's cgroup"))?;
    if !flags.is_empty() {
        setns(&target, flags)
            .map_err(|errno| Refusal::internal("joining the container's namespaces", &errno))?;
    }
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        become_root().map_err(|errno| Refusal::internal("becoming root of the user namespace", &errno))?;
    }
    let terminal = order.process.terminal().unwrap_or(false);
    let (master, stdio) = if terminal {
        let (master, slave) = open_terminal(order).map_err(refuse("opening a terminal in the container"))?;
        let copies = [slave.try_clone(), slave.try_clone()];
        let [Ok(second), Ok(third)] = copies else {
            return Err(Refusal::internal("terminal", &std::io::Error::last_os_error()));
        };
        (Some(master), [slave, second, third])
    } else {
        (None, three(descriptors)?)
    };
    let (mut verdict, writer) = std::io::pipe().map_err(refuse("pipe"))?;
    match fork::child().map_err(refuse("starting the process"))? {
        Side::Child => {
            drop((verdict, master));
            let refusal = become_process(order, &stdio, terminal);
            let text = serde_json::to_vec(&refusal).unwrap_or_default();
            let _ = (&writer).write_all(&text);
            std::process::exit(255);
        }
        Side::Parent(pid) => {
            drop((writer, stdio));
            let mut text = Vec::new();
            verdict.read_to_end(&mut text).map_err(refuse("pipe"))?;
            if text.is_empty() {
                return Ok(Launched {
                    pid: pid.as_raw(),
                    terminal: master,
                });
            }
            Err(serde_json::from_slice(&text).map_err(|error| Refusal::internal("process setup", &error))?)
        }
    }
}

fn not_running() -> Refusal {
    Refusal {
        kind: FailureKind::FailedPrecondition,
        message: "the container is not running".to_owned(),
    }
}

/// Only namespaces that differ: joining one's own user namespace is an error.
fn foreign_namespaces(target: i32) -> std::io::Result<CloneFlags> {
    let mut flags = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        let theirs = fs::read_link(format!("/proc/{target}/ns/{name}"));
        let ours = fs::read_link(format!("/proc/self/ns/{name}"));
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) if theirs != ours => flags |= CloneFlags::from_bits_retain(flag),
            (Err(error), Ok(_)) => return Err(error),
            // A kernel without this kind.
            _ => {}
        }
    }
    Ok(flags)
}

/// A container that manages cgroups itself may have moved its processes out of the top group, which then
/// takes none: then beside its first process.
fn join_cgroup(directory: &Path, target: i32) -> std::io::Result<()> {
    match fs::write(directory.join("cgroup.procs"), "0") {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let text = fs::read_to_string(format!("/proc/{target}/cgroup"))?;
            let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
                return Err(error);
            };
            fs::write(
                Path::new(crate::cgroup::MOUNT).join(path).join("cgroup.procs"),
                "0",
            )
        }
        other => other,
    }
}

fn become_root() -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    // Denied in a namespace that has setgroups off; it then has no groups to lose either.
    let _ = setgroups(&[]);
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// From the container's own devpts, so that `tty` finds it.
fn open_terminal(order: &ExecOrder) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let open = |path| File::options().read(true).write(true).open(path);
    let master = OwnedFd::from(open("/dev/pts/ptmx").or_else(|_| open("/dev/ptmx"))?);
    let slave = tty::open_peer(master.as_fd())?;
    let group = fstat(&slave)?.st_gid;
    fchown(
        &slave,
        Some(Uid::from_raw(order.process.user().uid())),
        Some(Gid::from_raw(group)),
    )?;
    if let Some(size) = order.process.console_size() {
        let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        tty::set_size(slave.as_fd(), cells(size.width()), cells(size.height()))?;
    }
    Ok((master, slave))
}

/// Returns only with the reason why it did not become the program.
fn become_process(order: &ExecOrder, stdio: &[OwnedFd; 3], terminal: bool) -> Refusal {
    let prepare = || -> std::io::Result<()> {
        setsid()?;
        if terminal {
            tty::make_controlling(stdio[0].as_fd())?;
        }
        dup2_stdin(&stdio[0])?;
        dup2_stdout(&stdio[1])?;
        dup2_stderr(&stdio[2])?;
        Ok(())
    };
    if let Err(error) = prepare() {
        return Refusal::internal("standard streams", &error);
    }
    if let Err(error) = attributes::apply(&order.process, order.seccomp.as_ref()) {
        return Refusal::internal("process setup", &error);
    }
    let program = match Program::resolve(&order.process) {
        Ok(program) => program,
        Err(error) => {
            return Refusal {
                kind: error.kind(),
                message: error.to_string(),
            };
        }
    };
    signals::reset();
    let errno = program.run();
    Refusal {
        kind: match errno {
            nix::errno::Errno::ENOENT => FailureKind::ProgramNotFound,
            _ => FailureKind::ProgramNotExecutable,
        },
        message: format!(
            "exec {}: {}",
            program.path.to_string_lossy(),
            errno.desc().to_lowercase()
        ),
    }
}
