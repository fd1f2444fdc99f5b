//! Where the services find the containers of their sandbox, which may not be there yet.
//!
//! ```text
//!  config.json in the bundle:   open ───────────────────────────────► Tasks
//!  none:                        waiting ─ CreateSandbox ─► ordered ─► Tasks
//! ```
//!
//! Owns: that change, which happens once. Never: the sandbox. Called by the services and by the server.

use super::tasks::Tasks;
use bulkhead_model::{Failure, FailureKind, SandboxId, SandboxPlan};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{SetOnce, oneshot};
use tokio_util::sync::CancellationToken;

/// How long an order may take until its sandbox is there: a supervisor coming up.
const OPEN_DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// The desk of one shim.
pub(super) struct Desk {
    pub(super) id: SandboxId,
    tasks: SetOnce<Arc<Tasks>>,
    order: Mutex<Option<oneshot::Sender<SandboxPlan>>>,
    /// Cancelled when containerd is done with this shim.
    pub(super) over: CancellationToken,
}

impl Desk {
    /// A desk without a sandbox, and where the order for one will arrive.
    pub(super) fn new(id: SandboxId) -> (Arc<Self>, oneshot::Receiver<SandboxPlan>) {
        let (order, ordered) = oneshot::channel();
        let desk = Self {
            id,
            tasks: SetOnce::new(),
            order: Mutex::new(Some(order)),
            over: CancellationToken::new(),
        };
        (Arc::new(desk), ordered)
    }

    /// The sandbox is there.
    pub(super) fn open(&self, tasks: Arc<Tasks>) {
        // Opened once, by the supervisor.
        let _ = self.tasks.set(tasks);
    }

    /// The containers.
    ///
    /// # Errors
    /// `NotFound` before the sandbox was ordered.
    pub(super) fn tasks(&self) -> Result<&Arc<Tasks>, Failure> {
        self.tasks.get().ok_or_else(|| {
            Failure::new(
                FailureKind::NotFound,
                format!("sandbox {} was not created yet", self.id),
            )
        })
    }

    /// Orders the sandbox and waits until it is there. One that is there already needs no order.
    ///
    /// # Errors
    /// `AlreadyExists` for a second order under way, `DeadlineExceeded`.
    pub(super) async fn order(&self, plan: SandboxPlan) -> Result<(), Failure> {
        let order = self.order.lock().unwrap_or_else(PoisonError::into_inner).take();
        let taken = order.is_some_and(|order| order.send(plan).is_ok());
        if self.tasks().is_ok() {
            return Ok(());
        }
        if !taken {
            return Err(Failure::new(
                FailureKind::AlreadyExists,
                format!("sandbox {} is being created", self.id),
            ));
        }
        match tokio::time::timeout(OPEN_DEADLINE, self.tasks.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(
                FailureKind::DeadlineExceeded,
                format!(
                    "sandbox {} was not there within {} s",
                    self.id,
                    OPEN_DEADLINE.as_secs()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Desk;
    use bulkhead_model::{FailureKind, SandboxId};

    #[tokio::test]
    async fn without_an_order_there_are_no_containers() {
        let (desk, _ordered) = Desk::new(SandboxId::new("pod1").unwrap());
        let failure = desk.tasks().err().unwrap();
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert_eq!(failure.message, "sandbox pod1 was not created yet");
    }
}
