//! Saving a machine, and loading a saved one.
//!
//! ```text
//!  running ──stop──► stopped ──shares taken away──► ──migrate to a file──► saved      (memory is in its own file already)
//!  empty ──migrate-incoming──► loading ──event──► stopped, as saved
//! ```
//!
//! Owns: the QMP commands for it and their end. Never: the files' names or where memory comes from (`launch`).
//! Called by `launch` and, as [`Snapshot`], by who makes templates.

use super::hotplug::PERIPHERAL;
use super::instance::Instance;
use super::slots::Kind;
use crate::qmp::QmpEvent;
use crate::{Snapshot, VmmError};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Name QEMU knows the file of the state by while it uses it.
const STATE: &str = "state";
/// Reading 400 KB of state takes milliseconds; this is for a very busy machine.
const LOAD: Duration = Duration::from_secs(60);

#[async_trait]
impl Snapshot for Instance {
    async fn save(&self, state: OwnedFd, deadline: Duration) -> Result<(), VmmError> {
        self.command("stop", Value::Null).await?;
        self.take_shares_away().await?;
        self.move_state("migrate", state, "saving the machine", deadline)
            .await
    }
}

/// Gives a machine that was started empty the state in `state`.
pub(super) async fn load(instance: &Instance, state: OwnedFd) -> Result<(), VmmError> {
    // Its guest has run, if elsewhere: nobody may reset it.
    instance.ran.store(true, Ordering::Relaxed);
    instance
        .move_state("migrate-incoming", state, "loading the saved machine", LOAD)
        .await
}

impl Instance {
    /// Takes the devices away that QEMU cannot save. With the CPUs stopped nobody notices: this is no unplugging, for which a
    /// guest is asked, but the end of the device's model.
    async fn take_shares_away(&self) -> Result<(), VmmError> {
        let shares = self.slots().of(Kind::SharedFs);
        for id in shares {
            let device =
                json!({"path": format!("{PERIPHERAL}/{id}"), "property": "realized", "value": false});
            self.command("qom-set", device).await?;
        }
        Ok(())
    }

    async fn move_state(
        &self,
        command: &'static str,
        state: OwnedFd,
        step: &'static str,
        deadline: Duration,
    ) -> Result<(), VmmError> {
        // Subscribed before the request, so that its end cannot be missed.
        let events = self.qmp.events();
        // Memory in a file is not part of the state; the end is told by an event.
        let on = ["x-ignore-shared", "events"].map(|name| json!({"capability": name, "state": true}));
        // Carried out in this order, and answered in one go.
        let (set, given, begun) = tokio::join!(
            self.command("migrate-set-capabilities", json!({"capabilities": on})),
            self.command_with("getfd", json!({"fdname": STATE}), vec![state]),
            self.command(command, json!({"uri": format!("fd:{STATE}")})),
        );
        set.and(given).and(begun)?;
        tokio::select! {
            biased;
            moved = tokio::time::timeout(deadline, self.moved(step, events)) => {
                moved.map_err(|_| VmmError::Deadline { step, deadline })?
            }
            // A machine that cannot load its state ends, and its last words say why.
            exit = self.process.exited() => Err(self.process.ended(step, exit)),
        }
    }

    async fn moved(
        &self,
        step: &'static str,
        mut events: broadcast::Receiver<QmpEvent>,
    ) -> Result<(), VmmError> {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "MIGRATION" => match event.data["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed" | "cancelled") => return Err(self.refusal(step).await),
                    _ => {}
                },
                // An event that was missed may have been the end: a handful come in all.
                Err(RecvError::Lagged(_)) => {
                    return Err(VmmError::Io {
                        step,
                        source: io::Error::other("too many events at once"),
                    });
                }
                Ok(_) => {}
                // The connection is gone, and with it the process: the caller waits for that.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    async fn refusal(&self, step: &'static str) -> VmmError {
        match self.command("query-migrate", Value::Null).await {
            Ok(told) => VmmError::Io {
                step,
                source: io::Error::other(
                    told["error-desc"]
                        .as_str()
                        .unwrap_or("QEMU does not say why")
                        .to_owned(),
                ),
            },
            Err(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, SOON, names, plan, scripted};
    use super::*;
    use crate::{DeviceRequest, Hotplug};
    use bulkhead_model::vm::Accelerator;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn script(end: &'static str) -> impl FnMut(&str, &Value) -> Answer + Send + 'static {
        move |command, _| match command {
            "migrate" | "migrate-incoming" => {
                let event = |status| json!({"event": "MIGRATION", "data": {"status": status}});
                (Ok(json!({})), vec![event("setup"), event("active"), event(end)])
            }
            "query-migrate" => (Ok(json!({"error-desc": "disk full"})), Vec::new()),
            _ => (Ok(json!({})), Vec::new()),
        }
    }

    #[tokio::test]
    async fn saving_stops_the_machine_first_and_waits_for_the_end() {
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script("completed")).await;
        vm.save(null(), SOON).await.unwrap();
        assert_eq!(
            names(&asked),
            ["stop", "migrate-set-capabilities", "getfd", "migrate"]
        );
    }

    #[tokio::test]
    async fn a_share_is_taken_away_before_it_is_saved() {
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script("completed")).await;
        let share = DeviceRequest::SharedFs {
            id: "fs0".into(),
            tag: "tag".into(),
            socket: "/s".into(),
            cache_size_mib: 0,
        };
        vm.plug(share, Vec::new()).await.unwrap();
        vm.save(null(), SOON).await.unwrap();
        let names = names(&asked);
        assert_eq!(names[2..5], ["stop", "qom-set", "migrate-set-capabilities"]);
        let device = json!({"path": "/machine/peripheral/fs0", "property": "realized", "value": false});
        assert_eq!(asked.lock().unwrap()[3].1, device);
    }

    #[tokio::test]
    async fn a_failed_save_says_why() {
        let (vm, _) = scripted(plan(), Accelerator::Tcg, script("failed")).await;
        match vm.save(null(), SOON).await {
            Err(VmmError::Io { source, .. }) => assert_eq!(source.to_string(), "disk full"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_save_without_an_end_has_a_deadline() {
        let (vm, _) = scripted(plan(), Accelerator::Tcg, script("active")).await;
        let late = vm.save(null(), Duration::from_millis(30)).await;
        assert!(matches!(late, Err(VmmError::Deadline { .. })), "{late:?}");
    }

    #[tokio::test]
    async fn a_loaded_machine_counts_as_one_that_ran() {
        let (vm, asked) = scripted(plan(), Accelerator::Tcg, script("completed")).await;
        load(&vm, null()).await.unwrap();
        assert!(vm.ran.load(Ordering::Relaxed));
        assert_eq!(
            names(&asked),
            ["migrate-set-capabilities", "getfd", "migrate-incoming"]
        );
    }
}
