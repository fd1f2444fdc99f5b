//! O-01 to O-06, O-19, O-20, C-08: a spec becomes a container.

use crate::support::*;
use bulkhead_config::{AnnotationError, Config, PlanError, PlanKind, pod};
use bulkhead_model::oci;
use bulkhead_model::plan::{ContainerKind, DeviceKind};
use serde_json::json;
use std::path::Path;

const TYPES: [&str; 3] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.docker.type",
];
const SANDBOXES: [&str; 3] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.sandbox.id",
];

/// O-01: the first key that is there decides; none means a sandbox.
#[test]
fn o01_container_type() {
    assert_eq!(pod::kind(&map(&[])), Ok(ContainerKind::PodSandbox));
    for key in TYPES {
        assert_eq!(
            pod::kind(&map(&[(key, "sandbox")])),
            Ok(ContainerKind::PodSandbox)
        );
        assert_eq!(
            pod::kind(&map(&[(key, "podsandbox")])),
            Ok(ContainerKind::PodSandbox)
        );
        assert_eq!(
            pod::kind(&map(&[(key, "container")])),
            Ok(ContainerKind::PodContainer)
        );
        for bad in ["", "Sandbox", "pod"] {
            let text = pod::kind(&map(&[(key, bad)])).unwrap_err().to_string();
            says(&text, &[key, &format!("{bad:?}"), "expected"]);
        }
    }
    // containerd's before CRI-O's before dockershim's, even when the first is wrong.
    let two = map(&[(TYPES[1], "sandbox"), (TYPES[0], "container")]);
    assert_eq!(pod::kind(&two), Ok(ContainerKind::PodContainer));
    let two = map(&[(TYPES[2], "container"), (TYPES[1], "sandbox")]);
    assert_eq!(pod::kind(&two), Ok(ContainerKind::PodSandbox));
    assert!(pod::kind(&map(&[(TYPES[0], "x"), (TYPES[1], "sandbox")])).is_err());
}

/// O-01: the sandbox id from the matching keys; empty and none are errors.
#[test]
fn o01_sandbox_id() {
    for key in SANDBOXES {
        assert_eq!(pod::sandbox(&map(&[(key, "pod1")])).unwrap().as_str(), "pod1");
        says(
            &bulkhead_model::failure::chain(&pod::sandbox(&map(&[(key, "")])).unwrap_err()),
            &[key, "empty"],
        );
        assert!(pod::sandbox(&map(&[(key, "../x")])).is_err());
    }
    let two = map(&[(SANDBOXES[1], "second"), (SANDBOXES[0], "first")]);
    assert_eq!(pod::sandbox(&two).unwrap().as_str(), "first");
    says(&pod::sandbox(&map(&[])).unwrap_err().to_string(), &SANDBOXES);
}

/// O-01: a container plan says which sandbox it joins.
#[test]
fn o01_plans_follow_the_type() {
    let spec = annotated(&[(TYPES[0], "container"), (SANDBOXES[0], "pod1")]);
    let plans = plans(&Config::default(), &spec).unwrap();
    let PlanKind::Container { sandbox, container } = plans.kind else {
        panic!("{plans:?}");
    };
    assert_eq!(sandbox.as_str(), "pod1");
    assert!(!container.creates_sandbox);
    assert_eq!(container.kind, ContainerKind::PodContainer);
    let text = refusal(&Config::default(), &annotated(&[(TYPES[0], "container")]));
    says(&text, &["sandbox's id is missing"]);
    let (sandbox, container) = both(&Config::default(), &annotated(&[(TYPES[1], "sandbox")]));
    assert!(sandbox.pod && container.creates_sandbox);
    assert_eq!(sandbox.id.as_str(), "c1");
    assert!(!crate::support::sandbox("", &crate::support::spec()).pod);
}

/// O-02: command, root and what is recorded.
#[test]
fn o02_container_config() {
    let mut spec = spec();
    spec["root"] = json!({"path": "rootfs", "readonly": true});
    spec["process"] = json!({
        "args": ["sh", "-c", "true"], "env": ["A=1", "B=x=y", "bare"], "cwd": "/work", "terminal": true,
        "noNewPrivileges": true, "user": {"uid": 1000, "gid": 100, "additionalGids": [10, 20]},
        "capabilities": {"bounding": ["CAP_CHOWN"]}
    });
    spec["annotations"] = json!({"a": "b"});
    let (_, container) = both(&Config::default(), &spec);
    assert_eq!(container.rootfs.path, Path::new("/bundle/rootfs"));
    assert!(container.rootfs.readonly);
    let command = &container.command;
    assert_eq!(command.args, ["sh", "-c", "true"]);
    assert_eq!(command.env_lines(), ["A=1", "B=x=y"]);
    assert_eq!(command.cwd, Path::new("/work"));
    assert_eq!(
        (command.uid, command.gid, &command.additional_gids[..]),
        (1000, 100, &[10, 20][..])
    );
    assert!(command.terminal && command.no_new_privileges);
    let caps = command.capabilities.as_ref().unwrap().bounding().clone().unwrap();
    assert!(caps.contains(&oci::Capability::Chown) && caps.len() == 1);
    assert_eq!(
        container.recorded["io.katacontainers.pkg.oci.bundle_path"],
        "/bundle"
    );
    assert_eq!(
        container.recorded["io.katacontainers.pkg.oci.container_type"],
        "pod_sandbox"
    );
    assert_eq!(container.annotations(), map(&[("a", "b")]));
    // C-07: the vanilla spec keeps what the command leaves out.
    assert_eq!(
        container
            .spec
            .process()
            .as_ref()
            .unwrap()
            .env()
            .as_ref()
            .unwrap()
            .len(),
        3
    );
}

