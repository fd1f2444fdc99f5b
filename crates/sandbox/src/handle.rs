//! What everyone but the engine holds of a sandbox.
//!
//! Owns: which questions are answered beside the engine, and what is put into its inbox. Never: changes a sandbox. Called by
//! `shim`.

use crate::command::{Command, Reply};
use crate::lifecycle::Attachment;
use crate::world::{Event, Published};
use bulkhead_model::{ContainerId, Failure, FailureKind, ProcessKey, SandboxSnapshot};
use std::os::fd::OwnedFd;
use tokio::sync::{mpsc, oneshot};

/// A change that was asked for.
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) attachment: Option<Attachment>,
    pub(crate) reply: oneshot::Sender<Result<Reply, Failure>>,
}

/// Asks a sandbox; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) requests: mpsc::UnboundedSender<Request>,
    pub(crate) published: Published,
    pub(crate) calloff: mpsc::UnboundedSender<Option<ContainerId>>,
    pub(crate) stubs: mpsc::UnboundedSender<Event>,
}

/// What came with a command besides its words.
#[derive(Default)]
pub struct Luggage {
    /// Descriptors of an `Attach`.
    pub fds: Vec<OwnedFd>,
    /// The connection's ear for notices.
    pub notices: Option<crate::container::Notices>,
    /// The streams of an `Exec` that has no stub.
    pub attachment: Option<Attachment>,
}

impl Handle {
    /// Carries out a command.
    ///
    /// # Errors
    /// The failure as clients see it.
    pub async fn call(&self, command: Command, luggage: Luggage) -> Result<Reply, Failure> {
        if let Some(answer) = self.published.answer(&command, &self.calloff).await {
            return answer;
        }
        match &command {
            Command::Delete { id, force: true } => self.call_off(Some(id.clone())),
            Command::Shutdown => self.call_off(None),
            _ => {}
        }
        let attachment = match (&command, luggage.notices) {
            (
                Command::Attach {
                    stub, stdio, size, ..
                },
                Some(notices),
            ) => Some(Attachment {
                stub: Some(*stub),
                set: *stdio,
                fds: luggage.fds,
                size: *size,
                notices,
            }),
            _ => luggage.attachment,
        };
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request {
                command,
                attachment,
                reply,
            })
            .map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Calls off a create of `id` that is under way (any verb for `None`): its client is gone.
    pub fn call_off(&self, id: Option<ContainerId>) {
        // An engine that ended has nothing under way.
        let _ = self.calloff.send(id);
    }

    /// A stub's connection ended.
    pub fn stub_gone(&self, key: ProcessKey, stub: bulkhead_model::HostProcess) {
        let _ = self.stubs.send(Event::StubGone { key, stub });
    }

    /// The present and what follows; its sender is gone when the sandbox is.
    #[must_use]
    pub fn snapshots(&self) -> tokio::sync::watch::Receiver<SandboxSnapshot> {
        self.published.snapshot.clone()
    }

    /// The present.
    #[must_use]
    pub fn snapshot(&self) -> SandboxSnapshot {
        self.published.snapshot.borrow().clone()
    }

    /// Why the sandbox is gone, if its boot failed.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.published.failure.get().cloned()
    }

    fn gone(&self) -> Failure {
        if let Some(failure) = self.failure() {
            return failure;
        }
        let id = &self.published.snapshot.borrow().id;
        Failure::new(
            FailureKind::NotFound,
            format!("container {id} does not exist: its sandbox is gone"),
        )
    }
}
