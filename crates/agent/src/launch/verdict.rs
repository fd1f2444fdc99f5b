//! How the reason for a failure gets out of a container that is being made.
//!
//! The library hands on only the outermost clause of an error, as text; the cause is in its `tracing` events, in
//! whichever of its processes it happened. A pipe that all of them inherit carries both: those events, and the
//! verdict on the program, which is ours.
//!
//! Owns: the pipe and the subscriber. Only for workers: one thread, one container.

use super::order::Refusal;
use bulkhead_model::FailureKind;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

#[derive(Serialize, Deserialize)]
enum Line {
    /// The program cannot run: the whole reason.
    Program(Refusal),
    /// An error event of the library.
    Event(String),
}

/// The writing end.
#[derive(Debug, Clone)]
pub(super) struct Verdict(Arc<PipeWriter>);

/// The reading end.
#[derive(Debug)]
pub(super) struct Reasons(PipeReader);

/// Makes both, and has every error event of this process and its children go into the pipe.
pub(super) fn channel() -> io::Result<(Reasons, Verdict)> {
    let (reader, writer) = io::pipe()?;
    // A reader must not wait for a process that was left behind, a writer not for a reader.
    nonblocking(&reader)?;
    nonblocking(&writer)?;
    let verdict = Verdict(Arc::new(writer));
    // One container per process: nobody has set one before.
    let _ = tracing::subscriber::set_global_default(ErrorEvents(verdict.clone()));
    Ok((Reasons(reader), verdict))
}

impl Verdict {
    fn tell(&self, line: &Line) {
        if let Ok(mut text) = serde_json::to_vec(line) {
            text.push(b'\n');
            // Full: the first lines are the ones that count.
            let _ = (&*self.0).write_all(&text);
        }
    }

    /// Why the program cannot run.
    pub(super) fn program(&self, refusal: Refusal) {
        self.tell(&Line::Program(refusal));
    }
}

impl Reasons {
    /// The verdict on the program, else the first error, which is the innermost.
    pub(super) fn first(mut self) -> Option<Refusal> {
        let mut text = Vec::new();
        // Ends with EAGAIN if a writer lives on; what was written is there.
        let _ = self.0.read_to_end(&mut text);
        let mut events: Vec<String> = Vec::new();
        for line in text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
        {
            match line {
                Line::Program(refusal) => return Some(refusal),
                Line::Event(message) => events.push(message),
            }
        }
        // The first says what was tried, the second wraps it and has the kernel's reason.
        events.truncate(2);
        (!events.is_empty()).then(|| Refusal {
            kind: FailureKind::Internal,
            message: format!("container setup: {}", events.join("; ")),
        })
    }
}

fn nonblocking(fd: &impl std::os::fd::AsFd) -> io::Result<()> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(())
}

struct ErrorEvents(Verdict);

/// The message first, then `name=value` of the other fields, in one line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for ErrorEvents {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = format!("{}{}", text.message, text.fields).replace('\n', " ");
        self.0.tell(&Line::Event(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
