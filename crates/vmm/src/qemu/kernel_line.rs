//! The kernel command line.
//!
//! Owns: which parameters a guest boots with and why. Never: anything of one sandbox (design rule 7).
//! Called by `command_line`.

use bulkhead_model::VmPlan;
use bulkhead_model::vm::Accelerator;

/// Longest command line the x86 boot protocol takes, in bytes, its final zero not counted.
pub(super) const MAX_BYTES: usize = 2047;

/// The complete line. `tsc_khz` is the host's time-stamp counter rate; parameters of the plan come last, so
/// that they win.
pub(super) fn kernel_line(plan: &VmPlan, accelerator: Accelerator, tsc_khz: Option<u32>) -> String {
    let mut line: Vec<String> = [
        "console=ttyS0",
        // A panic resets the machine at once, and with -no-reboot that ends the VMM: nobody waits for a dead guest.
        "panic=-1",
        "random.trust_cpu=on",
        // Moving a process into a cgroup waits for a grace period otherwise, 25 ms.
        "rcupdate.rcu_expedited=1",
        "cryptomgr.notests",
        // QEMU's ports hot-plug through ACPI; the port driver's own services would only be probed, 25 ms each.
        "pcie_ports=compat",
        // Self-tests of a random generator and a key derivation nobody asks for, and names in trace formats:
        // 300 ms under the translator. A kernel that has no such function ignores it.
        "initcall_blacklist=jent_mod_init,crypto_kdf108_init,trace_eval_init",
        // A driver that is built in makes an interface of its own, which no namespace has.
        "dummy.numdummies=0",
        // Added memory becomes movable as far as that is safe for the kernel's own needs: only movable memory
        // can be taken away again (kernel docs, memory-hotplug).
        "memory_hotplug.online_policy=auto-movable",
    ]
    .map(String::from)
    .to_vec();
    if !plan.debug {
        // Every character on the serial port costs an exit.
        line.push("quiet".into());
    }
    match accelerator {
        Accelerator::Kvm => {}
        Accelerator::Tcg => {
            // The counter follows the host's clock under TCG; without these the kernel measures it against
            // timers and waits for them. Translated code does not speculate, so there is nothing to mitigate.
            line.extend(["tsc=reliable", "no_timer_check", "mitigations=off"].map(String::from));
            line.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
            if plan.max_vcpus > 1 {
                // All vCPUs are declared at boot (see command_line); the agent brings the others up.
                line.push(format!("maxcpus={}", plan.vcpus));
            } else {
                // Alone, a vCPU can do without its own timer, whose calibration takes 100 ms, and with its lock
                // prefixes, which only cost patching.
                line.extend(["nolapic_timer", "noreplace-smp"].map(String::from));
            }
        }
    }
    if plan.iommu {
        line.extend(["intel_iommu=on", "iommu=pt"].map(String::from));
    }
    line.extend(plan.kernel_params.iter().map(|param| match &param.value {
        Some(value) => format!("{}={value}", param.key),
        None => param.key.clone(),
    }));
    line.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::testing::plan;
    use super::*;
    use bulkhead_model::vm::KeyValue;

    #[test]
    fn parameters_of_the_plan_come_last_and_in_order() {
        let mut plan = plan();
        plan.kernel_params = vec![
            KeyValue {
                key: "panic".into(),
                value: Some("5".into()),
            },
            KeyValue {
                key: "ro".into(),
                value: None,
            },
        ];
        let line = kernel_line(&plan, Accelerator::Tcg, None);
        assert!(line.ends_with(" panic=5 ro"), "{line}");
        assert!(line.contains("panic=-1"));
    }

    #[test]
    fn debug_turns_quiet_off() {
        let mut plan = plan();
        let has_quiet = |p: &VmPlan| {
            kernel_line(p, Accelerator::Tcg, None)
                .split(' ')
                .any(|w| w == "quiet")
        };
        assert!(has_quiet(&plan));
        plan.debug = true;
        assert!(!has_quiet(&plan));
    }

    #[test]
    fn the_translator_gets_its_clock_and_hardware_keeps_its_mitigations() {
        let line = |accelerator| kernel_line(&plan(), accelerator, Some(2_300_000));
        assert!(line(Accelerator::Tcg).contains(" tsc_early_khz=2300000"));
        assert!(!line(Accelerator::Kvm).contains("tsc"));
        assert!(!line(Accelerator::Kvm).contains("mitigations"));
    }

    #[test]
    fn under_the_translator_only_the_boot_vcpus_come_up() {
        let mut plan = plan();
        plan.vcpus = 2;
        plan.max_vcpus = 4;
        assert!(kernel_line(&plan, Accelerator::Tcg, None).contains(" maxcpus=2"));
        assert!(!kernel_line(&plan, Accelerator::Kvm, None).contains("maxcpus"));
    }
}
