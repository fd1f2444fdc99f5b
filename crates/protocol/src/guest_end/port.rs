//! One virtio-serial device of the guest, without blocking.
//!
//! Owns: what is to be written and could not be yet; what was read and makes no whole frame yet. Never:
//! interprets frames. Called by `mux` (both ports) and `control` (writes of the ttrpc server).

use super::tray::Tray;
use crate::decoder::Decoder;
use crate::frame::{DATA_BYTES, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, PADDING_BYTES, sum};
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

    /// Forgets what is waiting: its epoch is over. The device may have the beginning of a frame whose rest is forgotten:
    /// zeroes complete it, or a host that has connected since would take its Hello for that rest.
    pub(super) fn discard(&mut self) {
        let torn = self.waiting_bytes() > 0;
        self.tray.discard();
        self.forget_waiting();
        if torn {
            self.waiting.resize(PADDING_BYTES, 0);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn header(kind: Kind, epoch: u64) -> Header {
        Header {
            kind,
            stream: 1,
            epoch,
            offset: 0,
        }
    }

    /// The host that connects after a frame was torn hears the Hello though nothing comes after it.
    #[test]
    fn a_torn_frame_does_not_swallow_the_hello() {
        let (device, mut far) = UnixStream::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&device, 4096).unwrap();
        for torn_by in [DATA_BYTES, MAX_PAYLOAD_BYTES] {
            let mut port = PortWriter::new(Arc::new(device.try_clone().unwrap().into()));
            let payload = vec![7; torn_by];
            while port.writable {
                port.queue(&header(Kind::Data, 1), &payload);
                port.flush();
            }
            assert!(port.waiting_bytes() > 0);
            port.discard();
            port.queue(&header(Kind::Hello, 2), b"hello");
            let mut decoder = Decoder::new();
            let heard = (0..1_000_000).any(|_| {
                port.writable = true;
                port.flush();
                if let Ok(count) = far.read(decoder.space()) {
                    decoder.filled(count);
                }
                std::iter::from_fn(|| decoder.pull().map(|frame| frame.kind)).any(|kind| kind == Kind::Hello)
            });
            assert!(heard, "frames of {torn_by} bytes");
        }
    }
}
