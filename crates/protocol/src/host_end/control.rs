//! The ttrpc client's side of the control port: its bytes in Rpc frames.
//!
//! Owns: framing both ways, and telling when the connection is over. Never: interprets a call. Called by the ttrpc
//! client.

use super::greeting::Greeted;
use crate::decoder::Decoder;
use crate::frame::{DATA_BYTES, Header, Kind};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

#[derive(Debug)]
pub(super) struct ControlStream {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    decoder: Decoder,
    epoch: u64,
    heard: u64,
    said: u64,
    payload: Vec<u8>,
    consumed: usize,
    frame: Vec<u8>,
    written: usize,
    gone: Arc<watch::Sender<bool>>,
}

impl ControlStream {
    pub(super) fn new(greeted: Greeted, epoch: u64, gone: Arc<watch::Sender<bool>>) -> Self {
        Self {
            reader: greeted.reader,
            writer: greeted.writer,
            decoder: greeted.decoder,
            epoch,
            heard: 0,
            said: 0,
            payload: Vec::new(),
            consumed: 0,
            frame: Vec::new(),
            written: 0,
            gone,
        }
    }

    /// Puts the next Rpc frame's bytes into `payload`; `Ok(false)` when the guest ended the connection.
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            while let Some(frame) = self.decoder.pull() {
                match frame.kind {
                    Kind::Rpc if frame.offset == self.heard => {
                        self.heard += frame.payload.len() as u64;
                        self.payload.clear();
                        self.payload.extend_from_slice(frame.payload);
                        self.consumed = 0;
                        return Poll::Ready(Ok(true));
                    }
                    // Something is missing: ttrpc cannot go on.
                    Kind::Rpc | Kind::Close => return Poll::Ready(Ok(false)),
                    _ => {}
                }
            }
            let mut space = ReadBuf::new(self.decoder.space());
            ready!(Pin::new(&mut self.reader).poll_read(cx, &mut space))?;
            let count = space.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(false));
            }
            self.decoder.filled(count);
        }
    }

    /// Writes the frame that is under way.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.frame.len() {
            let rest = &self.frame[self.written..];
            match ready!(Pin::new(&mut self.writer).poll_write(cx, rest)) {
                Ok(count) => self.written += count,
                Err(error) => {
                    self.gone.send_replace(true);
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.frame.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ControlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.consumed == self.payload.len() {
            match ready!(self.poll_payload(cx)) {
                Ok(true) => {}
                ended => {
                    self.gone.send_replace(true);
                    return Poll::Ready(ended.map(|_| ()));
                }
            }
        }
        let rest = &self.payload[self.consumed..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.consumed += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_frame(cx))?;
        let count = bytes.len().min(DATA_BYTES);
        let header = Header {
            kind: Kind::Rpc,
            stream: 0,
            epoch: self.epoch,
            offset: self.said,
        };
        let this = &mut *self;
        header.append(&bytes[..count], &mut this.frame);
        this.said += count as u64;
        // The bytes are taken; what the socket does not accept now goes with the next call or flush.
        match this.poll_frame(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_frame(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_frame(cx)
    }
}
