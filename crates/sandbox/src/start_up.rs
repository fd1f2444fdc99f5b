//! How a sandbox's VM comes to life: from a template, by a boot, or by one after the other.
//!
//! ```text
//!  template? ─ yes ─► one waits? ─ yes ─► taken ─► running
//!      │               │ no          └ does not do: undone ─┐
//!      │               └──────► goes on ◄──────────────────┘
//!      │                           └─► running
//!      │ no              │ does not do: thrown away (not if QEMU was killed), everything undone
//!      └──► boot ◄───────┘
//!            │ failed with KVM: undone ─► boot, translated ─► running
//!            └──► running
//! ```
//!
//! Owns: which start is tried, and when another. Never: the steps of one (see `boot`). Called by the engine.

use crate::boot::{self, Ready, Source, Yard};
use crate::error::SandboxError;
use crate::journal::Entry;
use crate::size::Size;
use crate::template::{Found, TemplateKey, shape};
use crate::world::{Live, World};
use bulkhead_model::snapshot::{Phase, Provenance};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{State, VmPlan};

impl World {
    /// Starts the VM: from a template if there is one, else, or if that does not do, by a boot. On failure, or when
    /// the future is dropped, what was acquired is in the journal: call [`Self::tear_down`].
    ///
    /// # Errors
    /// [`SandboxError::Boot`].
    pub async fn boot(&mut self) -> Result<(), SandboxError> {
        self.timeline.begin("boot", None, None);
        let base: Vec<Entry> = self.journal.held().into_iter().map(|(entry, _)| entry).collect();
        let found = self.timeline.during(Lane::Supervisor, "look for a template", || {
            self.platform.find_template(&self.plan, self.vmm.as_ref())
        });
        let why_cold = match found {
            Found::Ready(template) => {
                let key = template.key.clone();
                if self.plan.factory.pool > 0 {
                    // What is taken is replaced, and what is missing added, once this sandbox runs.
                    self.order_template = true;
                    if let Some(ready) = self.take_waiting(&key, &base).await {
                        return self.booted(ready, Some(key), true, String::new());
                    }
                }
                match self.boot_once(Source::Template(template)).await {
                    Ok(ready) => return self.booted(ready, Some(key), false, String::new()),
                    Err(error) if error.may_be_the_template() => {
                        let why = bulkhead_model::failure::chain(&error);
                        tracing::warn!(%key, error = why, "the template does not do: booting, once");
                        if error.is_a_kill() {
                            // By whoever was short of memory: the template is as good as before.
                            tracing::warn!(%key, "the VMM was killed: the template stays");
                        } else {
                            self.platform.reject_template(&self.plan, &key);
                            self.order_template = true;
                        }
                        self.back_to(&base).await;
                        why
                    }
                    Err(error) => return Err(error),
                }
            }
            Found::Absent { why, order } => {
                self.order_template = order;
                why
            }
        };
        let ready = match self.boot_once(Source::Boot).await {
            Err(error) if error.may_be_the_accelerator() && self.platform.distrust_kvm() => {
                tracing::warn!(%error, "the VM did not start with KVM: starting it once more, translated");
                self.back_to(&base).await;
                self.boot_once(Source::Boot).await?
            }
            other => other?,
        };
        self.booted(ready, None, false, why_cold)
    }

    fn booted(
        &mut self,
        ready: Ready,
        template: Option<TemplateKey>,
        pool: bool,
        why_cold: String,
    ) -> Result<(), SandboxError> {
        let Ready {
            vm,
            fsd,
            guest,
            cgroup_procs,
        } = ready;
        if template.is_some() {
            let shaped = shape(&self.plan.vm);
            self.boot_size = Size {
                vcpus: shaped.vcpus,
                memory_mib: shaped.memory_mib,
            };
            self.size = self.boot_size;
        }
        self.provenance = Provenance {
            template: template.map(|key| key.to_string()),
            pool,
            why_cold,
            boot_nonce: guest.hello().boot_nonce.clone(),
        };
        self.state = self.state.moved(State::Running)?;
        self.phase = Phase::Ready;
        self.cgroup_procs = cgroup_procs;
        self.go_live(Live { vm, guest, fsd });
        self.save()?;
        self.publish();
        Ok(())
    }

    /// As before a start that failed, for another one: what was acquired since is undone, and the sockets' names
    /// are free.
    async fn back_to(&mut self, base: &[Entry]) {
        // What sticks stays in the journal, for the end of the sandbox.
        self.undo_since(base).await;
        for name in boot::SOCKETS {
            let _ = std::fs::remove_file(self.paths.vm_socket(name));
        }
    }

    /// A VM that went on from this template already, if one waits and does; else everything is as before.
    async fn take_waiting(&mut self, key: &TemplateKey, base: &[Entry]) -> Option<Ready> {
        let waiting = self.platform.find_waiting(&self.plan, key);
        if waiting.is_empty() {
            return None;
        }
        match self.boot_once(Source::Waiting(waiting)).await {
            Ok(ready) => Some(ready),
            Err(error) => {
                let why = bulkhead_model::failure::chain(&error);
                tracing::warn!(%key, error = why, "a waiting VM does not do: going on from the template");
                self.back_to(base).await;
                None
            }
        }
    }

    async fn boot_once(&mut self, source: Source) -> Result<Ready, SandboxError> {
        let yard = Yard {
            plan: &self.plan,
            paths: &self.paths,
            platform: self.platform.as_ref(),
            vmm: self.vmm.as_ref(),
            timeline: &self.timeline,
        };
        boot::boot(yard, &mut self.journal, source).await
    }

    /// The machine as it was started.
    pub(crate) fn machine(&self) -> VmPlan {
        VmPlan {
            vcpus: self.boot_size.vcpus,
            memory_mib: self.boot_size.memory_mib,
            ..self.plan.vm.clone()
        }
    }
}
