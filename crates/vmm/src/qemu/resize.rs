//! Changing vCPUs and memory.
//!
//! ```text
//!  vCPUs:   KVM: device_add of free sockets        TCG: all are there since boot
//!  memory:  virtio-mem: requested-size             else: DIMMs of whole 128 MiB blocks, last in first out
//! ```
//!
//! Owns: sizes as QEMU has them. Never: brings anything online in the guest (the agent does), removes a
//! vCPU (offline in the guest and reused, contract C-24). QEMU is asked each time; nothing is remembered.

use super::hotplug::concerns;
use super::instance::Instance;
use super::memory::{MEMORY_BLOCK_MIB, VIRTIO_MEM, growth_mib};
use crate::qmp::QmpEvent;
use crate::{Resize, VmmError};
use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// For a guest to take or give memory.
const MEMORY: Duration = Duration::from_secs(30);
/// QEMU reports the progress of virtio-mem at most once a second; it is looked at more often.
const LOOK: Duration = Duration::from_millis(20);
const MIB: u64 = 1 << 20;

#[async_trait]
impl Resize for Instance {
    async fn vcpus(&self) -> Result<u32, VmmError> {
        let (present, _) = split(&self.cpus().await?);
        Ok(present)
    }

    async fn set_vcpus(&self, count: u32) -> Result<u32, VmmError> {
        let _one = self.sizing.lock().await;
        let cpus = self.cpus().await?;
        let (present, free) = split(&cpus);
        let missing = count.saturating_sub(present) as usize;
        if missing > free.len() || (missing > 0 && self.accelerator == Accelerator::Tcg) {
            return Err(VmmError::Unsupported {
                option: "vcpus",
                value: count.to_string(),
                expected: "at most the maximum number of vCPUs the VM was started with",
            });
        }
        for (number, cpu) in free.into_iter().take(missing).enumerate() {
            let mut device = cpu["props"].clone();
            device["driver"] = cpu["type"].clone();
            device["id"] = json!(format!("cpu{}", present as usize + number));
            self.command("device_add", device).await?;
        }
        Ok(present.max(count))
    }

    async fn set_memory(&self, mib: u32) -> Result<u32, VmmError> {
        let _one = self.sizing.lock().await;
        let most = self.plan.memory_mib + growth_mib(&self.plan);
        let added = mib.saturating_sub(self.plan.memory_mib);
        let added = added.div_ceil(MEMORY_BLOCK_MIB) * MEMORY_BLOCK_MIB;
        if self.plan.memory_mib + added > most {
            return Err(VmmError::Unsupported {
                option: "memory",
                value: format!("{mib} MiB"),
                expected: "at most the maximum size the VM was started with",
            });
        }
        if growth_mib(&self.plan) == 0 {
            return Ok(self.plan.memory_mib);
        }
        if self.plan.virtio_mem {
            self.request_memory(added).await?;
            return Ok(self.plan.memory_mib + added);
        }
        self.set_dimms(added).await
    }
}

impl Instance {
    async fn cpus(&self) -> Result<Vec<Value>, VmmError> {
        match self.command("query-hotpluggable-cpus", Value::Null).await? {
            Value::Array(cpus) => Ok(cpus),
            _ => Ok(Vec::new()),
        }
    }

