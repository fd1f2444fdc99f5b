//! A container's own process, from the clone to execve(2).
//!
//! ```text
//!  clone ─► (user namespace) ─► names, sysctls, cgroup and time namespace ─► root ─► Born
//!        ─► attributes ─► program found ─► Ready … go ─► hooks ─► seal ─► execve
//! ```
//!
//! Owns: that order. Never: returns.

use super::attributes::AttributeError;
use super::hooks::{self, HookError};
use super::order::Refusal;
use super::plan::{Plan, flag};
use super::root::{Root, RootError};
use super::terminal;
use super::voice::{self, Voice};
use crate::program::{Program, ProgramError};
use crate::sys::fork::{self, Side};
use crate::sys::{keyring, names, signals};
use bulkhead_model::FailureKind;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a process that did not become its program ends with.
pub(super) const FAILED: i32 = 255;

/// Why it did not.
#[derive(Debug, thiserror::Error)]
enum BirthError {
    #[error("{what}")]
    Call {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("setting {path:?} to {value:?}")]
    Setting {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Hook(#[from] HookError),
}

impl BirthError {
    fn refusal(self) -> Refusal {
        match self {
            Self::Program(error) => Refusal {
                kind: error.kind(),
                message: error.to_string(),
            },
            Self::Hook(error) => Refusal {
                kind: FailureKind::InvalidArgument,
                message: bulkhead_model::failure::chain(&error),
            },
            other => Refusal::internal("container setup", &other),
        }
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BirthError {
    move |error| BirthError::Call {
        what,
        source: error.into(),
    }
}

/// Becomes the container's process. `mapped` ends or says a word once the maps of a new user namespace are written.
/// Returns what to end with.
pub(super) fn run(plan: &Plan, voice: &Voice, stdio: Vec<OwnedFd>, mapped: Option<PipeReader>) -> i32 {
    let program = match prepare(plan, voice, stdio, mapped) {
        Ok(Some(program)) => program,
        Ok(None) => return 0,
        Err(error) => {
            voice.refused(error.refusal());
            return FAILED;
        }
    };
    match voice.wait() {
        Ok(true) => {}
        // Nobody will ever start it.
        _ => return FAILED,
    }
    if let Err(error) = last_steps(plan) {
        voice.refused(error.refusal());
        return FAILED;
    }
    let error = program.run();
    // Its standard error is the user's: say there what went wrong, as runc does.
    let text = format!(
        "exec {}: {}\n",
        program.path.to_string_lossy(),
        error.desc().to_lowercase()
    );
    let _ = io::stderr().write_all(text.as_bytes());
    FAILED
}

fn last_steps(plan: &Plan) -> Result<(), BirthError> {
    hooks::run(&plan.hooks, &plan.state)?;
    Ok(plan.attributes.seal()?)
}

/// `None`: another process goes on in the place of this one.
fn prepare(
    plan: &Plan,
    voice: &Voice,
    stdio: Vec<OwnedFd>,
    mapped: Option<PipeReader>,
) -> Result<Option<Program>, BirthError> {
    signals::reset();
    let pid = voice::outer_pid().map_err(failed("reading the own pid"))?;
    if let Some(mut mapped) = mapped {
        if mapped.read(&mut [0]).map_err(failed("waiting for the id maps"))? == 0 {
            // Who writes them has said why they are not there.
            return Ok(None);
        }
        become_root().map_err(failed("becoming root of the user namespace"))?;
    } else if plan.namespaces.user.is_none() {
        // In a user namespace the fork server did it: from inside it is not allowed.
        plan.attributes.set_score("/proc/self")?;
    }
    if let Some(path) = &plan.namespaces.user {
        plan.attributes.set_score("/proc/self")?;
        plan.attributes.set_limits(0)?;
        join(path)?;
        become_root().map_err(failed("becoming root of the user namespace"))?;
        match fork::replacement(plan.namespaces.new).map_err(failed("entering namespaces"))? {
            Side::Parent(_) => return Ok(None),
            Side::Child => {}
        }
    }
    let pid = if plan.namespaces.user.is_some() {
        voice::outer_pid().map_err(failed("reading the own pid"))?
    } else {
        pid
    };
    if let Some(name) = &plan.keyring
        && let Ok(name) = CString::new(name.as_str())
    {
        // A kernel without keyrings runs containers too.
        let _ = keyring::join_new_session(&name);
    }
    namespaces(plan)?;
    let root = Root::enter(plan)?;
    root.furnish(plan)?;
    let stdio = streams(plan, voice, pid, &root, stdio)?;
    root.seal(plan)?;
    terminal::take(&stdio, plan.attributes.terminal).map_err(failed("standard streams"))?;
    drop(stdio);
    if plan.foreign() & flag(libc::CLONE_NEWUSER) == 0 {
        plan.attributes.set_limits(0)?;
    }
    plan.attributes.apply()?;
    let program = plan.attributes.program()?;
    voice.ready().map_err(failed("telling the agent"))?;
    Ok(Some(program))
}

/// Tells the agent and gets the three standard descriptors; a terminal is at /dev/console too (runtime-spec).
fn streams(
    plan: &Plan,
    voice: &Voice,
    pid: i32,
    root: &Root,
    given: Vec<OwnedFd>,
) -> Result<[OwnedFd; 3], BirthError> {
    if !plan.attributes.terminal {
        voice.born(pid, None).map_err(failed("telling the agent"))?;
        let trouble = |given: Vec<OwnedFd>| BirthError::Call {
            what: "an order without its three descriptors",
            source: io::Error::other(format!("{} came", given.len())),
        };
        return given.try_into().map_err(trouble);
    }
    let (master, slave) = terminal::open(&plan.attributes).map_err(failed("opening a terminal"))?;
    voice
        .born(pid, Some(master.as_fd()))
        .map_err(failed("telling the agent"))?;
    if plan.own_devices {
        root.bind(&slave, Path::new("/dev/console"))
            .map_err(failed("binding /dev/console"))?;
    }
    terminal::triple(slave).map_err(failed("standard streams"))
}

fn namespaces(plan: &Plan) -> Result<(), BirthError> {
    for (_, path) in &plan.namespaces.join {
        join(path)?;
    }
    if plan.namespaces.late != 0 {
        let kinds = CloneFlags::from_bits_retain(i32::try_from(plan.namespaces.late).unwrap_or(0));
        unshare(kinds).map_err(failed("making namespaces"))?;
    }
    if !plan.clocks.is_empty() {
        set(Path::new("/proc/self/timens_offsets"), &plan.clocks.concat())?;
    }
    if let Some(name) = &plan.host {
        sethostname(name).map_err(failed("setting the host name"))?;
    }
    if let Some(name) = &plan.domain {
        names::set_domain(name).map_err(failed("setting the domain name"))?;
    }
    plan.sysctls.iter().try_for_each(|(path, value)| set(path, value))
}

fn set(path: &Path, value: &str) -> Result<(), BirthError> {
    fs::write(path, value).map_err(|source| BirthError::Setting {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn join(path: &Path) -> Result<(), BirthError> {
    File::open(path)
        .and_then(|file| Ok(setns(file, CloneFlags::empty())?))
        .map_err(failed("joining a namespace of the first container"))
}

/// Root of the user namespace this process is in.
pub(super) fn become_root() -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    // Denied in a namespace that has setgroups off; it then has no groups to lose either.
    let _ = setgroups(&[]);
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}
