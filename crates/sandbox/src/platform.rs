//! What the engine needs of the host, as one seam: the real host behind it, or a fake that fails on demand.
//!
//! Owns: the trait. Never: order, journal, undo lists (the engine's). Implemented by [`crate::host::RealHost`]
//! and by the fault-injection fake.

use crate::journal::Resource;
use crate::network::{NetworkSource, NetworkSpace};
use crate::template::{Found, TemplateKey, Waiting};
use async_trait::async_trait;
use bulkhead_model::plan::RootMount;
use bulkhead_model::vm::{Accelerator, SharedFs};
use bulkhead_model::{HostProcess, SandboxPlan};
use bulkhead_protocol::{Guest, GuestError};
use bulkhead_vmm::Vmm;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A daemon started for the sandbox.
#[async_trait]
pub trait Daemon: Send + Sync {
    /// Who it is.
    fn process(&self) -> HostProcess;
    /// Waits for its end; any number of callers.
    async fn exited(&self);
}

/// How the shared-filesystem daemon is to run.
#[derive(Debug)]
pub struct FsdLaunch {
    /// Listening vhost-user socket.
    pub listener: OwnedFd,
    /// Directory to share; the daemon sees nothing else.
    pub share: PathBuf,
    /// It stays as it is: a plain directory, into which nothing is bound later. Otherwise it is a shared mount.
    pub plain: bool,
    /// Cache mode and so on.
    pub shared_fs: SharedFs,
    /// Environment marker.
    pub marker: String,
    /// Cgroups to join.
    pub cgroup_procs: Vec<PathBuf>,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// The two ports of an agent, and what earlier connections left.
#[derive(Debug)]
pub struct GuestPorts<'a> {
    /// Connected socket of the control port.
    pub control: OwnedFd,
    /// Connected socket of the data port.
    pub data: OwnedFd,
    /// Directory in which streams remember how far they got; exists.
    pub streams: &'a Path,
    /// An earlier connection may have ended in mid-sentence.
    pub reattach: bool,
    /// For the hello.
    pub deadline: Duration,
}

/// A bind mount to be made.
#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    /// Host path; links are followed.
    pub source: &'a Path,
    /// Mount point, below `share`.
    pub target: &'a Path,
    /// Mounts below the source come along, but for those of the share itself.
    pub recursive: bool,
    /// The sandbox's share; nothing in the directory it lies in may be a source.
    pub share: &'a Path,
}

/// Cgroups made for a sandbox.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CgroupMade {
    /// `cgroup.procs` files for the sandbox's processes.
    pub procs: Vec<PathBuf>,
    /// What the host refused; logged, not fatal.
    pub warnings: Vec<String>,
}

