//! O-09, O-10, C-24: how large VMs are.

use crate::support::*;
use bulkhead_config::{Config, PlanKind};
use bulkhead_model::VmPlan;
use serde_json::{Value, json};

fn vm(toml: &str, spec: &Value) -> VmPlan {
    sandbox(toml, spec).vm
}

fn limited(cpu: Value, memory: Value) -> Value {
    let mut spec = spec();
    spec["linux"]["resources"] = json!({"cpu": cpu, "memory": memory});
    spec
}

/// Nothing asked for: the defaults, and the host as the most.
#[test]
fn o09_defaults() {
    let vm = vm("", &spec());
    assert_eq!((vm.vcpus, vm.max_vcpus, vm.base_vcpus), (1, 8, 1));
    assert_eq!(
        (vm.memory_mib, vm.max_memory_mib, vm.base_memory_mib),
        (2048, 16_384, 2048)
    );
    assert_eq!(vm.memory_slots, 10);
}

/// C-24: limits come on top of the base: ceil(quota / period), memory rounded up to MiB.
#[test]
fn c24_limits_add_to_the_base() {
    let spec = limited(
        json!({"quota": 150_000, "period": 100_000}),
        json!({"limit": 32 << 20}),
    );
    let (sandbox, container) = both(&Config::default(), &spec);
    assert_eq!((sandbox.vm.vcpus, sandbox.vm.memory_mib), (3, 2048 + 32));
    assert_eq!(
        (container.share.vcpus, container.share.memory_bytes),
        (2, 32 << 20)
    );
    let unlimited = limited(json!({"quota": -1, "period": 100_000}), json!({"limit": -1}));
    assert_eq!(
        (vm("", &unlimited).vcpus, vm("", &unlimited).memory_mib),
        (1, 2048)
    );
    let shares_only = limited(json!({"shares": 4096}), json!({}));
    assert_eq!(vm("", &shares_only).vcpus, 1);
}

/// Limits beyond the host start anyway, as with runc: the host is what there is.
#[test]
fn c24_limits_beyond_the_host_are_bounded() {
    let spec = limited(
        json!({"quota": i64::MAX, "period": 1}),
        json!({"limit": i64::MAX}),
    );
    let vm = vm("", &spec);
    assert_eq!((vm.vcpus, vm.memory_mib), (8, 16_384));
    let toml = "[hypervisor]\ndefault_max_vcpus = 4\ndefault_maxmemory = 3000\n";
    let vm = crate::sizes::vm(toml, &spec);
    assert_eq!(
        (vm.vcpus, vm.max_vcpus, vm.memory_mib, vm.max_memory_mib),
        (4, 4, 3000, 3000)
    );
}

/// A host smaller than the default still starts.
#[test]
fn o10_small_host() {
    let mut host = host();
    (host.cpus, host.memory_mib) = (1, 1024);
    let plans = plans_on(&Files::default(), &host, &Config::default(), &spec()).unwrap();
    let PlanKind::Sandbox { sandbox, .. } = plans.kind else {
        panic!()
    };
    assert_eq!(
        (sandbox.vm.vcpus, sandbox.vm.max_vcpus, sandbox.vm.memory_mib),
        (1, 1, 2048)
    );
    assert!(sandbox.vm.max_memory_mib >= sandbox.vm.memory_mib);
}

const CRI: &str = "io.kubernetes.cri.sandbox-";

/// C-24: what CRI announces for the pod counts at boot.
#[test]
fn c24_cri_sandbox_size() {
    let size = |pairs: &[(&str, &str)]| {
        let keys: Vec<(String, &str)> = pairs.iter().map(|(k, v)| (format!("{CRI}{k}"), *v)).collect();
        let pairs: Vec<(&str, &str)> = keys.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let vm = vm("", &annotated(&pairs));
        (vm.vcpus, vm.memory_mib)
    };
    assert_eq!(
        size(&[
            ("cpu-quota", "250000"),
            ("cpu-period", "100000"),
            ("memory", "536870912")
        ]),
        (4, 2560)
    );
    assert_eq!(
        size(&[("cpu-quota", "0"), ("cpu-period", "0"), ("memory", "0")]),
        (1, 2048)
    );
    assert_eq!(size(&[("cpu-quota", "-1"), ("cpu-period", "100000")]), (1, 2048));
    assert_eq!(size(&[("cpu-quota", "100000")]), (1, 2048));
    // A request of three CPUs without a limit: at least three.
    assert_eq!(size(&[("cpu-shares", "3072")]), (3, 2048));
    assert_eq!(size(&[("cpu-shares", "2")]), (1, 2048));
    assert_eq!(
        size(&[
            ("cpu-shares", "1024"),
            ("cpu-quota", "200000"),
            ("cpu-period", "100000")
        ]),
        (3, 2048)
    );
}

