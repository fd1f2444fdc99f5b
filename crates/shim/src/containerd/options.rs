//! Runtime options: what containerd's configuration and clients say about a runtime, as an `Any`.
//!
//! Owns: the two messages understood here. Never: what the options mean. Called by `start`.

use bulkhead_model::{Failure, FailureKind};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream, Message};
use containerd_shim_protos::shim::oci::Options as RuncOptions;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// More is no options message.
const MOST_BYTES: u64 = 4 << 20;

/// containerd's options for runtimes it knows nothing of: `type_url`, `config_path`, `config_body`.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// Docker and `ctr` send these to runtimes they take for runc's.
const RUNC: &str = "containerd.runc.v1.Options";

/// What is heeded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Configuration file.
    pub(super) config: Option<PathBuf>,
    /// `cgroupsPath` is systemd's.
    pub(super) systemd_cgroup: bool,
}

/// The message on standard input; empty when there is none.
pub(super) fn read_stdin() -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().take(MOST_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Reads an `Any`; other types than the two are left alone.
///
/// # Errors
/// Bytes that are no message of the type they claim.
pub(super) fn parse(bytes: &[u8]) -> Result<Options, Failure> {
    let bad = |error: protobuf::Error| {
        Failure::new(
            FailureKind::InvalidArgument,
            format!("runtime options: {error}: expected a protobuf Any"),
        )
    };
    let any = Any::parse_from_bytes(bytes).map_err(bad)?;
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    match name {
        GENERIC => generic(&any.value).map_err(bad),
        RUNC => RuncOptions::parse_from_bytes(&any.value)
            .map(|runc| Options {
                config: None,
                systemd_cgroup: runc.systemd_cgroup,
            })
            .map_err(bad),
        _ => Ok(Options::default()),
    }
}

/// Field 2 is the path of a configuration file.
fn generic(value: &[u8]) -> protobuf::Result<Options> {
    let mut input = CodedInputStream::from_bytes(value);
    let mut options = Options::default();
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Field 2, length-delimited.
        if tag == 2 << 3 | 2 {
            let path = input.read_string()?;
            options.config = (!path.is_empty()).then(|| path.into());
        } else {
            skip(tag, &mut input)?;
        }
    }
    Ok(options)
}

fn skip(tag: u32, input: &mut CodedInputStream<'_>) -> protobuf::Result<()> {
    match tag & 7 {
        0 => input.read_raw_varint64().map(drop),
        1 => input.skip_raw_bytes(8),
        2 => input.read_bytes().map(drop),
        5 => input.skip_raw_bytes(4),
        _ => Err(std::io::Error::from(std::io::ErrorKind::InvalidData).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Vec<u8> {
        let any = Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        };
        any.write_to_bytes().unwrap()
    }

    #[test]
    fn the_path_of_a_configuration_and_systemd() {
        let mut value = vec![0x0a, 3];
        value.extend(b"url");
        value.extend([0x12, 4]);
        value.extend(b"/c.t");
        let got = parse(&any("runtimeoptions.v1.Options", value)).unwrap();
        assert_eq!(got.config, Some("/c.t".into()));
        let runc = RuncOptions {
            systemd_cgroup: true,
            ..RuncOptions::default()
        };
        let bytes = any("containerd.runc.v1.Options", runc.write_to_bytes().unwrap());
        assert!(parse(&bytes).unwrap().systemd_cgroup);
        assert_eq!(parse(b"").unwrap(), Options::default());
        assert_eq!(parse(&any("other", vec![1])).unwrap(), Options::default());
    }

    #[test]
    fn garbage_is_refused() {
        assert!(parse(&[0xff; 5]).is_err());
        assert!(parse(&any("runtimeoptions.v1.Options", vec![0x12, 200])).is_err());
    }
}