/// O-02: absent resources are empty; an absolute root stays.
#[test]
fn o02_absent_resources_and_absolute_root() {
    let mut spec = spec();
    spec["root"]["path"] = json!("/roots/one");
    let mut files = Files::default();
    files.directories.insert("/roots/one".into());
    let plans = plans_on(&files, &host(), &Config::default(), &spec).unwrap();
    let PlanKind::Sandbox { container, .. } = plans.kind else {
        panic!()
    };
    assert_eq!(container.rootfs.path, Path::new("/roots/one"));
    assert_eq!(container.resources, oci::LinuxResources::default());
}

/// O-03: a dropped entry is told.
#[test]
fn o03_dropped_entries_are_told() {
    let mut spec = spec();
    spec["process"]["env"] = json!(["A=1", "bare"]);
    let plans = plans(&Config::default(), &spec).unwrap();
    assert_eq!(plans.warnings.len(), 1);
    says(&plans.warnings[0], &["process.env[1]", "\"bare\""]);
}

/// O-04: devices.
#[test]
fn o04_devices() {
    assert!(container(&spec()).devices.is_empty());
    let mut good = spec();
    good["linux"]["devices"] = json!([
        {"path": "/dev/a", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 5, "gid": 6},
        {"path": "/dev/b", "type": "b", "major": 8, "minor": 0},
        {"path": "/dev/u", "type": "u", "major": 4, "minor": 1},
        {"path": "/dev/p", "type": "p"}
    ]);
    let devices = container(&good).devices;
    let kinds: Vec<DeviceKind> = devices.iter().map(|d| d.kind).collect();
    use DeviceKind::{Block, Character, Fifo, Unbuffered};
    assert_eq!(kinds, [Character, Block, Unbuffered, Fifo]);
    let first = &devices[0];
    assert_eq!(
        (first.major, first.minor, first.uid, first.gid, first.mode),
        (1, 3, 5, 6, Some(0o666))
    );
    assert_eq!((devices[3].uid, devices[3].mode), (0, None));
    for (device, parts) in [
        (
            json!({"path": "/dev/x", "type": "a"}),
            ["linux.devices[1].type is \"a\"", "c, b, u or p"],
        ),
        (
            json!({"path": "/dev/x", "type": ""}),
            ["linux.devices[1].type is \"\"", "c, b, u or p"],
        ),
        (
            json!({"path": "/dev/x"}),
            ["linux.devices[1].type is missing", "c, b, u or p"],
        ),
        (
            json!({"path": "", "type": "c"}),
            ["linux.devices[1].path is \"\"", "path in the container"],
        ),
        (
            json!({"type": "c"}),
            ["linux.devices[1].path is missing", "path in the container"],
        ),
    ] {
        let mut bad = good.clone();
        bad["linux"]["devices"][1] = device;
        says(&refusal(&Config::default(), &bad), &parts);
    }
}

/// O-04: mounts; read-only only by the exact option.
#[test]
fn o04_mounts() {
    let mut spec = spec();
    spec["mounts"] = json!([
        {"destination": "/a", "source": "/src", "type": "bind", "options": ["rbind", "ro"]},
        {"destination": "/b", "source": "/src", "type": "none", "options": ["bind", "rro", "nosuid"]},
        {"destination": "/proc", "type": "proc"},
        {"destination": "relative/./x", "type": "tmpfs"}
    ]);
    let mounts = container(&spec).mounts;
    assert_eq!(mounts[0].source.as_deref(), Some(Path::new("/src")));
    assert_eq!(mounts[0].options, ["rbind", "ro"]);
    assert_eq!(
        mounts.iter().map(|m| m.readonly).collect::<Vec<_>>(),
        [true, false, false, false]
    );
    assert_eq!(
        mounts.iter().map(|m| m.is_bind()).collect::<Vec<_>>(),
        [true, true, false, false]
    );
    assert_eq!(mounts[2].fstype, "proc");
    assert_eq!(mounts[3].destination, Path::new("/relative/x"));
    for escape in ["..", "/../etc", "/a/../../etc", "/", "a/.."] {
        spec["mounts"][1]["destination"] = json!(escape);
        let text = refusal(&Config::default(), &spec);
        says(
            &text,
            &[&format!("mounts[1].destination is {escape:?}"), "below /"],
        );
    }
}

