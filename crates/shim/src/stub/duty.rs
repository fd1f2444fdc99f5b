//! The stub's side: into its namespaces, then one poll loop until its process has ended.
//!
//! ```text
//!  order ─► terminal ─► view or setns ─► ready ─► go ─┬─► signal ─► Signal / Resize to the supervisor
//!                                                     ├─► StreamEnded ─► close that descriptor
//!                                                     ├─► Exited ─► exit with its status
//!                                                     └─► connection gone ─► wait for a fresh supervisor
//! ```
//!
//! Owns: the stub process. Never: copies data, starts a thread, or returns to a shell's job control.

use super::LOST;
use super::order::{self, CHANNEL_FD, CONNECTION_FD, Go, JOIN_FD, LOG_FD, NULL_FD, Order, RENEW_FD, Report};
use super::spawn::internal;
use crate::{Client, Message};
use bulkhead_host::deadline::{self, Deadline};
use bulkhead_host::inherited::take_inherited;
use bulkhead_host::process::Code;
use bulkhead_host::pty::{self, RawMode};
use bulkhead_host::signals::Signals;
use bulkhead_model::{FailureKind, ProcessKey};
use bulkhead_sandbox::{Command, Notice};
use nix::libc;
use nix::poll::{PollFd, PollFlags};
use nix::sched::CloneFlags;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// A message of the supervisor that has begun comes whole.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(60);

/// A supervisor that is killed is replaced at once; one that was killed with its minder, by the next verb.
const SUCCESSOR_DEADLINE: Duration = Duration::from_secs(600);

/// The verb that started it gives its order at once and waits for no one but the supervisor afterwards.
const ORDER_DEADLINE: Duration = Duration::from_secs(300);

/// Runs the stub; returns the exit status of its process.
pub(super) fn run(fd: RawFd) -> io::Result<u8> {
    // Before anything else: as pid 1 a signal that is neither blocked nor handled would be lost.
    let signals = Signals::all()?;
    let channel = UnixStream::from(take_inherited(if fd == 0 { CHANNEL_FD } else { fd })?);
    channel.set_read_timeout(Some(ORDER_DEADLINE))?;
    let connection = UnixStream::from(take_inherited(CONNECTION_FD)?);
    let order: Order = order::receive(&channel)?;
    // Before the view: a container's /proc is not to be believed. Without it nothing is forgotten.
    let code = Code::of_this_process().ok();
    let log = order.log.then(|| take_inherited(LOG_FD)).transpose()?;
    let null = take_inherited(NULL_FD)?;
    let report = match settle(&order) {
        Ok(warnings) => Report::Ready { warnings },
        Err(error) => {
            order::send(&channel, &Report::Failed(internal(&*error)))?;
            return Ok(LOST);
        }
    };
    order::send(&channel, &report)?;
    let Go { attach } = order::receive(&channel)?;
    drop(channel);
    let renew = UnixListener::from(take_inherited(RENEW_FD)?);
    let mut duty = Duty {
        key: order.key,
        attach,
        renew,
        terminal: order.terminal,
        client: Client::from_stream(connection),
        signals,
        null,
        log: log.map(File::from),
    };
    // From here on it waits, most of the time for as long as its process lives.
    if let Some(code) = code {
        code.forget();
    }
    Ok(duty.serve())
}

/// Takes the terminal, then enters or builds the namespaces.
fn settle(order: &Order) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut warnings = Vec::new();
    if order.terminal {
        let stdin = io::stdin();
        // `--console` may name a terminal that controls the caller's session: it works all the same, but
        // changes of its size and its end are not seen here.
        if let Err(error) = pty::make_controlling(stdin.as_fd()) {
            warnings.push(format!("the terminal is not the stub's controlling one: {error}"));
        }
        RawMode::set(stdin.as_fd())?;
    }
    if let Some(view) = &order.view {
        warnings.extend(view.enter()?);
        return Ok(warnings);
    }
    let container = take_inherited(JOIN_FD)?;
    // All at once: after the mount namespace the others' files could not be found any more.
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    nix::sched::setns(container, all)?;
    nix::unistd::chdir("/")?;
    Ok(warnings)
}

struct Duty {
    key: ProcessKey,
    attach: Command,
    renew: UnixListener,
    terminal: bool,
    client: Client,
    signals: Signals,
    null: OwnedFd,
    log: Option<File>,
}

