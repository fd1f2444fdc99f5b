//! `logs`: what supervisor, VMM, agent and guest console said, in one order.

use super::{Outcome, print_text};
use crate::context::Context;
use bulkhead_model::{Failure, FailureKind};
use clap::Args;
use serde_json::Value;
use std::path::Path;

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Print the lines as they were written: JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Id of a container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Logs {
    /// Runs the verb.
    ///
    /// # Errors
    /// An unknown id; a log that cannot be read.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let sandbox = context.sandbox_of(&Context::id(&self.id)?)?;
        let log = context.layout.sandbox(&sandbox).log();
        let mut text = read(&log.with_extension("1"))?;
        text.push_str(&read(&log)?);
        if self.json {
            return print_text(&text);
        }
        print_text(&text.lines().map(readable).collect::<String>())
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    match std::fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Failure::new(
            FailureKind::Internal,
            format!("reading {}: {e}", path.display()),
        )),
    }
}

/// `time level message key=value …`; what is no JSON is printed as it is.
fn readable(line: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(line) else {
        return format!("{line}\n");
    };
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (time, level, message) = (take("timestamp"), take("level"), take("message"));
    let mut out = format!("{time} {level:5} {message}");
    // Of the span, what tells operations apart.
    if let Some(Value::Object(span)) = fields.remove("span") {
        for name in ["operation", "sandbox", "container", "host_path", "error"] {
            if let Some(value) = span.get(name) {
                fields.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
    for (key, value) in &fields {
        let value = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        out.push_str(&format!(" {key}={value}"));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_readers() {
        let line = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","message":"booted","ms":5,"source":"agent"}"#;
        assert_eq!(
            readable(line),
            "2026-01-01T00:00:00Z INFO  booted ms=5 source=agent\n"
        );
        assert_eq!(readable("not json"), "not json\n");
        // C-25: what the span says of the line.
        let line = r#"{"timestamp":"t","level":"WARN","message":"m","span":{"name":"operation","package":"p","operation":"stop","container":"c"}}"#;
        assert_eq!(readable(line), "t WARN  m container=c operation=stop\n");
    }
}
