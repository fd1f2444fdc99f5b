//! A fresh supervisor in place of a dead one (C-09).
//!
//! ```text
//!  saved state ─► VM alive? ─ yes ─► QMP, agent (new epoch) ─► processes watched again, stubs attach anew
//!                           └ no ──► every process killed, containers stopped; delete and state answer
//! ```
//!
//! Owns: the way back from saved state and journal. Never: a boot. Called once, before the engine's task.

use crate::boot;
use crate::container::Container;
use crate::error::SandboxError;
use crate::journal::Resource;
use crate::lifecycle::Attachment;
use crate::platform::GuestPorts;
use crate::saved::{SavedError, SavedSandbox};
use crate::world::{Live, World};
use bulkhead_model::snapshot::Phase;
use bulkhead_model::{HostProcess, ProcessKey, State};
use bulkhead_vmm::Vm;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

impl World {
    /// Restores what the last supervisor left.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] when nothing was saved: whatever the journal held has been undone then. Any
    /// other failure to read the state is returned as it is.
    pub async fn recover(&mut self) -> Result<(), SandboxError> {
        let path = self.paths.state();
        let saved = match SavedSandbox::read(&path) {
            Ok(saved) => saved,
            Err(SavedError::Absent { .. }) => {
                tracing::warn!("nothing was saved: undoing what was begun");
                // A verb ends the stub it started, unless it was killed too; the stub would wait for us.
                let stubs = Resource::Process {
                    role: "stub".into(),
                    process: None,
                };
                if let Err(error) = self.platform.undo(&stubs) {
                    tracing::error!(%error, "ending the stubs");
                }
                self.tear_down().await;
                return Err(SandboxError::Gone {
                    id: self.plan.id.clone(),
                });
            }
            Err(error) => {
                return Err(SandboxError::Host {
                    step: "restoring",
                    path: Some(path),
                    source: std::io::Error::other(error),
                });
            }
        };
        self.take_over_timeline();
        self.next_stream = saved.next_stream;
        self.boot_size = saved.boot_size.unwrap_or(self.boot_size);
        self.size = saved.size.unwrap_or(self.boot_size);
        self.provenance = saved.provenance;
        self.cgroup_procs.clone_from(&saved.cgroup_procs);
        self.state = saved.state;
        self.phase = saved.phase;
        for (id, one) in saved.containers {
            let mut container = Container::restored(
                one.plan,
                one.state,
                one.shares,
                one.init.restore(),
                one.created_ns,
            );
            let records = one.execs.values().chain([&one.init]);
            self.stubs.extend(records.filter_map(|process| process.host));
            container.execs = one.execs.into_iter().map(|(id, p)| (id, p.restore())).collect();
            container.patched = one.patched;
            container.ignored = one.ignored;
            container.out_of_memory = one.out_of_memory;
            self.containers.insert(id, container);
        }
        match self.reconnect(&saved.processes).await {
            Ok(live) => {
                self.go_live(live);
                self.watch_again();
                if let Some(network) = saved.network {
                    self.rejoin_network(network);
                }
                tracing::info!("took over a running sandbox");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take over: ending what is left");
                self.end_leftovers();
            }
        }
        self.save()?;
        self.publish();
        Ok(())
    }