/// Ten thousand mounts are a lot, and no error.
#[test]
fn o04_many_mounts() {
    let mut spec = spec();
    spec["mounts"] = (0..10_000)
        .map(|i| json!({"destination": format!("/m/{i}"), "type": "tmpfs"}))
        .collect();
    assert_eq!(container(&spec).mounts.len(), 10_000);
}

/// O-19: CRI-O by its key with a known value.
#[test]
fn o19_crio() {
    assert!(pod::by_crio(&map(&[(TYPES[1], "sandbox")])));
    assert!(pod::by_crio(&map(&[(TYPES[1], "container")])));
    assert!(!pod::by_crio(&map(&[(TYPES[1], "podsandbox")])));
    assert!(!pod::by_crio(&map(&[(TYPES[0], "sandbox")])));
    assert!(!pod::by_crio(&map(&[])));
}

/// O-20: the recorded type is looked up in the container's own annotations.
#[test]
fn o20_recorded_type() {
    let (_, planned) = both(&Config::default(), &spec());
    assert_eq!(
        pod::recorded_kind(&planned.recorded),
        Ok(ContainerKind::PodSandbox)
    );
    let key = "io.katacontainers.pkg.oci.container_type";
    assert_eq!(
        pod::recorded_kind(&map(&[(key, "pod_container")])),
        Ok(ContainerKind::PodContainer)
    );
    says(
        &pod::recorded_kind(&map(&[])).unwrap_err().to_string(),
        &[key, "missing"],
    );
    says(
        &pod::recorded_kind(&map(&[(key, "pod")])).unwrap_err().to_string(),
        &[key, "\"pod\""],
    );
}

/// C-08: swappiness and swap_in_bytes in every notation, with the memory section made when absent.
#[test]
fn c08_container_resources() {
    let value = |key: &str, text: &str| {
        let spec = annotated(&[(&format!("{RES}{key}"), text)]);
        let memory = container(&spec).resources.memory().unwrap();
        if key == "swappiness" {
            memory.swappiness()
        } else {
            memory.swap().map(|n| u64::try_from(n).unwrap())
        }
    };
    for (text, number) in [
        ("0", 0),
        ("60", 60),
        ("200", 200),
        ("0x3c", 60),
        ("0X3C", 60),
        ("0o74", 60),
        ("0O74", 60),
        ("074", 60),
        ("0b111100", 60),
        ("0B111100", 60),
    ] {
        assert_eq!(value("swappiness", text), Some(number), "{text}");
    }
    assert_eq!(
        value("swap_in_bytes", "9223372036854775807"),
        Some(i64::MAX as u64)
    );
    assert_eq!(value("swap_in_bytes", "0x40000000"), Some(1 << 30));
    let bad = [
        ("swappiness", "201"),
        ("swappiness", "-1"),
        ("swappiness", "+1"),
        ("swappiness", ""),
        ("swappiness", "0x"),
        ("swappiness", "0x-1"),
        ("swappiness", "08"),
        ("swappiness", "1.5"),
        ("swappiness", " 60"),
        ("swappiness", "1_0"),
        ("swap_in_bytes", "9223372036854775808"),
        ("swap_in_bytes", "18446744073709551616"),
        ("swap_in_bytes", "1g"),
    ];
    for (key, text) in bad {
        let annotation = format!("{RES}{key}");
        let error = refusal(&Config::default(), &annotated(&[(&annotation, text)]));
        says(
            &error,
            &[
                &annotation,
                &format!("{text:?}"),
                "expected an unsigned integer from 0 to",
            ],
        );
    }
}

/// C-08: of each container's own annotations, pod containers included; other resources stay.
#[test]
fn c08_applies_to_containers_that_join() {
    let mut spec = annotated(&[
        (TYPES[0], "container"),
        (SANDBOXES[0], "pod1"),
        (&format!("{RES}swappiness"), "10"),
        // The sandbox's options are not this container's to set, nor to refuse.
        (&format!("{HV}default_vcpus"), "nonsense"),
        (&format!("{RT}nonsense"), "x"),
    ]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 1000, "swappiness": 90}, "pids": {"limit": 5}});
    let plans = plans(&Config::default(), &spec).unwrap();
    let PlanKind::Container { container, .. } = plans.kind else {
        panic!()
    };
    let memory = container.resources.memory().unwrap();
    assert_eq!((memory.limit(), memory.swappiness()), (Some(1000), Some(10)));
    assert_eq!(container.resources.pids().unwrap().limit(), 5);
    // The vanilla spec is as it was (C-07).
    let linux = container.spec.linux().as_ref().unwrap();
    let memory = linux.resources().as_ref().unwrap().memory().unwrap();
    assert_eq!(memory.swappiness(), Some(90));
}

/// C-08: an unknown container annotation is an error with a suggestion.
#[test]
fn c08_unknown_resource() {
    let key = format!("{RES}swapiness");
    let error = plans(&Config::default(), &annotated(&[(&key, "1")])).unwrap_err();
    let PlanError::Annotation(AnnotationError::Unknown { suggestion, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!(suggestion, Some(format!("{RES}swappiness")));
}
