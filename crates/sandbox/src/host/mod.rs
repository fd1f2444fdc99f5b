//! The real host under the engine.
//!
//! Owns: one thin method for each thing of [`Platform`], on top of `bulkhead-host`. Never: order or journal.
//! Made by the supervisor, one per sandbox.

mod bind;
mod console;
mod daemon;
mod maker;
mod network;
mod undo;

pub use maker::ORDER_FD;
pub use network::check_network;
pub use undo::{end_marked, undo};

use crate::journal::Resource;
use crate::layout::SandboxPaths;
use crate::network::{NetworkSource, NetworkSpace};
use crate::platform::{Bind, CgroupMade, Daemon, FsdLaunch, GuestPorts, Platform};
use crate::template::{self, Found, Order, TemplateKey, TemplateStore, Waiting, shape};
use async_trait::async_trait;
use bulkhead_host::cgroup::{Cgroup, Hierarchy};
use bulkhead_host::fdpass;
use bulkhead_host::mount::{Propagation, Tree, propagate};
use bulkhead_host::process::{alive, wait_gone};
use bulkhead_model::plan::RootMount;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, SandboxPlan};
use bulkhead_protocol::{Attachment, Client, Guest, GuestError, StreamStore};
use bulkhead_vmm::Vmm;
use console::ConsoleTail;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Memory the VMM, the daemon and the stub may use beside the guest's, in MiB: QEMU's own heap, its
/// translation buffer, page tables.
const OVERHEAD_MIB: u64 = 384;

/// Cgroup v1 resources the sandbox's processes are put into (K-03).
const RESOURCES: [&str; 4] = ["memory", "cpu", "pids", "blkio"];

/// The cgroup of waiting VMs.
const POOL_CGROUP: &str = "/bulkhead-pool";

/// Gives this process the sandbox's mount namespace: that of its running VMM, if there is one, else a new one.
/// Mounts of the host still come in, ours never get out, and all of them end with the last process in it.
/// Called before any thread is started. Returns the namespace that was left.
///
/// # Errors
/// setns(2), unshare(2) and mount(2).
pub fn own_mounts(paths: &SandboxPaths) -> io::Result<OwnedFd> {
    let outside = File::open("/proc/self/ns/mnt")?;
    let saved = crate::SavedSandbox::read(&paths.state()).ok();
    let vmm = saved.and_then(|saved| Some((*saved.processes.get("vmm")?, saved.provenance.pool)));
    if let Some((vmm, pool)) = vmm.filter(|(vmm, _)| is_alive(*vmm)) {
        let own = PathBuf::from(format!("/proc/{}/ns/mnt", vmm.pid));
        // One that waited was started elsewhere: it holds the namespace, and is not in it.
        let namespace = if pool { held_mounts(vmm.pid)? } else { own };
        nix::sched::setns(File::open(namespace)?, nix::sched::CloneFlags::CLONE_NEWNS)?;
        return Ok(outside.into());
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    propagate(Path::new("/"), Propagation::Slave, true).map_err(io::Error::other)?;
    Ok(outside.into())
}

/// The mount namespace a VMM was given to hold.
fn held_mounts(vmm: i32) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir(format!("/proc/{vmm}/fd"))? {
        let path = entry?.path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        if target.as_os_str().as_encoded_bytes().starts_with(b"mnt:[") {
            return Ok(path);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("the VMM {vmm} holds no mount namespace"),
    ))
}

/// This host.
pub struct RealHost {
    translate: AtomicBool,
    accelerator_cache: PathBuf,
    console: ConsoleTail,
    /// The mount namespace this process was started in.
    outside: Option<OwnedFd>,
}

impl RealHost {
    /// A host where guest code runs by `accelerator`; `accelerator_cache` is the probe's file.
    #[must_use]
    pub fn new(accelerator: Accelerator, accelerator_cache: PathBuf) -> Self {
        Self {
            translate: AtomicBool::new(accelerator == Accelerator::Tcg),
            accelerator_cache,
            console: ConsoleTail::default(),
            outside: None,
        }
    }

    /// The same for a process that has left the mount namespace `outside`: what outlives it is started there.
    #[must_use]
    pub fn from_outside(self, outside: OwnedFd) -> Self {
        Self {
            outside: Some(outside),
            ..self
        }
    }

    fn cgroup(plan: &SandboxPlan) -> io::Result<Option<Cgroup>> {
        let Some(path) = plan.cgroups_path.as_deref().filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let expanded;
        let path = if plan.systemd_cgroup {
            expanded = bulkhead_host::cgroup::expand_systemd(path).map_err(io::Error::other)?;
            &expanded
        } else {
            path
        };
        let hierarchy = Hierarchy::detect().map_err(io::Error::other)?;
        Cgroup::plan(&hierarchy, path, None, &RESOURCES)
            .map(Some)
            .map_err(io::Error::other)
    }
}

