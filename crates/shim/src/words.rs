//! What a supervisor says to whoever started it, on its standard output.
//!
//! ```text
//!  supervisor ── {"listening"} ──────────────────► launcher goes on
//!       │    └── {"failed": …} ─────────────────► nothing was started
//!       └─ the boot fails ── {"failed": …}, then its socket closes ──► the launcher's client knows why
//! ```
//!
//! Owns: the two lines, a JSON object each. Never: how a supervisor is started (`launch`) or what it does. Called by
//! both sides.

use bulkhead_model::{Failure, FailureKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ready {
    /// The socket listens.
    Listening,
    /// It could not start, or what it started did not.
    Failed(Failure),
}

/// The launcher's end.
#[derive(Debug)]
pub(crate) struct Words {
    from: File,
    ahead: Vec<u8>,
}

impl From<OwnedFd> for Words {
    fn from(pipe: OwnedFd) -> Self {
        Self {
            from: pipe.into(),
            ahead: Vec::new(),
        }
    }
}

impl Words {
    /// The next line, waiting at most `within`; `None` when the supervisor ended without one, or said what no
    /// supervisor of this version says.
    ///
    /// # Errors
    /// `DeadlineExceeded`, and what poll(2) and read(2) report.
    pub(crate) fn next(&mut self, within: Duration) -> Result<Option<Ready>, Failure> {
        let end = Instant::now() + within;
        let line = loop {
            if let Some(at) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let rest = self.ahead.split_off(at + 1);
                break std::mem::replace(&mut self.ahead, rest);
            }
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    return Err(Failure::new(
                        FailureKind::DeadlineExceeded,
                        format!("the supervisor did not listen within {} s", within.as_secs()),
                    ));
                }
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(failure("waiting for", &e.into())),
            }
            let mut chunk = [0; 4096];
            match self
                .from
                .read(&mut chunk)
                .map_err(|e| failure("reading from", &e))?
            {
                0 => break std::mem::take(&mut self.ahead),
                count => self.ahead.extend_from_slice(&chunk[..count]),
            }
        };
        Ok(serde_json::from_slice(&line).ok())
    }

    /// Why the boot failed, if it did. Does not wait: a supervisor says so before its socket closes.
    pub(crate) fn last(&mut self) -> Option<Failure> {
        match self.next(Duration::ZERO) {
            Ok(Some(Ready::Failed(failure))) => Some(failure),
            _ => None,
        }
    }
}

fn failure(action: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("{action} the supervisor: {error}"))
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Voice(Option<File>);

impl Voice {
    /// Takes standard output, which is `/dev/null` from here on.
    #[must_use]
    pub(crate) fn take() -> Self {
        // Closed on exec: a VMM that outlives its supervisor would keep the launcher waiting.
        let pipe = io::stdout().as_fd().try_clone_to_owned().ok().map(File::from);
        if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdout(&null);
        }
        Self(pipe)
    }

    /// Says one line; a launcher that is gone will not read it.
    pub(crate) fn say(&mut self, ready: &Ready) {
        if let (Some(pipe), Ok(mut line)) = (&mut self.0, serde_json::to_vec(ready)) {
            line.push(b'\n');
            let _ = pipe.write_all(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (Words, File) {
        let (read, write) = nix::unistd::pipe().unwrap();
        (Words::from(read), File::from(write))
    }

    #[test]
    fn two_lines_at_once_are_two_words() {
        let (mut words, pipe) = pipe();
        let mut voice = Voice(Some(pipe));
        voice.say(&Ready::Listening);
        voice.say(&Ready::Failed(Failure::new(FailureKind::Internal, "no VM")));
        assert!(matches!(words.next(Duration::ZERO), Ok(Some(Ready::Listening))));
        assert_eq!(words.last().unwrap().message, "no VM");
        assert_eq!(words.last(), None);
        drop(voice);
        assert!(matches!(words.next(Duration::from_secs(60)), Ok(None)));
    }

    #[test]
    fn silence_is_not_waited_for() {
        let (mut words, _pipe) = pipe();
        assert_eq!(words.last(), None);
        let failure = words.next(Duration::ZERO).unwrap_err();
        assert_eq!(failure.kind, FailureKind::DeadlineExceeded);
    }
}
