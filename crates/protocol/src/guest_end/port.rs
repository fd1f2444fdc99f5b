//! One virtio-serial device of the guest, without blocking.
//!
//! Owns: what is to be written and could not be yet; what was read and makes no whole frame yet. Never:
//! interprets frames. Called by `mux` (both ports) and `control` (writes of the ttrpc server).

use super::tray::Tray;
use crate::decoder::Decoder;
use crate::frame::{DATA_BYTES, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, sum};
use rustix::io::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Size of the driver's buffers, one page.
const BUFFER_BYTES: usize = 4096;
/// Buffers asked for at a time: the largest frame.
const PARTS: usize = MAX_PAYLOAD_BYTES / BUFFER_BYTES;

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
        // The driver gives the rest of one of its buffers per part, and goes on while parts get full.
        let mut parts: [IoSliceMut<'_>; PARTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (part, space) in parts
            .iter_mut()
            .zip(self.decoder.space().chunks_mut(BUFFER_BYTES))
        {
            *part = IoSliceMut::new(space);
        }
        match rustix::io::readv(&self.fd, &mut parts) {
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

/// A frame's payload from this size on goes by the tray: below, one write(2) takes it as well.
const TRAY_BYTES: usize = DATA_BYTES + 1;

/// The writing half: frames leave in order, each whole before the next.
#[derive(Debug)]
pub(super) struct PortWriter {
    fd: Arc<OwnedFd>,
    /// What leaves first.
    tray: Tray,
    waiting: Vec<u8>,
    written: usize,
    /// Writing may succeed; cleared when it did not.
    pub(super) writable: bool,
}

impl PortWriter {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self {
            fd,
            tray: Tray::default(),
            waiting: Vec::new(),
            written: 0,
            writable: true,
        }
    }

    /// Bytes accepted and not yet with the device.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.tray.held() + self.waiting.len() - self.written
    }

    /// Forgets what is waiting: its epoch is over, and the peer finds its way past a torn frame.
    pub(super) fn discard(&mut self) {
        self.tray.discard();
        self.forget_waiting();
    }

    fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.written = 0;
    }

    /// Appends a frame and leaves it waiting for [`PortWriter::flush`].
    pub(super) fn queue(&mut self, header: &Header, payload: &[u8]) {
        if payload.len() < TRAY_BYTES || !self.waiting.is_empty() {
            header.append(payload, &mut self.waiting);
            return;
        }
        let head = header.encode(payload.len(), sum(payload));
        let loaded = self.tray.load(&[IoSlice::new(&head), IoSlice::new(payload)]);
        self.waiting.extend_from_slice(&head[loaded.min(HEADER_BYTES)..]);
        self.waiting
            .extend_from_slice(&payload[loaded.saturating_sub(HEADER_BYTES)..]);
    }

    /// Writes what is waiting as far as the device takes it.
    pub(super) fn flush(&mut self) {
        while self.writable && self.tray.held() > 0 {
            match self.tray.unload(&self.fd) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(_) => self.writable = false,
            }
        }
        while self.writable && self.waiting_bytes() > 0 {
            let waiting = std::mem::take(&mut self.waiting);
            self.written += self.write_some(&waiting[self.written..]);
            self.waiting = waiting;
        }
        if self.waiting.len() == self.written {
            self.forget_waiting();
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
