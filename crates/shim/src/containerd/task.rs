//! One process containerd knows: a container's own or a further one.
//!
//! ```text
//!  Added ─start─► Started ─► ended (status known, told) ─► drained (all output out) ─delete─► gone
//! ```
//!
//! Owns: the record. Never: the process. Kept by `tasks`.

use super::logger::Logger;
use super::pause::Pause;
use super::streams::{Keeper, Uris};
use crate::stub::Stub;
use bulkhead_model::{ContainerId, ExecId, ExitStatus, Failure, FailureKind, ProcessKey, oci};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How a process ended and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Exit status; 128 + n for signal n.
    pub(super) status: u32,
    /// Nanoseconds since the Unix epoch.
    pub(super) at_ns: u64,
}

impl End {
    pub(super) fn new(status: ExitStatus, at_ns: u64) -> Self {
        Self {
            status: u32::try_from(status.code()).unwrap_or(u32::MAX),
            at_ns,
        }
    }
}

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Known, not started.
    Added,
    /// Started; it may have ended.
    Started,
}

/// What keeps an input open.
#[derive(Debug)]
enum Stdin {
    /// The streams are not open yet, or there is no input.
    Unknown,
    /// This writing end does.
    Kept { _write: OwnedFd },
    /// Nothing of ours.
    Closed,
}

/// One process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) key: ProcessKey,
    pub(super) uris: Uris,
    /// What an exec runs.
    pub(super) spec: Option<oci::Process>,
    /// Held by a start until its event is queued, so that the end is told after it.
    pub(super) turn: tokio::sync::Mutex<()>,
    pid: OnceLock<u32>,
    stage: Mutex<Stage>,
    size: Mutex<Option<(u16, u16)>>,
    stdin: Mutex<Stdin>,
    logger: Mutex<Option<Logger>>,
    end: watch::Sender<Option<End>>,
    drained: watch::Sender<bool>,
}

/// No panic happens while one of these is held, so a poisoned lock still has a whole value.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    pub(super) fn new(key: ProcessKey, uris: Uris, spec: Option<oci::Process>) -> Self {
        Self {
            key,
            uris,
            spec,
            turn: tokio::sync::Mutex::new(()),
            pid: OnceLock::new(),
            stage: Mutex::new(Stage::Added),
            size: Mutex::new(None),
            stdin: Mutex::new(Stdin::Unknown),
            logger: Mutex::new(None),
            end: watch::Sender::new(None),
            drained: watch::Sender::new(false),
        }
    }

    /// Its pid as clients see it, 0 before there is one.
    pub(super) fn pid(&self) -> u32 {
        self.pid.get().copied().unwrap_or(0)
    }

    pub(super) fn set_pid(&self, pid: i32) {
        // Set once, by the one who starts it.
        let _ = self.pid.set(u32::try_from(pid).unwrap_or(0));
    }

    pub(super) fn stage(&self) -> Stage {
        *locked(&self.stage)
    }

    pub(super) fn started(&self) {
        *locked(&self.stage) = Stage::Started;
    }

    /// Window size asked for before there is a terminal.
    pub(super) fn size(&self) -> Option<(u16, u16)> {
        *locked(&self.size)
    }

    pub(super) fn set_size(&self, size: (u16, u16)) {
        *locked(&self.size) = Some(size);
    }

    /// Takes over what has to live as long as its streams. Needs a tokio runtime with I/O.
    pub(super) fn keep(self: &Arc<Self>, keeper: Option<Keeper>, logger: Option<Logger>) {
        *locked(&self.logger) = logger;
        let Some((write, closed)) = keeper.map(Keeper::split) else {
            return;
        };
        {
            let mut stdin = locked(&self.stdin);
            if matches!(*stdin, Stdin::Closed) {
                return;
            }
            *stdin = Stdin::Kept { _write: write };
        }
        let process = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(closed) = AsyncFd::new(closed) else { return };
            tokio::select! {
                _ = closed.readable() => {}
                () = process.wait_drained() => {}
            }
            process.close_stdin();
        });
    }

    /// Its input ends once the clients have closed theirs; also when it is asked for before there is one.
    pub(super) fn close_stdin(&self) {
        *locked(&self.stdin) = Stdin::Closed;
    }

    pub(super) fn end(&self) -> Option<End> {
        *self.end.borrow()
    }

    /// Records its end; the first one counts. True when this was the first.
    pub(super) fn ended(&self, end: End) -> bool {
        self.end.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(end);
            first
        })
    }

    /// All of its output is out, or nobody will send the rest.
    pub(super) fn drained(&self) {
        self.close_stdin();
        if let Some(logger) = locked(&self.logger).take() {
            tokio::task::spawn_blocking(move || logger.finish());
        }
        self.drained.send_replace(true);
    }

    /// Waits for its end.
    pub(super) async fn wait(&self) -> End {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|end| *end) {
            Ok(Some(end)) => end,
            // Not reached while `self` has the sender.
            _ => End {
                status: 255,
                at_ns: 0,
            },
        }
    }

    /// Waits until its output is out.
    pub(super) async fn wait_drained(&self) {
        let mut drained = self.drained.subscribe();
        // The sender is in `self`.
        let _ = drained.wait_for(|drained| *drained).await;
    }
}

