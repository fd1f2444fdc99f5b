//! One file per verb: its options and what it does with the supervisor's answers.
//!
//! Owns: translating between the command line and `sandbox::Command`. Never: devices, VMs, processes of a
//! sandbox. Called by `lib` through [`crate::invocation::Verb`].

pub(crate) mod checkpoint;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod features;
pub(crate) mod gc;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod pause;
pub(crate) mod ps;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod spec;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod template;
pub(crate) mod timeline;
pub(crate) mod update;

use bulkhead_model::Failure;

/// How a verb ended: the status to exit with.
pub(crate) type Outcome = Result<u8, Failure>;

/// Prints a value as indented JSON.
pub(crate) fn print_json<T: serde::Serialize>(value: &T) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|e| {
        Failure::new(
            bulkhead_model::FailureKind::Internal,
            format!("encoding the answer: {e}"),
        )
    })?;
    print_text(&format!("{text}\n"))
}

/// Prints to standard output; a reader that went away is no failure.
pub(crate) fn print_text(text: &str) -> Outcome {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            bulkhead_model::FailureKind::Internal,
            format!("writing to standard output: {e}"),
        )),
        _ => Ok(0),
    }
}
