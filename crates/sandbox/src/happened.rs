//! What happens to a sandbox without being asked for: ends of processes, streams, stubs and of the VM.
//!
//! Owns: what an event changes. Never: waiting for events (see `engine`). Called by the engine.

use crate::container::Container;
use crate::world::{Event, World, libc_sigkill};
use bulkhead_model::snapshot::Phase;
use bulkhead_model::{ContainerId, ExitStatus, HostProcess, ProcessKey, State};

impl World {
    /// Takes in something that happened.
    pub(crate) async fn happened(&mut self, event: Event) {
        match event {
            Event::Exited { key, exit } => {
                self.timeline.exited(&key);
                if exit.out_of_memory {
                    tracing::warn!(process = %key, "out of memory in the guest");
                }
                // Its own event may come later, or not at all once the cgroup is gone.
                if let Some(container) = self.containers.get_mut(&key.container) {
                    container.out_of_memory = container.out_of_memory.max(exit.out_of_memory_kills);
                }
                self.process_exited(&key, exit.status);
                if key.exec.is_none() {
                    // One that was made meanwhile was not there when the guest looked.
                    let all_stopped = |it: &Container| it.state() == State::Stopped;
                    self.settled = exit.settled && self.containers.values().all(all_stopped);
                }
            }
            Event::Delivered { key } => {
                // Before anyone can know of it.
                self.timeline.delivered(&key);
                self.delivered(&key).await;
            }
            Event::StreamEnded { key, stream } => {
                if let Some(process) = self.process(&key) {
                    process.tell(crate::Notice::StreamEnded { stream });
                }
            }
            Event::StubGone { key, stub } => self.stub_gone(&key, stub).await,
            Event::OutOfMemory { container, kills } => self.out_of_memory(&container, kills),
            Event::VmEnded => self.vm_ended(),
            // A verb of its own, as it may take long: see the engine.
            Event::NetworkChanged => {}
        }
    }

    /// Told again after a take-over: the number makes it the same kill.
    fn out_of_memory(&mut self, container: &str, kills: u64) {
        let known = ContainerId::new(container).ok();
        let Some(container) = known.and_then(|id| self.containers.get_mut(&id)) else {
            return;
        };
        if kills > container.out_of_memory {
            container.out_of_memory = kills;
            self.save_logged();
            self.publish();
        }
    }

    fn process(&self, key: &ProcessKey) -> Option<&crate::container::Process> {
        self.containers.get(&key.container)?.process(key.exec.as_ref())
    }

    /// Records the end of a process; the container stops with its own.
    fn process_exited(&mut self, key: &ProcessKey, status: ExitStatus) {
        let now = self.platform.now_ns();
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        let Some(process) = container.process_mut(key.exec.as_ref()) else {
            return;
        };
        if process.exit.is_some() {
            return;
        }
        process.exit = Some(status);
        process.exited_ns = Some(now);
        if process.host.is_none() {
            process.tell(crate::Notice::Ended { status, at_ns: now });
        }
        if key.exec.is_none() && container.state() != State::Stopped {
            // Every state but stopped has a move to stopped.
            if let Err(error) = container.advance(State::Stopped) {
                tracing::error!(%error, container = %key.container, "recording an exit");
            }
        }
        self.save_logged();
        self.publish();
    }

    async fn delivered(&mut self, key: &ProcessKey) {
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        let Some(process) = container.process_mut(key.exec.as_ref()) else {
            return;
        };
        process.delivered = true;
        let stdin = process.stdio.stdin;
        if let Some(status) = process.exit {
            process.tell(crate::Notice::Exited { status });
        }
        // Nobody reads its input any more; a terminal hangs up only when every descriptor of it is closed.
        if stdin != 0
            && let Ok(live) = self.live()
        {
            live.guest.disconnect(stdin);
        }
        self.save_logged();
        self.publish();
        if key.exec.is_some() {
            // Its stub ends now; what stays goes with the directory.
            let _ = std::fs::remove_file(self.paths.stub_socket(key));
        }
        if key.exec.is_some()
            && let Ok(live) = self.live()
            && let Err(error) = live.guest.forget(key).await
        {
            tracing::debug!(%error, process = %key, "letting the agent forget an exec");
        }
    }

    /// SIGKILL to a stub kills what it stands for.
    async fn stub_gone(&mut self, key: &ProcessKey, stub: HostProcess) {
        let Some(container) = self.containers.get_mut(&key.container) else {
            return;
        };
        let Some(process) = container.process_mut(key.exec.as_ref()) else {
            return;
        };
        if process.host != Some(stub) {
            return;
        }
        process.notices = None;
        if process.exit.is_some() {
            return;
        }
        tracing::info!(process = %key, "its stub ended: killing it");
        if let Ok(live) = self.live()
            && let Err(error) = live.guest.signal(key, libc_sigkill(), key.exec.is_none()).await
        {
            tracing::warn!(%error, process = %key, "killing a process whose stub ended");
        }
    }

    /// Without a VM every process has ended by SIGKILL.
    pub(crate) fn vm_ended(&mut self) {
        if self.live.send_replace(None).is_none() {
            return;
        }
        if self.state != State::Stopped
            && let Err(error) = self.state.moved(State::Stopped).map(|now| self.state = now)
        {
            tracing::error!(%error, "recording the end of the VM");
        }
        self.phase = Phase::Gone;
        self.all_exited();
        self.save_logged();
        self.publish();
    }

    /// Marks every process as killed and tells the stubs.
    pub(crate) fn all_exited(&mut self) {
        let keys: Vec<ProcessKey> = self
            .containers
            .iter()
            .flat_map(|(id, c)| {
                c.execs
                    .keys()
                    .map(|exec| Some(exec.clone()))
                    .chain([None])
                    .map(|exec| ProcessKey {
                        container: id.clone(),
                        exec,
                    })
            })
            .collect();
        for key in keys {
            self.process_exited(&key, ExitStatus::Signal(libc_sigkill() as u8));
            if let Some(process) = self
                .containers
                .get_mut(&key.container)
                .and_then(|c| c.process_mut(key.exec.as_ref()))
                && !process.delivered
            {
                process.delivered = true;
                if let Some(status) = process.exit {
                    process.tell(crate::Notice::Exited { status });
                }
            }
        }
    }
}