    async fn request_memory(&self, mib: u32) -> Result<(), VmmError> {
        let path = format!("/machine/peripheral/{VIRTIO_MEM}");
        let wanted = u64::from(mib) * MIB;
        let set = json!({"path": path, "property": "requested-size", "value": wanted});
        self.command("qom-set", set).await?;
        if !self.ran.load(Ordering::Relaxed) {
            // The guest finds the request when its driver starts.
            return Ok(());
        }
        let step = "resizing the memory";
        let settled = async {
            loop {
                let size = json!({"path": path, "property": "size"});
                if self.command("qom-get", size).await?.as_u64() == Some(wanted) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(MEMORY, settled)
            .await
            .map_err(|_| VmmError::Deadline {
                step,
                deadline: MEMORY,
            })?
    }

    /// Brings the sum of the DIMMs to `added` MiB, a multiple of the block size.
    async fn set_dimms(&self, added: u32) -> Result<u32, VmmError> {
        let mut dimms = self.dimms().await?;
        let mut sum: u32 = dimms.iter().map(|(_, mib)| mib).sum();
        while let Some((number, mib)) = dimms.pop() {
            if sum < added + mib {
                dimms.push((number, mib));
                break;
            }
            self.remove_dimm(number).await?;
            sum -= mib;
        }
        if sum < added {
            let number = (0..self.plan.memory_slots)
                .find(|number| !dimms.iter().any(|(used, _)| used == number))
                .ok_or_else(|| VmmError::Unsupported {
                    option: "memory_slots",
                    value: self.plan.memory_slots.to_string(),
                    expected: "a free slot for each time the memory grows",
                })?;
            self.add_dimm(number, added - sum).await?;
            sum = added;
        }
        Ok(self.plan.memory_mib + sum)
    }

    /// Number and size in MiB of each DIMM, ordered by number.
    async fn dimms(&self) -> Result<Vec<(u32, u32)>, VmmError> {
        let devices = self.command("query-memory-devices", Value::Null).await?;
        let mut dimms: Vec<(u32, u32)> = devices
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter_map(dimm)
            .collect();
        dimms.sort_unstable();
        Ok(dimms)
    }

    async fn add_dimm(&self, number: u32, mib: u32) -> Result<(), VmmError> {
        let memory = format!("memdimm{number}");
        let mut object = json!({"id": memory, "size": u64::from(mib) * MIB, "share": true});
        match &self.plan.memory_backend {
            Some(directory) => {
                object["qom-type"] = json!("memory-backend-file");
                object["mem-path"] = json!(directory);
            }
            None => {
                object["qom-type"] = json!("memory-backend-memfd");
                object["hugetlb"] = json!(self.plan.hugepages);
            }
        }
        object["prealloc"] = json!(self.plan.memory_prealloc);
        self.command("object-add", object).await?;
        let id = format!("dimm{number}");
        let events = self.qmp.events();
        let dimm = json!({"driver": "pc-dimm", "id": id, "memdev": memory});
        if let Err(error) = self.command("device_add", dimm).await {
            if let Err(undo) = self.command("object-del", json!({"id": memory})).await {
                tracing::warn!(%undo, number, "memory for a DIMM stays behind");
            }
            return Err(error);
        }
        if !self.ran.load(Ordering::Relaxed) {
            // The guest finds it in its memory map.
            return Ok(());
        }
        let taken = self.await_taken(&id, events).await;
        if taken.is_err()
            && let Err(undo) = self.remove_dimm(number).await
        {
            tracing::warn!(%undo, number, "a DIMM stays behind");
        }
        taken
    }

    /// Waits for the guest's word that it uses a DIMM. Without it, an ejection that follows soon is lost:
    /// the firmware's scan reports one event for each DIMM.
    async fn await_taken(&self, id: &str, mut events: broadcast::Receiver<QmpEvent>) -> Result<(), VmmError> {
        let step = "adding memory";
        let refused = VmmError::Device {
            id: id.to_owned(),
            what: "the guest does not take it",
        };
        let told = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "ACPI_DEVICE_OST" && concerns(&event, id) => {
                        let done = event.data["info"]["status"].as_u64() == Some(0);
                        return if done { Ok(()) } else { Err(refused) };
                    }
                    // A missed event may have been ours: the guest had all the time there was.
                    Err(RecvError::Lagged(_)) => return Ok(()),
                    Ok(_) => {}
                    Err(RecvError::Closed) => return std::future::pending().await,
                }
            }
        };
        tokio::select! {
            biased;
            told = tokio::time::timeout(MEMORY, told) => {
                told.map_err(|_| VmmError::Deadline { step, deadline: MEMORY })?
            }
            exit = self.process.exited() => Err(self.process.ended(step, exit)),
        }
    }

    async fn remove_dimm(&self, number: u32) -> Result<(), VmmError> {
        let id = format!("dimm{number}");
        let events = self.qmp.events();
        self.command("device_del", json!({"id": id})).await?;
        self.await_gone(&id, events, MEMORY).await?;
        self.command("object-del", json!({"id": format!("memdimm{number}")}))
            .await
            .map(drop)
    }
}

