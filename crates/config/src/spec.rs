//! config.json → the OCI types, with errors that name file, key, value and what was expected.
//!
//! Owns: what is a valid spec for us, and what engines write that the strict types would refuse (nulls, a
//! missing user, capabilities of newer kernels). Never: what the spec means (see `plan`).

use crate::line::line;
use bulkhead_model::oci;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Longest argument or environment entry in bytes: MAX_ARG_STRLEN less its NUL (execve(2)).
pub const MAX_ARG_BYTES: usize = 131_071;

/// Longest host or domain name in bytes (__NEW_UTS_LEN).
const MAX_NAME_BYTES: usize = 64;

/// Why a config.json cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not JSON.
    #[error("{}:{line}:{column}: not JSON: {message}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// A required key or section is not there.
    #[error("{}: {key} is missing: expected {expected}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What belongs there.
        expected: String,
    },
    /// A value of the wrong type, or one the key does not take.
    #[error("{}: {key} is {value}: expected {expected}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value, shortened.
        value: String,
        /// What belongs there.
        expected: String,
    },
    /// A file of the host that the spec names cannot be examined.
    #[error("{}: {key} is {value}: {message}", file.display())]
    Host {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// Why.
        message: String,
    },
    /// Something bulkhead does not do.
    #[error("{}: {key} is {value}: not supported: {reason}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// Why, and what to do.
        reason: &'static str,
    },
}

/// A spec that was read, and what was tolerated in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The spec.
    pub spec: oci::Spec,
    /// What was dropped or changed, one line each.
    pub warnings: Vec<String>,
}

/// Builds errors about one file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a>(pub(crate) &'a Path);

impl At<'_> {
    pub(crate) fn value(
        self,
        key: impl Into<String>,
        value: impl Into<String>,
        expected: impl Into<String>,
    ) -> SpecError {
        SpecError::Value {
            file: self.0.to_owned(),
            key: line(&key.into()),
            value: line(&value.into()),
            expected: expected.into(),
        }
    }

    pub(crate) fn missing(self, key: impl Into<String>, expected: impl Into<String>) -> SpecError {
        SpecError::Missing {
            file: self.0.to_owned(),
            key: line(&key.into()),
            expected: expected.into(),
        }
    }

    pub(crate) fn unsupported(
        self,
        key: impl Into<String>,
        value: impl Into<String>,
        reason: &'static str,
    ) -> SpecError {
        SpecError::Unsupported {
            file: self.0.to_owned(),
            key: line(&key.into()),
            value: line(&value.into()),
            reason,
        }
    }
}

/// Reads the text of the config.json at `file`; the name is for messages only.
///
/// # Errors
/// The first [`SpecError`].
pub fn read(file: &Path, text: &[u8]) -> Result<Read, SpecError> {
    let at = At(file);
    let mut value: Value = serde_json::from_slice(text).map_err(|error| SpecError::Json {
        file: file.to_owned(),
        line: error.line(),
        column: error.column(),
        message: brief(&error.to_string()),
    })?;
    if !value.is_object() {
        return Err(at.value("the document", shown(&value), "a JSON object"));
    }
    drop_nulls(&mut value);
    version(at, &value)?;
    sections(at, &value)?;
    let mut warnings = Vec::new();
    tolerate(&mut value, &mut warnings);
    device_letters(at, &value)?;
    let spec: oci::Spec =
        serde_path_to_error::deserialize(&value).map_err(|error| shape(at, &value, &error))?;
    process(at, &spec)?;
    names(at, &spec)?;
    hooks(at, &spec)?;
    seccomp(at, &spec)?;
    Ok(Read { spec, warnings })
}

/// The reader's part of a serde message: no position, one line.
fn brief(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    message[..end].replace(['\n', '\r'], " ")
}

/// A JSON value in a message, at most a line long.
pub(crate) fn shown(value: &Value) -> String {
    shortened(&value.to_string())
}

