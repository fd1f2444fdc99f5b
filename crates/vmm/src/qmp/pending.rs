//! The commands that wait for their answer.
//!
//! Owns: the table the client and the reader share, and that a command leaves it when its caller does. Never: I/O.
//! Called by `client`, `reader` and `writer`.

use super::message::Refusal;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

pub(super) type Answer = Result<Value, Refusal>;

/// Commands that wait for their answer, by id; `None` once the connection ended.
#[derive(Debug)]
pub(super) struct Pending(pub(super) Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Pending {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a command when its caller goes away.
pub(super) struct Entry<'a> {
    pub(super) id: u64,
    pub(super) pending: &'a Pending,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.pending.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}
