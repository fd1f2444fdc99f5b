//! What makes a container's processes; everything else about a container is the agent's own.
//!
//! ```text
//!  create ─► (waits) ─► start ─► exec … ─► forget
//! ```
//!
//! Owns: the trait and its implementation by the fork server. Signals, limits, freezing, statistics and waiting need only
//! the cgroup and the pid and are not part of it.

use crate::launch::{
    Blueprint, Confinement, ExecOrder, LONGEST_HOOK, Launched, Launcher, Order, Plan, Refusal, Reserve,
    Waiting,
};
use bulkhead_model::FailureKind;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the engine knows a container by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle(u64);

/// What an exec shares with its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shared {
    /// The kinds of namespaces (`CLONE_NEW*`) in which it differs from the agent.
    pub(crate) namespaces: u64,
    /// What holds for all its processes.
    pub(crate) confinement: Confinement,
}

/// A container whose process waits for its start.
#[derive(Debug)]
pub(crate) struct Made {
    /// For the other calls.
    pub(crate) handle: Handle,
    /// For its execs.
    pub(crate) shared: Shared,
    /// Its process.
    pub(crate) process: Launched,
}

/// Makes containers. Calls block.
pub(crate) trait Engine: Send + Sync {
    /// Makes a container in the cgroup of directory `cgroup`; its process waits for `start`. Without a terminal `stdio`
    /// has three descriptors. `reserve` waits in that cgroup, and becomes the container's process if it suits.
    ///
    /// # Errors
    /// [`Refusal`]; nothing but dying processes is left behind then.
    fn create(
        &self,
        blueprint: &Blueprint,
        cgroup: &Path,
        stdio: Vec<OwnedFd>,
        reserve: Option<Reserve>,
    ) -> Result<Made, Refusal>;

    /// Makes a process that waits in `cgroup` for a container.
    ///
    /// # Errors
    /// [`Refusal`].
    fn reserve(&self, cgroup: &Path) -> Result<Reserve, Refusal>;

    /// Lets its process run, once.
    ///
    /// # Errors
    /// [`Refusal`], for example of a hook that runs right before the program.
    fn start(&self, container: &Handle) -> Result<(), Refusal>;

    /// Runs a further process.
    ///
    /// # Errors
    /// [`Refusal`].
    fn exec(&self, order: ExecOrder, cgroup: &Path, stdio: Vec<OwnedFd>) -> Result<Launched, Refusal>;

    /// Drops what is kept about a container whose processes are gone. Unknown is fine.
    fn forget(&self, container: &Handle);
}

struct Unstarted {
    process: Waiting,
    /// Longest time of its hooks, if it has any.
    hooks: Option<Duration>,
}

/// One clone per process, by the fork server.
pub(crate) struct Forks {
    launcher: Launcher,
    count: AtomicU64,
    unstarted: Mutex<HashMap<u64, Unstarted>>,
}

impl Forks {
    /// Has `launcher` make the processes.
    #[must_use]
    pub(crate) fn new(launcher: Launcher) -> Self {
        Self {
            launcher,
            count: AtomicU64::new(0),
            unstarted: Mutex::default(),
        }
    }

    fn unstarted(&self) -> MutexGuard<'_, HashMap<u64, Unstarted>> {
        self.unstarted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(cgroup: &Path) -> Result<File, Refusal> {
    File::open(cgroup).map_err(|error| Refusal::internal("opening the container's cgroup", &error))
}

impl Engine for Forks {
    fn create(
        &self,
        blueprint: &Blueprint,
        cgroup: &Path,
        stdio: Vec<OwnedFd>,
        reserve: Option<Reserve>,
    ) -> Result<Made, Refusal> {
        let plan = Plan::of(blueprint).map_err(|error| Refusal {
            kind: FailureKind::InvalidArgument,
            message: bulkhead_model::failure::chain(&error),
        })?;
        let shared = Shared {
            namespaces: plan.foreign(),
            confinement: plan.confinement().clone(),
        };
        let mut seconds = plan.hook_seconds().peekable();
        let hooks = seconds.peek().is_some().then(|| {
            Duration::from_secs(
                seconds.fold(0, |all: u64, one| all.saturating_add(one.unwrap_or(LONGEST_HOOK))),
            )
        });
        let employed = match reserve {
            Some(reserve) if plan.can_employ() => Some(reserve),
            Some(reserve) => {
                reserve.dismiss().map_err(|error| {
                    Refusal::internal("ending the process that waited for another container", &error)
                })?;
                None
            }
            None => None,
        };
        let order = Order::Create(Box::new(plan));
        let employed = employed.map(|reserve| Launcher::employ(reserve, &order, &stdio));
        let (process, waiting) = match employed.transpose()?.flatten() {
            Some(made) => made,
            None => self.launcher.launch(&order, &open(cgroup)?, &stdio)?,
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let waiting = Unstarted {
            process: waiting,
            hooks,
        };
        self.unstarted().insert(number, waiting);
        Ok(Made {
            handle: Handle(number),
            shared,
            process,
        })
    }

    fn reserve(&self, cgroup: &Path) -> Result<Reserve, Refusal> {
        self.launcher.reserve(&open(cgroup)?)
    }

    fn start(&self, container: &Handle) -> Result<(), Refusal> {
        let waiting = self.unstarted().remove(&container.0).ok_or_else(|| Refusal {
            kind: FailureKind::FailedPrecondition,
            message: "the container was started before".to_owned(),
        })?;
        waiting.process.go(waiting.hooks)
    }

    fn exec(&self, order: ExecOrder, cgroup: &Path, stdio: Vec<OwnedFd>) -> Result<Launched, Refusal> {
        let order = Order::Exec(Box::new(order));
        self.launcher
            .launch(&order, &open(cgroup)?, &stdio)
            .map(|(process, _)| process)
    }

    fn forget(&self, container: &Handle) {
        // A process that was never started ends when its agent no longer listens.
        self.unstarted().remove(&container.0);
    }
}