/// A text in a message, at most a line long.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 120;
    let mut short: String = text.chars().take(MOST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// JSON null means absent to every engine; the strict types take it for some keys only.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Any 1.x is compatible (OCI runtime-spec, "Specification version").
fn version(at: At<'_>, value: &Value) -> Result<(), SpecError> {
    const EXPECTED: &str = "a version 1.x of the OCI runtime specification";
    let Some(found) = value.get("ociVersion") else {
        return Err(at.missing("ociVersion", EXPECTED));
    };
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let legal = found.as_str().is_some_and(|text| {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = core.split('.');
        parts.next() == Some("1")
            && parts.clone().count() <= 2
            && parts.clone().count() >= 1
            && parts.all(number)
    });
    if legal {
        Ok(())
    } else {
        Err(at.value("ociVersion", shown(found), EXPECTED))
    }
}

/// O-02: process, root and linux must be there.
fn sections(at: At<'_>, value: &Value) -> Result<(), SpecError> {
    for (key, expected) in [
        ("process", "the section that says what to run"),
        ("root", "the section that names the root file system"),
        ("linux", "the section for Linux containers"),
    ] {
        match value.get(key) {
            None => return Err(at.missing(key, expected)),
            Some(Value::Object(_)) => {}
            Some(other) => return Err(at.value(key, shown(other), format!("an object: {expected}"))),
        }
    }
    for (section, key, expected) in [
        ("process", "args", "a list with the program to run"),
        ("process", "cwd", "an absolute path in the container"),
        ("root", "path", "the directory of the root file system"),
    ] {
        if value[section].get(key).is_none() {
            return Err(at.missing(format!("{section}.{key}"), expected));
        }
    }
    Ok(())
}

/// What engines write and runtimes accept, though the types do not.
fn tolerate(value: &mut Value, warnings: &mut Vec<String>) {
    let Some(process) = value.get_mut("process").and_then(Value::as_object_mut) else {
        return;
    };
    process
        .entry("user")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else {
        return;
    };
    for (set, names) in sets.iter_mut() {
        if let Value::Array(names) = names {
            names.retain(|name| {
                // Not a string: left for the typed reader to refuse.
                let known = name.as_str().is_none_or(|text| {
                    serde_json::from_value::<oci::Capability>(Value::String(text.to_owned())).is_ok()
                });
                if !known {
                    warnings.push(format!(
                        "process.capabilities.{set}: {} dropped: unknown capability",
                        shown(name)
                    ));
                }
                known
            });
        }
    }
}

/// O-04: a device is c, b, u or p and has a path.
fn device_letters(at: At<'_>, value: &Value) -> Result<(), SpecError> {
    let Some(devices) = value["linux"].get("devices").and_then(Value::as_array) else {
        return Ok(());
    };
    for (index, device) in devices.iter().enumerate() {
        let key = |name: &str| format!("linux.devices[{index}].{name}");
        match device.get("path") {
            None => return Err(at.missing(key("path"), "the device's path in the container")),
            Some(Value::String(path)) if path.is_empty() => {
                return Err(at.value(key("path"), "\"\"", "the device's path in the container"));
            }
            Some(_) => {}
        }
        match device.get("type") {
            None => return Err(at.missing(key("type"), "c, b, u or p")),
            Some(Value::String(letter)) if matches!(letter.as_str(), "c" | "b" | "u" | "p") => {}
            Some(other) => return Err(at.value(key("type"), shown(other), "c, b, u or p")),
        }
    }
    Ok(())
}

/// An error of the typed reader, with the value its path leads to.
fn shape(at: At<'_>, value: &Value, error: &serde_path_to_error::Error<serde_json::Error>) -> SpecError {
    use serde_path_to_error::Segment;
    let mut found = Some(value);
    for segment in error.path() {
        found = match segment {
            Segment::Seq { index } => found.and_then(|v| v.get(*index)),
            Segment::Map { key } => found.and_then(|v| v.get(key)),
            Segment::Enum { .. } | Segment::Unknown => found,
        };
    }
    let message = brief(&error.inner().to_string());
    at.value(
        error.path().to_string(),
        found.map_or_else(|| "absent".to_owned(), shown),
        // serde says "invalid type: X, expected Y": Y is what belongs after our own "expected".
        message
            .split_once("expected ")
            .map_or(message.clone(), |(_, expected)| expected.to_owned()),
    )
}

fn process(at: At<'_>, spec: &oci::Spec) -> Result<(), SpecError> {
    let Some(process) = spec.process() else {
        return Err(at.missing("process", "the section that says what to run"));
    };
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(at.value("process.args", "[]", "a list with the program to run"));
    }
    if !process.cwd().is_absolute() {
        return Err(at.value(
            "process.cwd",
            format!("{:?}", process.cwd()),
            "an absolute path in the container",
        ));
    }
    let env = process.env().as_deref().unwrap_or_default();
    for (list, items) in [("args", args), ("env", env)] {
        for (index, item) in items.iter().enumerate() {
            let key = format!("process.{list}[{index}]");
            if item.contains('\0') {
                return Err(at.value(key, shortened(&format!("{item:?}")), "text without a NUL byte"));
            }
            if item.len() > MAX_ARG_BYTES {
                let value = format!("{} bytes long", item.len());
                return Err(at.value(
                    key,
                    value,
                    format!("at most {MAX_ARG_BYTES} bytes, the kernel's limit"),
                ));
            }
        }
    }
    Ok(())
}