#[async_trait]
impl Platform for RealHost {
    fn accelerator(&self) -> Accelerator {
        if self.translate.load(Ordering::Relaxed) {
            Accelerator::Tcg
        } else {
            Accelerator::Kvm
        }
    }

    fn distrust_kvm(&self) -> bool {
        if self.translate.swap(true, Ordering::Relaxed) {
            return false;
        }
        if let Err(error) = bulkhead_vmm::probe::distrust(&self.accelerator_cache) {
            tracing::warn!(%error, path = %self.accelerator_cache.display(), "recording that KVM does not work");
        }
        true
    }

    fn now_ns(&self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .and_then(|since| u64::try_from(since.as_nanos()).ok())
            .unwrap_or(0)
    }

    fn entropy(&self) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut seed = vec![0; 64];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(seed)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
    }

    fn plan_cgroup(&self, plan: &SandboxPlan) -> io::Result<Vec<PathBuf>> {
        let Some(cgroup) = Self::cgroup(plan)? else {
            return Ok(Vec::new());
        };
        let mut wanted = Vec::new();
        for directory in cgroup.directories() {
            // Deepest first; an ancestor that is there already is not ours.
            wanted.extend(
                directory
                    .ancestors()
                    .take_while(|dir| !dir.exists())
                    .map(Path::to_owned),
            );
        }
        Ok(wanted)
    }

    fn make_cgroup(&self, plan: &SandboxPlan, _paths: &[PathBuf]) -> io::Result<CgroupMade> {
        let Some(cgroup) = Self::cgroup(plan)? else {
            return Ok(CgroupMade::default());
        };
        let created = cgroup.create().map_err(io::Error::other)?;
        let mut warnings: Vec<String> = created.refusals.iter().map(refusal).collect();
        let limit = (u64::from(plan.vm.memory_mib) + OVERHEAD_MIB) << 20;
        if let Err(refused) = cgroup.set_memory_limit(Some(limit)) {
            warnings.push(refusal(&refused));
        }
        Ok(CgroupMade {
            procs: cgroup.procs(),
            warnings,
        })
    }

    fn join_cgroup(&self, procs: &[PathBuf], stub: HostProcess) -> Vec<String> {
        bulkhead_host::cgroup::join(procs, stub.pid)
            .iter()
            .map(refusal)
            .collect()
    }

    fn listen(&self, path: &Path) -> io::Result<OwnedFd> {
        fdpass::listen(path).map(OwnedFd::from).map_err(io::Error::other)
    }

    fn log_pipe(&self, source: &'static str) -> io::Result<OwnedFd> {
        console::log_pipe(source)
    }

    fn follow_console(&self, client: OwnedFd) -> io::Result<()> {
        self.console.follow(client)
    }

    fn console_tail(&self) -> Vec<String> {
        self.console.lines()
    }

    fn mount_namespace(&self) -> io::Result<(u64, u64)> {
        let meta = std::fs::metadata("/proc/self/ns/mnt")?;
        Ok((meta.dev(), meta.ino()))
    }

    fn share_root(&self, share: &Path) -> io::Result<()> {
        Tree::bind(share, false)
            .and_then(|tree| tree.attach_at(share))
            .map_err(io::Error::other)?;
        propagate(share, Propagation::Shared, false).map_err(io::Error::other)
    }

    fn detach_share(&self, share: &Path) -> io::Result<()> {
        bind::detach(share)
    }

    fn make_guest_dir(&self, path: &Path) -> io::Result<()> {
        bind::make_guest_dir(path)
    }

    fn bind(&self, bind: Bind<'_>) -> io::Result<()> {
        bind::bind(bind)
    }

    fn mount_root(&self, target: &Path, mounts: &[RootMount]) -> io::Result<()> {
        for one in mounts {
            let target = target.join(one.target.trim_start_matches('/'));
            std::fs::create_dir_all(&target)?;
            bulkhead_host::mount::mount_by_options(&one.fs_type, &one.source, &target, &one.options)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    async fn spawn_fsd(&self, launch: FsdLaunch) -> io::Result<Box<dyn Daemon>> {
        daemon::spawn(launch)
    }

    fn check_network(&self, plan: &SandboxPlan) -> io::Result<()> {
        network::check(plan)
    }

    fn open_network(&self, source: &NetworkSource) -> io::Result<Arc<dyn NetworkSpace>> {
        network::open(source)
    }

    fn connect(&self, path: &Path) -> io::Result<OwnedFd> {
        UnixStream::connect(path).map(OwnedFd::from)
    }

    async fn connect_guest(&self, ports: GuestPorts<'_>) -> Result<Arc<dyn Guest>, GuestError> {
        let store = StreamStore::open(ports.streams).map_err(|error| GuestError::Protocol {
            what: format!("{}: {error}", ports.streams.display()),
        })?;
        let client = Client::connect(Attachment {
            control: ports.control,
            data: ports.data,
            store: Arc::new(store),
            reattach: ports.reattach,
            deadline: ports.deadline,
        })
        .await?;
        Ok(Arc::new(client))
    }

    fn runs(&self, process: HostProcess) -> bool {
        is_alive(process)
    }

    async fn ended(&self, process: HostProcess, within: Duration) -> bool {
        let wait = move || wait_gone(process.pid, process.start_time, within).unwrap_or(false);
        tokio::task::spawn_blocking(wait).await.unwrap_or(false)
    }

    fn adopt_daemon(&self, process: HostProcess) -> io::Result<Box<dyn Daemon>> {
        daemon::adopt(process)
    }

    fn find_template(&self, plan: &SandboxPlan, vmm: &dyn Vmm) -> Found {
        template::find(plan, vmm, self.accelerator())
    }

    fn find_waiting(&self, plan: &SandboxPlan, key: &TemplateKey) -> Vec<Waiting> {
        let (machine, accelerator) = (shape(&plan.vm), self.accelerator());
        let mut all = TemplateStore::of(&plan.factory).pool(key).waiting(is_alive);
        all.retain(|one| one.record.plan == machine && one.record.accelerator == accelerator);
        all
    }

    fn open_mount_namespace(&self) -> io::Result<OwnedFd> {
        std::fs::File::open("/proc/self/ns/mnt").map(OwnedFd::from)
    }

    fn pool_cgroup(&self) -> io::Result<Vec<PathBuf>> {
        let cgroup = pool_cgroup()?;
        cgroup.create().map_err(io::Error::other)?;
        Ok(cgroup.procs())
    }

    fn end_marked(&self, marker: &str) -> io::Result<()> {
        end_marked(marker, None)
    }

    fn reject_template(&self, plan: &SandboxPlan, key: &TemplateKey) {
        let store = TemplateStore::of(&plan.factory);
        store.destroy(key);
        if let Err(error) = store.pool(key).drain(&|marker| end_marked(marker, None)) {
            tracing::warn!(%error, %key, "ending the VMs that wait for a template that does not do");
        }
    }

    fn order_template(&self, plan: &SandboxPlan) -> io::Result<()> {
        let order = Order {
            plan: shape(&plan.vm),
            accelerator: self.accelerator(),
            factory: plan.factory.clone(),
        };
        maker::spawn(&order, self.outside.as_ref())
    }

    fn undo(&self, resource: &Resource) -> io::Result<()> {
        undo(resource)
    }
}

/// Whether a recorded process still runs.
pub(crate) fn is_alive(process: HostProcess) -> bool {
    alive(process.pid, process.start_time).unwrap_or(false)
}

/// The cgroup of VMs that wait for a sandbox.
fn pool_cgroup() -> io::Result<Cgroup> {
    let hierarchy = Hierarchy::detect().map_err(io::Error::other)?;
    Cgroup::plan(&hierarchy, POOL_CGROUP, None, &RESOURCES).map_err(io::Error::other)
}

/// Removes the cgroup of waiting VMs if none is in it.
pub fn leave_pool_cgroup() {
    let Ok(cgroup) = pool_cgroup() else { return };
    for directory in cgroup.directories() {
        let _ = bulkhead_host::cgroup::remove_if_empty(directory);
    }
}

fn refusal(refused: &bulkhead_host::cgroup::LimitRefusal) -> String {
    format!(
        "{} to {}: {}",
        refused.value,
        refused.path.display(),
        refused.source
    )
}

/// Everything of a sandbox that a process with no memory can find: what carries its marker first, then the
/// journal. Used by gc for sandboxes whose supervisor is gone; the caller holds the lock of the state
/// directory. Returns what could not be undone.
#[must_use]
pub fn sweep(paths: &SandboxPaths) -> Vec<String> {
    let mut failures = Vec::new();
    // First of all: stubs are in no journal, and a cgroup is not empty before they are gone.
    if let Err(error) = undo::end_marked(&paths.marker, None) {
        failures.push(format!("processes of {}: {error}", paths.marker));
    }
    match crate::Journal::open(&paths.journal()) {
        Ok(mut journal) => {
            for (entry, resource) in journal.held() {
                match undo(&resource) {
                    Ok(()) => {
                        let _ = journal.release(entry);
                    }
                    Err(error) => failures.push(format!("{resource:?}: {error}")),
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => failures.push(format!("{}: {error}", paths.journal().display())),
    }
    for path in [&paths.sockets, &paths.dir] {
        if let Err(error) = undo(&Resource::Directory { path: path.clone() }) {
            failures.push(format!("{}: {error}", path.display()));
        }
    }
    failures
}
