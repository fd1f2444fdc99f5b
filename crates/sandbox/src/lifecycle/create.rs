//! create (C-10) and its rollback (C-11).

use crate::command::StdioSet;
use crate::container::{Container, Notices, Process};
use crate::error::SandboxError;
use crate::journal::Resource;
use crate::share::{self, Share};
use crate::world::World;
use bulkhead_model::{ContainerId, ContainerPlan, HostProcess, ProcessKey};
use bulkhead_protocol::{GuestContainer, GuestStdio};
use std::os::fd::OwnedFd;

/// A stub that reported for duty.
#[derive(Debug)]
pub struct Attachment {
    /// The stub.
    pub stub: HostProcess,
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
        self.must_run("create")?;
        if self.containers.contains_key(&plan.id) {
            return Err(SandboxError::InUse {
                what: "container",
                id: plan.id.to_string(),
            });
        }
        let live = self.live()?;
        let platform = std::sync::Arc::clone(&self.platform);
        let mut failed_random = None;
        let shares = share::plan(&plan, self.plan.shm_bytes, || {
            random_hex(platform.as_ref()).unwrap_or_else(|e| {
                failed_random = Some(e);
                String::new()
            })
        })?;
        if let Some(source) = failed_random {
            return Err(SandboxError::host("reading", "/dev/urandom", source));
        }
        for one in &shares.shares {
            self.bind_share(&plan.id, one)?;
        }
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
            rootfs: shares.rootfs,
            storages: Vec::new(),
            stdio: init.stdio,
            no_pivot: plan.no_pivot,
            no_new_keyring: plan.no_new_keyring,
            seccomp: self.plan.guest_seccomp,
            pipe_bytes: 0,
        };
        init.guest_pid = Some(live.guest.create_container(container).await?);
        let stdio = init.stdio;
        let container = Container::new(plan, shares.shares, init, self.platform.now_ns());
        self.containers.insert(key.container.clone(), container);
        self.watch(key, stdio)?;
        self.save()?;
        self.publish();
        Ok(())
    }

    /// Undoes what a failed create acquired for `id`: every step runs, every item is tried, every failure is
    /// logged (C-11).
    pub async fn rollback(&mut self, id: &ContainerId) {
        if let Ok(live) = self.live()
            && let Err(error) = live.guest.remove_container(id).await
        {
            tracing::warn!(%error, container = %id, "rollback: removing the container in the guest");
        }
        if let Some(container) = self.containers.remove(id) {
            for stream in [container.init.stdio.stdin] {
                if let (Ok(live), true) = (self.live(), stream != 0) {
                    live.guest.close_input(stream);
                }
            }
        }
        self.unshare(id);
        self.save_logged();
        self.publish();
    }

    /// Takes a container's files out of the share: every mount is tried; the first failure is returned as
    /// text for the log only, since a mount that stays is caught by the sandbox's end.
    pub(crate) fn unshare(&mut self, id: &ContainerId) -> bool {
        let mut clean = true;
        for (entry, resource) in self.journal.held() {
            if !resource.belongs_to(id) {
                continue;
            }
            match self.platform.undo(&resource) {
                Ok(()) => {
                    if let Err(error) = self.journal.release(entry) {
                        tracing::error!(%error, "writing the journal");
                    }
                }
                Err(error) => {
                    clean = false;
                    tracing::error!(%error, ?resource, container = %id, "undoing");
                }
            }
        }
        clean
    }

    fn bind_share(&mut self, id: &ContainerId, share: &Share) -> Result<(), SandboxError> {
        let target = self.paths.share().join(&share.name);
        let namespace = self
            .platform
            .mount_namespace()
            .map_err(|e| SandboxError::host("reading", "/proc/self/ns/mnt", e))?;
        self.journal
            .intend(Resource::Mount {
                path: target.clone(),
                namespace,
                container: Some(id.clone()),
            })
            .map_err(|e| SandboxError::host("writing the journal", self.paths.journal(), e))?;
        self.platform
            .bind(&share.source, &target)
            .map_err(|e| SandboxError::host("sharing with the guest", &share.source, e))
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
        process.host = Some(stub);
        for warning in self.platform.join_cgroup(&self.cgroup_procs, stub) {
            tracing::warn!(%warning, "the stub could not join a cgroup");
        }
        process.notices = Some(notices);
        let mut next = || {
            self.next_stream += 1;
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
        if set.terminal {
            let terminal = take()?;
            let reader = terminal.try_clone().map_err(|source| SandboxError::Host {
                step: "duplicating a terminal",
                path: None,
                source,
            })?;
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

/// 8 random bytes in hexadecimal (C-31).
fn random_hex(platform: &dyn crate::Platform) -> std::io::Result<String> {
    Ok(platform
        .entropy()?
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
