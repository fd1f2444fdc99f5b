//! What a fresh supervisor needs to go on with the streams of the one before.
//!
//! ```text
//!  DIR/offsets      8 bytes per stream id: received offset, top bit = ended
//!  DIR/input-<id>   256 KiB ring of bytes taken from the user and maybe not in the guest yet,
//!                   then 8 bytes head offset and 8 bytes end-of-file flag
//! ```
//!
//! Written with plain pwrite(2): what the kernel has survives a SIGKILL of this process. Outputs are recorded after
//! they were written to the sink, so at most the last write is repeated. A failing write (disk full) is logged
//! once and costs only the ability to re-attach.
//!
//! Owns: these files. Never: decides what to send. Called by `data`, `output`, `input`.

use crate::StreamId;
use crate::frame::INPUT_WINDOW_BYTES;
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const ENDED: u64 = 1 << 63;
const RING: u64 = INPUT_WINDOW_BYTES;

/// Memory of streams across supervisors, or across connections of one supervisor.
#[derive(Debug)]
pub struct StreamStore {
    received: Mutex<HashMap<StreamId, Received>>,
    files: Option<Files>,
    complained: AtomicBool,
}

#[derive(Debug)]
struct Files {
    directory: OwnedFd,
    offsets: OwnedFd,
}

/// How far a stream got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) offset: u64,
    pub(super) ended: bool,
}

