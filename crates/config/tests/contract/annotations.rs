//! O-07, O-08, O-11 to O-15: annotations of a sandbox.

use crate::support::*;
use bulkhead_config::overrides::apply;
use bulkhead_config::{AnnotationError, Config, PlanError};
use bulkhead_model::vm::{KeyValue, SharedFs};
use bulkhead_model::{NetworkPlan, VmPlan};
use std::path::Path;

fn vm(toml: &str, key: &str, value: &str) -> VmPlan {
    sandbox(toml, &annotated(&[(&format!("{HV}{key}"), value)])).vm
}

fn no(toml: &str, key: &str, value: &str) -> String {
    refusal(&config(toml), &annotated(&[(key, value)]))
}

fn pairs(list: &[KeyValue]) -> Vec<(&str, Option<&str>)> {
    list.iter()
        .map(|p| (p.key.as_str(), p.value.as_deref()))
        .collect()
}

/// O-07: refused unless all of the suffix matches; an empty list refuses all; the error names the annotation.
#[test]
fn o07_allow_list() {
    let key = format!("{HV}default_vcpus");
    let spec = annotated(&[(&key, "2")]);
    for list in [
        "[]",
        "[\"vcpus\"]",
        "[\"default_vcpu\"]",
        "[\"default_vcpuss\"]",
        "[\"DEFAULT_VCPUS\"]",
        "[\"a|b\"]",
    ] {
        let text = refusal(
            &config(&format!("[hypervisor]\nenable_annotations = {list}\n")),
            &spec,
        );
        says(&text, &[&key, "not enabled", "enable_annotations"]);
    }
    for list in [
        "[\"default_vcpus\"]",
        "[\".*\"]",
        "[\"x\", \"default_.*\"]",
        "[\"x|default_vcpus|y\"]",
        "[\"^default_vcpus$\"]",
    ] {
        let toml = format!("[hypervisor]\nenable_annotations = {list}\n");
        assert_eq!(sandbox(&toml, &spec).vm.vcpus, 2, "{list}");
    }
    // Alternatives are anchored as a whole, not each at one end.
    let toml = "[hypervisor]\nenable_annotations = [\"default|vcpus\"]\n";
    says(&no(toml, &key, "2"), &["not enabled"]);
}

/// O-07: a bad regular expression is a configuration error, also one that wrapping would repair.
#[test]
fn o07_bad_regular_expression() {
    for bad in ["(", "a)|(b", "[", "*"] {
        let text = format!("[hypervisor]\nenable_annotations = [\"ok\", {bad:?}]\n");
        let errors = Config::parse(Path::new("f.toml"), &text).unwrap_err();
        says(
            &errors[0].to_string(),
            &["enable_annotations", &format!("{bad:?}"), "regular expression"],
        );
    }
}

/// O-07: all names are checked before any value; other prefixes are not filtered.
#[test]
fn o07_names_before_values() {
    let toml = "[hypervisor]\nenable_annotations = [\"default_vcpus\"]\n";
    let spec = annotated(&[
        (&format!("{HV}default_vcpus"), "bad"),
        (&format!("{HV}machine_type"), "q35"),
    ]);
    says(&refusal(&config(toml), &spec), &["machine_type", "not enabled"]);
    let spec = annotated(&[
        (&format!("{RT}disable_guest_seccomp"), "true"),
        (&format!("{AG}container_pipe_size"), "4096"),
        ("com.example/x", "y"),
    ]);
    let plan = sandbox("", &spec);
    assert!(!plan.guest_seccomp);
    assert_eq!(plan.agent.container_pipe_bytes, 4096);
}

/// O-07: an error yields no settings and leaves the configuration untouched.
#[test]
fn o07_errors_change_nothing() {
    let config = config(ALL);
    let before = config.clone();
    let annotations = map(&[
        (&format!("{HV}default_vcpus"), "2"),
        (&format!("{HV}memory_slots"), "x"),
    ]);
    apply(config.settings(), &annotations, &Files::default()).unwrap_err();
    assert_eq!(config, before);
}