/// The host under the engine. Everything it acquires can be undone from the journal entry alone.
#[async_trait]
pub trait Platform: Send + Sync {
    /// How guest code runs on this host.
    fn accelerator(&self) -> Accelerator;
    /// A boot with hardware virtualisation failed: from now on guest code is translated. False when it was
    /// already.
    fn distrust_kvm(&self) -> bool;
    /// Nanoseconds since the Unix epoch.
    fn now_ns(&self) -> u64;
    /// A seed for the guest's entropy pool.
    fn entropy(&self) -> io::Result<Vec<u8>>;
    /// Makes a directory, mode 0700, parents included.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Directories that [`Self::make_cgroup`] would make, deepest first (K-03).
    fn plan_cgroup(&self, plan: &SandboxPlan) -> io::Result<Vec<PathBuf>>;
    /// Makes them.
    fn make_cgroup(&self, plan: &SandboxPlan, paths: &[PathBuf]) -> io::Result<CgroupMade>;
    /// Moves a stub into the sandbox's cgroups; returns what the host refused.
    fn join_cgroup(&self, procs: &[PathBuf], stub: HostProcess) -> Vec<String>;
    /// Binds a listening socket at `path`.
    fn listen(&self, path: &Path) -> io::Result<OwnedFd>;
    /// A pipe whose read end feeds the sandbox log under `source`; the write end is returned.
    fn log_pipe(&self, source: &'static str) -> io::Result<OwnedFd>;
    /// Follows the guest console at `client` into the log and keeps its last lines.
    fn follow_console(&self, client: OwnedFd) -> io::Result<()>;
    /// The last console lines, oldest first.
    fn console_tail(&self) -> Vec<String>;
    /// Identity of the mount namespace mounts are made in.
    fn mount_namespace(&self) -> io::Result<(u64, u64)>;
    /// Makes `share` a shared mount of its own so that later binds below it reach the daemon.
    fn share_root(&self, share: &Path) -> io::Result<()>;
    /// Makes a directory below the share for what the guest makes there: mode 0750, parents included (C-32).
    fn make_guest_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes the share and all that is mounted below it out of the mount namespace in one go; what is left of it goes
    /// with the last file that is open in it. For the end of a sandbox, before its mounts are undone one by one:
    /// each of thousands of unmounts would wait for the kernel. Not there is success.
    fn detach_share(&self, _share: &Path) -> io::Result<()> {
        Ok(())
    }
    /// Binds a source into the share; its target is made to match it (M-06).
    fn bind(&self, bind: Bind<'_>) -> io::Result<()>;
    /// Mounts a root file system at `target`, in order; what was mounted before a failure stays for `undo`.
    fn mount_root(&self, target: &Path, mounts: &[RootMount]) -> io::Result<()>;
    /// Starts the shared-filesystem daemon.
    async fn spawn_fsd(&self, launch: FsdLaunch) -> io::Result<Box<dyn Daemon>>;
    /// Checks what can be known of the plan's network before anything is made: not the host's own namespace, and
    /// a path that leads to one.
    fn check_network(&self, plan: &SandboxPlan) -> io::Result<()>;
    /// Opens a network namespace, which is not the host's, and begins to watch it.
    fn open_network(&self, source: &NetworkSource) -> io::Result<Arc<dyn NetworkSpace>>;
    /// Connects to a socket that listens already.
    fn connect(&self, path: &Path) -> io::Result<OwnedFd>;
    /// Shakes hands with the agent. With `reattach` an earlier connection may have ended in mid-sentence.
    async fn connect_guest(&self, ports: GuestPorts<'_>) -> Result<Arc<dyn Guest>, GuestError>;
    /// Whether a recorded process still runs.
    fn runs(&self, process: HostProcess) -> bool;
    /// Waits at most `within` for the end of a process that need not be a child; true when it has ended.
    async fn ended(&self, process: HostProcess, within: Duration) -> bool;
    /// Watches a daemon that an earlier supervisor started.
    fn adopt_daemon(&self, process: HostProcess) -> io::Result<Box<dyn Daemon>>;
    /// The saved machine a VM of this plan can go on from.
    fn find_template(&self, plan: &SandboxPlan, vmm: &dyn Vmm) -> Found {
        let _ = (plan, vmm);
        Found::Absent {
            why: "this host keeps no templates".into(),
            order: false,
        }
    }
    /// Those of the waiting VMs of a template that are what this plan asks for, the longest waiting first.
    fn find_waiting(&self, plan: &SandboxPlan, key: &TemplateKey) -> Vec<Waiting> {
        let _ = (plan, key);
        Vec::new()
    }
    /// Opens the mount namespace mounts are made in.
    fn open_mount_namespace(&self) -> io::Result<OwnedFd>;
    /// Makes the cgroup of waiting VMs: its `cgroup.procs` files.
    fn pool_cgroup(&self) -> io::Result<Vec<PathBuf>>;
    /// Ends the processes that carry a marker.
    fn end_marked(&self, marker: &str) -> io::Result<()>;
    /// Throws away a template that did not do.
    fn reject_template(&self, plan: &SandboxPlan, key: &TemplateKey) {
        let _ = (plan, key);
    }
    /// Has a template made for the VMs of this plan, by a process of its own that nobody waits for.
    fn order_template(&self, plan: &SandboxPlan) -> io::Result<()> {
        let _ = plan;
        Ok(())
    }
    /// Undoes one acquisition. Something that is not there any more is success. Blocks at most a few
    /// seconds (a process is killed and its end awaited).
    fn undo(&self, resource: &Resource) -> io::Result<()>;
}
