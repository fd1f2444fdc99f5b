//! A machine that is not there.
//!
//! ```text
//!  alive ──end──► ended: its descriptors are closed, its exit is told
//! ```
//!
//! Owns: what QEMU would hold of one VM, and the errors both fakes have in common. Never: a step. Called by `vmm` and `vm`.

use crate::{VmExit, VmmError};
use bulkhead_model::{HostProcess, VmPlan};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use tokio::sync::watch;

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) process: HostProcess,
    pub(super) plan: VmPlan,
    pub(super) exit: watch::Sender<Option<VmExit>>,
    pub(super) plugged: BTreeMap<u32, String>,
    pub(super) vcpus: u32,
    // Held like QEMU holds them: peers see the end when the VM ends.
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) savable: bool,
}

impl Machine {
    pub(super) fn alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    pub(super) fn end(&mut self, exit: VmExit) {
        if self.alive() {
            self.sockets.clear();
            self.exit.send_replace(Some(exit));
        }
    }
}

pub(super) fn injected() -> VmmError {
    VmmError::Device {
        id: "fake".into(),
        what: "injected fault",
    }
}

pub(super) fn ended(step: &'static str, exit: VmExit) -> VmmError {
    VmmError::Ended {
        step,
        exit,
        stderr: String::new(),
    }
}