/// What stands behind a container.
#[derive(Debug)]
pub(super) enum Body {
    /// A container in the guest and its stub on the host.
    Guest(Mutex<Option<Stub>>),
    /// The pod's own container.
    Pause(Arc<Pause>),
}

/// One container.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: ContainerId,
    pub(super) bundle: PathBuf,
    pub(super) body: Body,
    pub(super) init: Arc<Process>,
    execs: Mutex<BTreeMap<ExecId, Arc<Process>>>,
}

impl Task {
    pub(super) fn new(id: ContainerId, bundle: PathBuf, body: Body, init: Arc<Process>) -> Self {
        Self {
            id,
            bundle,
            body,
            init,
            execs: Mutex::new(BTreeMap::new()),
        }
    }

    /// The process of an exec id, its own for the empty one.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn process(&self, exec: &str) -> Result<Arc<Process>, Failure> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let unknown = || {
            Failure::new(
                FailureKind::NotFound,
                format!("process {exec:?} of container {} does not exist", self.id),
            )
        };
        let exec = ExecId::new(exec).map_err(|_| unknown())?;
        locked(&self.execs).get(&exec).cloned().ok_or_else(unknown)
    }

    /// # Errors
    /// `AlreadyExists`.
    pub(super) fn add_exec(&self, id: ExecId, process: Arc<Process>) -> Result<(), Failure> {
        let mut execs = locked(&self.execs);
        if execs.contains_key(&id) {
            return Err(Failure::new(
                FailureKind::AlreadyExists,
                format!("process {id:?} of container {} already exists", self.id),
            ));
        }
        execs.insert(id, process);
        Ok(())
    }

    pub(super) fn forget_exec(&self, id: &ExecId) {
        locked(&self.execs).remove(id);
    }

    /// Whether it stands for its pod.
    pub(super) fn is_pause(&self) -> bool {
        matches!(self.body, Body::Pause(_))
    }

    /// Its stub, to be waited for.
    pub(super) fn take_stub(&self) -> Option<Stub> {
        match &self.body {
            Body::Guest(stub) => locked(stub).take(),
            Body::Pause(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts_and_every_waiter_sees_it() {
        let key = ProcessKey {
            container: ContainerId::new("c").unwrap(),
            exec: None,
        };
        let process = Arc::new(Process::new(key, Uris::default(), None));
        let waiter = tokio::spawn({
            let process = Arc::clone(&process);
            async move { process.wait().await }
        });
        assert!(process.ended(End::new(ExitStatus::Code(3), 7)));
        assert!(!process.ended(End::new(ExitStatus::Signal(9), 8)));
        assert_eq!(waiter.await.unwrap(), End { status: 3, at_ns: 7 });
        assert_eq!(process.wait().await.status, 3);
    }
}
