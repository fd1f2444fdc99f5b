//! Bytes of one output by their offsets, from when they were read until nobody can want them again.
//!
//! ```text
//!   offset   start ───────────────▶ end
//!   place    ··[████████████████████]······   goes round at the end of the memory
//! ```
//!
//! Owns: the memory; it is used from its beginning whenever nothing is held, so that a stream of a few lines touches one
//! page. Never: knows what was sent. Called by `output`.

use rustix::io::Errno;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;

/// The bytes from `start` to `end` of a stream.
#[derive(Debug, Default)]
pub(super) struct Ring {
    memory: Vec<u8>,
    /// The offset whose byte is at place 0; offsets a multiple of the capacity further are there too.
    base: u64,
    start: u64,
    end: u64,
}

impl Ring {
    /// Offset of the first byte held.
    pub(super) const fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the last byte held.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Bytes it can take now.
    pub(super) fn room(&self) -> usize {
        self.capacity() - self.held()
    }

    fn held(&self) -> usize {
        // Both are of one memory, so the difference is no larger than it.
        usize::try_from(self.end - self.start).unwrap_or(usize::MAX)
    }

    fn place(&self, offset: u64) -> usize {
        match self.capacity() as u64 {
            0 => 0,
            capacity => usize::try_from((offset - self.base) % capacity).unwrap_or(0),
        }
    }

    /// Makes it hold at least `capacity` bytes.
    pub(super) fn grow(&mut self, capacity: usize) {
        if capacity <= self.capacity() {
            return;
        }
        let mut memory = vec![0; capacity];
        let mut filled = 0;
        while let Some(part) = self.held_from(self.start + filled as u64) {
            memory[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        self.memory = memory;
        self.base = self.start;
    }

    /// Reads once from `source` into what room there is.
    ///
    /// # Errors
    /// Those of readv(2).
    pub(super) fn fill(&mut self, source: &OwnedFd) -> Result<usize, Errno> {
        let room = self.room();
        let from = self.place(self.end);
        let (before, behind) = self.memory.split_at_mut(from);
        let near = behind.len().min(room);
        let far = room - near;
        let mut parts = [
            IoSliceMut::new(&mut behind[..near]),
            IoSliceMut::new(&mut before[..far]),
        ];
        let count = rustix::io::readv(source, &mut parts)?;
        self.end += count as u64;
        Ok(count)
    }

    /// Bytes from `offset` on that lie in one piece; `None` when there are none.
    pub(super) fn held_from(&self, offset: u64) -> Option<&[u8]> {
        if offset < self.start || offset >= self.end {
            return None;
        }
        let from = self.place(offset);
        let count = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
        Some(&self.memory[from..self.capacity().min(from.saturating_add(count))])
    }

    /// Nobody wants the bytes below `offset`, which is not behind the end.
    pub(super) fn release(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
        if self.start == self.end {
            self.base = self.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    proptest! {
        /// Whatever was filled and not released is there, wherever the memory's end is and however it grew.
        #[test]
        fn holds_what_was_not_released(steps in prop::collection::vec((0usize..900, 0u64..900, 0usize..3), 1..60)) {
            let (source, sink) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
            let mut ring = Ring::default();
            ring.grow(500);
            for (count, released, growth) in steps {
                let room = ring.room();
                let bytes: Vec<u8> = (ring.end()..ring.end() + count.min(room) as u64).map(at).collect();
                if !bytes.is_empty() {
                    rustix::io::write(&sink, &bytes).unwrap();
                    prop_assert_eq!(ring.fill(&source), Ok(bytes.len()));
                }
                prop_assert_eq!(ring.room(), room - bytes.len());
                ring.release((ring.start() + released).min(ring.end()));
                ring.grow(ring.capacity() + growth * 100);
                let mut offset = ring.start();
                while let Some(part) = ring.held_from(offset) {
                    for byte in part {
                        prop_assert_eq!(*byte, at(offset));
                        offset += 1;
                    }
                }
                prop_assert_eq!(offset, ring.end());
            }
        }
    }

    #[test]
    fn little_at_a_time_stays_at_the_beginning() {
        let (source, sink) = rustix::pipe::pipe().unwrap();
        let mut ring = Ring::default();
        ring.grow(4096);
        for _ in 0..100 {
            rustix::io::write(&sink, &[1; 100]).unwrap();
            ring.fill(&source).unwrap();
            assert_eq!(ring.place(ring.start()), 0);
            ring.release(ring.end());
        }
    }
}
