//! The trace span of an operation (C-25): what every log line written during it carries.
//!
//! | field | what |
//! | --- | --- |
//! | `source` | always `bulkhead` |
//! | `package` | the crate |
//! | `subsystem` | `sandbox`, `container`, `process`, `share` |
//! | `operation` | the verb or step |
//! | `sandbox`, `container` | ids |
//! | `host_path` | where a path on the host is concerned |
//! | `error` | how it failed, recorded at its end |
//!
//! Owns: the fields and how a failure is recorded. Never: where spans go (the supervisor's log). Called by the
//! engine, the verbs and the calls beside them.

use bulkhead_model::failure::chain;
use bulkhead_model::{ContainerId, SandboxId};
use std::error::Error;
use std::path::Path;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

macro_rules! span {
    ([$($parent:tt)*], $sandbox:ident, $subsystem:ident, $operation:ident) => {
        tracing::info_span!(
            $($parent)*
            "operation",
            source = "bulkhead",
            package = env!("CARGO_PKG_NAME"),
            subsystem = $subsystem,
            operation = $operation,
            sandbox = %$sandbox,
            container = Empty,
            host_path = Empty,
            error = Empty,
        )
    };
}

/// The span of `operation`.
pub(crate) fn operation(
    subsystem: &'static str,
    operation: &'static str,
    sandbox: &SandboxId,
    container: Option<&ContainerId>,
) -> Span {
    let span = span!([], sandbox, subsystem, operation);
    if let Some(container) = container {
        span.record("container", display(container));
    }
    span
}

/// The span of something that outlives the operation that starts it: no part of that.
pub(crate) fn lasting(subsystem: &'static str, operation: &'static str, sandbox: &SandboxId) -> Span {
    span!([parent: None,], sandbox, subsystem, operation)
}

/// The span of a step that concerns `path` on the host.
pub(crate) fn on_path(
    operation: &'static str,
    sandbox: &SandboxId,
    container: &ContainerId,
    path: &Path,
) -> Span {
    let span = self::operation("share", operation, sandbox, Some(container));
    span.record("host_path", display(path.display()));
    span
}

/// Runs `work` in `span` and records its failure there.
pub(crate) async fn within<T, E: Error>(
    span: Span,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let result = work.instrument(span.clone()).await;
    if let Err(error) = &result {
        failed(&span, error);
    }
    result
}

/// Records a failure on its span and logs it there.
pub(crate) fn failed(span: &Span, error: &dyn Error) {
    let text = chain(error);
    span.record("error", text.as_str());
    span.in_scope(|| tracing::error!(error = text, "failed"));
}
