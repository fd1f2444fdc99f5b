//! Bytes on their way into a device, in the kernel already.
//!
//! write(2) hands a virtio-serial port at most 32 KiB, and each time the guest leaves for the hypervisor. splice(2) hands
//! it all a pipe holds at once, and the pages move without a copy.
//!
//! Owns: that pipe. Never: knows what a frame is. Called by `port`.

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io::IoSlice;
use std::os::fd::OwnedFd;

/// Room for the turn of a stream with its headers.
const CAPACITY_BYTES: usize = 512 * 1024;

/// A pipe, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Tray {
    /// Reading end, writing end.
    pipe: Option<(OwnedFd, OwnedFd)>,
    held: usize,
}

impl Tray {
    /// Bytes in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Puts in what fits of `parts` and says how much that is; nothing when there is no pipe to be had.
    pub(super) fn load(&mut self, parts: &[IoSlice<'_>]) -> usize {
        if self.pipe.is_none() {
            let Ok((from, to)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
                return 0;
            };
            // A smaller one does as well.
            let _ = fcntl_setpipe_size(&to, CAPACITY_BYTES);
            self.pipe = Some((from, to));
        }
        let Some((_, to)) = &self.pipe else { return 0 };
        let count = rustix::io::writev(to, parts).unwrap_or(0);
        self.held += count;
        count
    }

    /// Moves what `device` takes of it.
    ///
    /// # Errors
    /// Those of splice(2); `AGAIN` when it takes nothing now.
    pub(super) fn unload(&mut self, device: &OwnedFd) -> Result<(), Errno> {
        let Some((from, _)) = self.pipe.as_ref().filter(|_| self.held > 0) else {
            return Ok(());
        };
        match splice(from, None, device, None, self.held, SpliceFlags::NONBLOCK) {
            // The driver had taken the pages when it found that it cannot queue them (no memory): they are gone, and the
            // host, which finds bytes missing, begins anew.
            Ok(0) => {
                self.discard();
                Ok(())
            }
            Ok(count) => {
                self.held -= count.min(self.held);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Throws away what is in it.
    pub(super) fn discard(&mut self) {
        if self.held > 0 {
            self.pipe = None;
            self.held = 0;
        }
    }
}