/// An unknown annotation under a prefix of ours is an error with a suggestion.
#[test]
fn o07_unknown_annotations() {
    for (key, meant) in [
        (format!("{HV}default_vcpu"), format!("{HV}default_vcpus")),
        (
            format!("{RT}disable_guest_secomp"),
            format!("{RT}disable_guest_seccomp"),
        ),
        (format!("{AG}kernel_module"), format!("{AG}kernel_modules")),
        // Right name, wrong section.
        (format!("{RT}kernel_modules"), format!("{AG}kernel_modules")),
        // An option of files only.
        (format!("{HV}kernel_parms"), format!("{HV}kernel_params")),
    ] {
        let error = plans(&config(ALL), &annotated(&[(&key, "1")])).unwrap_err();
        let PlanError::Annotation(AnnotationError::Unknown {
            annotation,
            suggestion,
        }) = &error
        else {
            panic!("{error}");
        };
        assert_eq!((annotation, suggestion.as_deref()), (&key, Some(meant.as_str())));
        says(&error.to_string(), &["did you mean"]);
    }
    says(
        &no(ALL, &format!("{HV}enable_annotations"), ".*"),
        &["enable_annotations", "unknown"],
    );
}

/// O-08: a path must be named by a configured glob and exist.
#[test]
fn o08_paths() {
    let cases = [
        ("path", "valid_hypervisor_paths"),
        ("virtio_fs_daemon", "valid_virtio_fs_daemon_paths"),
        ("file_mem_backend", "valid_file_mem_backends"),
    ];
    for (key, list) in cases {
        let annotation = format!("{HV}{key}");
        let spec = annotated(&[(&annotation, "/opt/x/tool-1")]);
        let files = Files::with(&["/opt/x/tool-1", "/opt/x/y/tool-1"]);
        let with = |globs: &str| {
            let toml = format!("{ALL}{list} = {globs}\n");
            plans_on(&files, &host(), &config(&toml), &spec)
        };
        for globs in [
            "[\"/opt/x/tool-1\"]",
            "[\"/opt/*/tool-?\"]",
            "[\"/none\", \"/opt/x/[st]ool-*\"]",
        ] {
            with(globs).unwrap_or_else(|error| panic!("{globs}: {error}"));
        }
        for globs in ["[]", "[\"/opt/*\"]", "[\"/opt/x\"]", "[\"/opt/x/tool-\"]"] {
            let text = with(globs).unwrap_err().to_string();
            says(
                &text,
                &[&annotation, "\"/opt/x/tool-1\"", &format!("hypervisor.{list}")],
            );
        }
        // Named, and not there.
        let toml = format!("{ALL}{list} = [\"/opt/*/*\"]\n");
        let missing = annotated(&[(&annotation, "/opt/x/other")]);
        let text = plans_on(&files, &host(), &config(&toml), &missing)
            .unwrap_err()
            .to_string();
        says(&text, &[&annotation, "existing path"]);
        // No way round by "..".
        let around = annotated(&[(&annotation, "/opt/x/../x")]);
        assert!(plans_on(&files, &host(), &config(&toml), &around).is_err());
    }
    for key in ["jailer_path", "ctlpath", "vhost_user_store_path"] {
        let text = no(ALL, &format!("{HV}{key}"), "/x");
        says(&text, &[key, "\"/x\"", "hypervisor.valid_"]);
    }
}

/// O-08: the path reaches the plan.
#[test]
fn o08_effect() {
    let toml = format!(
        "{ALL}valid_hypervisor_paths = [\"/q\"]\nvalid_virtio_fs_daemon_paths = [\"/d\"]\nvalid_file_mem_backends = [\"/m\"]\n"
    );
    let spec = annotated(&[
        (&format!("{HV}path"), "/q"),
        (&format!("{HV}virtio_fs_daemon"), "/d"),
        (&format!("{HV}file_mem_backend"), "/m"),
    ]);
    let plans = plans_on(&Files::with(&["/q", "/d", "/m"]), &host(), &config(&toml), &spec).unwrap();
    let bulkhead_config::PlanKind::Sandbox { sandbox, .. } = plans.kind else {
        panic!()
    };
    assert_eq!(sandbox.vm.hypervisor, Path::new("/q"));
    assert_eq!(sandbox.vm.memory_backend.as_deref(), Some(Path::new("/m")));
    let SharedFs::VirtioFs { daemon, .. } = sandbox.vm.shared_fs else {
        panic!()
    };
    assert_eq!(daemon.as_deref(), Some(Path::new("/d")));
}

