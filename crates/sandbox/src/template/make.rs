//! Making a template: boot, wait for the agent, save, publish.
//!
//! ```text
//!  digests ─► lock ─► boot into the memory file ─► hello ─► warm up, keep the share, settle ─► save ─► seal ─► rename
//!     └───── any failure: VM ended, files removed, the reason left for readers ◄──┘
//! ```
//! Killed in the middle it leaves files and processes named after the key; the next maker and gc remove them.
//!
//! Owns: that order. Never: decides when one is made. Called by the process that was started for it.

use super::agent::{hear, settle, warm_up};
use super::digests::Digests;
use super::error::TemplateError;
use super::identity::{Asset, FORM, Identity, TemplateKey};
use super::manifest::{Manifest, Sealed};
use super::nonce::nonce;
use super::order::Order;
use super::share;
use super::store::TemplateStore;
use crate::boot::SHARE_TAG;
use crate::journal::Resource;
use crate::platform::{GuestPorts, Platform};
use bulkhead_model::HostProcess;
use bulkhead_model::vm::SharedFs;
use bulkhead_protocol::Guest;
use bulkhead_vmm::{Launch, Origin, Vm, Vmm, VmmError};
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// For the whole of it; a boot has the plan's own deadline.
const DEADLINE: Duration = Duration::from_secs(900);
/// For writing the state, 400 KB.
const SAVE: Duration = Duration::from_secs(120);
/// Directory below the unfinished template that is the share of its guest: empty, and gone before it is complete.
const SHARE: &str = "share";
/// For a killed VM to be gone.
const KILL: Duration = Duration::from_secs(20);

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Made.
    Made(TemplateKey),
    /// There was a good one.
    Present(TemplateKey),
    /// Somebody else is making it.
    BeingMade(TemplateKey),
}

/// Carries out an order.
///
/// # Errors
/// What failed first. Nothing is left then but the reason.
pub async fn make(order: &Order, host: &dyn Platform, vmm: &dyn Vmm) -> Result<Outcome, TemplateError> {
    let store = TemplateStore::of(&order.factory);
    store.make_dirs()?;
    let identity = Identity::of(vmm, &order.plan, order.accelerator)?;
    let mut digests = Digests::load(&store.digests());
    let (key, assets) = identity.learn(&mut digests)?;
    let kept = store.digests();
    digests.save(&kept).map_err(TemplateError::io("writing", kept))?;
    // Held to the end of this function.
    let Some(_lock) = store.lock(&key)? else {
        return Ok(Outcome::BeingMade(key));
    };
    match store.open(&key) {
        Ok(Some(_)) => return Ok(Outcome::Present(key)),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%key, error = bulkhead_model::failure::chain(&error), "replacing a template");
            store.destroy(&key);
        }
    }
    store.sweep(&key);
    let mut bench = Bench {
        store: &store,
        key: &key,
        host,
        running: Vec::new(),
    };
    let made = tokio::time::timeout(DEADLINE, bench.work(order, vmm, assets))
        .await
        .unwrap_or(Err(TemplateError::Deadline { deadline: DEADLINE }))
        // Before room is made: a VM whose memory finds none left only says that it was killed.
        .map_err(|error| store.full(error));
    bench.clear();
    match made {
        Ok(()) => {
            let _ = std::fs::remove_file(store.failure(&key));
            if let Err(error) = remember(&identity, &store) {
                let error = bulkhead_model::failure::chain(&error);
                tracing::warn!(%key, error, "remembering the digests of its files");
            }
            Ok(Outcome::Made(key))
        }
        Err(error) => {
            // Without it the next start only tries again sooner.
            let _ = std::fs::write(store.failure(&key), bulkhead_model::failure::chain(&error));
            Err(error)
        }
    }
}

/// A template in the making.
/// Files that were written just before, as by `guest build`, were too fresh for their digests to be remembered; by now they
/// are old enough, and without that the next start would not know its template.
fn remember(identity: &Identity, store: &TemplateStore) -> Result<(), TemplateError> {
    let mut digests = Digests::load(&store.digests());
    if identity.known(&digests).is_none() {
        let _ = identity.learn(&mut digests)?;
        let kept = store.digests();
        digests.save(&kept).map_err(TemplateError::io("writing", kept))?;
    }
    Ok(())
}

struct Bench<'a> {
    store: &'a TemplateStore,
    key: &'a TemplateKey,
    host: &'a dyn Platform,
    /// What was started, by role.
    running: Vec<(&'static str, HostProcess)>,
}

