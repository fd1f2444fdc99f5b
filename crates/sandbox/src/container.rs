//! What the engine knows of one container and its processes.
//!
//! Owns: the record. Never: changing the world; the verbs do. Called by the engine's task only.

use crate::command::Notice;
use crate::share::Share;
use bulkhead_model::{
    ContainerPlan, ContainerSnapshot, ExecId, ExitStatus, HostProcess, IllegalMove, ProcessSnapshot, State,
    oci,
};
use bulkhead_protocol::GuestStdio;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// How many execs that have ended are remembered, for late waiters.
const KEPT_EXECS: usize = 16;

/// Tells a stub; closed when the stub is gone.
pub type Notices = mpsc::UnboundedSender<Notice>;

/// One process.
#[derive(Debug, Default)]
pub struct Process {
    /// The stub standing for it (C-04).
    pub host: Option<HostProcess>,
    /// Its streams.
    pub stdio: GuestStdio,
    /// Its stub's ear.
    pub notices: Option<Notices>,
    /// Pid in the guest.
    pub guest_pid: Option<i32>,
    /// How it ended.
    pub exit: Option<ExitStatus>,
    /// All of its output reached the sinks.
    pub delivered: bool,
    /// Nanoseconds since the Unix epoch.
    pub started_ns: Option<u64>,
    /// Nanoseconds since the Unix epoch.
    pub exited_ns: Option<u64>,
}

impl Process {
    /// Sends a notice to the stub, if it is still there.
    pub fn tell(&self, notice: Notice) {
        if let Some(ear) = &self.notices {
            // A stub that is gone needs no notice.
            let _ = ear.send(notice);
        }
    }

    /// As readers see it.
    #[must_use]
    pub fn snapshot(&self, exec: Option<ExecId>) -> ProcessSnapshot {
        ProcessSnapshot {
            exec,
            host: self.host,
            guest_pid: self.guest_pid,
            exit: self.exit,
            delivered: self.delivered,
            stdio: (self.stdio.stdin, self.stdio.stdout, self.stdio.stderr),
            started_ns: self.started_ns,
            exited_ns: self.exited_ns,
        }
    }
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// What it is to be.
    pub plan: ContainerPlan,
    /// Its state; changed through [`Self::advance`] only.
    state: State,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// What of the host it shows to the guest.
    pub shares: Vec<Share>,
    /// The spec the agent got (C-07); the vanilla one is in the plan.
    pub patched: Option<Arc<oci::Spec>>,
    /// Sources that are not shared (C-30).
    pub ignored: Vec<PathBuf>,
    /// Processes of it killed for want of memory.
    pub out_of_memory: u64,
    /// Its own process.
    pub init: Process,
    /// Further processes.
    pub execs: BTreeMap<ExecId, Process>,
}

impl Container {
    /// A container the guest has just made.
    #[must_use]
    pub fn new(plan: ContainerPlan, shares: Vec<Share>, init: Process, created_ns: u64) -> Self {
        Self::restored(plan, State::Ready, shares, init, created_ns)
    }

    /// A container from saved state (C-09).
    #[must_use]
    pub fn restored(
        plan: ContainerPlan,
        state: State,
        shares: Vec<Share>,
        init: Process,
        created_ns: u64,
    ) -> Self {
        Self {
            plan,
            state,
            created_ns,
            shares,
            patched: None,
            ignored: Vec::new(),
            out_of_memory: 0,
            init,
            execs: BTreeMap::new(),
        }
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Moves to `to` (C-01).
    ///
    /// # Errors
    /// [`IllegalMove`].
    pub(crate) fn advance(&mut self, to: State) -> Result<(), IllegalMove> {
        self.state = self.state.moved(to)?;
        Ok(())
    }

    /// The process named by `exec`, its own for `None`.
    #[must_use]
    pub fn process(&self, exec: Option<&ExecId>) -> Option<&Process> {
        match exec {
            None => Some(&self.init),
            Some(id) => self.execs.get(id),
        }
    }

    /// The same, to change.
    pub(crate) fn process_mut(&mut self, exec: Option<&ExecId>) -> Option<&mut Process> {
        match exec {
            None => Some(&mut self.init),
            Some(id) => self.execs.get_mut(id),
        }
    }

    /// Forgets the execs that ended longest ago, but for the newest few: a health check a second must not make the
    /// saved state grow for ever.
    pub(crate) fn forget_old_execs(&mut self) {
        let mut over: Vec<(u64, ExecId)> = self
            .execs
            .iter()
            .filter(|(_, process)| process.delivered)
            .map(|(id, process)| (process.exited_ns.unwrap_or_default(), id.clone()))
            .collect();
        over.sort();
        let surplus = over.len().saturating_sub(KEPT_EXECS);
        for (_, id) in over.into_iter().take(surplus) {
            self.execs.remove(&id);
        }
    }

    /// As readers see it.
    #[must_use]
    pub fn snapshot(&self) -> ContainerSnapshot {
        ContainerSnapshot {
            id: self.plan.id.clone(),
            state: self.state,
            bundle: self.plan.bundle.clone(),
            rootfs: self.plan.rootfs.path.clone(),
            created_ns: self.created_ns,
            annotations: self.plan.annotations(),
            init: self.init.snapshot(None),
            execs: self
                .execs
                .iter()
                .map(|(id, process)| process.snapshot(Some(id.clone())))
                .collect(),
            spec: self.patched.clone(),
            ignored: self.ignored.clone(),
            out_of_memory: self.out_of_memory,
        }
    }
}
