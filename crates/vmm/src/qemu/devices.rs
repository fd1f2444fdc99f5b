//! What a device is in QMP terms: its back end and its front end.
//!
//! Owns: the JSON of `chardev-add`, `blockdev-add`, `netdev_add` and `device_add`, checked before anything
//! is asked of QEMU. Never: I/O beyond one stat of a disk. Called by `hotplug`. Back ends are named after
//! the root port (`back-rp3`), which is how a supervisor with no memory finds them.

use super::bus::{FIRST_ROOT_PORT, root_port};
use super::command_line::IOTHREAD;
use super::slots::Kind;
use crate::{DeviceRequest, VmmError};
use bulkhead_model::VmPlan;
use bulkhead_model::vm::Accelerator;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Longest id QEMU shows everywhere it shows one; block node names have 31.
const MAX_ID_BYTES: usize = 31;
/// `sun_path` less its final zero, unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// The commands that make one device, all for one slot.
#[derive(Debug, PartialEq)]
pub(super) struct Recipe {
    pub(super) kind: Kind,
    /// Names under which the descriptors are handed over, in their order (`getfd`).
    pub(super) fd_names: Vec<String>,
    /// Command and arguments that make the back end.
    pub(super) back: (&'static str, Value),
    /// Arguments of `device_add`.
    pub(super) front: Value,
}

/// Name of the back end behind a slot.
pub(super) fn back_end(slot: u32) -> String {
    format!("back-{}", root_port(slot))
}

/// Command and arguments that take the back end of a slot away.
pub(super) fn removal(kind: Kind, slot: u32) -> (&'static str, Value) {
    let name = back_end(slot);
    match kind {
        Kind::SharedFs => ("chardev-remove", json!({"id": name})),
        Kind::Block => ("blockdev-del", json!({"node-name": name})),
        Kind::Net => ("netdev_del", json!({"id": name})),
    }
}

/// PCI path of a slot's device as the guest sees it: the port on the root bus, then 00.0 behind it.
pub(super) fn pci_path(slot: u32) -> String {
    format!("{:02x}.0/00.0", FIRST_ROOT_PORT + slot)
}

pub(super) fn kind(request: &DeviceRequest) -> Kind {
    match request {
        DeviceRequest::SharedFs { .. } => Kind::SharedFs,
        DeviceRequest::Block { .. } => Kind::Block,
        DeviceRequest::Net { .. } => Kind::Net,
    }
}

pub(super) fn id(request: &DeviceRequest) -> &str {
    match request {
        DeviceRequest::SharedFs { id, .. }
        | DeviceRequest::Block { id, .. }
        | DeviceRequest::Net { id, .. } => id,
    }
}

/// Checks what can be checked without QEMU; `fds` is the number of descriptors that come along.
pub(super) fn check(request: &DeviceRequest, fds: usize) -> Result<(), VmmError> {
    let id = id(request);
    let wrong = |what| {
        Err(VmmError::Device {
            id: id.to_owned(),
            what,
        })
    };
    let unsupported = |option, value: String, expected| {
        Err(VmmError::Unsupported {
            option,
            value,
            expected,
        })
    };
    let starts = id.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let rest = id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !starts || !rest || id.len() > MAX_ID_BYTES {
        return wrong("not an id: expected a letter, then at most 30 letters, digits, - . _");
    }
    match request {
        DeviceRequest::SharedFs {
            tag,
            socket,
            cache_size_mib,
            ..
        } => {
            if *cache_size_mib > 0 {
                return unsupported(
                    "virtio_fs_cache_size",
                    cache_size_mib.to_string(),
                    "0: QEMU has no DAX window",
                );
            }
            // The tag field of the device, virtio 1.2 section 5.11.4.
            if tag.is_empty() || tag.len() > 36 {
                return wrong("mount tag: expected 1 to 36 bytes");
            }
            match fds {
                0 if socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH => {
                    wrong("socket path: expected at most 107 bytes")
                }
                0 => utf8(id, socket).map(drop),
                1 => Ok(()),
                _ => wrong("expected at most one descriptor, a connected socket"),
            }
        }
        DeviceRequest::Block { path, format, .. } => {
            if fds != 0 {
                return wrong("a disk takes no descriptor");
            }
            if !path.is_absolute() {
                return wrong("disk path: expected an absolute one");
            }
            if !["raw", "qcow2"].contains(&format.as_str()) {
                return unsupported("disk format", format.clone(), "raw or qcow2");
            }
            utf8(id, path).map(drop)
        }
        DeviceRequest::Net { queues, mac, .. } => {
            let queues = usize::from(*queues);
            if queues == 0 || queues > 256 {
                return wrong("network queues: expected 1 to 256");
            }
            if fds != queues && fds != 2 * queues {
                return wrong(
                    "expected one tap descriptor per queue, or one tap and one vhost descriptor per queue",
                );
            }
            let octets: Vec<_> = mac.split(':').collect();
            let octet = |o: &&str| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit());
            if octets.len() != 6 || !octets.iter().all(octet) {
                return wrong("MAC address: expected six octets in hexadecimal with colons between");
            }
            Ok(())
        }
    }
}