impl Bench<'_> {
    async fn work(&mut self, order: &Order, vmm: &dyn Vmm, assets: Vec<Asset>) -> Result<(), TemplateError> {
        self.store.check_holes(self.key)?;
        let unfinished = self.store.unfinished(self.key);
        DirBuilder::new()
            .mode(0o700)
            .create(&unfinished)
            .map_err(TemplateError::io("making", &unfinished))?;
        let state = unfinished.join("state");
        let memory = self.memory_path()?;
        let bytes = u64::from(order.plan.memory_mib) << 20;
        let (vm, guest) = self.boot(order, vmm, fresh(&memory, bytes)?).await?;
        let hello = guest.hello().clone();
        warm_up(&vm, guest.as_ref()).await?;
        if share::is_known(order) {
            share::keep(&vm, guest.as_ref()).await?;
        }
        settle(&vm, guest.as_ref()).await?;
        let snapshot = vm.snapshot().ok_or_else(|| VmmError::Unsupported {
            option: "template",
            value: "on".into(),
            expected: "a VMM that can save machines",
        })?;
        snapshot.save(fresh(&state, 0)?, SAVE).await?;
        vm.kill(KILL).await?;
        self.end();
        let _ = std::fs::remove_dir_all(unfinished.join(SHARE));
        // Each start copies what is not a hole.
        match File::options().read(true).write(true).open(&memory) {
            Ok(file) => match bulkhead_host::memory::punch_zeroes(&file) {
                Ok(bytes) => tracing::info!(bytes, "pages of zeroes are holes now"),
                Err(error) => tracing::warn!(%error, "pages of zeroes stay"),
            },
            Err(error) => return Err(TemplateError::io("opening", memory)(error)),
        }
        for path in [&state, &memory] {
            seal(path).map_err(TemplateError::io("sealing", path))?;
        }
        let place = self.store.place(self.key);
        let manifest = Manifest {
            form: FORM,
            key: self.key.clone(),
            bulkhead: env!("CARGO_PKG_VERSION").to_owned(),
            created_ns: self.host.now_ns(),
            kernel_release: hello.kernel_release,
            boot_nonce: hello.boot_nonce,
            vcpus: order.plan.vcpus,
            memory_mib: order.plan.memory_mib,
            assets,
            state: Sealed::of(&state, &place.join("state"), true)?,
            memory: Sealed::of(&memory, &memory, false)?,
        };
        publish(&manifest, &unfinished, &place)
    }

    /// Boots the machine and hears its agent.
    async fn boot(
        &mut self,
        order: &Order,
        vmm: &dyn Vmm,
        memory: OwnedFd,
    ) -> Result<(Arc<dyn Vm>, Arc<dyn Guest>), TemplateError> {
        let host = self.host;
        let sockets = self.store.sockets(self.key);
        host.make_dir(&sockets)
            .map_err(TemplateError::io("making", &sockets))?;
        let pair = |name: &str| {
            let path = sockets.join(name);
            let listener = host.listen(&path)?;
            Ok((listener, host.connect(&path)?))
        };
        let pair = |name: &str| pair(name).map_err(TemplateError::io("connecting", sockets.join(name)));
        let (qmp, control, data, console) = (pair("qmp")?, pair("control")?, pair("data")?, pair("console")?);
        let share = self.empty_share(&order.plan.shared_fs)?;
        let io = |step| TemplateError::io(step, &sockets);
        host.follow_console(console.1)
            .map_err(io("following the console of"))?;
        let launch = Launch {
            plan: order.plan.clone(),
            accelerator: order.accelerator,
            qmp_listener: qmp.0,
            qmp: qmp.1,
            control_listener: control.0,
            data_listener: data.0,
            console_listener: console.0,
            stderr: host.log_pipe("vmm").map_err(io("opening a log pipe for"))?,
            marker: format!("{}/vmm", self.store.mark(self.key)),
            cgroup_procs: Vec::new(),
            share,
            origin: Origin::BootInto(memory),
        };
        let vm: Arc<dyn Vm> = Arc::from(vmm.launch(launch).await?);
        self.running.push(("vmm", vm.process()));
        if share::is_known(order) {
            let marker = format!("{}/fsd", self.store.mark(self.key));
            let directory = self.store.unfinished(self.key).join(SHARE);
            let daemon = share::serve(order, host, &sockets, &directory, marker).await?;
            self.running.push(("fsd", daemon.process()));
            share::plug(&vm, &sockets).await?;
        }
        // Everybody who needs them has them.
        let _ = std::fs::remove_dir_all(&sockets);
        vm.resume().await?;
        let ports = GuestPorts {
            control: control.1,
            data: data.1,
            streams: &self.store.unfinished(self.key).join("streams"),
            reattach: false,
            deadline: Duration::from_secs(u64::from(order.plan.boot_timeout_s)),
        };
        let guest = hear(host, &vm, ports).await?;
        Ok((vm, guest))
    }

    /// What a VMM that serves files itself is to share: nothing, since no start mounts it before it is its own.
    fn empty_share(&self, shared_fs: &SharedFs) -> Result<Option<(PathBuf, String)>, TemplateError> {
        if !matches!(shared_fs, SharedFs::Virtio9p { .. }) {
            return Ok(None);
        }
        let share = self.store.unfinished(self.key).join(SHARE);
        DirBuilder::new()
            .mode(0o700)
            .create(&share)
            .map_err(TemplateError::io("making", &share))?;
        Ok(Some((share, SHARE_TAG.to_owned())))
    }

    fn memory_path(&self) -> Result<PathBuf, TemplateError> {
        Ok(self.store.memory(self.key, &nonce(self.host)?))
    }

    /// Ends what was started; what has ended already is fine.
    fn end(&mut self) {
        for (role, process) in self.running.drain(..) {
            let process = Resource::Process {
                role: role.into(),
                process: Some(process),
            };
            if let Err(error) = self.host.undo(&process) {
                tracing::error!(%error, role, "ending what made a template");
            }
        }
    }

    /// Ends and removes what is not part of a complete template.
    fn clear(&mut self) {
        self.end();
        self.store.sweep(self.key);
    }
}

/// A new file of `bytes` bytes without data.
fn fresh(path: &Path, bytes: u64) -> Result<OwnedFd, TemplateError> {
    bulkhead_host::memory::file(path, bytes).map_err(TemplateError::io("making", path))
}

/// Makes a file durable and read-only.
fn seal(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    file.set_permissions(Permissions::from_mode(0o400))
}

fn publish(manifest: &Manifest, unfinished: &Path, place: &Path) -> Result<(), TemplateError> {
    let path = unfinished.join("manifest.json");
    let written = || {
        std::fs::write(unfinished.join("used"), "")?;
        let file = File::create(&path)?;
        serde_json::to_writer_pretty(&file, manifest)?;
        file.sync_all()?;
        File::open(unfinished)?.sync_all()?;
        std::fs::rename(unfinished, place)?;
        place.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    written().map_err(TemplateError::io("publishing", place))
}
