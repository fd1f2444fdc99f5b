//! Rules that hold for every row of the option table.

use crate::support::*;
use bulkhead_config::overrides::apply;
use bulkhead_config::{AnnotationError, Config, Honour, Keeps, OPTIONS, Opt, Rule, Section, Settings};
use std::collections::BTreeSet;
use std::path::Path;

/// Every suffix the contract names, by row; O-08's paths and O-16's assets included.
const CONTRACT: &[(&str, &str)] = &[
    (
        "O-08",
        "hypervisor.path hypervisor.jailer_path hypervisor.ctlpath hypervisor.virtio_fs_daemon hypervisor.vhost_user_store_path hypervisor.file_mem_backend",
    ),
    ("O-09", "hypervisor.default_vcpus hypervisor.default_max_vcpus"),
    (
        "O-10",
        "hypervisor.default_memory hypervisor.memory_slots hypervisor.memory_offset hypervisor.enable_virtio_mem hypervisor.enable_mem_prealloc hypervisor.enable_swap hypervisor.file_mem_backend hypervisor.enable_hugepages hypervisor.enable_iommu hypervisor.enable_iommu_platform",
    ),
    (
        "O-11",
        "hypervisor.block_device_driver hypervisor.disable_block_device_use hypervisor.enable_iothreads hypervisor.block_device_cache_set hypervisor.block_device_cache_direct hypervisor.block_device_cache_noflush",
    ),
    (
        "O-12",
        "hypervisor.shared_fs hypervisor.virtio_fs_daemon hypervisor.virtio_fs_cache hypervisor.virtio_fs_cache_size hypervisor.msize_9p",
    ),
    (
        "O-13",
        "hypervisor.machine_type hypervisor.machine_accelerators hypervisor.cpu_features hypervisor.disable_vhost_net hypervisor.guest_hook_path hypervisor.use_vsock hypervisor.disable_image_nvdimm hypervisor.hotplug_vfio_on_root_bus hypervisor.pcie_root_port hypervisor.entropy_source hypervisor.kernel_params",
    ),
    (
        "O-14",
        "runtime.disable_guest_seccomp runtime.sandbox_cgroup_only runtime.disable_new_netns runtime.internetworking_model runtime.experimental",
    ),
    (
        "O-15",
        "agent.kernel_modules agent.enable_tracing agent.trace_mode agent.trace_type agent.container_pipe_size",
    ),
    (
        "O-16",
        "hypervisor.kernel hypervisor.image hypervisor.initrd hypervisor.firmware hypervisor.kernel_hash hypervisor.image_hash hypervisor.initrd_hash hypervisor.firmware_hash hypervisor.hypervisor_hash hypervisor.jailer_hash hypervisor.hypervisorctl_hash hypervisor.asset_hash_type",
    ),
    ("C-08", "resource.swappiness resource.swap_in_bytes"),
];

/// Lists of the configuration that annotations are held against.
const LISTS: &str = "enable_annotations valid_hypervisor_paths valid_jailer_paths valid_ctlpaths \
                     valid_virtio_fs_daemon_paths valid_vhost_user_store_paths valid_file_mem_backends";

fn option(name: &str) -> &'static Opt {
    OPTIONS
        .iter()
        .find(|o| o.name() == name)
        .unwrap_or_else(|| panic!("no option {name}"))
}

/// O-08 to O-16, C-08: every annotation of the contract exists, under its prefix.
#[test]
fn o08_to_o16_and_c08_every_annotation_of_the_contract_exists() {
    let mut named = BTreeSet::new();
    for (row, names) in CONTRACT {
        for name in names.split(' ') {
            assert!(option(name).annotation().is_some(), "{row}: {name}");
            named.insert(name.to_owned());
        }
    }
    // And no other can be set by a pod.
    for opt in OPTIONS.iter().filter(|o| o.annotation().is_some()) {
        assert!(
            named.contains(&opt.name()),
            "{} has an annotation no row names",
            opt.name()
        );
    }
    for list in LISTS.split_whitespace() {
        assert!(
            option(&format!("hypervisor.{list}")).annotation().is_none(),
            "{list}"
        );
    }
    assert_eq!(
        option("resource.swappiness").annotation().as_deref(),
        Some("io.katacontainers.container.resource.swappiness")
    );
}

/// A table without a hole: unique names, one line of documentation, advice, a place to act on.
#[test]
fn every_row_is_complete() {
    let mut names = BTreeSet::new();
    for opt in OPTIONS {
        let name = opt.name();
        assert!(names.insert(name.clone()), "{name} twice");
        let doc = opt.doc.trim();
        assert!(
            doc.ends_with('.') && !doc.contains('\n') && doc.len() < 130,
            "{name}: {doc}"
        );
        assert!(
            !opt.columns.when.is_empty() && !opt.columns.applies.is_empty(),
            "{name}"
        );
        assert!(!opt.expected().is_empty(), "{name}");
        assert!(
            opt.section.in_toml() || opt.annotation().is_some(),
            "{name} can be set nowhere"
        );
        if let Some((globs, _)) = opt.columns.globs {
            option(&format!("hypervisor.{globs}"));
        }
    }
}

/// What an option shows can be read back from TOML: defaults and, where there is one, another value.
#[test]
fn every_default_reads_back() {
    for opt in OPTIONS.iter().filter(|o| o.section.in_toml()) {
        let default = opt.default();
        if default.is_empty() {
            continue;
        }
        let text = format!("[{}]\n{} = {default}\n", opt.section.name(), opt.key);
        let read = config(&text);
        assert_eq!((opt.show)(read.settings()), default, "{}", opt.name());
        assert_eq!(read.origin(&opt.name()), Some(Path::new("test.toml")));
    }
}

