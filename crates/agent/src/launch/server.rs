//! The fork server: one thread, one order at a time is taken, each becomes one process by one clone.
//!
//! ```text
//!  order ─► pid namespace to be born into ─► clone3 (agent's child, in its cgroup, new namespaces)
//!        ─► maps of a new user namespace ─► next order          the child does the rest, and answers
//! ```
//! One child (see `reserve`) waits for an order of its own before it does the rest.
//!
//! Never: keeps state, waits for a process it has made.

use super::birth::FAILED;
use super::order::{Order, Refusal};
use super::plan::{Plan, UserMaps, flag};
use super::reserve::KINDS;
use super::voice::{self, Voice};
use super::{birth, exec};
use crate::sys::fork::{self, Side};
use crate::sys::{pidfd, rights};
use bulkhead_model::FailureKind;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What comes with an order.
struct Descriptors {
    voice: Voice,
    cgroup: OwnedFd,
    stdio: Vec<OwnedFd>,
}

/// Serves orders until the agent is gone.
pub(super) fn serve(orders: UnixStream) -> io::Result<()> {
    let own = File::open("/proc/self/ns/pid")?;
    while let Some((body, descriptors)) = rights::receive(&orders)? {
        let mut descriptors = descriptors.into_iter();
        let Some(voice) = descriptors.next().map(Voice::new) else {
            continue;
        };
        let order = match postcard::from_bytes::<Order>(&body) {
            Ok(order) => order,
            Err(error) => {
                voice.refused(Refusal::internal("order", &error));
                continue;
            }
        };
        let Some(cgroup) = descriptors.next() else {
            voice.refused(Refusal::internal(
                "order",
                &io::Error::other("it came without a cgroup"),
            ));
            continue;
        };
        let descriptors = Descriptors {
            voice,
            cgroup,
            stdio: descriptors.collect(),
        };
        match &order {
            Order::Create(plan) => create(plan, descriptors, &own),
            Order::Exec(order) => run(order, descriptors, &own),
            Order::Reserve => {
                if let Some((voice, stdio)) = reserve(descriptors) {
                    // It outlasts this order: the agent is to notice when the server ends.
                    drop((orders, own));
                    std::process::exit(stand_by(&voice, stdio));
                }
            }
        }
    }
    Ok(())
}

/// Makes the process that `reserve` is about; in that, its voice and what came with the order.
fn reserve(descriptors: Descriptors) -> Option<(Voice, Vec<OwnedFd>)> {
    let Descriptors { voice, cgroup, stdio } = descriptors;
    match fork::sibling(KINDS, cgroup.as_fd()) {
        Ok(Side::Child) => return Some((voice, stdio)),
        Ok(Side::Parent(_)) => {}
        Err(error) => voice.refused(Refusal::internal("making a process that waits", &error)),
    }
    None
}

/// Becomes the process of the container that is ordered, if one ever is. Returns what to end with.
fn stand_by(voice: &Voice, stdio: Vec<OwnedFd>) -> i32 {
    let ready = voice::outer_pid()
        .and_then(|pid| voice.born(pid, None))
        .and_then(|()| voice.ready());
    let (Ok(()), Some(orders)) = (ready, stdio.into_iter().next()) else {
        return FAILED;
    };
    // Dismissed, or without an agent: then there is nothing to say, and nobody who listens.
    let Ok(Some((body, stdio))) = rights::receive(&UnixStream::from(orders)) else {
        return FAILED;
    };
    match postcard::from_bytes(&body) {
        Ok(Order::Create(mut plan)) => {
            plan.employ();
            birth::run(&plan, voice, stdio, None)
        }
        Ok(_) => FAILED,
        Err(error) => {
            voice.refused(Refusal::internal("order", &error));
            FAILED
        }
    }
}

/// Children are born into this pid namespace until [`leave`].
fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWPID)?)
}

/// A server that can no longer make processes for others than the last container must not go on.
fn leave(own: &File) {
    if setns(own, CloneFlags::CLONE_NEWPID).is_err() {
        std::process::exit(1);
    }
}