impl Duty {
    fn serve(&mut self) -> u8 {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(code)) => return code,
                Err(reason) => {
                    self.say(&reason);
                    if let Err(reason) = self.renew() {
                        self.say(&reason);
                        return LOST;
                    }
                }
            }
        }
    }

    /// Waits for a fresh supervisor and reports for duty again, with the descriptors as they are: an ended
    /// stream is `/dev/null` by now, and the supervisor knows that it ended.
    fn renew(&mut self) -> Result<(), String> {
        let found = deadline::readable(self.renew.as_fd(), Deadline::after(SUCCESSOR_DEADLINE));
        if !found.map_err(|error| format!("poll: {error}"))? {
            return Err("no fresh supervisor came".into());
        }
        let (stream, _) = self
            .renew
            .accept()
            .map_err(|error| format!("accepting a supervisor: {error}"))?;
        self.client = Client::from_stream(stream);
        let Command::Attach { stdio, .. } = &self.attach else {
            return Err("it was never attached".into());
        };
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut fds = Vec::new();
        if stdio.terminal || stdio.stdin {
            fds.push(stdin.as_fd());
        }
        if stdio.stdout {
            fds.push(stdout.as_fd());
        }
        if stdio.stderr {
            fds.push(stderr.as_fd());
        }
        self.client
            .send(&self.attach, &fds)
            .map_err(|failure| failure.to_string())
    }

    /// Waits for one event and deals with it; `Some` is the exit status.
    fn turn(&mut self) -> Result<Option<u8>, String> {
        let mut fds = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.client.stream().as_fd(), PollFlags::POLLIN),
        ];
        // The supervisor's end of the connection closes when it dies, whatever else happens.
        deadline::poll(&mut fds, Deadline::NEVER).map_err(|error| format!("poll: {error}"))?;
        let [signal, message] = fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        if signal {
            while let Some(arrived) = self
                .signals
                .next()
                .map_err(|error| format!("reading signals: {error}"))?
            {
                self.forward(arrived.number)?;
            }
        }
        if message {
            return self.hear();
        }
        Ok(None)
    }

    fn forward(&mut self, signal: i32) -> Result<(), String> {
        let command = match signal {
            libc::SIGCHLD => return Ok(()),
            libc::SIGWINCH => {
                let Ok(size) = pty::window_size(io::stdin().as_fd()) else {
                    return Ok(());
                };
                Command::Resize {
                    key: self.key.clone(),
                    columns: size.columns,
                    rows: size.rows,
                }
            }
            // A closed master comes as SIGHUP too: the kernel sends it to the session leader.
            _ => Command::Signal {
                key: self.key.clone(),
                signal,
                all: false,
            },
        };
        self.client
            .send(&command, &[])
            .map_err(|failure| failure.to_string())
    }

    fn hear(&mut self) -> Result<Option<u8>, String> {
        match self.client.receive(Some(MESSAGE_DEADLINE)) {
            Ok(Message::Notice(Notice::Exited { status })) => {
                Ok(Some(u8::try_from(status.code()).unwrap_or(LOST)))
            }
            // Of a process without a stub; its output may still be on its way.
            Ok(Message::Notice(Notice::Ended { .. })) => Ok(None),
            Ok(Message::Notice(Notice::StreamEnded { stream })) => {
                self.end_stream(stream);
                Ok(None)
            }
            Ok(Message::Ok(_)) => Ok(None),
            Ok(Message::Err(failure)) => {
                // A signal that came too late, most of all; the process's end is on its way.
                if failure.kind != FailureKind::NotFound {
                    self.say(&failure.to_string());
                }
                Ok(None)
            }
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Lets go of a stream: `/dev/null` takes its number. The terminal is kept: it is one descriptor for
    /// all three, and the window size comes through it.
    fn end_stream(&mut self, stream: u8) {
        if self.terminal {
            return;
        }
        let result = match stream {
            0 => nix::unistd::dup2_stdin(&self.null),
            1 => nix::unistd::dup2_stdout(&self.null),
            2 => nix::unistd::dup2_stderr(&self.null),
            _ => Ok(()),
        };
        if let Err(errno) = result {
            self.say(&format!("closing stream {stream}: {errno}"));
        }
    }

    fn say(&mut self, what: &str) {
        if let Some(log) = &mut self.log {
            let line = serde_json::json!({ "level": "warn", "from": "stub", "process": self.key.to_string(), "msg": what });
            // Nobody is left to be told when the log fails too.
            let _ = writeln!(log, "{line}");
        }
    }
}
