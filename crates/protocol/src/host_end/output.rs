//! The task of one output stream: from the guest to a sink of the user.
//!
//! Owns: the order write, record, acknowledge, on which "nothing lost, at most the last write repeated" rests.
//! Never: waits for another stream. Called by `data`.

use super::data::DataPort;
use super::mark::Mark;
use super::stdio_fd::StdioFd;
use super::store::Received;
use crate::StreamId;
use crate::frame::{Kind, WINDOW_BYTES};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;

/// Progress that is acknowledged at once: each acknowledgement interrupts the guest, and makes it read as much again.
const ACK_BYTES: u64 = WINDOW_BYTES / 2;
/// Frames that are acknowledged at once: the guest keeps few of them.
const ACK_FRAMES: u32 = 16;
/// How long smaller progress may go unacknowledged: the guest only needs to know to free memory.
const ACK_DELAY: Duration = Duration::from_millis(30);

/// One frame's worth, in order and without gaps.
#[derive(Debug)]
pub(super) enum Piece {
    Data { offset: u64, bytes: Vec<u8> },
    Eof,
}

/// Serves the stream until its end, the end of its sink, or the end of the connection.
pub(super) async fn run(
    port: &Arc<DataPort>,
    stream: StreamId,
    sink: StdioFd,
    mut pieces: UnboundedReceiver<Piece>,
    mark: &Mark,
    stop: &Notify,
) {
    let mut progress = Progress {
        delivered: mark.now().delivered,
        told: mark.now().delivered,
        frames: 0,
    };
    let end = progress.copy(port, stream, &sink, &mut pieces, mark, stop).await;
    // Closed before anybody hears of the end.
    drop(sink);
    match end {
        End::Closed => close(port, stream, mark, progress.delivered),
        End::Abandoned => mark.abandon(),
    }
}

enum End {
    Closed,
    Abandoned,
}

struct Progress {
    delivered: u64,
    told: u64,
    /// Since the last acknowledgement.
    frames: u32,
}

impl Progress {
    async fn copy(
        &mut self,
        port: &Arc<DataPort>,
        stream: StreamId,
        sink: &StdioFd,
        pieces: &mut UnboundedReceiver<Piece>,
        mark: &Mark,
        stop: &Notify,
    ) -> End {
        loop {
            let piece = match pieces.try_recv() {
                Ok(piece) => Some(piece),
                Err(_) => tokio::select! {
                    piece = pieces.recv() => piece,
                    () = stop.notified() => return End::Closed,
                    () = tokio::time::sleep(ACK_DELAY), if self.told < self.delivered => {
                        self.acknowledge(port, stream).await;
                        continue;
                    }
                },
            };
            match piece {
                Some(Piece::Data { offset, bytes }) => {
                    let written = tokio::select! {
                        written = self.write(port, stream, sink, mark, offset, bytes) => written,
                        () = stop.notified() => return End::Closed,
                    };
                    if let Err(error) = written {
                        tracing::debug!(stream, %error, "the sink is gone");
                        return End::Closed;
                    }
                    self.frames += 1;
                    if self.delivered - self.told >= ACK_BYTES || self.frames >= ACK_FRAMES {
                        self.acknowledge(port, stream).await;
                    }
                }
                Some(Piece::Eof) => return End::Closed,
                None => return End::Abandoned,
            }
        }
    }

    async fn write(
        &mut self,
        port: &DataPort,
        stream: StreamId,
        sink: &StdioFd,
        mark: &Mark,
        offset: u64,
        mut bytes: Vec<u8>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match sink.write(&mut bytes, done).await {
                Ok(count) => {
                    done += count;
                    self.delivered = offset + done as u64;
                    let received = Received {
                        offset: self.delivered,
                        ended: false,
                    };
                    port.store.record(stream, received);
                    mark.deliver(self.delivered);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn acknowledge(&mut self, port: &DataPort, stream: StreamId) {
        self.told = self.delivered;
        self.frames = 0;
        // A failed send is the end of the connection: the queue ends then.
        drop(port.send(Kind::Ack, stream, self.delivered, &[]).await);
    }
}

/// The stream has ended here: recorded first, so that no fresh supervisor waits for it.
pub(super) fn close(port: &Arc<DataPort>, stream: StreamId, mark: &Mark, offset: u64) {
    port.store.record(stream, Received { offset, ended: true });
    port.send_soon(Kind::Close, stream, offset);
    port.ended(stream, mark);
}

/// [`close`] of a stream that was never resumed: the guest keeps a close for a stream that its agent has yet to
/// connect only after a resume of it.
pub(super) fn refuse(port: &Arc<DataPort>, stream: StreamId, mark: &Mark, offset: u64) {
    port.store.record(stream, Received { offset, ended: true });
    port.send_all_soon(&[Kind::Resume, Kind::Close], stream, offset);
    port.ended(stream, mark);
}