fn create(plan: &Plan, descriptors: Descriptors, own: &File) {
    let Descriptors { voice, cgroup, stdio } = descriptors;
    if let Some(path) = &plan.namespaces.pid
        && let Err(error) = File::open(path).and_then(enter)
    {
        return voice.refused(Refusal::internal("joining a pid namespace", &error));
    }
    let gate = plan.users.is_some().then(io::pipe).transpose();
    let (mapped, tell): (Option<PipeReader>, Option<PipeWriter>) = match gate {
        Ok(gate) => gate.unzip(),
        Err(error) => return voice.refused(Refusal::internal("pipe", &error)),
    };
    // Everything new has to be made from inside a user namespace that is joined.
    let new = if plan.namespaces.user.is_some() {
        0
    } else {
        plan.namespaces.new
    };
    let made = fork::sibling(new, cgroup.as_fd());
    if plan.namespaces.pid.is_some() && !matches!(made, Ok(Side::Child)) {
        leave(own);
    }
    match made {
        Ok(Side::Child) => {
            drop((tell, cgroup));
            let code = birth::run(plan, &voice, stdio, mapped);
            std::process::exit(code);
        }
        Ok(Side::Parent(pid)) => {
            drop(mapped);
            if let (Some(mut tell), Some(maps)) = (tell, &plan.users) {
                match map(plan, pid.as_raw(), maps) {
                    // It may have been killed meanwhile.
                    Ok(()) => drop(tell.write_all(b"m")),
                    Err(refusal) => voice.refused(refusal),
                }
            }
        }
        Err(error) => voice.refused(Refusal::internal("making the container's process", &error)),
    }
}

/// What only the owner of the outer user namespace may do.
fn map(plan: &Plan, pid: i32, maps: &UserMaps) -> Result<(), Refusal> {
    let proc = format!("/proc/{pid}");
    for (file, map) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let lines: String = map
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
            .collect();
        fs::write(Path::new(&proc).join(file), lines)
            .map_err(|error| Refusal::internal("mapping the ids of the user namespace", &error))?;
    }
    plan.attributes
        .set_score(&proc)
        .and_then(|()| plan.attributes.set_limits(pid))
        .map_err(|error| Refusal::internal("container setup", &error))
}

fn run(order: &super::order::ExecOrder, descriptors: Descriptors, own: &File) {
    let Descriptors { voice, cgroup, stdio } = descriptors;
    let gone = || Refusal {
        kind: FailureKind::FailedPrecondition,
        message: "the container is not running".to_owned(),
    };
    let Ok(target) = pidfd::open(order.target) else {
        return voice.refused(gone());
    };
    let joins = order.namespaces & flag(libc::CLONE_NEWPID) != 0;
    if joins && enter(target.as_fd()).is_err() {
        return voice.refused(gone());
    }
    let made = fork::sibling(0, cgroup.as_fd()).or_else(|error| {
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            // A container that manages cgroups itself may have moved its processes out of the top group, which then
            // takes none: then beside its first process.
            Errno::EBUSY | Errno::EOPNOTSUPP => {
                let beside = cgroup_of(order.target)?;
                fork::sibling(0, beside.as_fd())
            }
            _ => Err(error),
        }
    });
    if joins && !matches!(made, Ok(Side::Child)) {
        leave(own);
    }
    match made {
        Ok(Side::Child) => {
            drop(cgroup);
            let code = exec::run(order, &voice, &target, stdio);
            std::process::exit(code);
        }
        Ok(Side::Parent(_)) => {}
        // The pid namespace has ended.
        Err(error) if joins && error.raw_os_error() == Some(libc::ENOMEM) => voice.refused(gone()),
        Err(error) => voice.refused(Refusal::internal("making the process", &error)),
    }
}

/// The cgroup a process is in.
fn cgroup_of(pid: i32) -> io::Result<File> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    File::open(Path::new(crate::cgroup::MOUNT).join(path))
}
