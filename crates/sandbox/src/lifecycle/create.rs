//! create (C-10) and its rollback (C-11).

use crate::command::StdioSet;
use crate::container::{Container, Notices, Process};
use crate::error::SandboxError;
use crate::share;
use crate::size::Surplus;
use crate::world::World;
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ContainerId, ContainerPlan, HostProcess, ProcessKey, State};
use bulkhead_protocol::{GuestContainer, GuestStdio};
use std::os::fd::OwnedFd;

/// From this many on, stubs that have ended are forgotten before another is noted.
const MANY_STUBS: usize = 64;

/// A stub that reported for duty, or the streams of a process that has none.
#[derive(Debug)]
pub struct Attachment {
    /// The stub.
    pub stub: Option<HostProcess>,
    /// Which descriptors there are.
    pub set: StdioSet,
    /// They, in order.
    pub fds: Vec<OwnedFd>,
    /// Terminal size.
    pub size: Option<(u16, u16)>,
    /// Its ear.
    pub notices: Notices,
}

impl World {
    /// Makes a container (C-10). On failure, or when the future is dropped, call [`Self::rollback`].
    ///
    /// # Errors
    /// The first failure of a step.
    pub async fn create(
        &mut self,
        plan: ContainerPlan,
        attachment: Option<Attachment>,
    ) -> Result<(), SandboxError> {
        Box::pin(self.make(plan, attachment, false)).await
    }

    /// Makes a container and lets its process run (C-10, C-12) by one call to the guest. As [`Self::create`] otherwise.
    ///
    /// # Errors
    /// The first failure of a step.
    pub async fn run(
        &mut self,
        plan: ContainerPlan,
        attachment: Option<Attachment>,
    ) -> Result<(), SandboxError> {
        Box::pin(self.make(plan, attachment, true)).await?;
        self.order_template();
        Ok(())
    }

    /// The future of this is large: callers keep it on the heap.
    async fn make(
        &mut self,
        plan: ContainerPlan,
        attachment: Option<Attachment>,
        start: bool,
    ) -> Result<(), SandboxError> {
        self.must_run("create")?;
        if self.containers.contains_key(&plan.id) {
            return Err(SandboxError::InUse {
                what: "container",
                id: plan.id.to_string(),
            });
        }
        let live = self.live()?;
        if self.containers.is_empty() && self.network.is_none() {
            self.join_network(attachment.as_ref().and_then(|it| it.stub))
                .await?;
        }
        let platform = std::sync::Arc::clone(&self.platform);
        let mut failed_random = None;
        let random = || {
            random_hex(platform.as_ref()).unwrap_or_else(|e| {
                failed_random = Some(e);
                String::new()
            })
        };
        let shares = share::plan(&plan, &self.plan, random, share::volume::classify)?;
        if let Some(source) = failed_random {
            return Err(SandboxError::host("reading", "/dev/urandom", source));
        }
        for source in &shares.ignored {
            tracing::warn!(source = %source.display(), container = %plan.id, "not shared: no shared file system");
        }
        let binding = self.timeline.span(Lane::Supervisor, "bind the shares");
        self.bind_shares(&plan.id, &shares.shares).await?;
        drop(binding);
        let fitting = self.timeline.span(Lane::Supervisor, "fit the VM's size");
        self.fit(Some((&plan.id, plan.share)), Surplus::Keep).await?;
        drop(fitting);
        let key = ProcessKey {
            container: plan.id.clone(),
            exec: None,
        };
        let mut init = Process::default();
        self.connect(&mut init, attachment)?;
        let container = GuestContainer {
            id: plan.id.clone(),
            spec: serde_json::to_vec(&shares.spec).map_err(|e| SandboxError::Host {
                step: "encoding the spec",
                path: None,
                source: e.into(),
            })?,
            bundle: plan.bundle.display().to_string(),
            storages: shares.storages(),
            rootfs: shares.rootfs,
            stdio: init.stdio,
            no_pivot: plan.no_pivot,
            no_new_keyring: plan.no_new_keyring,
            seccomp: self.plan.guest_seccomp,
            pipe_bytes: self.plan.agent.container_pipe_bytes,
            whole_dev: shares.dev_is_the_hosts,
            pids: self.pid_namespace(&plan),
            start,
        };
        // The card has had the time since it was plugged to turn up.
        self.tell_network().await?;
        self.settled = false;
        let creating = self.timeline.span(Lane::Supervisor, "create it in the guest");
        init.guest_pid = Some(live.guest.create_container(container).await?);
        self.timeline.answered(creating, live.guest.take_steps());
        self.pending.clear();
        let stdio = init.stdio;
        let mut container = Container::new(plan, shares.shares, init, self.platform.now_ns());
        container.patched = Some(std::sync::Arc::new(shares.spec));
        container.ignored = shares.ignored;
        if start {
            container.init.started_ns = Some(self.platform.now_ns());
            container.advance(State::Running)?;
        }
        self.containers.insert(key.container.clone(), container);
        self.watch(key, stdio)?;
        self.save()?;
        self.publish();
        Ok(())
    }

