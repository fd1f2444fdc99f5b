//! What of a CRI client's `PodSandboxConfig` a sandbox is made from.
//!
//! Field numbers are those of the CRI's `runtime.v1`. What is not named here does not shape a VM: names, DNS and log
//! directories come with the containers' own specifications.
//!
//! Owns: that choice of fields. Never: what they cause. Called by `ordered`.

use bulkhead_model::{Failure, FailureKind};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, UnknownFields, UnknownValueRef};
use std::collections::BTreeMap;

/// Its name in a message of any type.
const NAME: &str = "runtime.v1.PodSandboxConfig";

/// `NamespaceMode` of a pod in the host's network.
const NODE: u64 = 2;

/// The fields that count; default where the client said nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PodConfig {
    pub(super) hostname: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) cgroup_parent: String,
    pub(super) sysctls: BTreeMap<String, String>,
    /// The pod is to be in the host's network.
    pub(super) host_network: bool,
    pub(super) resources: PodResources,
}

/// Limits of a whole pod, as far as the client knows them; zero is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PodResources {
    pub(super) cpu_period_us: i64,
    pub(super) cpu_quota_us: i64,
    pub(super) cpu_shares: i64,
    pub(super) memory_bytes: i64,
}

impl PodConfig {
    /// Reads it out of the options of a request; those of another type say nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for one that is damaged.
    pub(super) fn read(options: &Any) -> Result<Self, Failure> {
        let name = options.type_url.rsplit('/').next().unwrap_or_default();
        if name != NAME {
            if !name.is_empty() {
                tracing::info!(name, "options of another type than {NAME} say nothing here");
            }
            return Ok(Self::default());
        }
        let config = Fields::read(&options.value)?;
        let linux = config.message(8)?;
        let namespaces = linux.message(2)?.message(1)?;
        let resources = linux.message(5)?;
        Ok(Self {
            hostname: config.text(2),
            annotations: config.map(7)?,
            cgroup_parent: linux.text(1),
            sysctls: linux.map(3)?,
            host_network: namespaces.number(1) == NODE,
            resources: PodResources {
                cpu_period_us: resources.number(1).cast_signed(),
                cpu_quota_us: resources.number(2).cast_signed(),
                cpu_shares: resources.number(3).cast_signed(),
                memory_bytes: resources.number(4).cast_signed(),
            },
        })
    }
}

/// The fields of a message whose type is not known to the library.
struct Fields(Empty);

impl Fields {
    fn read(bytes: &[u8]) -> Result<Self, Failure> {
        Empty::parse_from_bytes(bytes)
            .map(Self)
            .map_err(|error| Failure::new(FailureKind::InvalidArgument, format!("the pod's {NAME}: {error}")))
    }

    fn fields(&self) -> &UnknownFields {
        self.0.special_fields.unknown_fields()
    }

    /// Every value of a field that is text, bytes or a message.
    fn all(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        self.fields().iter().filter_map(move |(of, value)| match value {
            UnknownValueRef::LengthDelimited(bytes) if of == number => Some(bytes),
            _ => None,
        })
    }

    fn text(&self, number: u32) -> String {
        let text = self.all(number).last().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    fn number(&self, number: u32) -> u64 {
        let values = self.fields().iter().filter_map(|(of, value)| match value {
            UnknownValueRef::Varint(value) if of == number => Some(value),
            _ => None,
        });
        values.last().unwrap_or(0)
    }

    fn message(&self, number: u32) -> Result<Self, Failure> {
        Self::read(self.all(number).last().unwrap_or_default())
    }

    fn map(&self, number: u32) -> Result<BTreeMap<String, String>, Failure> {
        self.all(number)
            .map(|entry| {
                let entry = Self::read(entry)?;
                Ok((entry.text(1), entry.text(2)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{NAME, PodConfig, PodResources};
    use containerd_shim_protos::protobuf::CodedOutputStream;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    fn message(write: impl FnOnce(&mut CodedOutputStream<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        write(&mut out);
        out.flush().unwrap();
        drop(out);
        bytes
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        message(|out| {
            out.write_string(1, key).unwrap();
            out.write_string(2, value).unwrap();
        })
    }

    fn any(value: Vec<u8>) -> Any {
        Any {
            type_url: format!("types.example/{NAME}"),
            value,
            ..Any::default()
        }
    }

    #[test]
    fn what_counts_is_read() {
        let options = message(|out| out.write_int32(1, 2).unwrap());
        let security = message(|out| out.write_bytes(1, &options).unwrap());
        let resources = message(|out| {
            out.write_int64(1, 100_000).unwrap();
            out.write_int64(2, -1).unwrap();
            out.write_int64(4, 1 << 30).unwrap();
        });
        let linux = message(|out| {
            out.write_string(1, "/kubepods/pod1").unwrap();
            out.write_bytes(2, &security).unwrap();
            out.write_bytes(3, &entry("net.core.somaxconn", "7")).unwrap();
            out.write_bytes(5, &resources).unwrap();
        });
        let config = message(|out| {
            out.write_string(2, "web").unwrap();
            out.write_bytes(7, &entry("a", "1")).unwrap();
            out.write_bytes(7, &entry("b", "2")).unwrap();
            out.write_bytes(8, &linux).unwrap();
        });
        let pod = PodConfig::read(&any(config)).unwrap();
        assert_eq!(
            (pod.hostname.as_str(), pod.cgroup_parent.as_str()),
            ("web", "/kubepods/pod1")
        );
        assert_eq!(pod.annotations.get("b").map(String::as_str), Some("2"));
        assert_eq!(pod.annotations.len(), 2);
        assert_eq!(
            pod.sysctls.get("net.core.somaxconn").map(String::as_str),
            Some("7")
        );
        assert!(pod.host_network);
        let expected = PodResources {
            cpu_period_us: 100_000,
            cpu_quota_us: -1,
            cpu_shares: 0,
            memory_bytes: 1 << 30,
        };
        assert_eq!(pod.resources, expected);
    }

    #[test]
    fn others_say_nothing_and_damaged_ones_are_refused() {
        let other = Any {
            type_url: "something.Else".to_owned(),
            value: vec![0xff],
            ..Any::default()
        };
        assert_eq!(PodConfig::read(&other).unwrap(), PodConfig::default());
        let failure = PodConfig::read(&any(vec![0xff])).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("the pod's runtime.v1.PodSandboxConfig"),
            "{}",
            failure.message
        );
    }
}
