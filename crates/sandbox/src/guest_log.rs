//! Follows the agent's events into the sandbox log.
//!
//! Owns: nothing. Never: acting on an event beyond logging it. Called once per guest connection.

use bulkhead_protocol::{Guest, GuestEvent};
use std::sync::Arc;

/// Runs until the connection to the agent ends.
pub(crate) async fn follow(guest: Arc<dyn Guest>) {
    let mut after = 0;
    while let Ok(events) = guest.next_events(after).await {
        for (sequence, event) in events {
            after = after.max(sequence);
            match event {
                GuestEvent::Log {
                    level,
                    message,
                    time_ns,
                } => match level.as_str() {
                    "error" => tracing::error!(source = "agent", guest_ns = time_ns, "{message}"),
                    "warn" => tracing::warn!(source = "agent", guest_ns = time_ns, "{message}"),
                    "debug" => tracing::debug!(source = "agent", guest_ns = time_ns, "{message}"),
                    _ => tracing::info!(source = "agent", guest_ns = time_ns, "{message}"),
                },
                GuestEvent::OutOfMemory { container } => {
                    tracing::warn!(source = "agent", container, "out of memory");
                }
            }
        }
    }
}