    /// Goes on with the timeline; one that cannot be read is not worth more than a word.
    fn take_over_timeline(&self) {
        match crate::timeline::read(&self.paths.timeline()) {
            Ok(Some(earlier)) => self.timeline.go_on(earlier),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = %bulkhead_model::failure::chain(&error), "taking the timeline over")
            }
        }
        self.timeline.begin("take over", None, None);
    }

    /// Connects to the VM, its agent and the daemon again.
    async fn reconnect(&self, processes: &BTreeMap<String, HostProcess>) -> Result<Live, SandboxError> {
        let gone = || SandboxError::NoVm {
            id: self.plan.id.clone(),
        };
        let vmm = processes
            .get("vmm")
            .copied()
            .filter(|vmm| self.platform.runs(*vmm))
            .ok_or_else(gone)?;
        let connect = |name: &str| {
            let path = self.paths.vm_socket(name);
            self.platform
                .connect(&path)
                .map_err(|e| SandboxError::host("connecting to", path, e))
        };
        let fsd = match processes.get("fsd") {
            None => None,
            Some(fsd) => {
                Some(Arc::from(self.platform.adopt_daemon(*fsd).map_err(
                    SandboxError::during("watching the shared-filesystem daemon"),
                )?))
            }
        };
        let console = connect("console")?;
        self.platform
            .follow_console(console)
            .map_err(SandboxError::during("following the console"))?;
        let qmp = connect("qmp")?;
        let vm: Arc<dyn Vm> = Arc::from(self.vmm.adopt(vmm, self.machine(), qmp).await?);
        tracing::info!("the VMM answers");
        let streams = self.paths.streams();
        let ports = GuestPorts {
            control: connect("control")?,
            data: connect("data")?,
            streams: &streams,
            reattach: true,
            deadline: Duration::from_secs(u64::from(self.plan.vm.boot_timeout_s)),
        };
        let guest = tokio::select! {
            guest = self.platform.connect_guest(ports) => guest?,
            exit = vm.exited() => return Err(boot::ended("taking over", exit)),
        };
        Ok(Live { vm, guest, fsd })
    }

    /// Watches every process whose end or last output nobody has seen yet.
    fn watch_again(&self) {
        for (id, container) in &self.containers {
            let execs = container
                .execs
                .iter()
                .map(|(exec, process)| (Some(exec.clone()), process));
            for (exec, process) in execs.chain([(None, &container.init)]) {
                if process.delivered {
                    continue;
                }
                let key = ProcessKey {
                    container: id.clone(),
                    exec,
                };
                if let Err(error) = self.watch(key, process.stdio) {
                    tracing::error!(%error, "watching a process again");
                }
            }
        }
    }

    /// A stub that outlived its supervisor: its descriptors serve the same streams again.
    ///
    /// # Errors
    /// `NoProcess` when it does not stand for the process it names.
    pub(crate) fn attach_again(
        &mut self,
        key: &ProcessKey,
        attachment: Attachment,
    ) -> Result<(), SandboxError> {
        let guest = self.live().map(|live| live.guest).ok();
        let unknown = || SandboxError::NoProcess(key.to_string());
        let container = self.containers.get_mut(&key.container).ok_or_else(unknown)?;
        let process = container.process_mut(key.exec.as_ref()).ok_or_else(unknown)?;
        if attachment.stub.is_none() || process.host != attachment.stub {
            return Err(unknown());
        }
        process.notices = Some(attachment.notices);
        if let (Some(status), true) = (process.exit, process.delivered) {
            process.tell(crate::Notice::Exited { status });
            return Ok(());
        }
        let Some(guest) = guest else { return Ok(()) };
        let stdio = process.stdio;
        let mut fds = attachment.fds.into_iter();
        if attachment.set.terminal && !attachment.set.stdin && !attachment.set.stdout {
            if let Some(terminal) = fds.next() {
                let reader = terminal
                    .try_clone()
                    .map_err(SandboxError::during("duplicating a terminal"))?;
                guest.connect_output(stdio.stdout, terminal)?;
                guest.connect_input(stdio.stdin, reader)?;
            }
            return Ok(());
        }
        for (there, stream, input) in [
            (attachment.set.stdin, stdio.stdin, true),
            (attachment.set.stdout, stdio.stdout, false),
            (attachment.set.stderr, stdio.stderr, false),
        ] {
            let Some(fd) = (if there { fds.next() } else { None }) else {
                continue;
            };
            match (stream, input) {
                (0, _) => {}
                (stream, true) => guest.connect_input(stream, fd)?,
                (stream, false) => guest.connect_output(stream, fd)?,
            }
        }
        Ok(())
    }

    /// Whether `stub` already stands for the process `key`.
    #[must_use]
    pub(crate) fn stands_for(&self, key: &ProcessKey, stub: HostProcess) -> bool {
        self.containers
            .get(&key.container)
            .and_then(|container| container.process(key.exec.as_ref()))
            .is_some_and(|process| process.host == Some(stub))
    }

    /// Without a connection to the VM nothing of it may go on running.
    fn end_leftovers(&mut self) {
        for (entry, resource) in self.journal.held() {
            if !matches!(resource, Resource::Process { .. }) {
                continue;
            }
            match self.platform.undo(&resource) {
                Ok(()) => {
                    if let Err(error) = self.journal.release(entry) {
                        tracing::error!(%error, "writing the journal");
                    }
                }
                Err(error) => tracing::error!(%error, ?resource, "undoing"),
            }
        }
        self.state = State::Stopped;
        self.phase = Phase::Gone;
        self.all_exited();
    }
}