/// O-08: bad globs are configuration errors.
#[test]
fn o08_bad_globs() {
    for bad in ["relative/*", "/a/**/b", "/a[", ""] {
        let text = format!("[hypervisor]\nvalid_hypervisor_paths = [{bad:?}]\n");
        let errors = Config::parse(Path::new("f.toml"), &text).unwrap_err();
        says(
            &errors[0].to_string(),
            &["valid_hypervisor_paths", &format!("{bad:?}"), "expected"],
        );
    }
}

/// O-11: block options.
#[test]
fn o11_block() {
    let plan = vm(ALL, "block_device_driver", "virtio-blk");
    assert_eq!(
        (plan.block.disabled, plan.block.iothreads, plan.block.cache),
        (false, false, None)
    );
    // Known kinds that this machine does not have are refused with the reason, others with the list.
    for known in ["virtio-scsi", "virtio-mmio", "nvdimm", "virtio-blk-ccw"] {
        let text = no(ALL, &format!("{HV}block_device_driver"), known);
        says(&text, &["block_device_driver", known, "virtio-blk"]);
        assert!(!text.contains("\"nvdimm\" or"), "{text}");
    }
    says(
        &no(ALL, &format!("{HV}block_device_driver"), "ide"),
        &["\"ide\"", "\"virtio-scsi\" or \"virtio-blk\""],
    );
    assert!(vm(ALL, "disable_block_device_use", "true").block.disabled);
    assert!(vm(ALL, "enable_iothreads", "true").block.iothreads);
    assert_eq!(vm(ALL, "block_device_cache_direct", "true").block.cache, None);
    let spec = annotated(&[
        (&format!("{HV}block_device_cache_set"), "true"),
        (&format!("{HV}block_device_cache_direct"), "true"),
        (&format!("{HV}block_device_cache_noflush"), "true"),
    ]);
    let cache = sandbox(ALL, &spec).vm.block.cache.unwrap();
    assert!(cache.direct && cache.no_flush);
}

/// O-12: shared file systems.
#[test]
fn o12_shared_fs() {
    assert_eq!(
        vm(ALL, "shared_fs", "virtio-9p").shared_fs,
        SharedFs::Virtio9p { msize: 131_072 }
    );
    let spec = annotated(&[
        (&format!("{HV}shared_fs"), "virtio-9p"),
        (&format!("{HV}msize_9p"), "8192"),
    ]);
    assert_eq!(
        sandbox(ALL, &spec).vm.shared_fs,
        SharedFs::Virtio9p { msize: 8192 }
    );
    says(
        &no(ALL, &format!("{HV}shared_fs"), "nfs"),
        &["\"nfs\"", "\"virtio-fs\" or \"virtio-9p\""],
    );
    for mode in ["auto", "always", "never", "metadata"] {
        let SharedFs::VirtioFs { cache, .. } = vm(ALL, "virtio_fs_cache", mode).shared_fs else {
            panic!()
        };
        assert_eq!(cache, mode);
    }
    says(
        &no(ALL, &format!("{HV}virtio_fs_cache"), "none"),
        &["\"none\"", "\"never\""],
    );
    says(&no(ALL, &format!("{HV}msize_9p"), "0"), &["\"0\"", "from 1"]);
    let small = annotated(&[
        (&format!("{HV}shared_fs"), "virtio-9p"),
        (&format!("{HV}msize_9p"), "1024"),
    ]);
    says(&refusal(&config(ALL), &small), &["msize_9p is 1024", "4096"]);
}

/// O-12: virtio-fs without any daemon is an error even without an annotation.
#[test]
fn o12_no_daemon() {
    let mut host = host();
    host.builtin_fs_daemon = false;
    let error = plans_on(&Files::default(), &host, &Config::default(), &spec()).unwrap_err();
    says(&error.to_string(), &["virtio-fs", "virtio_fs_daemon"]);
    let with = config("[hypervisor]\nvirtio_fs_daemon = \"/usr/libexec/virtiofsd\"\n");
    plans_on(&Files::default(), &host, &with, &spec()).unwrap();
    let nine = config("[hypervisor]\nshared_fs = \"virtio-9p\"\n");
    plans_on(&Files::default(), &host, &nine, &spec()).unwrap();
}

