//! A further process in a running container, from the clone to execve(2).
//!
//! ```text
//!  clone (in the container's cgroup and pid namespace) ─► other namespaces ─► terminal ─► Born
//!        ─► attributes ─► program found ─► seal ─► execve
//! ```
//!
//! Owns: that order. Never: returns.

use super::attributes::{AttributeError, Attributes};
use super::birth::{FAILED, become_root};
use super::order::{ExecOrder, Refusal};
use super::plan::flag;
use super::terminal;
use super::voice::{self, Voice};
use crate::program::{Program, ProgramError};
use crate::sys::signals;
use bulkhead_model::FailureKind;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Why it did not become its program.
#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("{what}")]
    Call {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ExecError {
    move |error| ExecError::Call {
        what,
        source: error.into(),
    }
}

/// Becomes the process; `target` is one of the container. Returns what to end with.
pub(super) fn run(order: &ExecOrder, voice: &Voice, target: &OwnedFd, stdio: Vec<OwnedFd>) -> i32 {
    let refusal = match prepare(order, voice, target, stdio) {
        Ok(program) => {
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
        Err(ExecError::Program(error)) => Refusal {
            kind: error.kind(),
            message: error.to_string(),
        },
        Err(error) => Refusal::internal("process setup", &error),
    };
    voice.refused(refusal);
    FAILED
}

fn prepare(
    order: &ExecOrder,
    voice: &Voice,
    target: &OwnedFd,
    stdio: Vec<OwnedFd>,
) -> Result<Program, ExecError> {
    let attributes = &order.attributes;
    signals::reset();
    let pid = voice::outer_pid().map_err(failed("reading the own pid"))?;
    attributes.set_score("/proc/self")?;
    // The pid namespace it was born into.
    let rest = order.namespaces & !flag(libc::CLONE_NEWPID);
    let in_users = rest & flag(libc::CLONE_NEWUSER) != 0;
    if in_users {
        // From inside it is not allowed.
        attributes.set_limits(0)?;
    }
    if rest != 0 {
        let kinds = CloneFlags::from_bits_retain(i32::try_from(rest).unwrap_or(0));
        setns(target, kinds).map_err(failed("joining the container's namespaces"))?;
    }
    if in_users {
        become_root().map_err(failed("becoming root of the user namespace"))?;
    }
    let stdio = streams(attributes, voice, pid, stdio)?;
    terminal::take(&stdio, attributes.terminal).map_err(failed("standard streams"))?;
    drop(stdio);
    if !in_users {
        attributes.set_limits(0)?;
    }
    attributes.apply()?;
    let program = attributes.program()?;
    attributes.seal()?;
    Ok(program)
}

fn streams(
    attributes: &Attributes,
    voice: &Voice,
    pid: i32,
    given: Vec<OwnedFd>,
) -> Result<[OwnedFd; 3], ExecError> {
    if !attributes.terminal {
        voice.born(pid, None).map_err(failed("telling the agent"))?;
        let trouble = |given: Vec<OwnedFd>| ExecError::Call {
            what: "an order without its three descriptors",
            source: io::Error::other(format!("{} came", given.len())),
        };
        return given.try_into().map_err(trouble);
    }
    let (master, slave) = terminal::open(attributes).map_err(failed("opening a terminal"))?;
    voice
        .born(pid, Some(master.as_fd()))
        .map_err(failed("telling the agent"))?;
    terminal::triple(slave).map_err(failed("standard streams"))
}