/// Host and domain name fit the kernel's buffer (sethostname(2)).
fn names(at: At<'_>, spec: &oci::Spec) -> Result<(), SpecError> {
    for (key, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if let Some(name) = name
            && (name.len() > MAX_NAME_BYTES || name.contains('\0'))
        {
            let expected = format!("at most {MAX_NAME_BYTES} bytes without a NUL");
            return Err(at.value(key, shortened(&format!("{name:?}")), expected));
        }
    }
    Ok(())
}

/// Hooks have absolute paths, and time-outs above zero (OCI runtime-spec, "POSIX-platform Hooks").
fn hooks(at: At<'_>, spec: &oci::Spec) -> Result<(), SpecError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    // The spec's oldest kind is obsolete there, and in use by engines.
    #[allow(deprecated, reason = "engines still set prestart hooks")]
    let prestart = hooks.prestart();
    for (kind, list) in [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        for (index, hook) in list.iter().flatten().enumerate() {
            let key = |name: &str| format!("hooks.{kind}[{index}].{name}");
            if !hook.path().is_absolute() {
                return Err(at.value(key("path"), format!("{:?}", hook.path()), "an absolute path"));
            }
            if let Some(seconds) = hook.timeout()
                && seconds <= 0
            {
                return Err(at.value(key("timeout"), seconds.to_string(), "a number of seconds above 0"));
            }
        }
    }
    Ok(())
}

/// Seccomp notification needs a listener on the host, which a filter inside a VM cannot have.
fn seccomp(at: At<'_>, spec: &oci::Spec) -> Result<(), SpecError> {
    const REASON: &str = "a notification from inside the VM has no listener on the host: use another action";
    let Some(seccomp) = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()) else {
        return Ok(());
    };
    if let Some(path) = seccomp.listener_path() {
        return Err(at.unsupported("linux.seccomp.listenerPath", format!("{path:?}"), REASON));
    }
    if seccomp.default_action() == oci::LinuxSeccompAction::ScmpActNotify {
        return Err(at.unsupported("linux.seccomp.defaultAction", "\"SCMP_ACT_NOTIFY\"", REASON));
    }
    for (index, call) in seccomp.syscalls().iter().flatten().enumerate() {
        if call.action() == oci::LinuxSeccompAction::ScmpActNotify {
            let key = format!("linux.seccomp.syscalls[{index}].action");
            return Err(at.unsupported(key, "\"SCMP_ACT_NOTIFY\"", REASON));
        }
    }
    Ok(())
}
