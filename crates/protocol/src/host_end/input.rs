//! The task of one input stream: from a source of the user to the guest.
//!
//! Owns: the order look, log, consume, send. Reads nothing before the guest asked for the stream, so a container that never
//! starts does not eat its caller's input. Never: waits for another stream. Called by `data`.

use super::data::DataPort;
use super::mark::Mark;
use super::source::Source;
use super::store::InputLog;
use crate::StreamId;
use crate::frame::{HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Payload of a frame that with its header fills whole buffers of the guest's driver, 4 KiB each: the guest then gets
/// whole frames, and none in two parts.
const FRAME_BYTES: usize = MAX_PAYLOAD_BYTES - HEADER_BYTES;

/// What the guest and the engine said about the stream.
#[derive(Debug)]
pub(super) struct InputState {
    said: Mutex<Said>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// Start (again) here.
    resume: Option<u64>,
    granted: bool,
    acknowledged: u64,
    end: bool,
    closed: bool,
    abandoned: bool,
}

impl InputState {
    pub(super) fn new() -> Self {
        Self {
            said: Mutex::new(Said::default()),
            changed: Notify::new(),
        }
    }

    /// The guest wants the stream from `offset`.
    pub(super) fn resume(&self, offset: u64) {
        self.change(|said| {
            said.resume = Some(offset);
            said.granted = true;
        });
    }

    /// Everything below `offset` has reached the process.
    pub(super) fn acknowledge(&self, offset: u64) {
        self.change(|said| said.acknowledged = said.acknowledged.max(offset));
    }

    /// The process reads no more.
    pub(super) fn close(&self) {
        self.change(|said| said.closed = true);
    }

    /// The engine wants the source to count as ended.
    pub(super) fn end(&self) {
        self.change(|said| said.end = true);
    }

    /// The connection is over.
    pub(super) fn abandon(&self) {
        self.change(|said| said.abandoned = true);
    }

    pub(super) fn is_granted(&self) -> bool {
        self.lock().granted
    }

    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// What was said; a resume is given once.
    fn take(&self) -> Said {
        let mut said = self.lock();
        let taken = *said;
        said.resume = None;
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the stream until the guest closes it or the connection ends.
pub(super) async fn run(
    port: &Arc<DataPort>,
    stream: StreamId,
    source: Source,
    state: &InputState,
    mark: &Mark,
) {
    let mut log = port.store.input(stream);
    match copy(port, stream, source, state, &mut log).await {
        End::Closed => {
            port.store.forget_input(stream);
            port.ended(stream, mark);
        }
        End::Abandoned => mark.abandon(),
    }
}

enum End {
    Closed,
    Abandoned,
}

async fn copy(
    port: &Arc<DataPort>,
    stream: StreamId,
    source: Source,
    state: &InputState,
    log: &mut InputLog,
) -> End {
    let mut source = Some(source);
    let mut buffer = Vec::new();
    let mut sent = None;
    let mut eof_sent = false;
    loop {
        let said = state.take();
        if said.closed {
            return End::Closed;
        }
        if said.abandoned {
            return End::Abandoned;
        }
        if let Some(offset) = said.resume {
            port.store.grant(log);
            log.acknowledge(offset);
            sent = Some(offset.max(log.base()));
            eof_sent = false;
        }
        log.acknowledge(said.acknowledged.min(log.head()));
        if said.end && !log.is_eof() {
            port.store.end(log);
            source = None;
        }
        let Some(from) = sent else {
            state.changed.notified().await;
            continue;
        };
        if from < log.head() {
            log.copy(from, FRAME_BYTES, &mut buffer);
            if port.send(Kind::Data, stream, from, &buffer).await.is_err() {
                return End::Abandoned;
            }
            sent = Some(from + buffer.len() as u64);
        } else if log.is_eof() {
            if !eof_sent && port.send(Kind::Eof, stream, from, &[]).await.is_err() {
                return End::Abandoned;
            }
            eof_sent = true;
            state.changed.notified().await;
        } else if let Some(open) = source.as_ref().filter(|_| log.room() > 0) {
            let limit = log.room().min(FRAME_BYTES);
            let Some(result) = read(open, &mut buffer, limit, state).await else {
                continue;
            };
            match result {
                Ok(count) if count > 0 => {
                    port.store.append(log, &buffer);
                    if let Err(error) = open.consume(&mut buffer) {
                        tracing::debug!(stream, %error, "the source is gone");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end of file, or an error (EIO from a terminal that hung up), which is an end too.
                _ => {
                    port.store.end(log);
                    source = None;
                }
            }
        } else {
            state.changed.notified().await;
        }
    }
}

/// Reads from the source, or `None` when something was said meanwhile.
async fn read(
    source: &Source,
    buffer: &mut Vec<u8>,
    limit: usize,
    state: &InputState,
) -> Option<io::Result<usize>> {
    if source.is_file() {
        return Some(source.read(buffer, limit).await);
    }
    tokio::select! {
        biased;
        () = state.changed.notified() => None,
        result = source.read(buffer, limit) => Some(result),
    }
}