/// O-13: machine type, machine options and CPU features are checked, not passed on.
#[test]
fn o13_machine_and_cpu() {
    assert_eq!(vm(ALL, "machine_type", "pc-q35-7.2").machine_type, "pc-q35-7.2");
    for bad in [
        "pc",
        "microvm",
        "q35,accel=kvm",
        "pc-q35-",
        "pc-q35-7",
        "pc-q35-7.2.1",
        "virt",
    ] {
        says(
            &no(ALL, &format!("{HV}machine_type"), bad),
            &["machine_type", &format!("{bad:?}"), "q35"],
        );
    }
    let plan = vm(ALL, "machine_accelerators", "kernel_irqchip=split,smm=off");
    assert_eq!(
        pairs(&plan.machine_options),
        [("kernel_irqchip", Some("split")), ("smm", Some("off"))]
    );
    for bad in [
        "dumpdtb=/etc/passwd",
        "kernel=/x",
        "kernel_irqchip",
        "kernel_irqchip=maybe",
        "smm=off,",
        ",smm=off",
        "smm=off smm=on",
        "memory-backend=x",
    ] {
        says(
            &no(ALL, &format!("{HV}machine_accelerators"), bad),
            &["machine_accelerators", "expected"],
        );
    }
    let plan = vm(ALL, "cpu_features", "pmu=off,+vmx,-x2apic,hv-time=on");
    let expected = [
        ("pmu", Some("off")),
        ("+vmx", None),
        ("-x2apic", None),
        ("hv-time", Some("on")),
    ];
    assert_eq!(pairs(&plan.cpu_features), expected);
    for bad in [
        "pmu",
        "pmu=",
        "=off",
        "pmu=off,,x=on",
        "pmu=off -device evil",
        "+",
        "a=b=c",
        "pmu=off\nx=on",
    ] {
        says(
            &no(ALL, &format!("{HV}cpu_features"), bad),
            &["cpu_features", "expected"],
        );
    }
}

/// O-13: kernel parameters are split on blanks, at the first `=`, added in order; an empty key is an error.
#[test]
fn o13_kernel_params() {
    let toml = format!("{ALL}kernel_params = \"a=1 b\"\n");
    let plan = vm(&toml, "kernel_params", "  c=x=y  console=ttyS0,115200\td ");
    let expected = [
        ("a", Some("1")),
        ("b", None),
        ("c", Some("x=y")),
        ("console", Some("ttyS0,115200")),
        ("d", None),
    ];
    assert_eq!(pairs(&plan.kernel_params), expected);
    assert_eq!(
        pairs(&vm(&toml, "kernel_params", "").kernel_params),
        expected[..2]
    );
    for bad in ["=1", "a =1", "a=\"x y\"", "-- init-arg", "a\u{0}b", "ä=1"] {
        says(
            &no(ALL, &format!("{HV}kernel_params"), bad),
            &["kernel_params", "expected kernel parameters"],
        );
    }
}

/// O-13: the others.
#[test]
fn o13_others() {
    assert!(vm(ALL, "disable_vhost_net", "true").disable_vhost_net);
    assert!(vm(ALL, "hotplug_vfio_on_root_bus", "true").vfio_on_root_bus);
    let base = bulkhead_config::BASE_ROOT_PORTS;
    assert_eq!(vm(ALL, "pcie_root_port", "0").root_ports, base);
    assert_eq!(vm(ALL, "pcie_root_port", "3").root_ports, base + 3);
    assert_eq!(
        vm(ALL, "entropy_source", "/dev/hwrng").entropy_source,
        Path::new("/dev/hwrng")
    );
    assert_eq!(
        vm(ALL, "entropy_source", "").entropy_source,
        Path::new("/dev/urandom")
    );
    says(
        &no(ALL, &format!("{HV}entropy_source"), "urandom"),
        &["\"urandom\"", "absolute path"],
    );
    // What cannot be honoured is refused, its harmless value is not.
    vm(ALL, "use_vsock", "false");
    says(
        &no(ALL, &format!("{HV}use_vsock"), "true"),
        &["use_vsock is true", "expected false", "virtio-serial"],
    );
    vm(ALL, "guest_hook_path", "");
    says(
        &no(ALL, &format!("{HV}guest_hook_path"), "/h"),
        &["guest_hook_path", "\"/h\""],
    );
    vm(ALL, "disable_image_nvdimm", "true");
    vm(ALL, "disable_image_nvdimm", "false");
}

