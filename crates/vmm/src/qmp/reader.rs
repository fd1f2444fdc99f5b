//! The task that reads: lines in, answers to those who wait, events to those who listen.
//!
//! Owns: framing, and telling everyone of the end. Never: writes. Called by `client`.

use super::message::{Message, QmpEvent};
use super::pending::Pending;
use nix::sys::socket::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{broadcast, oneshot};

/// Longest line taken from QEMU, in bytes; `query-qmp-schema`, the longest answer, has 170,000.
const MAX_LINE_BYTES: usize = 4 << 20;

pub(super) struct Reader {
    pub(super) pending: Arc<Pending>,
    pub(super) answered: Arc<AtomicU64>,
    pub(super) events: broadcast::Sender<QmpEvent>,
    pub(super) greeted: Option<oneshot::Sender<()>>,
}

impl Reader {
    pub(super) async fn run(mut self, mut socket: OwnedReadHalf) {
        let mut buffer = Vec::with_capacity(4096);
        // Bytes at the front of the buffer known to hold no line end.
        let mut scanned = 0;
        loop {
            match socket.read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "reading the machine protocol");
                    break;
                }
            }
            let mut start = 0;
            while let Some(length) = buffer[scanned..].iter().position(|b| *b == b'\n') {
                let end = scanned + length;
                self.line(&buffer[start..end]);
                start = end + 1;
                scanned = start;
            }
            buffer.drain(..start);
            scanned = buffer.len();
            if buffer.len() > MAX_LINE_BYTES {
                tracing::warn!(
                    limit = MAX_LINE_BYTES,
                    "a machine-protocol line is too long: closing"
                );
                break;
            }
        }
        // The writer holds the socket too; this ends it and tells the other side.
        let _ = nix::sys::socket::shutdown(socket.as_ref().as_raw_fd(), Shutdown::Both);
        // Dropping the senders wakes everyone who waits.
        self.pending.lock().take();
    }

    fn line(&mut self, line: &[u8]) {
        let (id, answer) = match Message::parse(line) {
            Message::Greeting => {
                if let Some(greeted) = self.greeted.take() {
                    let _ = greeted.send(());
                }
                return;
            }
            Message::Event(event) => {
                tracing::trace!(event = event.name, data = %event.data, "qmp");
                // No listener is fine.
                let _ = self.events.send(event);
                return;
            }
            Message::Garbage => {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    let head = String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
                    tracing::warn!(line = head, "not a machine-protocol message: ignored");
                }
                return;
            }
            Message::Done { id, value } => (id, Ok(value)),
            Message::Refused { id, refusal } => (id, Err(refusal)),
        };
        let waiting = self.pending.lock().as_mut().and_then(|all| all.remove(&id));
        match waiting {
            Some(waiting) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                let _ = waiting.send(answer);
            }
            None => tracing::debug!(id, "an answer nobody waits for"),
        }
    }
}
