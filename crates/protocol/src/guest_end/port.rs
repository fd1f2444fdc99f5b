//! One virtio-serial device of the guest, without blocking.
//!
//! Owns: what is to be written and could not be yet; what was read and makes no whole frame yet. Never:
//! interprets frames. Called by `mux` (both ports) and `control` (writes of the ttrpc server).

use crate::decoder::Decoder;
use crate::frame::Header;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The reading half.
#[derive(Debug)]
pub(super) struct PortReader {
    fd: Arc<OwnedFd>,
    pub(super) decoder: Decoder,
    /// Reading may give something; cleared when it did not.
    pub(super) readable: bool,
}

/// What one read of a port gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortRead {
    /// Bytes: look for frames.
    Bytes,
    /// Nothing until the next edge: there are no bytes, or the host's end is closed.
    Empty,
}

impl PortReader {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self {
            fd,
            decoder: Decoder::new(),
            readable: true,
        }
    }

    /// Reads once.
    pub(super) fn read(&mut self) -> PortRead {
        match rustix::io::read(&self.fd, self.decoder.space()) {
            Ok(count) if count > 0 => {
                self.decoder.filled(count);
                PortRead::Bytes
            }
            Err(Errno::INTR) => PortRead::Bytes,
            Ok(_) | Err(_) => {
                self.readable = false;
                PortRead::Empty
            }
        }
    }
}

/// The writing half: frames leave in order, each whole before the next.
#[derive(Debug)]
pub(super) struct PortWriter {
    fd: Arc<OwnedFd>,
    waiting: Vec<u8>,
    written: usize,
    /// Writing may succeed; cleared when it did not.
    pub(super) writable: bool,
}

impl PortWriter {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self {
            fd,
            waiting: Vec::new(),
            written: 0,
            writable: true,
        }
    }

    /// Bytes accepted and not yet with the kernel.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.len() - self.written
    }

    /// Forgets what is waiting: its epoch is over, and the peer finds its way past a torn frame.
    pub(super) fn discard(&mut self) {
        self.waiting.clear();
        self.written = 0;
    }

    /// Appends a frame and leaves it waiting for [`PortWriter::flush`].
    pub(super) fn queue(&mut self, header: &Header, payload: &[u8]) {
        header.append(payload, &mut self.waiting);
    }

    /// Writes a complete encoded frame, keeping what the device does not take.
    pub(super) fn send(&mut self, frame: &[u8]) {
        self.flush();
        let mut sent = 0;
        while self.waiting_bytes() == 0 && self.writable && sent < frame.len() {
            sent += self.write_some(&frame[sent..]);
        }
        self.waiting.extend_from_slice(&frame[sent..]);
    }

    /// Writes what is waiting as far as the device takes it.
    pub(super) fn flush(&mut self) {
        while self.writable && self.waiting_bytes() > 0 {
            let waiting = std::mem::take(&mut self.waiting);
            self.written += self.write_some(&waiting[self.written..]);
            self.waiting = waiting;
        }
        if self.waiting_bytes() == 0 {
            self.discard();
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> usize {
        match rustix::io::write(&self.fd, bytes) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            // Full, or the host's end is closed: the port says when to try again, and a closed
            // connection's bytes are discarded with its epoch.
            Err(_) => {
                self.writable = false;
                0
            }
        }
    }
}
