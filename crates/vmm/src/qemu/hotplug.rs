//! Plugging and unplugging.
//!
//! ```text
//!  plug:    reserve slot ─► getfd … ─► back end ─► device_add ─► plugged      (failure: back end, slot undone)
//!  unplug:  device_del ─► DEVICE_DELETED ─► back end removed ─► slot free     (deadline: the device stays "leaving")
//! ```
//!
//! Owns: the order of QMP commands for a device and what is undone when one fails. Never: retries. A call
//! whose future is dropped halfway marks the table stale; the next call then asks QEMU what is there.

use super::bus::root_port;
use super::devices::{self, Recipe, pci_path, removal};
use super::instance::Instance;
use super::slots::{Kind, Occupant, Refused, Slots, Stage};
use crate::qmp::QmpEvent;
use crate::{DeviceRequest, Hotplug, Plugged, VmmError};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{RwLockReadGuard, broadcast};

/// QMP error class of "no such device".
const NOT_FOUND: &str = "DeviceNotFound";
/// Where devices with an id live in QEMU's object tree.
pub(super) const PERIPHERAL: &str = "/machine/peripheral";

/// Marks the table stale unless the operation ran to its end.
struct Unfinished<'a>(&'a AtomicBool, bool);

impl Unfinished<'_> {
    fn done(mut self) {
        self.1 = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[async_trait]
impl Hotplug for Instance {
    async fn plug(&self, device: DeviceRequest, fds: Vec<OwnedFd>) -> Result<Plugged, VmmError> {
        devices::check(&device, fds.len())?;
        let _entered = self.enter().await?;
        let id = devices::id(&device).to_owned();
        let refused = |what| VmmError::Device { id: id.clone(), what };
        let slot = self.slots().reserve(&id, devices::kind(&device)).map_err(|why| {
            refused(match why {
                Refused::Taken => "the id is in use",
                Refused::Full => "no free root port: raise pcie_root_port",
            })
        })?;
        let unfinished = Unfinished(&self.stale, false);
        let added = match devices::recipe(&device, fds.len(), slot, &self.plan, self.accelerator) {
            Ok(recipe) => self.add(recipe, fds, slot).await,
            Err(error) => Err(error),
        };
        match added {
            Ok(()) => self.slots().mark(slot, Stage::Plugged),
            Err(_) => {
                self.slots().release(slot);
                None
            }
        };
        unfinished.done();
        added.map(|()| Plugged {
            id,
            pci_path: pci_path(slot),
        })
    }

    async fn unplug(&self, id: &str, deadline: Duration) -> Result<(), VmmError> {
        let _entered = self.enter().await?;
        let device = |what| VmmError::Device {
            id: id.to_owned(),
            what,
        };
        let (slot, occupant) = self.slots().find(id).ok_or_else(|| device("is not plugged"))?;
        if occupant.stage == Stage::Plugging {
            return Err(device("is being plugged"));
        }
        let unfinished = Unfinished(&self.stale, false);
        let before = self.slots().mark(slot, Stage::Leaving);
        // Subscribed before the request, so that the event cannot be missed.
        let events = self.qmp.events();
        let asked = match self.command("device_del", json!({"id": id})).await {
            Ok(_) => Ok(true),
            Err(VmmError::Qmp { class, .. }) if class == NOT_FOUND => Ok(false),
            // Asked before, by a call whose deadline passed: QEMU still waits for the guest.
            Err(VmmError::Qmp { .. }) if before == Some(Stage::Leaving) => Ok(true),
            Err(error) => Err(error),
        };
        let gone = match asked {
            Ok(true) => self.await_gone(id, events, deadline).await,
            Ok(false) => Ok(()),
            Err(error) => {
                self.slots().mark(slot, Stage::Plugged);
                Err(error)
            }
        };
        let removed = match gone {
            Ok(()) => {
                let (command, arguments) = removal(occupant.kind, slot);
                let removed = self.command(command, arguments).await.map(drop);
                self.slots().release(slot);
                removed
            }
            Err(error) => Err(error),
        };
        unfinished.done();
        removed
    }
}

impl Instance {
    /// Makes back and front end; a failure undoes what was made.
    async fn add(&self, recipe: Recipe, fds: Vec<OwnedFd>, slot: u32) -> Result<(), VmmError> {
        let Recipe {
            kind,
            fd_names,
            back: (command, arguments),
            front,
        } = recipe;
        let mut handed = Vec::new();
        let mut made = Ok(Value::Null);
        for (name, fd) in fd_names.into_iter().zip(fds) {
            made = self
                .command_with("getfd", json!({"fdname": name}), vec![fd])
                .await;
            if made.is_err() {
                break;
            }
            handed.push(name);
        }
        if made.is_ok() {
            made = self.command(command, arguments).await;
        }
        if let Err(error) = made {
            for name in handed {
                // A back end that failed late may have taken some of them: then this is refused.
                let _ = self.command("closefd", json!({"fdname": name})).await;
            }
            return Err(error);
        }
        if let Err(error) = self.command("device_add", front).await {
            let (command, arguments) = removal(kind, slot);
            if let Err(undo) = self.command(command, arguments).await {
                tracing::warn!(%undo, slot, "a back end stays behind");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Waits until QEMU says that the device is gone. A guest that never ran cannot let go: then a reset of
    /// the machine, which it cannot notice, completes the removal.
    pub(super) async fn await_gone(
        &self,
        id: &str,
        events: broadcast::Receiver<QmpEvent>,
        deadline: Duration,
    ) -> Result<(), VmmError> {
        if !self.ran.load(Ordering::Relaxed) {
            // A reset would end a QEMU started with -no-reboot.
            self.command("set-action", json!({"reboot": "reset"})).await?;
            self.command("system_reset", Value::Null).await?;
            self.command("set-action", json!({"reboot": "shutdown"})).await?;
        }
        let step = "unplugging a device";
        tokio::select! {
            biased;
            gone = tokio::time::timeout(deadline, self.deletion(id, events)) => {
                gone.map_err(|_| VmmError::Deadline { step, deadline })?
            }
            exit = self.process.exited() => Err(self.process.ended(step, exit)),
        }
    }

    async fn deletion(&self, id: &str, mut events: broadcast::Receiver<QmpEvent>) -> Result<(), VmmError> {
        let refused = VmmError::Device {
            id: id.to_owned(),
            what: "the guest does not let go of it",
        };
        loop {
            match events.recv().await {
                Ok(event) if concerns(&event, id) => match event.name.as_str() {
                    "DEVICE_DELETED" => return Ok(()),
                    // Newer QEMU sends the first, 7.2 for DIMMs the second.
                    "DEVICE_UNPLUG_GUEST_ERROR" | "MEM_UNPLUG_ERROR" => return Err(refused),
                    "ACPI_DEVICE_OST" if ost_refuses(&event.data["info"]) => return Err(refused),
                    _ => {}
                },
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    if !self.peripherals().await?.iter().any(|(name, _)| name == id) {
                        return Ok(());
                    }
                }
                // The connection is gone, and with it the process: the caller waits for that.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// Enters a plug or unplug; a stale table is rebuilt first, with no other under way.
    async fn enter(&self) -> Result<RwLockReadGuard<'_, ()>, VmmError> {
        if self.stale.load(Ordering::Relaxed) {
            let _alone = self.plugging.write().await;
            if self.stale.load(Ordering::Relaxed) {
                self.reload_slots().await?;
                self.stale.store(false, Ordering::Relaxed);
            }
        }
        Ok(self.plugging.read().await)
    }

    /// Rebuilds the table from QEMU's object tree and removes back ends nobody uses.
    pub(super) async fn reload_slots(&self) -> Result<(), VmmError> {
        let mut slots = Slots::new(self.plan.root_ports);
        for (id, kind) in self.peripherals().await? {
            let Some(kind) = plugged_kind(&kind) else { continue };
            let bus = json!({"path": format!("{PERIPHERAL}/{id}"), "property": "parent_bus"});
            let bus = self.command("qom-get", bus).await?;
            let Some(slot) = bus.as_str().and_then(|bus| slot_of(bus, self.plan.root_ports)) else {
                continue;
            };
            // Whether someone asked it to go cannot be asked; the next unplug finds out.
            let stage = Stage::Leaving;
            slots.found(slot, Occupant { id, kind, stage });
        }
        for slot in slots.free() {
            for kind in [Kind::SharedFs, Kind::Block, Kind::Net] {
                let (command, arguments) = removal(kind, slot);
                match self.command(command, arguments).await {
                    // Refused: there is none, as it should be.
                    Ok(_) | Err(VmmError::Qmp { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        *self.slots() = slots;
        Ok(())
    }

    /// Id and type of every device that has an id.
    pub(super) async fn peripherals(&self) -> Result<Vec<(String, String)>, VmmError> {
        let children = self.command("qom-list", json!({"path": PERIPHERAL})).await?;
        let text = |child: &Value, key: &str| child[key].as_str().map(str::to_owned);
        let children = children.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(children
            .iter()
            .filter_map(|child| Some((text(child, "name")?, text(child, "type")?)))
            .collect())
    }
}

/// Whether an event is about the device `id`.
pub(super) fn concerns(event: &QmpEvent, id: &str) -> bool {
    let device = |value: &Value| value["device"].as_str() == Some(id);
    device(&event.data) || device(&event.data["info"])
}

/// Whether a guest's report on an ejection is a no: ACPI 6.4 section 6.3.5, source 3 (ejection request) or
/// 0x103 (asked for by the guest itself); status 0 is done, 0x84 is under way.
fn ost_refuses(info: &Value) -> bool {
    matches!(info["source"].as_u64(), Some(0x3 | 0x103)) && !matches!(info["status"].as_u64(), Some(0 | 0x84))
}

fn plugged_kind(qom_type: &str) -> Option<Kind> {
    match qom_type {
        "child<vhost-user-fs-pci>" => Some(Kind::SharedFs),
        "child<virtio-blk-pci>" => Some(Kind::Block),
        "child<virtio-net-pci>" => Some(Kind::Net),
        _ => None,
    }
}

/// The slot of a bus path such as `/machine/peripheral/rp3/rp3`.
fn slot_of(bus: &str, count: u32) -> Option<u32> {
    let name = bus.rsplit('/').next()?;
    (0..count).find(|slot| root_port(*slot) == name)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, SOON, names, plan, scripted};
    use super::*;
    use bulkhead_model::vm::Accelerator;

    #[test]
    fn a_bus_names_its_slot() {
        assert_eq!(slot_of("/machine/peripheral/rp3/rp3", 8), Some(3));
        assert_eq!(slot_of("/machine/peripheral/rp3/rp3", 3), None);
        assert_eq!(slot_of("/machine/q35/pcie.0", 8), None);
        assert_eq!(slot_of("", 8), None);
    }

    #[test]
    fn a_guest_says_no_by_its_status() {
        let info = |source, status| json!({"device": "dimm0", "source": source, "status": status});
        assert!(ost_refuses(&info(3, 1)) && ost_refuses(&info(0x103, 0x82)));
        assert!(!ost_refuses(&info(3, 0)) && !ost_refuses(&info(3, 0x84)) && !ost_refuses(&info(1, 1)));
        let event = |data| QmpEvent {
            name: "X".into(),
            data,
        };
        assert!(concerns(&event(json!({"info": info(3, 1)})), "dimm0"));
        assert!(concerns(&event(json!({"device": "a"})), "a"));
        assert!(!concerns(&event(json!({"path": "/machine/peripheral/a"})), "a"));
        assert!(!concerns(&event(Value::Null), "a"));
    }

    fn disk(id: &str) -> DeviceRequest {
        DeviceRequest::Block {
            id: id.into(),
            path: "/d".into(),
            readonly: false,
            format: "raw".into(),
        }
    }

    fn tap() -> (DeviceRequest, Vec<OwnedFd>) {
        let fd = || std::fs::File::open("/dev/null").unwrap().into();
        let mac = "02:00:00:00:00:01".into();
        (
            DeviceRequest::Net {
                id: "net".into(),
                mac,
                queues: 2,
            },
            vec![fd(), fd()],
        )
    }

    fn done() -> Answer {
        (Ok(json!({})), Vec::new())
    }

    #[tokio::test]
    async fn a_front_end_refused_takes_its_back_end_with_it() {
        let script = |command: &str, _: &Value| match command {
            "device_add" => (Err("GenericError"), Vec::new()),
            _ => done(),
        };
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script).await;
        let refused = vm.plug(disk("a"), Vec::new()).await;
        assert!(
            matches!(&refused, Err(VmmError::Qmp { command, .. }) if command == "device_add"),
            "{refused:?}"
        );
        assert_eq!(names(&asked), ["blockdev-add", "device_add", "blockdev-del"]);
        assert_eq!(vm.slots().free().len(), 3);
    }

    #[tokio::test]
    async fn a_back_end_refused_gives_the_descriptors_back() {
        let script = |command: &str, _: &Value| match command {
            "netdev_add" => (Err("GenericError"), Vec::new()),
            _ => done(),
        };
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script).await;
        let (device, fds) = tap();
        assert!(vm.plug(device, fds).await.is_err());
        assert_eq!(
            names(&asked),
            ["getfd", "getfd", "netdev_add", "closefd", "closefd"]
        );
        assert_eq!(vm.slots().free().len(), 3);
    }

    #[tokio::test]
    async fn a_device_that_does_not_leave_in_time_leaves_at_the_next_call() {
        let mut asked_to_go = 0;
        let script = move |command: &str, _: &Value| match command {
            "device_del" => {
                asked_to_go += 1;
                match asked_to_go {
                    1 => done(),
                    // Already asked: QEMU refuses, and tells when it is gone.
                    2 => {
                        let gone = json!({"event": "DEVICE_DELETED", "data": {"device": "a"}});
                        (Err("GenericError"), vec![gone])
                    }
                    _ => (Err("DeviceNotFound"), Vec::new()),
                }
            }
            _ => done(),
        };
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script).await;
        vm.ran.store(true, Ordering::Relaxed);
        vm.plug(disk("a"), Vec::new()).await.unwrap();
        let late = vm.unplug("a", Duration::from_millis(20)).await;
        assert!(matches!(late, Err(VmmError::Deadline { .. })), "{late:?}");
        let taken = vm.plug(disk("a"), Vec::new()).await;
        assert!(matches!(taken, Err(VmmError::Device { .. })), "{taken:?}");
        vm.unplug("a", SOON).await.unwrap();
        assert_eq!(names(&asked).last().map(String::as_str), Some("blockdev-del"));
        // Gone by itself meanwhile: only the back end is left to remove.
        vm.plug(disk("a"), Vec::new()).await.unwrap();
        vm.unplug("a", SOON).await.unwrap();
        assert_eq!(vm.slots().free().len(), 3);
    }

    #[tokio::test]
    async fn a_refused_unplug_keeps_the_device() {
        let script = |command: &str, _: &Value| match command {
            "device_del" => (Err("GenericError"), Vec::new()),
            _ => done(),
        };
        let (vm, _) = scripted(plan(), Accelerator::Tcg, script).await;
        vm.ran.store(true, Ordering::Relaxed);
        vm.plug(disk("a"), Vec::new()).await.unwrap();
        assert!(matches!(vm.unplug("a", SOON).await, Err(VmmError::Qmp { .. })));
        assert_eq!(
            vm.slots().find("a").map(|(_, occupant)| occupant.stage),
            Some(Stage::Plugged)
        );
    }

    #[tokio::test]
    async fn a_plug_given_up_halfway_is_found_again() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let script = move |command: &str, arguments: &Value| match command {
            "device_add" => {
                let _ = held.recv();
                done()
            }
            "qom-list" => (
                Ok(json!([
                    {"name": "type", "type": "string"},
                    {"name": "rp0", "type": "child<pcie-root-port>"},
                    {"name": "a", "type": "child<virtio-blk-pci>"},
                ])),
                Vec::new(),
            ),
            "qom-get" => {
                assert_eq!(arguments["path"], "/machine/peripheral/a");
                (Ok(json!("/machine/peripheral/rp0/rp0")), Vec::new())
            }
            _ => done(),
        };
        let (vm, _) = scripted(plan(), Accelerator::Tcg, script).await;
        vm.ran.store(true, Ordering::Relaxed);
        let given_up = tokio::time::timeout(Duration::from_millis(50), vm.plug(disk("a"), Vec::new())).await;
        assert!(given_up.is_err());
        drop(hold);
        let taken = vm.plug(disk("a"), Vec::new()).await;
        assert!(
            matches!(
                taken,
                Err(VmmError::Device {
                    what: "the id is in use",
                    ..
                })
            ),
            "{taken:?}"
        );
        assert_eq!(
            vm.plug(disk("b"), Vec::new()).await.unwrap().pci_path,
            "05.0/00.0"
        );
    }

    #[tokio::test]
    async fn an_unplug_before_the_first_instruction_resets_the_machine() {
        let script = |command: &str, _: &Value| match command {
            "system_reset" => (
                Ok(json!({})),
                vec![json!({"event": "DEVICE_DELETED", "data": {"device": "a"}})],
            ),
            _ => done(),
        };
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script).await;
        vm.plug(disk("a"), Vec::new()).await.unwrap();
        vm.unplug("a", SOON).await.unwrap();
        assert_eq!(
            names(&asked)[2..],
            [
                "device_del",
                "set-action",
                "system_reset",
                "set-action",
                "blockdev-del"
            ]
        );
    }
}
