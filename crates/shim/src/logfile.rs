//! The sandbox log: one bounded file of JSON lines, written by the supervisor only.
//!
//! Owns: size and rotation (`log`, `log.1`). Never: what is logged. Called through `tracing`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Largest size of one log file in bytes; there are at most two.
pub(crate) const MAX_LOG_BYTES: u64 = 2 << 20;

/// A log that never grows beyond twice [`MAX_LOG_BYTES`].
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
}

impl LogFile {
    /// Opens the log at `path` for appending.
    ///
    /// # Errors
    /// I/O.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, self.path.with_extension("1"))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + bytes.len() as u64 > MAX_LOG_BYTES {
            self.rotate()?;
        }
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The FIFO through which containerd takes in its shims' logs, held open both ways so that it may go away and come
/// back; `None` when there is none.
fn client_log(path: &Path) -> Option<File> {
    let is_fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
    is_fifo.then(|| open.open(path).ok()).flatten()
}

/// The log and who else reads it.
struct Lines {
    file: LogFile,
    client: Option<File>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(client) = &mut self.client {
            // One that does not read misses lines; the file has them.
            let _ = client.write(bytes);
        }
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// How much is written: may change while the log is open, as for a sandbox whose plan comes later.
pub struct Detail(Box<dyn Fn(bool, bool) + Send + Sync>);

impl Detail {
    /// From here on with what is traced at debug level, and with the ends of spans.
    pub fn set(&self, debug: bool, spans: bool) {
        (self.0)(debug, spans);
    }
}

/// Sends everything traced from here on to `path`, and to the FIFO `log` of the bundle, if there is one; with `spans`
/// also the end of each span, with its fields, its failure and how long it took. Called once per process.
///
/// # Errors
/// When the file cannot be opened or tracing is set up already.
pub fn start(path: &Path, bundle: Option<&Path>, debug: bool, spans: bool) -> io::Result<Detail> {
    let (subscriber, detail) = subscriber(Lines {
        file: LogFile::open(path)?,
        client: bundle.and_then(|bundle| client_log(&bundle.join("log"))),
    });
    detail.set(debug, spans);
    subscriber.try_init().map_err(io::Error::other)?;
    Ok(detail)
}

fn subscriber(lines: Lines) -> (impl Subscriber + Send + Sync, Detail) {
    let (level, levels) = reload::Layer::new(LevelFilter::INFO);
    let format = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(Mutex::new(lines));
    let (format, formats) = reload::Layer::new(format);
    let set = move |debug, spans| {
        let level = if debug {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        };
        let ends = if spans { FmtSpan::CLOSE } else { FmtSpan::NONE };
        // They fail when the subscriber is gone, and then there is nothing to be written.
        let _ = levels.reload(level);
        let _ = formats.modify(|format| format.set_span_events(ends));
    };
    let subscriber = tracing_subscriber::registry().with(level).with(format);
    (subscriber, Detail(Box::new(set)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let dir = std::env::temp_dir().join(format!("bulkhead-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let mut log = LogFile::open(&path).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..5 * 1024 {
            log.write_all(&line).unwrap();
        }
        log.write_all(b"last\n").unwrap();
        let total: u64 = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 2 * MAX_LOG_BYTES, "{total}");
        assert!(std::fs::read(&path).unwrap().ends_with(b"last\n"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn more_is_written_once_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (subscriber, detail) = subscriber(Lines {
            file: LogFile::open(&path).unwrap(),
            client: None,
        });
        tracing::subscriber::with_default(subscriber, || {
            let say = |word| {
                let _span = tracing::info_span!("step", word).entered();
                tracing::debug!(word, "a detail");
            };
            say("first");
            detail.set(true, true);
            say("second");
            detail.set(false, false);
            say("third");
        });
        let log = std::fs::read_to_string(&path).unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
        assert_eq!(
            log.matches("\"message\":\"a detail\",\"word\":\"second\"")
                .count(),
            1,
            "{log}"
        );
        assert_eq!(log.matches("\"message\":\"close\"").count(), 1, "{log}");
    }
}
