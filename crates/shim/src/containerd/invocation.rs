//! The command line containerd calls a shim with.
//!
//! ```text
//!  -namespace N -address A -publish-binary P -id ID [-bundle B] [-debug] start | delete
//!  -info | -v
//! ```
//! Flags are Go's: one or two dashes, `-flag value` or `-flag=value`.
//!
//! Owns: the words, and what is printed. Never: does what they say. Called by `cli`'s main.

use super::{options, remove, start};
use bulkhead_model::{Failure, FailureKind};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runtime name that leads here.
const RUNTIME: &str = "io.containerd.bulkhead.v2";

/// The words, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) namespace: String,
    pub(super) id: String,
    pub(super) bundle: Option<PathBuf>,
    pub(super) debug: bool,
    action: Action,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Action {
    #[default]
    None,
    Start,
    Delete,
    Info,
    Version,
}

/// Runs the shim with the words after the program's name.
#[must_use]
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Option<Vec<String>> = words.map(|word| word.into_string().ok()).collect();
    let result = words
        .ok_or_else(|| bad("an argument is not UTF-8".into()))
        .and_then(Invocation::parse)
        .and_then(|invocation| invocation.run());
    match result {
        Ok(output) => match std::io::stdout().write_all(&output) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(failure) => {
            eprintln!("bulkhead: {}", failure.message);
            ExitCode::FAILURE
        }
    }
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::InvalidArgument, message)
}

impl Invocation {
    fn parse(words: Vec<String>) -> Result<Self, Failure> {
        let mut got = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-') else {
                got.action = match word.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => return Err(bad(format!("{word:?}: expected start or delete"))),
                };
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let on = given.as_deref() != Some("false");
            let mut value = || {
                given
                    .clone()
                    .or_else(|| words.next())
                    .ok_or_else(|| bad(format!("-{name} has no value")))
            };
            match name {
                "namespace" => got.namespace = value()?,
                "id" => got.id = value()?,
                "bundle" => got.bundle = Some(value()?.into()),
                // Events go to the address in the environment.
                "address" | "publish-binary" | "socket" => drop(value()?),
                "debug" => got.debug = on,
                "info" if on => got.action = Action::Info,
                "v" | "version" if on => got.action = Action::Version,
                _ => return Err(bad(format!("unknown flag -{name}"))),
            }
        }
        Ok(got)
    }

    fn run(&self) -> Result<Vec<u8>, Failure> {
        match self.action {
            Action::Start => start::run(self),
            Action::Delete => remove::run(self),
            Action::Info => info(),
            Action::Version => Ok(format!("{RUNTIME} {}\n", env!("CARGO_PKG_VERSION")).into_bytes()),
            Action::None => Err(bad(
                "this is containerd's shim: expected start or delete; people use `bulkhead`".into(),
            )),
        }
    }
}

fn info() -> Result<Vec<u8>, Failure> {
    // Asked for on standard input, and not needed.
    let _ = options::read_stdin();
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        })
        .into(),
        ..RuntimeInfo::default()
    };
    encode(&info)
}

/// A message as bytes.
pub(super) fn encode(message: &impl Message) -> Result<Vec<u8>, Failure> {
    message
        .write_to_bytes()
        .map_err(|error| Failure::from_chain(FailureKind::Internal, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, Failure> {
        Invocation::parse(line.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn what_containerd_says() {
        let line =
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start";
        let expected = Invocation {
            namespace: "k8s.io".into(),
            id: "a".into(),
            bundle: None,
            debug: true,
            action: Action::Start,
        };
        assert_eq!(parse(line).unwrap(), expected);
        let line = "--namespace=default -id a -bundle /b -debug=false delete";
        let got = parse(line).unwrap();
        assert_eq!((got.action, got.debug), (Action::Delete, false));
        assert_eq!(got.bundle, Some("/b".into()));
    }

    #[test]
    fn bad_words_are_named() {
        for (line, named) in [("-frob start", "-frob"), ("stop", "\"stop\""), ("-id", "-id")] {
            let failure = parse(line).unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
        }
        assert!(parse("-id a").unwrap().run().is_err());
    }

    #[test]
    fn the_info_is_a_message_with_the_runtimes_name() {
        let bytes = info().unwrap();
        assert_eq!(RuntimeInfo::parse_from_bytes(&bytes).unwrap().name, RUNTIME);
    }
}
