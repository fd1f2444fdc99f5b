//! What a process sets on itself on its way from the agent's privileges to the user's.
//!
//! ```text
//!  Attributes::of (agent) ─► order ─► apply ─► (a container's own: waits for its start, hooks) ─► seal ─► execve
//! ```
//!
//! Owns: the order, which is the whole point: resource limits and files while still root, seccomp before the
//! capabilities go unless no-new-privileges stands, user last. Called by the children of the fork server.

use super::filter::Filter;
use super::privileges::Privileges;
use crate::program::{Program, ProgramError};
use crate::sys::capabilities;
use crate::sys::limits::{self, Scheduling};
use bulkhead_model::oci::{
    IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimitType, Process,
};
use nix::sys::prctl::{set_keepcaps, set_no_new_privs};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limit {
    resource: u32,
    soft: u64,
    hard: u64,
}

/// What holds for every process of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Its seccomp filter.
    pub(crate) filter: Option<Filter>,
    /// Its execution domain (`PER_*`).
    pub(crate) personality: Option<u64>,
}

/// Everything a process is but its program's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    /// Arguments, its name first.
    pub(super) arguments: Vec<String>,
    /// `NAME=value`, in order.
    pub(super) environment: Vec<String>,
    /// User id inside.
    pub(super) uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: u32,
    directory: PathBuf,
    limits: Vec<Limit>,
    privileges: Privileges,
    no_new_privileges: bool,
    oom_score_adj: Option<i32>,
    scheduling: Option<Scheduling>,
    io_priority: Option<i32>,
    confinement: Confinement,
    /// It gets a terminal.
    pub(super) terminal: bool,
    /// Width and height of that, in characters.
    pub(super) size: Option<(u16, u16)>,
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttributeError {
    /// The working directory.
    #[error("chdir to cwd ({path:?}) set in config.json failed")]
    Directory {
        /// Where to.
        path: PathBuf,
        /// Why not.
        #[source]
        source: nix::errno::Errno,
    },
    /// A system call.
    #[error("setting {what}")]
    Call {
        /// Which attribute.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> AttributeError {
    move |error| AttributeError::Call {
        what,
        source: error.into(),
    }
}

impl Attributes {
    /// From the spec's process and what its container gives to each of its processes.
    pub(crate) fn of(process: &Process, confinement: Confinement) -> Self {
        let user = process.user();
        let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        Self {
            arguments: process.args().clone().unwrap_or_default(),
            environment: process.env().clone().unwrap_or_default(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022),
            directory: process.cwd().clone(),
            limits: process
                .rlimits()
                .iter()
                .flatten()
                .map(|limit| Limit {
                    resource: resource(limit.typ()),
                    soft: limit.soft(),
                    hard: limit.hard(),
                })
                .collect(),
            privileges: process
                .capabilities()
                .as_ref()
                .map(Privileges::of)
                .unwrap_or_default(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            scheduling: process.scheduler().as_ref().map(|given| Scheduling {
                size: size_of::<Scheduling>() as u32,
                policy: policy(*given.policy()),
                flags: given
                    .flags()
                    .iter()
                    .flatten()
                    .fold(0, |all, flag| all | scheduler_flag(*flag)),
                nice: given.nice().unwrap_or(0),
                priority: given.priority().unwrap_or(0).unsigned_abs(),
                runtime: given.runtime().unwrap_or(0),
                deadline: given.deadline().unwrap_or(0),
                period: given.period().unwrap_or(0),
            }),
            io_priority: process.io_priority().as_ref().map(|given| {
                let class = match given.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                class << 13 | i32::try_from(given.priority()).unwrap_or(0) & 0x1fff
            }),
            confinement,
            terminal: process.terminal().unwrap_or(false),
            size: process
                .console_size()
                .as_ref()
                .map(|size| (cells(size.width()), cells(size.height()))),
        }
    }

    /// What holds for other processes of its container too.
    pub(super) const fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// Finds the program; to be asked as the user and in the working directory.
    pub(super) fn program(&self) -> Result<Program, ProgramError> {
        Program::resolve(&self.arguments, &self.environment, self.uid)
    }

    /// Sets the score the kernel chooses by when memory runs out. `proc` is the process's directory in /proc. Lowering it
    /// takes the owner of the first user namespace.
    pub(super) fn set_score(&self, proc: &str) -> Result<(), AttributeError> {
        match self.oom_score_adj {
            Some(score) => std::fs::write(format!("{proc}/oom_score_adj"), score.to_string())
                .map_err(failed("oom_score_adj")),
            None => Ok(()),
        }
    }

    /// Sets the resource limits of process `pid`, 0 for the caller. Raising them takes the owner of the first user
    /// namespace.
    pub(super) fn set_limits(&self, pid: i32) -> Result<(), AttributeError> {
        self.limits.iter().try_for_each(|limit| {
            limits::set(pid, limit.resource, limit.soft, limit.hard).map_err(failed("rlimit"))
        })
    }

    /// Becomes what it says, all but the program and, under no-new-privileges, the seccomp filter.
    pub(super) fn apply(&self) -> Result<(), AttributeError> {
        if let Some(domain) = self.confinement.personality {
            limits::set_personality(domain).map_err(failed("personality"))?;
        }
        if let Some(scheduling) = &self.scheduling {
            limits::set_scheduling(scheduling).map_err(failed("scheduler"))?;
        }
        if let Some(priority) = self.io_priority {
            limits::set_io_priority(priority).map_err(failed("ioPriority"))?;
        }
        umask(Mode::from_bits_truncate(self.umask));
        if self.no_new_privileges {
            set_no_new_privs().map_err(failed("no-new-privileges"))?;
        }
        // First as root: the user may not be allowed to pass through a parent directory. Some file systems
        // deny root (root_squash): then once more as the user.
        let early = chdir(&self.directory);
        capabilities::bound(self.privileges.bounding).map_err(failed("capabilities"))?;
        if !self.no_new_privileges {
            self.install_filter()?;
        }
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups).map_err(failed("supplementary groups"))?;
        // Capabilities are taken away below, exactly; a change of user alone must not drop those to be kept.
        set_keepcaps(true).map_err(failed("keep-capabilities"))?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setresgid(gid, gid, gid).map_err(failed("group"))?;
        setresuid(uid, uid, uid).map_err(failed("user"))?;
        let Privileges {
            effective,
            permitted,
            inheritable,
            ambient,
            ..
        } = self.privileges;
        capabilities::set(effective, permitted, inheritable).map_err(failed("capabilities"))?;
        // The kernel takes no others; specs name some, and runc leaves those out too.
        let ambient = ambient & permitted & inheritable;
        if ambient != 0 {
            capabilities::ambient(ambient).map_err(failed("ambient capabilities"))?;
        }
        if early.is_err() {
            chdir(&self.directory).map_err(|source| AttributeError::Directory {
                path: self.directory.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// The last step before the program: only execve(2) follows.
    pub(super) fn seal(&self) -> Result<(), AttributeError> {
        if self.no_new_privileges {
            self.install_filter()?;
        }
        Ok(())
    }

    fn install_filter(&self) -> Result<(), AttributeError> {
        match &self.confinement.filter {
            Some(filter) => filter.install().map_err(failed("seccomp filter")),
            None => Ok(()),
        }
    }
}

const fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// SCHED_* of linux/sched.h.
const fn policy(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

/// SCHED_FLAG_* of linux/sched.h.
const fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}
