//! Follows the agent's events: log lines into the sandbox log, the rest to the engine.
//!
//! Owns: nothing. Never: acting on an event. Called once per guest connection.

use crate::world::Event;
use bulkhead_protocol::{Guest, GuestEvent};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Runs until the connection to the agent ends.
pub(crate) async fn follow(guest: Arc<dyn Guest>, engine: mpsc::UnboundedSender<Event>) {
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
                GuestEvent::OutOfMemory { container, kills } => {
                    tracing::warn!(source = "agent", container, kills, "out of memory");
                    // An engine that ended counts no more.
                    let _ = engine.send(Event::OutOfMemory { container, kills });
                }
            }
        }
    }
}