/// A TOML value of a wrong type is refused by name for every option.
#[test]
fn every_option_refuses_wrong_types() {
    for opt in OPTIONS.iter().filter(|o| o.section.in_toml()) {
        for wrong in ["1979-05-27", "-1", "1.5", "[1]", "{ a = 1 }", "[[\"x\"]]"] {
            let text = format!("[{}]\n{} = {wrong}\n", opt.section.name(), opt.key);
            let errors = Config::parse(Path::new("f.toml"), &text).expect_err(&text);
            assert_eq!(errors.len(), 1, "{text}");
            let line = errors[0].to_string();
            says(&line, &["f.toml", &opt.name(), "expected"]);
            assert!(!line.contains('\n'), "{line}");
        }
    }
}

fn apply_one(opt: &Opt, text: &str) -> Result<Settings, AnnotationError> {
    let annotation = opt.annotation().unwrap();
    apply(
        config(ALL).settings(),
        &map(&[(&annotation, text)]),
        &Files::default(),
    )
}

/// O-17: booleans and integers, for every annotation of these types.
#[test]
fn o17_booleans_and_integers() {
    let (mut booleans, mut integers) = (0, 0);
    for opt in OPTIONS.iter().filter(|o| o.annotation().is_some()) {
        let annotation = opt.annotation().unwrap();
        match opt.kind {
            "boolean" => {
                booleans += 1;
                for text in ["1", "t", "T", "TRUE", "true", "True"] {
                    assert_eq!(
                        (opt.show)(&apply_one(opt, text).unwrap()),
                        "true",
                        "{annotation}={text}"
                    );
                }
                for text in ["0", "f", "F", "FALSE", "false", "False"] {
                    assert_eq!(
                        (opt.show)(&apply_one(opt, text).unwrap()),
                        "false",
                        "{annotation}={text}"
                    );
                }
                for text in ["", "yes", "no", "on", "TrUe", "2", " true", "true ", "01"] {
                    let error = apply_one(opt, text).unwrap_err().to_string();
                    says(
                        &error,
                        &[&annotation, &format!("{text:?}"), "expected true|false"],
                    );
                }
            }
            "integer" => {
                integers += 1;
                let (low, high) = match opt.columns.rule {
                    Rule::Range(low, high) => (low, high),
                    _ => (0, u64::from(u32::MAX)),
                };
                assert_eq!(
                    (opt.show)(&apply_one(opt, &high.to_string()).unwrap()),
                    high.to_string()
                );
                assert_eq!(
                    (opt.show)(&apply_one(opt, &format!("00{high}")).unwrap()),
                    high.to_string()
                );
                if opt.columns.keeps == Keeps::Never {
                    assert_eq!(
                        (opt.show)(&apply_one(opt, &low.to_string()).unwrap()),
                        low.to_string()
                    );
                }
                let above = (high + 1).to_string();
                for text in [
                    "",
                    "-1",
                    "+1",
                    "0x1",
                    "0b1",
                    "1_0",
                    "1.0",
                    " 1",
                    "1 ",
                    "one",
                    &above,
                    "99999999999999999999",
                ] {
                    let error = apply_one(opt, text).unwrap_err().to_string();
                    says(
                        &error,
                        &[
                            &annotation,
                            &format!("{text:?}"),
                            "expected a decimal integer from",
                        ],
                    );
                }
            }
            _ => {}
        }
    }
    assert!(
        booleans >= 18 && integers >= 9,
        "{booleans} booleans, {integers} integers"
    );
}

/// O-13: the empty text leaves six options as they are and is an error for every other.
#[test]
fn o13_empty_text() {
    let keep = [
        "machine_type",
        "machine_accelerators",
        "cpu_features",
        "guest_hook_path",
        "entropy_source",
        "kernel_params",
    ];
    for opt in OPTIONS
        .iter()
        .filter(|o| o.annotation().is_some() && o.section != Section::Resource)
    {
        match apply_one(opt, "") {
            Ok(settings) => {
                assert!(keep.contains(&opt.key), "{} took an empty text", opt.name());
                assert_eq!((opt.show)(&settings), opt.default());
            }
            Err(error) => {
                assert!(!keep.contains(&opt.key), "{error}");
                says(
                    &error.to_string(),
                    &[&opt.annotation().unwrap(), "\"\"", "expected"],
                );
            }
        }
    }
}

/// An option that cannot have its effect is refused by name and with the reason, in files and annotations.
#[test]
fn unsupported_options_are_refused() {
    let samples = [
        ("jailer_path", "\"/j\""),
        ("jailer_hash", &format!("{:?}", "0".repeat(128))),
        ("ctlpath", "\"/c\""),
        ("hypervisorctl_hash", &format!("{:?}", "0".repeat(128))),
        ("image", "\"/i\""),
        ("image_hash", &format!("{:?}", "0".repeat(128))),
        ("block_device_driver", "\"virtio-scsi\""),
        ("virtio_fs_cache_size", "1024"),
        ("guest_hook_path", "\"/hooks\""),
        ("use_vsock", "true"),
        ("vhost_user_store_path", "\"/v\""),
    ];
    let refused: BTreeSet<&str> = OPTIONS
        .iter()
        .filter(|o| o.columns.honour != Honour::Every)
        .map(|o| o.key)
        .collect();
    assert_eq!(refused, samples.iter().map(|(key, _)| *key).collect());
    for (key, value) in samples {
        let text = format!("[hypervisor]\n{key} = {value}\n");
        let errors = Config::parse(Path::new("f.toml"), &text).unwrap_err();
        says(
            &errors[0].to_string(),
            &[&format!("hypervisor.{key} is {value}"), "expected"],
        );
    }
}
