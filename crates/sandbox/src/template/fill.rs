//! Filling a pool: VMs go on from the template, do once what every start does, and are stopped.
//!
//! ```text
//!  lock ─► sweep ─► too few? ─► restore ─► hello ─► warm up ─► stop ─► publish ─┐
//!             ▲        └─ enough ─► unlock ─► enough still? ─► done             │
//!             └─────────────────────────────────────────────────────────────────┘
//! ```
//! What the guest executes for the first time is what takes longest where it is translated; a VM that has done it keeps
//! the translation while it waits. Its CPUs stand still, so that it costs memory and nothing else.
//!
//! Owns: that order. Never: decides that it is wanted. Called by the process that makes templates.

use super::agent::{hear, warm_up};
use super::digests::Digests;
use super::error::TemplateError;
use super::identity::{Identity, TemplateKey};
use super::nonce::nonce;
use super::order::Order;
use super::pool::{Pool, Record};
use super::store::{TemplateStore, reuse};
use crate::journal::Resource;
use crate::platform::{GuestPorts, Platform};
use bulkhead_model::vm::SharedFs;
use bulkhead_vmm::{Launch, Origin, SavedMachine, Vm, Vmm};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// For one VM.
const DEADLINE: Duration = Duration::from_secs(180);
/// For its agent's hello.
const GOES_ON: Duration = Duration::from_secs(60);

/// Starts VMs until as many wait as the order's settings say, and ends what is too many. Returns how many were started.
///
/// # Errors
/// What failed first; the VM it happened to is gone.
pub async fn fill(order: &Order, host: &dyn Platform, vmm: &dyn Vmm) -> Result<u32, TemplateError> {
    let store = TemplateStore::of(&order.factory);
    let wanted = usize::try_from(order.factory.pool).unwrap_or(usize::MAX);
    let identity = Identity::of(vmm, &order.plan, order.accelerator)?;
    let Some(key) = identity.known(&Digests::load(&store.digests())) else {
        return Ok(0);
    };
    if matches!(order.plan.shared_fs, SharedFs::Virtio9p { .. }) {
        // Its directory is on the command line: no VM can be anybody's.
        return Ok(0);
    }
    let pool = store.pool(&key);
    let ended = |source| TemplateError::io("ending the waiting VMs of", store.place(&key))(source);
    let end = |marker: &str| host.end_marked(marker);
    let waiting = || pool.waiting(|process| host.runs(process)).len();
    let mut started = 0;
    loop {
        if waiting() == wanted {
            return Ok(started);
        }
        pool.make_dir()?;
        let Some(_lock) = pool.lock()? else {
            // Whoever has it looks again once it is free.
            return Ok(started);
        };
        pool.sweep(|process| host.runs(process), &end).map_err(ended)?;
        pool.shrink(wanted, &end).map_err(ended)?;
        while waiting() < wanted {
            let mut filling = Filling {
                order,
                host,
                store: &store,
                key: &key,
                pool: &pool,
                nonce: nonce(host)?,
            };
            let one = tokio::time::timeout(DEADLINE, filling.one(vmm)).await;
            let one = one.unwrap_or(Err(TemplateError::Deadline { deadline: DEADLINE }));
            if let Err(error) = one {
                filling.give_up();
                return Err(error);
            }
            started += 1;
        }
        if !store.place(&key).exists() {
            // Destroyed meanwhile, and its pool drained.
            pool.drain(&end).map_err(ended)?;
            return Ok(started);
        }
    }
}

/// A VM on its way into the pool.
struct Filling<'a> {
    order: &'a Order,
    host: &'a dyn Platform,
    store: &'a TemplateStore,
    key: &'a TemplateKey,
    pool: &'a Pool,
    nonce: String,
}

impl Filling<'_> {
    async fn one(&mut self, vmm: &dyn Vmm) -> Result<(), TemplateError> {
        let Some((_, template)) = self.store.open(self.key)? else {
            return Err(TemplateError::Damaged {
                path: self.store.place(self.key),
                what: "it is gone",
            });
        };
        let host = self.host;
        let dir = self.pool.unfinished(&self.nonce);
        host.make_dir(&dir).map_err(TemplateError::io("making", &dir))?;
        let pair = |name: &str| {
            let path = dir.join(name);
            let both = || Ok((host.listen(&path)?, host.connect(&path)?));
            both().map_err(TemplateError::io("connecting", &path))
        };
        let (qmp, control, data, console) = (pair("qmp")?, pair("control")?, pair("data")?, pair("console")?);
        let io = |step| TemplateError::io(step, &dir);
        host.follow_console(console.1)
            .map_err(io("following the console of"))?;
        let cgroup_procs = self.cgroup();
        let launch = Launch {
            plan: self.order.plan.clone(),
            accelerator: self.order.accelerator,
            qmp_listener: qmp.0,
            qmp: qmp.1,
            control_listener: control.0,
            data_listener: data.0,
            console_listener: console.0,
            stderr: host.log_pipe("vmm").map_err(io("opening a log pipe for"))?,
            marker: format!("{}/vmm", self.pool.marker(&self.nonce)),
            cgroup_procs,
            share: None,
            origin: Origin::Saved(SavedMachine {
                state: template.state,
                memory: template.memory,
                reuse: reuse(&self.order.plan.shared_fs),
            }),
        };
        let vm: Arc<dyn Vm> = Arc::from(vmm.launch(launch).await?);
        vm.resume().await?;
        let ports = GuestPorts {
            control: control.1,
            data: data.1,
            streams: &dir.join("streams"),
            reattach: false,
            deadline: GOES_ON,
        };
        let guest = hear(host, &vm, ports).await?;
        warm_up(&vm, guest.as_ref()).await?;
        vm.halt().await?;
        drop(guest);
        let record = Record {
            process: vm.process(),
            plan: self.order.plan.clone(),
            accelerator: self.order.accelerator,
            since_ns: host.now_ns(),
        };
        self.pool.publish(&self.nonce, &record)
    }

    /// Waiting VMs are in a cgroup of their own, so that what they take can be seen, and limited.
    fn cgroup(&self) -> Vec<PathBuf> {
        match self.host.pool_cgroup() {
            Ok(procs) => procs,
            Err(error) => {
                tracing::warn!(%error, "waiting VMs have no cgroup of their own");
                Vec::new()
            }
        }
    }

    fn give_up(&self) {
        if let Err(error) = self.host.end_marked(&self.pool.marker(&self.nonce)) {
            tracing::error!(%error, "ending a VM that was to wait");
            return;
        }
        let dir = Resource::Directory {
            path: self.pool.unfinished(&self.nonce),
        };
        if let Err(error) = self.host.undo(&dir) {
            tracing::error!(%error, "removing what was to wait");
        }
    }
}
