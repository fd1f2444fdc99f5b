//! Signals while a verb waits for a supervisor, and while it stands in for the container.
//!
//! ```text
//!  Interrupts::arm ─► signals are read, not taken
//!     call: answer first ─► Answered      deadly signal first ─► Interrupted (the caller cleans up)
//! ```
//! Owns: which signals end a wait. Never: cleans up. Called by create, run and exec. Single-threaded.

use crate::exit_status::VerbClass;
use crate::report::Report;
use crate::verbs;
use bulkhead_host::deadline::{Deadline, poll};
use bulkhead_host::signals::Signals;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::Command;
use bulkhead_shim::{Client, Message};
use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use nix::poll::{PollFd, PollFlags};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Signals that call a verb off.
const DEADLY: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// How a wait ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The supervisor did it.
    Answered,
    /// This signal came first.
    Interrupted(i32),
}

/// Signals of this process, read by descriptor for as long as this lives.
pub(crate) struct Interrupts {
    signals: Signals,
    taken: Cell<Option<i32>>,
}

impl Interrupts {
    /// Reads all signals from here on (for a verb that stays and forwards them).
    ///
    /// # Errors
    /// What signalfd(2) reports.
    pub(crate) fn all() -> Result<Self, Failure> {
        Self::armed(Signals::all())
    }

    /// Reads the deadly ones only.
    ///
    /// # Errors
    /// What signalfd(2) reports.
    pub(crate) fn deadly() -> Result<Self, Failure> {
        Self::armed(Signals::of(&DEADLY))
    }

    fn armed(signals: std::io::Result<Signals>) -> Result<Self, Failure> {
        signals
            .map(|signals| Self {
                signals,
                taken: Cell::new(None),
            })
            .map_err(|e| Failure::new(FailureKind::Internal, format!("reading signals: {e}")))
    }

    /// Sends a command and waits for its answer, a deadly signal, or the deadline.
    ///
    /// # Errors
    /// What the supervisor reports; `DeadlineExceeded`.
    pub(crate) fn call(
        &self,
        client: &mut Client,
        command: &Command,
        within: Duration,
    ) -> Result<Outcome, Failure> {
        client.send(command, &[])?;
        let deadline = Deadline::after(within);
        loop {
            let (answer, signal) = self.wait(client.stream().as_fd(), deadline)?;
            if signal && let Some(number) = self.deadly_one() {
                return Ok(Outcome::Interrupted(number));
            }
            if answer {
                match client.receive(Some(
                    deadline.left().unwrap_or(within).max(Duration::from_secs(1)),
                ))? {
                    Message::Ok(_) => return Ok(Outcome::Answered),
                    Message::Err(failure) => return Err(failure),
                    Message::Notice(_) => {}
                }
            }
        }
    }

    fn wait(&self, answer: BorrowedFd<'_>, deadline: Deadline) -> Result<(bool, bool), Failure> {
        let mut fds = [
            PollFd::new(answer, PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        let count = poll(&mut fds, deadline)
            .map_err(|e| Failure::new(FailureKind::Internal, format!("waiting for the supervisor: {e}")))?;
        if count == 0 {
            return Err(Failure::new(
                FailureKind::DeadlineExceeded,
                "the supervisor did not answer in time",
            ));
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        Ok((ready(0), ready(1)))
    }

    /// The deadly signal that arrived; others are of no meaning while nothing runs yet.
    fn deadly_one(&self) -> Option<i32> {
        while let Ok(Some(arrived)) = self.signals.next() {
            if DEADLY.contains(&arrived.number) {
                self.taken.set(Some(arrived.number));
                return Some(arrived.number);
            }
        }
        None
    }

    /// A deadly signal that has arrived already.
    #[must_use]
    pub(crate) fn pending(&self) -> Option<i32> {
        self.deadly_one()
    }

    /// The signals themselves, for a verb that forwards them.
    #[must_use]
    pub(crate) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// What a verb answers: one that failed because a signal called it off exits as if the signal had ended
    /// it, after saying so.
    ///
    /// # Errors
    /// The failure itself when no signal came.
    pub(crate) fn conclude(
        &self,
        result: verbs::Outcome,
        class: VerbClass,
        report: &Report,
    ) -> verbs::Outcome {
        match (result, self.taken.get()) {
            (Err(failure), Some(signal)) => {
                let message = format!("{}{}", class.prefix(), failure.message);
                report.failure(&message, &failure.console);
                Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX))
            }
            (result, _) => result,
        }
    }

    /// The failure of a verb that was called off.
    #[must_use]
    pub(crate) fn failure(signal: i32) -> Failure {
        Failure::new(FailureKind::Cancelled, format!("called off by signal {signal}"))
    }
}