/// A malformed size is an error that names annotation, value and what was expected.
#[test]
fn c24_bad_cri_sizes() {
    for key in ["cpu-quota", "cpu-period", "cpu-shares", "memory"] {
        for bad in ["", "1.5", "1g", "0x10", " 1", "99999999999999999999", "--1"] {
            let annotation = format!("{CRI}{key}");
            let text = refusal(&Config::default(), &annotated(&[(&annotation, bad)]));
            says(
                &text,
                &[&annotation, &format!("{bad:?}"), "expected a decimal integer"],
            );
        }
    }
}

/// O-09: not above the host's CPUs, by annotation or file; the maximum not above the VMM's own.
#[test]
fn o09_bounds() {
    let annotation = |key: &str, value: &str| annotated(&[(&format!("{HV}{key}"), value)]);
    assert_eq!(vm(ALL, &annotation("default_vcpus", "8")).vcpus, 8);
    assert_eq!(vm(ALL, &annotation("default_max_vcpus", "2")).max_vcpus, 2);
    let config = config(ALL);
    says(
        &refusal(&config, &annotation("default_vcpus", "9")),
        &["default_vcpus is 9", "at most 8", "host's CPUs"],
    );
    says(
        &refusal(&config, &annotation("default_max_vcpus", "9")),
        &["default_max_vcpus is 9", "at most 8"],
    );
    says(
        &refusal(&config, &annotation("default_max_vcpus", "256")),
        &["\"256\"", "from 0 to 255"],
    );
    for bad in ["-1", "0", "", "1.0", "4294967296", "x", "+1", "0x1", " 1"] {
        let text = refusal(&config, &annotation("default_vcpus", bad));
        says(
            &text,
            &[
                &format!("{HV}default_vcpus"),
                &format!("{bad:?}"),
                "decimal integer",
            ],
        );
    }
    let mut big = host();
    big.cpus = 1000;
    let text = plans_on(&Files::default(), &big, &crate::support::config(""), &spec()).unwrap();
    let PlanKind::Sandbox { sandbox, .. } = text.kind else {
        panic!()
    };
    assert_eq!(sandbox.vm.max_vcpus, 255);
    // More at boot than at most.
    let both = annotated(&[
        (&format!("{HV}default_vcpus"), "4"),
        (&format!("{HV}default_max_vcpus"), "2"),
    ]);
    says(
        &refusal(&config, &both),
        &["default_vcpus is 4", "default_max_vcpus, which is 2"],
    );
}

/// O-10: memory options reach the plan; zero slots and offset change nothing.
#[test]
fn o10_memory() {
    let one = |key: &str, value: &str| vm(ALL, &annotated(&[(&format!("{HV}{key}"), value)]));
    assert_eq!(one("default_memory", "512").memory_mib, 512);
    assert_eq!(one("memory_slots", "3").memory_slots, 3);
    assert_eq!(one("memory_slots", "0").memory_slots, 10);
    assert_eq!(one("memory_offset", "100").max_memory_mib, 16_484);
    let toml = format!("{ALL}memory_offset = 7\n");
    let zero = annotated(&[(&format!("{HV}memory_offset"), "0")]);
    assert_eq!(vm(&toml, &zero).max_memory_mib, 16_391);
    assert!(one("enable_virtio_mem", "true").virtio_mem);
    assert!(one("enable_mem_prealloc", "1").memory_prealloc);
    assert!(one("enable_iommu", "T").iommu);
    // enable_swap inverts mlock.
    assert!(!vm(ALL, &spec()).mlock);
    assert!(one("enable_swap", "false").mlock);
    assert!(!one("enable_swap", "true").mlock);
    // On unless the host says otherwise; no pod does.
    assert!(vm(ALL, &spec()).reclaim_freed_memory);
    assert!(!vm(&format!("{ALL}reclaim_guest_freed_memory = false\n"), &spec()).reclaim_freed_memory);
    says(
        &refusal(
            &config(ALL),
            &annotated(&[(&format!("{HV}default_memory"), "64")]),
        ),
        &["\"64\"", "from 128"],
    );
}

/// O-10: huge pages need huge pages; two places for memory are one too many.
#[test]
fn o10_contradictions() {
    let huge = annotated(&[(&format!("{HV}enable_hugepages"), "true")]);
    says(
        &refusal(&config(ALL), &huge),
        &["enable_hugepages", "2048 MiB", "has 0"],
    );
    let mut host = host();
    host.free_hugepages_mib = 4096;
    let plans = plans_on(&Files::default(), &host, &config(ALL), &huge).unwrap();
    let PlanKind::Sandbox { sandbox, .. } = plans.kind else {
        panic!()
    };
    assert!(sandbox.vm.hugepages);
    let toml = format!("{ALL}file_mem_backend = \"/dev/shm\"\n");
    says(
        &refusal(&config(&toml), &huge),
        &["file_mem_backend", "/dev/shm", "enable_hugepages"],
    );
    let platform = annotated(&[(&format!("{HV}enable_iommu_platform"), "true")]);
    says(
        &refusal(&config(ALL), &platform),
        &["enable_iommu_platform", "enable_iommu"],
    );
}
