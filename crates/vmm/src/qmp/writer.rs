//! The task that writes: commands out, each with its descriptors.
//!
//! Owns: that a line is written whole or the connection ends. Never: waits for an answer. Called by `client`.

use super::pending::Pending;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) line: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

pub(super) async fn write_all(
    socket: tokio::net::unix::OwnedWriteHalf,
    mut requests: mpsc::UnboundedReceiver<Request>,
    pending: Arc<Pending>,
) {
    while let Some(request) = requests.recv().await {
        if let Err(error) = write_one(socket.as_ref(), &request).await {
            tracing::debug!(%error, "writing the machine protocol");
            if let Some(waiting) = pending.lock().as_mut() {
                waiting.remove(&request.id);
            }
            // A half-written line cannot be taken back: the reader sees the end and wakes the others.
            return;
        }
    }
}

async fn write_one(socket: &UnixStream, request: &Request) -> io::Result<()> {
    let fds: Vec<_> = request.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut sent = 0;
    while sent < request.line.len() {
        // The descriptors go with the first byte.
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if sent == 0 && !fds.is_empty() {
            &rights
        } else {
            &[]
        };
        let send = || {
            let data = [IoSlice::new(&request.line[sent..])];
            sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(io::Error::from)
        };
        sent += socket.async_io(Interest::WRITABLE, send).await?;
    }
    Ok(())
}
