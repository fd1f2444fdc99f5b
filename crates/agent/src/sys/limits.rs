//! prlimit(2), ioprio_set(2), sched_setattr(2), personality(2): numbers of a process the kernel keeps.
//!
//! Owns: the four calls. Never: what a container asks for. Called by `launch::attributes`.

use std::io;

fn outcome(done: libc::c_long) -> io::Result<()> {
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets a resource limit (`RLIMIT_*`) of process `pid`, 0 for the caller.
///
/// # Errors
/// The kernel's: `EPERM` for a hard limit above the present one without CAP_SYS_RESOURCE.
pub(crate) fn set(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the kernel reads one structure that outlives the call and writes none, the pointer for it being null.
    outcome(libc::c_long::from(unsafe {
        libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut())
    }))
}

/// Sets the I/O priority of the caller: class in bits 13 to 15, level below.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_io_priority(priority: i32) -> io::Result<()> {
    // SAFETY: integers; 1 is IOPRIO_WHO_PROCESS, 0 the caller.
    outcome(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, priority) })
}

/// `struct sched_attr` of linux/sched/types.h, its first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Scheduling {
    /// Size of this structure in bytes.
    pub(crate) size: u32,
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub(crate) nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub(crate) priority: u32,
    /// For SCHED_DEADLINE, nanoseconds.
    pub(crate) runtime: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub(crate) deadline: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub(crate) period: u64,
}

/// Sets how the caller is scheduled.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_scheduling(attributes: &Scheduling) -> io::Result<()> {
    // SAFETY: the kernel reads `size` bytes of a structure that outlives the call.
    outcome(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attributes), 0) })
}

/// Sets the execution domain (`PER_*`) of the caller.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: an integer.
    outcome(libc::c_long::from(unsafe { libc::personality(domain) }))
}