/// The commands for a checked request in `slot`.
///
/// The share of a translated guest has no message-signalled interrupts: what its kernel goes through to set them up is
/// code that runs once and costs its translation, 15 ms of each start. A guest on KVM has them, as they save exits.
pub(super) fn recipe(
    request: &DeviceRequest,
    fds: usize,
    slot: u32,
    plan: &VmPlan,
    accelerator: Accelerator,
) -> Result<Recipe, VmmError> {
    let name = back_end(slot);
    let fd_names: Vec<String> = (0..fds).map(|n| format!("fd-{}-{n}", root_port(slot))).collect();
    let (back, mut front) = match request {
        DeviceRequest::SharedFs { id, tag, socket, .. } => {
            let address = match fd_names.first() {
                Some(fd) => json!({"type": "fd", "data": {"str": fd}}),
                None => json!({"type": "unix", "data": {"path": utf8(id, socket)?}}),
            };
            let mut front =
                json!({"driver": "vhost-user-fs-pci", "chardev": name, "tag": tag, "queue-size": 1024});
            if accelerator == Accelerator::Tcg {
                front["vectors"] = json!(0);
            }
            (
                (
                    "chardev-add",
                    json!({"id": name, "backend": {"type": "socket", "data": {"addr": address, "server": false}}}),
                ),
                front,
            )
        }
        DeviceRequest::Block {
            id,
            path,
            readonly,
            format,
        } => {
            let mut front = json!({"driver": "virtio-blk-pci", "drive": name});
            if plan.block.iothreads {
                front["iothread"] = json!(IOTHREAD);
            }
            (
                (
                    "blockdev-add",
                    block_node(&name, utf8(id, path)?, path, *readonly, format, plan),
                ),
                front,
            )
        }
        DeviceRequest::Net { mac, queues, .. } => {
            let queues = usize::from(*queues);
            let (taps, vhosts) = fd_names.split_at(queues.min(fd_names.len()));
            let mut back = json!({"type": "tap", "id": name, "vhost": !vhosts.is_empty()});
            let [one, many] = if queues == 1 {
                ["fd", "vhostfd"]
            } else {
                ["fds", "vhostfds"]
            };
            back[one] = json!(taps.join(":"));
            if !vhosts.is_empty() {
                back[many] = json!(vhosts.join(":"));
            }
            // No option ROM: nobody boots from it, and it would be read and mapped for each card.
            let mut front = json!({"driver": "virtio-net-pci", "netdev": name, "mac": mac, "romfile": ""});
            if queues > 1 {
                front["mq"] = json!(true);
                // One interrupt per direction and queue, one for control, one for configuration.
                front["vectors"] = json!(2 * queues + 2);
            }
            (("netdev_add", back), front)
        }
    };
    front["id"] = json!(id(request));
    front["bus"] = json!(root_port(slot));
    if plan.iommu_platform {
        front["iommu_platform"] = json!(true);
        front["disable-legacy"] = json!("on");
    }
    Ok(Recipe {
        kind: kind(request),
        fd_names,
        back,
        front,
    })
}

fn block_node(name: &str, text: &str, path: &Path, readonly: bool, format: &str, plan: &VmPlan) -> Value {
    let device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    let mut file = json!({
        "driver": if device { "host_device" } else { "file" },
        "filename": text,
        "aio": "threads",
    });
    let mut node = json!({
        "node-name": name,
        "driver": format,
        "read-only": readonly,
        "discard": "unmap",
    });
    if let Some(cache) = plan.block.cache {
        let mode = json!({"direct": cache.direct, "no-flush": cache.no_flush});
        file["cache"] = mode.clone();
        node["cache"] = mode;
    }
    node["file"] = file;
    node
}

