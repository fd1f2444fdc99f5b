//! A process that is there before its container: it waits in the cgroup that was set aside for the first one.
//!
//! ```text
//!  rehearsal ─► clone into the cgroup, new pid and ipc namespace ─► waits ─order─► `birth`, as after a clone
//!                                                                    └ dismissed: ends
//! ```
//! A template is saved with it. A clone of that finds the process made, which in a translated guest takes as long as all
//! that it does afterwards. What depends on the sandbox is not in it: mounts (the share is not there yet) and names are
//! copied from the guest's when the order comes.
//!
//! Owns: the agent's end. What the process does is in `server`. Called by `engine`.

use super::launcher::Waiting;
use super::plan::flag;
use crate::sys::pidfd;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The kinds of namespaces (`CLONE_NEW*`) it has of its own: new ones are alike in every sandbox.
pub(super) const KINDS: u64 = flag(libc::CLONE_NEWPID) | flag(libc::CLONE_NEWIPC);

/// For a process that has nothing to do but to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// The process. Dropped, it ends without being waited for.
#[derive(Debug)]
pub(crate) struct Reserve {
    pub(super) orders: UnixStream,
    pub(super) waiting: Waiting,
    pub(super) process: OwnedFd,
}

impl Reserve {
    /// Ends it, for a container that it does not suit: nothing in the cgroup counts it afterwards.
    ///
    /// # Errors
    /// It is still there after a minute.
    pub(crate) fn dismiss(self) -> io::Result<()> {
        drop(self.orders);
        pidfd::ended(&self.process, DEADLINE)
    }
}