impl StreamStore {
    /// Kept in memory only: nobody takes over from this process.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            received: Mutex::new(HashMap::new()),
            files: None,
            complained: AtomicBool::new(false),
        }
    }

    /// Kept in `directory`, which exists and is this sandbox's own; it may have files of a supervisor before.
    ///
    /// # Errors
    /// When the directory or the offsets file in it cannot be opened.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let directory = rustix::fs::open(
            directory,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let offsets = rustix::fs::openat(&directory, "offsets", file_flags(), Mode::from_raw_mode(0o600))?;
        Ok(Self {
            files: Some(Files { directory, offsets }),
            ..Self::memory()
        })
    }

    /// Whether somebody may go on after this process.
    pub(super) const fn outlives(&self) -> bool {
        self.files.is_some()
    }

    /// How far `stream` got, as recorded last.
    pub(super) fn received(&self, stream: StreamId) -> Received {
        if let Some(known) = self.lock().get(&stream) {
            return *known;
        }
        let mut bytes = [0; 8];
        match &self.files {
            Some(files) => match rustix::io::pread(&files.offsets, &mut bytes, u64::from(stream) * 8) {
                Ok(8) => decode(u64::from_le_bytes(bytes)),
                _ => Received::default(),
            },
            None => Received::default(),
        }
    }

    /// Records how far `stream` got.
    pub(super) fn record(&self, stream: StreamId, received: Received) {
        if received.ended && self.files.is_some() {
            // The file remembers; the process need not, however many streams there were.
            self.lock().remove(&stream);
        } else {
            self.lock().insert(stream, received);
        }
        if let Some(files) = &self.files {
            let word = received.offset | if received.ended { ENDED } else { 0 };
            let at = u64::from(stream) * 8;
            self.check(rustix::io::pwrite(&files.offsets, &word.to_le_bytes(), at));
        }
    }

    /// The log of input `stream`, with what a supervisor before left in it.
    pub(super) fn input(&self, stream: StreamId) -> InputLog {
        let file = self.files.as_ref().and_then(|files| {
            let name = name(stream);
            match rustix::fs::openat(&files.directory, name, file_flags(), Mode::from_raw_mode(0o600)) {
                Ok(file) => Some(file),
                Err(error) => {
                    self.check::<()>(Err(error));
                    None
                }
            }
        });
        let mut log = InputLog {
            file,
            bytes: VecDeque::new(),
            head: 0,
            eof: false,
        };
        log.load();
        log
    }

    /// Appends to the log before the bytes are sent.
    pub(super) fn append(&self, log: &mut InputLog, bytes: &[u8]) {
        self.check(log.append(bytes));
    }

    /// Notes that the guest has asked for the stream: that is when its log becomes worth a file.
    pub(super) fn grant(&self, log: &mut InputLog) {
        self.check(log.store_head());
    }

    /// Whether the guest has ever asked for input `stream`, under this supervisor or one before.
    pub(super) fn was_granted(&self, stream: StreamId) -> bool {
        self.files.as_ref().is_some_and(|files| {
            rustix::fs::statat(&files.directory, name(stream), rustix::fs::AtFlags::empty())
                .is_ok_and(|stat| stat.st_size > 0)
        })
    }

    /// Notes that the user's input has ended.
    pub(super) fn end(&self, log: &mut InputLog) {
        log.eof = true;
        self.check(log.store_head());
    }

    /// Input `stream` is done with: its bytes are not needed again.
    pub(super) fn forget_input(&self, stream: StreamId) {
        let offset = self.received(stream).offset;
        self.record(stream, Received { offset, ended: true });
        if let Some(files) = &self.files {
            // Not there when it never had a byte, or could not be made.
            let _ = rustix::fs::unlinkat(&files.directory, name(stream), rustix::fs::AtFlags::empty());
        }
    }

    fn check<T>(&self, result: Result<T, rustix::io::Errno>) {
        if let Err(error) = result
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "stream state is not saved: a fresh supervisor could not take over");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<StreamId, Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_flags() -> OFlags {
    OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

fn name(stream: StreamId) -> String {
    format!("input-{stream}")
}

const fn decode(word: u64) -> Received {
    Received {
        offset: word & !ENDED,
        ended: word & ENDED != 0,
    }
}

/// Bytes of one input stream that may have to be sent (again).
#[derive(Debug)]
pub(super) struct InputLog {
    file: Option<OwnedFd>,
    bytes: VecDeque<u8>,
    /// Offset behind the last byte taken from the user.
    head: u64,
    eof: bool,
}

impl InputLog {
    pub(super) const fn head(&self) -> u64 {
        self.head
    }

    pub(super) const fn is_eof(&self) -> bool {
        self.eof
    }

    /// Offset of the first byte still here.
    pub(super) fn base(&self) -> u64 {
        self.head - self.bytes.len() as u64
    }

    /// Room for more before the guest acknowledges something.
    pub(super) fn room(&self) -> usize {
        usize::try_from(RING)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.bytes.len())
    }

    /// The guest has everything below `offset`. Beyond the head (a lost log) the stream goes on from there.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        if offset >= self.head {
            self.bytes.clear();
            self.head = offset;
        } else if offset > self.base() {
            let known = usize::try_from(offset - self.base()).unwrap_or(self.bytes.len());
            self.bytes.drain(..known);
        }
    }

    /// Copies at most `limit` bytes from `offset`, which is not below the base, into `out`.
    pub(super) fn copy(&self, offset: u64, limit: usize, out: &mut Vec<u8>) {
        out.clear();
        let skip = usize::try_from(offset.saturating_sub(self.base())).unwrap_or(usize::MAX);
        let (a, b) = self.bytes.as_slices();
        for part in [a.get(skip..), b.get(skip.saturating_sub(a.len())..)]
            .into_iter()
            .flatten()
        {
            let room = limit - out.len();
            out.extend_from_slice(&part[..part.len().min(room)]);
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), rustix::io::Errno> {
        let at = self.head;
        self.bytes.extend(bytes);
        self.head += bytes.len() as u64;
        if let Some(file) = &self.file {
            let start = at % RING;
            let first = bytes
                .len()
                .min(usize::try_from(RING - start).unwrap_or(usize::MAX));
            write_at(file, &bytes[..first], start)?;
            write_at(file, &bytes[first..], 0)?;
        }
        self.store_head()
    }

    fn store_head(&self) -> Result<(), rustix::io::Errno> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut tail = [0; 16];
        tail[..8].copy_from_slice(&self.head.to_le_bytes());
        tail[8..].copy_from_slice(&u64::from(self.eof).to_le_bytes());
        write_at(file, &tail, RING)
    }

    fn load(&mut self) {
        let Some(file) = &self.file else { return };
        let mut tail = [0; 16];
        if !matches!(rustix::io::pread(file, &mut tail, RING), Ok(16)) {
            return;
        }
        let word = |at: usize| {
            tail[at..at + 8]
                .iter()
                .rev()
                .fold(0u64, |n, b| n << 8 | u64::from(*b))
        };
        self.head = word(0);
        self.eof = word(8) != 0;
        let length = self.head.min(RING);
        let start = (self.head - length) % RING;
        let first = length.min(RING - start);
        for (at, count) in [(start, first), (0, length - first)] {
            let mut part = vec![0; usize::try_from(count).unwrap_or(0)];
            let got = rustix::io::pread(file, &mut part, at).unwrap_or(0);
            self.bytes.extend(&part[..got]);
        }
    }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), rustix::io::Errno> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, at))?;
        bytes = &bytes[count..];
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn offsets_are_there_for_the_next_supervisor() {
        let directory = tempfile::tempdir().unwrap();
        let first = StreamStore::open(directory.path()).unwrap();
        let going = Received {
            offset: 123_456,
            ended: false,
        };
        let done = Received {
            offset: 7,
            ended: true,
        };
        first.record(3, going);
        first.record(
            4,
            Received {
                offset: 7,
                ended: false,
            },
        );
        first.record(4, done);
        let second = StreamStore::open(directory.path()).unwrap();
        for store in [&first, &second] {
            assert_eq!(store.received(3), going);
            assert_eq!(store.received(4), done);
            assert_eq!(store.received(5), Received::default());
            assert_eq!(store.received(1 << 20), Received::default());
        }
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = StreamStore::open(&directory.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_forgotten_input_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let store = StreamStore::open(directory.path()).unwrap();
        let mut log = store.input(9);
        assert!(!store.was_granted(9));
        store.grant(&mut log);
        assert!(store.was_granted(9));
        store.append(&mut log, b"bytes");
        store.forget_input(9);
        assert!(!directory.path().join("input-9").exists());
        assert!(StreamStore::open(directory.path()).unwrap().received(9).ended);
    }

    fn at(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever was logged and not acknowledged is there for the next supervisor, around the ring's end too.
        #[test]
        fn the_log_holds_what_is_not_acknowledged(
            start in prop_oneof![Just(0u64), RING - 5..RING + 5, 3 * RING - 9..3 * RING + 9],
            steps in prop::collection::vec((0usize..40_000, 0u64..40_000), 1..12),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let store = StreamStore::open(directory.path()).unwrap();
            let mut log = store.input(1);
            log.acknowledge(start);
            let mut acknowledged = start;
            for (count, back) in steps {
                let count = count.min(log.room());
                let bytes: Vec<u8> = (log.head()..log.head() + count as u64).map(at).collect();
                store.append(&mut log, &bytes);
                acknowledged = acknowledged.max(log.head().saturating_sub(back));
                log.acknowledge(acknowledged);
                let again = StreamStore::open(directory.path()).unwrap().input(1);
                prop_assert_eq!(again.head(), log.head());
                prop_assert!(again.base() <= acknowledged);
                let mut out = Vec::new();
                for log in [&log, &again] {
                    log.copy(acknowledged, usize::MAX, &mut out);
                    let expected: Vec<u8> = (acknowledged..log.head()).map(at).collect();
                    prop_assert!(out == expected);
                }
            }
        }
    }
}