fn utf8<'a>(id: &str, path: &'a Path) -> Result<&'a str, VmmError> {
    path.to_str().ok_or_else(|| VmmError::Device {
        id: id.to_owned(),
        what: "path: expected one in UTF-8, QMP has no other",
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::plan;
    use super::*;
    use bulkhead_model::vm::BlockCache;

    fn net(queues: u16, mac: &str) -> DeviceRequest {
        DeviceRequest::Net {
            id: "net0".into(),
            mac: mac.into(),
            queues,
        }
    }

    fn disk(path: &str) -> DeviceRequest {
        DeviceRequest::Block {
            id: "disk0".into(),
            path: path.into(),
            readonly: true,
            format: "raw".into(),
        }
    }

    #[test]
    fn the_guest_sees_the_port_then_the_device() {
        assert_eq!(pci_path(0), "04.0/00.0");
        assert_eq!(pci_path(12), "10.0/00.0");
    }

    #[test]
    fn a_card_with_one_queue_and_one_with_two_and_vhost() {
        let mac = "02:00:00:00:00:01";
        let one = recipe(&net(1, mac), 1, 2, &plan(), Accelerator::Tcg).unwrap();
        assert_eq!(one.fd_names, ["fd-rp2-0"]);
        assert_eq!(
            one.back,
            (
                "netdev_add",
                json!({"type": "tap", "id": "back-rp2", "fd": "fd-rp2-0", "vhost": false})
            )
        );
        let two = recipe(&net(2, mac), 4, 0, &plan(), Accelerator::Tcg).unwrap();
        assert_eq!(two.back.1["fds"], "fd-rp0-0:fd-rp0-1");
        assert_eq!(two.back.1["vhostfds"], "fd-rp0-2:fd-rp0-3");
        assert_eq!(two.front["vectors"], 6);
        assert_eq!(two.front["bus"], "rp0");
    }

    #[test]
    fn disk_cache_settings_reach_both_layers() {
        let mut plan = plan();
        assert!(
            recipe(&disk("/nope"), 0, 0, &plan, Accelerator::Tcg)
                .unwrap()
                .back
                .1
                .get("cache")
                .is_none()
        );
        plan.block.cache = Some(BlockCache {
            direct: true,
            no_flush: false,
        });
        plan.block.iothreads = true;
        let recipe = recipe(&disk("/nope"), 0, 0, &plan, Accelerator::Tcg).unwrap();
        assert_eq!(recipe.back.1["cache"], json!({"direct": true, "no-flush": false}));
        assert_eq!(recipe.back.1["file"]["cache"], recipe.back.1["cache"]);
        assert_eq!(recipe.back.1["read-only"], true);
        assert_eq!(recipe.front["iothread"], "io0");
    }

    #[test]
    fn a_daemon_by_path_or_by_connected_socket() {
        let request = DeviceRequest::SharedFs {
            id: "fs".into(),
            tag: "share".into(),
            socket: "/s".into(),
            cache_size_mib: 0,
        };
        let address = |fds| {
            let recipe = recipe(&request, fds, 1, &plan(), Accelerator::Tcg).unwrap();
            recipe.back.1["backend"]["data"]["addr"].clone()
        };
        let vectors =
            |accelerator| recipe(&request, 0, 1, &plan(), accelerator).unwrap().front["vectors"].clone();
        assert_eq!(vectors(Accelerator::Tcg), 0);
        assert_eq!(vectors(Accelerator::Kvm), Value::Null);
        assert_eq!(address(0), json!({"type": "unix", "data": {"path": "/s"}}));
        assert_eq!(address(1), json!({"type": "fd", "data": {"str": "fd-rp1-0"}}));
    }

    #[test]
    fn bad_requests_are_named_before_qemu_sees_them() {
        let bad = |request: DeviceRequest, fds| check(&request, fds).unwrap_err().to_string();
        assert!(bad(net(0, "02:00:00:00:00:01"), 0).contains("queues"));
        assert!(bad(net(2, "02:00:00:00:00:01"), 3).contains("descriptor"));
        assert!(bad(net(1, "02:00:00:00:00"), 1).contains("MAC"));
        assert!(bad(net(1, "02:00:00:00:00:+1"), 1).contains("MAC"));
        assert!(bad(disk("disk"), 0).contains("absolute"));
        assert!(bad(disk("/disk"), 1).contains("descriptor"));
        let with_id = |id: &str| DeviceRequest::Block {
            id: id.into(),
            path: "/disk".into(),
            readonly: false,
            format: "raw".into(),
        };
        for id in ["", "0a", "a b", "a,b", "a/b", &"a".repeat(32)] {
            assert!(bad(with_id(id), 0).contains("not an id"), "{id}");
        }
        assert!(check(&with_id("a-1._"), 0).is_ok());
        let fs = |tag: &str, socket: &str, cache_size_mib| DeviceRequest::SharedFs {
            id: "fs".into(),
            tag: tag.into(),
            socket: socket.into(),
            cache_size_mib,
        };
        assert!(bad(fs("", "/s", 0), 0).contains("tag"));
        assert!(bad(fs("t", &"/s".repeat(60), 0), 0).contains("107"));
        assert!(bad(fs("t", "/s", 8), 0).contains("DAX"));
        assert!(bad(fs("t", "/s", 0), 2).contains("one descriptor"));
    }
}