    /// Undoes what a failed create acquired for `id`: every step runs, every item is tried, every failure is
    /// logged (C-11).
    pub async fn rollback(&mut self, id: &ContainerId) {
        let timeline = self.timeline.clone();
        let _undoing = timeline.span(Lane::Supervisor, "roll back");
        if let Ok(live) = self.live()
            && let Err(error) = live.guest.remove_container(id).await
        {
            tracing::warn!(%error, container = %id, "rollback: removing the container in the guest");
        }
        if let Some(container) = self.containers.remove(id) {
            let stdio = container.init.stdio;
            self.pending.extend([stdio.stdin, stdio.stdout, stdio.stderr]);
        }
        self.abandon_streams();
        if let Err(error) = self.unshare(id).await {
            tracing::warn!(%error, container = %id, "rollback: unmounting; the sandbox's end tries again");
        }
        self.fit_logged().await;
        self.save_logged();
        self.publish();
    }

    /// Lets go of the streams of a process that never came to be: their readers see the end.
    pub(crate) fn abandon_streams(&mut self) {
        let streams = std::mem::take(&mut self.pending);
        if let Ok(live) = self.live() {
            for stream in streams.into_iter().filter(|stream| *stream != 0) {
                live.guest.disconnect(stream);
            }
        }
    }

    /// Gives a process its streams and connects them to the stub's descriptors.
    pub(crate) fn connect(
        &mut self,
        process: &mut Process,
        attachment: Option<Attachment>,
    ) -> Result<(), SandboxError> {
        let Some(attachment) = attachment else {
            return Ok(());
        };
        let guest = self.live()?.guest;
        let Attachment {
            stub,
            set,
            fds,
            size,
            notices,
        } = attachment;
        process.host = stub;
        if let Some(stub) = stub {
            self.note_stub(stub);
        }
        process.notices = Some(notices);
        let mut next = || {
            self.next_stream += 1;
            self.pending.push(self.next_stream - 1);
            self.next_stream - 1
        };
        let mut stdio = GuestStdio {
            terminal: set.terminal,
            ..GuestStdio::default()
        };
        if let Some((columns, rows)) = size {
            (stdio.columns, stdio.rows) = (columns, rows);
        }
        let mut fds = fds.into_iter();
        let mut take = || {
            fds.next().ok_or(SandboxError::Invalid {
                what: "Attach",
                value: "fewer descriptors than announced".into(),
                expected: "one descriptor a stream",
            })
        };
        if set.terminal && !set.stdin && !set.stdout {
            let terminal = take()?;
            let reader = terminal
                .try_clone()
                .map_err(SandboxError::during("duplicating a terminal"))?;
            (stdio.stdin, stdio.stdout) = (next(), next());
            guest.connect_output(stdio.stdout, terminal)?;
            guest.connect_input(stdio.stdin, reader)?;
        } else {
            if set.stdin {
                stdio.stdin = next();
                guest.connect_input(stdio.stdin, take()?)?;
            }
            if set.stdout {
                stdio.stdout = next();
                guest.connect_output(stdio.stdout, take()?)?;
            }
            if set.stderr {
                stdio.stderr = next();
                guest.connect_output(stdio.stderr, take()?)?;
            }
        }
        process.stdio = stdio;
        Ok(())
    }
}

impl World {
    fn note_stub(&mut self, stub: HostProcess) {
        if self.stubs.len() >= MANY_STUBS {
            self.stubs.retain(|stub| self.platform.runs(*stub));
        }
        self.stubs.push(stub);
        for warning in self.platform.join_cgroup(&self.cgroup_procs, stub) {
            tracing::warn!(%warning, "the stub could not join a cgroup");
        }
    }
}

/// 8 random bytes in hexadecimal (C-31).
fn random_hex(platform: &dyn crate::Platform) -> std::io::Result<String> {
    Ok(platform
        .entropy()?
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
