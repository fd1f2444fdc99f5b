//! The QEMU driver (7.2 and newer), x86-64.
//!
//! ```text
//!  Qemu::launch ─► command_line ─► launch (spawn, QMP handshake) ─► Instance: hotplug, resize, snapshot
//!  Qemu::adopt ──────────────────► QMP handshake, state re-queried ─┘
//! ```
//!
//! Owns: everything QEMU. Never: decides which accelerator (see `probe`) or how long a guest may boot.
//! Called by the engine through the traits of `machine`.

mod bus;
mod command_line;
mod devices;
mod hotplug;
mod instance;
mod kernel_line;
mod launch;
mod limits;
mod line;
mod memory;
mod process;
mod resize;
mod slots;
mod snapshot;
mod start;
mod stderr;
#[cfg(test)]
mod testing;

use crate::{Launch, Vm, Vmm, VmmError};
use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, VmPlan};
use instance::Instance;
use std::os::fd::OwnedFd;

/// Starts QEMU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qemu {
    tsc_khz: Option<u32>,
}

impl Qemu {
    /// `tsc_khz` is the rate of the host's time-stamp counter ([`crate::probe::Verdict::tsc_khz`]); a
    /// translated guest told so need not measure it. `None` lets it measure.
    #[must_use]
    pub const fn new(tsc_khz: Option<u32>) -> Self {
        Self { tsc_khz }
    }
}

#[async_trait]
impl Vmm for Qemu {
    async fn launch(&self, launch: Launch) -> Result<Box<dyn Vm>, VmmError> {
        let instance: Instance = launch::launch(launch, self.tsc_khz).await?;
        Ok(Box::new(instance))
    }

    fn signature(&self, plan: &VmPlan, accelerator: Accelerator) -> Result<String, VmmError> {
        command_line::signature(plan, accelerator, self.tsc_khz)
    }

    async fn adopt(&self, process: HostProcess, plan: VmPlan, qmp: OwnedFd) -> Result<Box<dyn Vm>, VmmError> {
        Ok(Box::new(launch::adopt(process, plan, qmp).await?))
    }
}
