//! The ttrpc server's side of the control port: a byte stream per host connection.
//!
//! ```text
//!  mux thread ──channel──▶ ControlStream ──frames──▶ control device
//!                               ▲▼
//!                          ttrpc server
//! ```
//!
//! Owns: the connection's bytes on their way. Answers are written to the device by the task that made them,
//! which spares a thread switch. Never: outlives its epoch. Called by the ttrpc server and `mux`.

use super::port::PortWriter;
use crate::frame::{DATA_BYTES, Header, Kind};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::UnboundedReceiver;

/// Answers that may wait for the device before the server is made to wait.
const WAITING_BYTES: usize = 1024 * 1024;

/// The writing half of the control port, shared by the mux thread and the current connection.
#[derive(Debug)]
pub(super) struct ControlOut {
    pub(super) port: PortWriter,
    /// Whose answers may be written.
    pub(super) epoch: Option<u64>,
    blocked: Option<Waker>,
}

impl ControlOut {
    pub(super) fn new(port: PortWriter) -> Self {
        Self {
            port,
            epoch: None,
            blocked: None,
        }
    }

    /// Starts `epoch` (or none): what waits belongs to the past.
    pub(super) fn restart(&mut self, epoch: Option<u64>) {
        self.port.discard();
        self.epoch = epoch;
        self.wake();
    }

    /// The device takes bytes again.
    pub(super) fn flush(&mut self) {
        self.port.writable = true;
        self.port.flush();
        if self.port.waiting_bytes() < WAITING_BYTES {
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.blocked.take() {
            waker.wake();
        }
    }
}

pub(super) fn lock(out: &Mutex<ControlOut>) -> MutexGuard<'_, ControlOut> {
    // Nothing in the critical sections panics half-way through a change.
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One host connection as the ttrpc server sees it.
#[derive(Debug)]
pub(super) struct ControlStream {
    epoch: u64,
    incoming: UnboundedReceiver<Vec<u8>>,
    current: Vec<u8>,
    consumed: usize,
    out: Arc<Mutex<ControlOut>>,
    offset: u64,
}

impl ControlStream {
    pub(super) fn new(epoch: u64, incoming: UnboundedReceiver<Vec<u8>>, out: Arc<Mutex<ControlOut>>) -> Self {
        Self {
            epoch,
            incoming,
            current: Vec::new(),
            consumed: 0,
            out,
            offset: 0,
        }
    }
}

impl AsyncRead for ControlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.consumed == self.current.len() {
            match self.incoming.poll_recv(cx) {
                Poll::Ready(Some(bytes)) => {
                    self.current = bytes;
                    self.consumed = 0;
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        let rest = &self.current[self.consumed..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.consumed += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let out = Arc::clone(&self.out);
        let mut out = lock(&out);
        if out.epoch != Some(self.epoch) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if out.port.waiting_bytes() >= WAITING_BYTES {
            out.blocked = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = bytes.len().min(DATA_BYTES);
        let header = Header {
            kind: Kind::Rpc,
            stream: 0,
            epoch: self.epoch,
            offset: self.offset,
        };
        out.port.queue(&header, &bytes[..count]);
        out.port.flush();
        self.offset += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
