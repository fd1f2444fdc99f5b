//! How errors and warnings reach the user and the engine that called: standard error and `--log`, in the
//! formats runc writes.
//!
//! ```text
//!  no --log:   formatted line ──► standard error
//!  --log FILE: formatted line ──► FILE (appended), the plain message of an error ──► standard error
//! ```
//! Owns: formatting and writing. Never: decides what is an error. Called by `lib` and verbs.

use clap::ValueEnum;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Value of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

/// How bad it is; the names are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The verb failed.
    Error,
    /// The verb goes on.
    Warning,
    /// Worth knowing.
    Info,
    /// With `--debug` only.
    Debug,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Where messages go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    /// `--log`.
    pub(crate) log: Option<PathBuf>,
    /// `--log-format`.
    pub(crate) format: LogFormat,
    /// `--debug`.
    pub(crate) debug: bool,
}

impl Report {
    /// Says that the verb failed: one line, then the guest's last console lines if there are any.
    pub(crate) fn failure(&self, message: &str, console: &[String]) {
        self.say(Level::Error, message);
        if self.log.is_some() {
            eprintln!("{}", one_line(message));
        }
        for line in console {
            let line = format!("guest console: {line}");
            match self.log {
                Some(_) => {
                    self.say(Level::Info, &line);
                    eprintln!("{line}");
                }
                None => self.say(Level::Info, &line),
            }
        }
    }

    /// Says something the verb goes on after.
    pub(crate) fn warning(&self, message: &str) {
        self.say(Level::Warning, message);
    }

    /// Says what is being done, with `--debug`.
    pub(crate) fn debug(&self, message: &str) {
        if self.debug {
            self.say(Level::Debug, message);
        }
    }

    fn say(&self, level: Level, message: &str) {
        let line = format_line(self.format, level, &one_line(message), OffsetDateTime::now_utc());
        let Some(path) = &self.log else {
            eprint!("{line}");
            return;
        };
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("writing the log {}: {error}", path.display());
            eprint!("{line}");
        }
    }
}

/// A message is one line, whatever it quotes.
fn one_line(message: &str) -> String {
    message.trim_end().replace('\n', " ")
}

fn format_line(format: LogFormat, level: Level, message: &str, at: OffsetDateTime) -> String {
    let second = at.replace_nanosecond(0).unwrap_or(at);
    let time = second.format(&Rfc3339).unwrap_or_default();
    let level = level.name();
    match format {
        LogFormat::Json => {
            let line = serde_json::json!({"level": level, "msg": message, "time": time});
            format!("{line}\n")
        }
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={}\n", logfmt(message)),
    }
}

/// Quotes a logfmt value where it needs it.
fn logfmt(value: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(bare) {
        return value.to_owned();
    }
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for c in value.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String does not fail.
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const AT: OffsetDateTime = datetime!(2026-11-23 22:37:08.5 UTC);
    const MESSAGE: &str = r#"exec: "foo": executable file not found in $PATH"#;

    #[test]
    fn json_is_what_engines_parse() {
        assert_eq!(
            format_line(LogFormat::Json, Level::Error, MESSAGE, AT),
            concat!(
                r#"{"level":"error","msg":"exec: \"foo\": executable file not found in $PATH","#,
                r#""time":"2026-11-23T22:37:08Z"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn text_is_logfmt() {
        assert_eq!(
            format_line(LogFormat::Text, Level::Warning, MESSAGE, AT),
            concat!(
                r#"time="2026-11-23T22:37:08Z" level=warning "#,
                r#"msg="exec: \"foo\": executable file not found in $PATH""#,
                "\n"
            )
        );
        assert_eq!(logfmt("bare/word"), "bare/word");
        assert_eq!(logfmt(""), "\"\"");
        assert_eq!(logfmt("a\u{1}\\ b"), "\"a\\x01\\\\ b\"");
    }

    #[test]
    fn the_log_is_appended_to_and_holds_one_line_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        let report = Report {
            log: Some(log.clone()),
            format: LogFormat::Json,
            debug: false,
        };
        report.failure("first\nline", &[]);
        report.failure("second", &["panic".into()]);
        report.debug("not said");
        let text = std::fs::read_to_string(&log).unwrap();
        let messages: Vec<(String, String)> = text
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                let field = |name: &str| value[name].as_str().unwrap().to_owned();
                (field("level"), field("msg"))
            })
            .collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            messages,
            [
                pair("error", "first line"),
                pair("error", "second"),
                pair("info", "guest console: panic")
            ]
        );
    }
}