/// O-14: runtime options.
#[test]
fn o14_runtime() {
    let one = |key: &str, value: &str| sandbox("", &annotated(&[(&format!("{RT}{key}"), value)]));
    assert!(!one("disable_guest_seccomp", "true").guest_seccomp);
    assert!(one("disable_guest_seccomp", "false").guest_seccomp);
    assert!(one("sandbox_cgroup_only", "1").sandbox_cgroup_only);
    for model in ["tcfilter", "macvtap", "none"] {
        assert_eq!(one("internetworking_model", model).network_model, model);
    }
    says(
        &no("", &format!("{RT}internetworking_model"), "bridged"),
        &["\"bridged\"", "\"tcfilter\" or \"macvtap\" or \"none\""],
    );
    // Without a namespace there is nothing to connect.
    says(
        &no("", &format!("{RT}disable_new_netns"), "true"),
        &["disable_new_netns", "tcfilter", "none"],
    );
    let both = annotated(&[
        (&format!("{RT}disable_new_netns"), "true"),
        (&format!("{RT}internetworking_model"), "none"),
    ]);
    let mut with_namespace = both.clone();
    with_namespace["linux"]["namespaces"] = serde_json::json!([{"type": "network"}]);
    assert_eq!(sandbox("", &with_namespace).network, NetworkPlan::None);
    for bad in ["", "newstore", "a b", " "] {
        says(
            &no("", &format!("{RT}experimental"), bad),
            &["experimental", "expected"],
        );
    }
}

/// O-14: features are split on single spaces and replace the configured list; unknown and empty are errors.
#[test]
fn o14_experimental_words() {
    use bulkhead_config::Rule;
    use bulkhead_config::value::{OptionValue, Words};
    let rule = Rule::OneOf(&["one", "two"]);
    let read = |text: &str| Words::from_text(text, &rule);
    assert_eq!(read("two one").unwrap().0, ["two", "one"]);
    for (bad, named) in [
        ("one  two", "\"\""),
        ("one three", "\"three\""),
        ("", "\"\""),
        ("one\ttwo", "\"one\\ttwo\""),
    ] {
        let refused = read(bad).unwrap_err();
        assert_eq!(refused.value, named, "{bad:?}");
        says(&refused.expected, &["one, two"]);
    }
    let mut configured = read("one").unwrap();
    configured.append(read("two").unwrap());
    assert_eq!(configured.0, ["two"]);
}

/// O-15: agent options.
#[test]
fn o15_agent() {
    let one = |key: &str, value: &str| sandbox("", &annotated(&[(&format!("{AG}{key}"), value)]));
    let modules = one(
        "kernel_modules",
        "e1000e InterruptThrottleRate=3000,3000 EEE=1;i915 enable_ppgtt=0",
    )
    .kernel_modules;
    assert_eq!(
        modules,
        [
            "e1000e InterruptThrottleRate=3000,3000 EEE=1",
            "i915 enable_ppgtt=0"
        ]
    );
    for bad in ["", "a;", ";a", "a;;b", "../../x", "a/b", "x\n y"] {
        says(
            &no("", &format!("{AG}kernel_modules"), bad),
            &["kernel_modules", "expected module names"],
        );
    }
    let agent = one("enable_tracing", "true").agent;
    assert_eq!(
        (
            agent.tracing,
            agent.trace_mode.as_str(),
            agent.trace_type.as_str()
        ),
        (true, "static", "isolated")
    );
    assert_eq!(one("trace_mode", "dynamic").agent.trace_mode, "dynamic");
    assert_eq!(one("trace_type", "collated").agent.trace_type, "collated");
    says(
        &no("", &format!("{AG}trace_mode"), "x"),
        &["\"x\"", "\"static\" or \"dynamic\""],
    );
    assert_eq!(
        one("container_pipe_size", "65536").agent.container_pipe_bytes,
        65_536
    );
}