/// How many vCPUs there are, and those that can be added.
fn split(cpus: &[Value]) -> (u32, Vec<&Value>) {
    let free: Vec<&Value> = cpus.iter().filter(|cpu| cpu["qom-path"].is_null()).collect();
    let present = u32::try_from(cpus.len() - free.len()).unwrap_or(u32::MAX);
    (present, free)
}

fn dimm(device: &Value) -> Option<(u32, u32)> {
    let data = &device["data"];
    let number = data["id"].as_str()?.strip_prefix("dimm")?.parse().ok()?;
    let mib = u32::try_from(data["size"].as_u64()? / MIB).ok()?;
    Some((number, mib))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{names, plan, scripted};
    use super::*;

    #[test]
    fn dimms_of_ours_and_other_memory() {
        let device = |id: &str| json!({"type": "dimm", "data": {"id": id, "size": 256 * MIB}});
        assert_eq!(dimm(&device("dimm3")), Some((3, 256)));
        assert_eq!(dimm(&device("vmem0")), None);
        assert_eq!(dimm(&json!({"type": "sgx-epc"})), None);
    }

    #[test]
    fn free_vcpus_are_those_without_a_path() {
        let cpus = [
            json!({"type": "t", "vcpus-count": 1, "props": {"socket-id": 1}}),
            json!({"type": "t", "vcpus-count": 1, "props": {"socket-id": 0}, "qom-path": "/machine/x"}),
        ];
        let (present, free) = split(&cpus);
        assert_eq!((present, free), (1, vec![&cpus[0]]));
    }

    /// C-24: vCPUs are added where QEMU has room for them, never one more than asked for.
    #[tokio::test]
    async fn c24_hardware_vcpus_are_plugged_by_their_place() {
        let script = |command: &str, _: &Value| {
            let cpu = |socket: u32, path: Value| json!({"type": "host-x86_64-cpu", "props": {"socket-id": socket}, "qom-path": path});
            match command {
                "query-hotpluggable-cpus" => (
                    Ok(json!([
                        cpu(2, Value::Null),
                        cpu(1, Value::Null),
                        cpu(0, json!("/m"))
                    ])),
                    Vec::new(),
                ),
                _ => (Ok(json!({})), Vec::new()),
            }
        };
        let (vm, asked) = scripted(plan(), Accelerator::Kvm, script).await;
        assert_eq!(vm.vcpus().await.unwrap(), 1);
        assert_eq!(vm.set_vcpus(1).await.unwrap(), 1);
        assert_eq!(vm.set_vcpus(2).await.unwrap(), 2);
        let added: Vec<_> = asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(name, _)| name == "device_add")
            .cloned()
            .collect();
        assert_eq!(
            added,
            [(
                "device_add".into(),
                json!({"driver": "host-x86_64-cpu", "id": "cpu1", "socket-id": 2})
            )]
        );
        let many = vm.set_vcpus(4).await;
        assert!(
            matches!(many, Err(VmmError::Unsupported { option: "vcpus", .. })),
            "{many:?}"
        );
    }

    /// A guest that does not take a DIMM, or does not give one back, is an error, and the DIMM's memory goes
    /// when the DIMM does.
    #[tokio::test]
    async fn a_guest_that_refuses_memory_is_an_error() {
        let script = |command: &str, arguments: &Value| match command {
            "query-memory-devices" => (Ok(json!([])), Vec::new()),
            "device_add" => {
                let info = json!({"device": arguments["id"], "source": 1, "status": 1});
                (
                    Ok(json!({})),
                    vec![json!({"event": "ACPI_DEVICE_OST", "data": {"info": info}})],
                )
            }
            "device_del" => (
                Ok(json!({})),
                vec![json!({"event": "DEVICE_DELETED", "data": {"device": arguments["id"]}})],
            ),
            _ => (Ok(json!({})), Vec::new()),
        };
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script).await;
        vm.ran.store(true, Ordering::Relaxed);
        let refused = vm.set_memory(512).await;
        assert!(matches!(refused, Err(VmmError::Device { .. })), "{refused:?}");
        assert_eq!(
            names(&asked),
            [
                "query-memory-devices",
                "object-add",
                "device_add",
                "device_del",
                "object-del"
            ]
        );
    }
}
