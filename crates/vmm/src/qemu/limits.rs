//! What this machine cannot be.
//!
//! Owns: the plans that are refused, with the words for it. Never: an argument. Called by `command_line`.

use super::bus::MAX_ROOT_PORTS;
use super::kernel_line::{self, kernel_line};
use crate::VmmError;
use bulkhead_model::VmPlan;
use bulkhead_model::vm::Accelerator;

pub(super) fn check(plan: &VmPlan, accelerator: Accelerator) -> Result<(), VmmError> {
    let unsupported = |option, value: String, expected| {
        Err(VmmError::Unsupported {
            option,
            value,
            expected,
        })
    };
    if plan.machine_type != "q35" && !plan.machine_type.starts_with("pc-q35-") {
        return unsupported(
            "machine_type",
            plan.machine_type.clone(),
            "q35 or pc-q35-<version>",
        );
    }
    if plan.machine_type.contains(',') {
        return unsupported(
            "machine_type",
            plan.machine_type.clone(),
            "a name without a comma",
        );
    }
    if plan.root_ports > MAX_ROOT_PORTS {
        return unsupported("pcie_root_port", plan.root_ports.to_string(), "at most 26");
    }
    if plan.vcpus == 0 || plan.max_vcpus < plan.vcpus {
        return unsupported(
            "vcpus",
            plan.vcpus.to_string(),
            "1 to the maximum number of vCPUs",
        );
    }
    if plan.memory_mib == 0 {
        return unsupported("memory", "0".into(), "at least 1 MiB");
    }
    let boot_line = kernel_line(plan, accelerator, Some(u32::MAX));
    if boot_line.len() > kernel_line::MAX_BYTES {
        return unsupported(
            "kernel_params",
            format!("{} bytes with the parameters every guest gets", boot_line.len()),
            "a kernel command line of at most 2047 bytes",
        );
    }
    if boot_line.bytes().any(|b| b == 0 || b == b'\n') {
        return unsupported(
            "kernel_params",
            format!("{boot_line:?}"),
            "no zero byte and no line end",
        );
    }
    Ok(())
}
