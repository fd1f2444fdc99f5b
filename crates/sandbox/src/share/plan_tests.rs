//! Tests of the planning of shares.

use super::*;
use serde_json::json;

fn container(mounts: Vec<oci::Mount>) -> ContainerPlan {
    let mut spec = oci::Spec::default();
    spec.set_mounts(Some(mounts));
    serde_json::from_value(json!({
        "id": "c1", "bundle": "/b", "rootfs": {"path": "/b/rootfs", "readonly": false},
        "spec": spec, "creates_sandbox": true,
    }))
    .unwrap()
}

fn sandbox() -> SandboxPlan {
    serde_json::from_value(json!({
        "id": "s", "hostname": null, "domainname": null,
        "vm": {
            "hypervisor": "/q", "kernel": "/k", "initrd": "/i", "kernel_params": [],
            "machine_type": "q35", "machine_options": [], "cpu_features": [],
            "vcpus": 1, "max_vcpus": 1, "memory_mib": 256, "max_memory_mib": 256, "memory_slots": 0,
            "memory_prealloc": false, "hugepages": false, "memory_backend": null, "mlock": false,
            "virtio_mem": false, "root_ports": 4, "entropy_source": "/dev/urandom",
            "shared_fs": {"kind": "virtio-fs", "daemon": null, "cache": "auto", "cache_size_mib": 0},
            "boot_timeout_s": 5, "debug": false
        },
        "network": {"kind": "none"}, "network_model": "none", "shm_bytes": 0,
        "cgroups_path": null, "pod": true, "kernel_modules": [], "guest_seccomp": true, "annotations": {}
    }))
    .unwrap()
}

fn bind(source: &str, destination: &str) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount
        .set_source(Some(source.into()))
        .set_destination(destination.into())
        .set_typ(Some("bind".into()))
        .set_options(None);
    mount
}

fn kind_by_name(path: &Path) -> io::Result<Volume> {
    Ok(match path.file_name().and_then(|name| name.to_str()) {
        Some("watched") => Volume::Watchable,
        Some("memory") => Volume::Ephemeral {
            mode: 0o1777,
            gid: 7,
            bytes: 4096,
        },
        Some("scratch") => Volume::Local { mode: 0o770, gid: 8 },
        Some("absent") => return Err(io::ErrorKind::NotFound.into()),
        _ => Volume::Shared,
    })
}

fn planned_in(sandbox: &SandboxPlan, mounts: Vec<oci::Mount>) -> Result<SharePlan, SandboxError> {
    let mut next = 0;
    let random = || {
        next += 1;
        format!("{next:016x}")
    };
    plan(&container(mounts), sandbox, random, kind_by_name)
}

fn planned(mounts: Vec<oci::Mount>) -> SharePlan {
    planned_in(&sandbox(), mounts).unwrap()
}

fn sources(plan: &SharePlan) -> Vec<String> {
    let mounts = plan.spec.mounts().clone().unwrap();
    mounts
        .iter()
        .map(|mount| mount.source().as_ref().unwrap().display().to_string())
        .collect()
}

/// C-30, C-31, C-36: names, guest paths, what is left alone.
#[test]
fn c30_c31_c36_only_plain_binds_are_shared() {
    let mut tmpfs = bind("tmpfs", "/t");
    tmpfs.set_typ(Some("tmpfs".into()));
    let plan = planned(vec![
        bind("/data", "/mnt/data"),
        bind("/proc/self", "/x"),
        bind("/sys/../sys/fs", "/y"),
        bind("/process", "/z"),
        bind("/dev/null", "/dev/null"),
        bind("/a/file", "/dev/absent-for-sure"),
        bind("/dev", "/dev"),
        tmpfs,
    ]);
    let names: Vec<_> = plan.shares.iter().map(|s| s.name.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "c1/rootfs",
            "c1-0000000000000001-data",
            "c1-0000000000000002-z",
            "c1-0000000000000003-absent-for-sure"
        ]
    );
    assert_eq!(plan.rootfs, "/run/bulkhead/share/c1/rootfs");
    assert_eq!(
        sources(&plan),
        [
            "/run/bulkhead/share/c1-0000000000000001-data",
            "/proc/self",
            "/sys/../sys/fs",
            "/run/bulkhead/share/c1-0000000000000002-z",
            "/dev/null",
            "/run/bulkhead/share/c1-0000000000000003-absent-for-sure",
            "/dev",
            "tmpfs"
        ]
    );
    assert!(plan.storages().is_empty());
}

/// C-30: keyed by destination, the later wins: only it is bound.
#[test]
fn c30_a_later_mount_at_the_same_destination_wins() {
    let plan = planned(vec![
        bind("/one", "/d"),
        bind("/other", "/e"),
        bind("/two", "/x/../d/"),
    ]);
    let bound: Vec<_> = plan
        .shares
        .iter()
        .skip(1)
        .map(|s| s.source.to_str().unwrap())
        .collect();
    assert_eq!(bound, ["/two", "/other"]);
    let sources = sources(&plan);
    assert_eq!(sources[0], sources[2]);
    assert!(
        sources[0].ends_with("-d") && sources[0] != sources[1],
        "{sources:?}"
    );
}

/// C-30: what cannot be shared is on the ignored list and not in the guest's spec.
#[test]
fn c30_without_a_shared_file_system_sources_are_ignored() {
    let mut sandbox = sandbox();
    sandbox.vm.shared_fs = SharedFs::None;
    let plan = planned_in(&sandbox, vec![bind("/data", "/d"), bind("/proc", "/p")]).unwrap();
    assert_eq!(plan.ignored, [PathBuf::from("/data")]);
    assert_eq!(sources(&plan), ["/proc"]);
}

/// C-31: the host's bind is read-write, `ro` is left to the guest; `rbind` takes mounts below along.
#[test]
fn c31_options_are_the_guests() {
    let mut readonly = bind("/data", "/d");
    readonly.set_options(Some(vec!["rbind".into(), "ro".into()]));
    let plan = planned(vec![readonly, bind("/data", "/e")]);
    let options = plan.spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
    assert_eq!(options, ["rbind", "ro"]);
    assert!(plan.shares[1].recursive && !plan.shares[2].recursive);
}

/// C-31: a name is never longer than the file system takes.
#[test]
fn c31_long_names_are_cut() {
    let plan = planned(vec![bind("/data", &format!("/{}", "ü".repeat(127)))]);
    let name = plan.shares[1].name.to_str().unwrap();
    assert!(name.len() <= 255 && name.len() > 250, "{}", name.len());
}

/// C-32: the container mounts what the agent keeps up to date.
#[test]
fn c32_watchable_volumes() {
    let mut mount = bind("/v/watched", "/etc/config");
    mount.set_options(Some(vec!["rbind".into(), "ro".into()]));
    let plan = planned(vec![mount]);
    let storage = &plan.storages()[0];
    let name = "c1-0000000000000001-config";
    assert_eq!(storage.driver, "watchable-bind");
    assert_eq!(storage.source, format!("/run/bulkhead/share/{name}"));
    assert_eq!(storage.fstype, "bind");
    assert_eq!(storage.options, ["rbind", "ro"]);
    assert_eq!(
        storage.mount_point,
        format!("/run/bulkhead/share/watchable/{name}")
    );
    assert_eq!(sources(&plan)[0], storage.mount_point);
    assert!(plan.shares[1].is_bound());
}

/// C-35: empty-dirs are the guest's own, the same for all containers of the sandbox.
#[test]
fn c35_empty_dirs() {
    let plan = planned(vec![
        bind("/v/memory", "/m"),
        bind("/v/scratch", "/s"),
        bind("/w/scratch", "/t"),
    ]);
    let storages = plan.storages();
    assert_eq!(storages[0].driver, "ephemeral");
    assert_eq!(storages[0].fstype, "tmpfs");
    assert_eq!(storages[0].options, ["mode=1777", "gid=7", "size=4096"]);
    assert_eq!(storages[1].driver, "local");
    assert_eq!(storages[1].options, ["mode=770", "gid=8"]);
    assert!(plan.shares.iter().skip(1).all(|share| !share.is_bound()));
    assert_ne!(storages[1].mount_point, storages[2].mount_point);
    assert_eq!(sources(&plan)[0], storages[0].mount_point);
    let second = planned(vec![bind("/other", "/x"), bind("/v/memory", "/elsewhere")]);
    assert_eq!(second.storages()[0].mount_point, storages[0].mount_point);

    let mut sandbox = sandbox();
    sandbox.share_empty_dirs = true;
    let plan = planned_in(&sandbox, vec![bind("/v/memory", "/m"), bind("/v/scratch", "/s")]).unwrap();
    assert!(plan.storages().is_empty());
    assert!(plan.shares.iter().all(Share::is_bound));
}

/// C-30, C-34: /dev/shm exactly is left to the agent, which has the sandbox's; M-11 without one.
#[test]
fn c30_c34_m11_shm() {
    let mut sandbox = sandbox();
    let shm = || vec![bind("/run/shm-of-pod", "/dev/shm")];
    let own = planned_in(&sandbox, shm()).unwrap();
    let mount = own.spec.mounts().as_ref().unwrap()[0].clone();
    assert_eq!(mount.typ().as_deref(), Some("tmpfs"));
    assert!(
        mount
            .options()
            .as_ref()
            .unwrap()
            .contains(&"size=67108864".to_owned())
    );
    sandbox.shm_bytes = 1 << 20;
    let shared = planned_in(&sandbox, shm()).unwrap();
    assert_eq!(shared.spec.mounts().clone().unwrap(), shm());
    assert_eq!(shared.shares.len(), 1);
}

/// C-34.
#[test]
fn c34_dev_from_the_host() {
    assert!(planned(vec![bind("/dev", "/dev")]).dev_is_the_hosts);
    assert!(!planned(vec![bind("/dev", "/host-dev")]).dev_is_the_hosts);
    assert!(!planned(vec![bind("/devices", "/dev")]).dev_is_the_hosts);
}

/// C-07: the vanilla spec stays; what the guest gets has neither hooks nor the host's cgroup.
#[test]
fn c07_the_vanilla_spec_stays() {
    let mut container = container(vec![bind("/data", "/d")]);
    let mut linux = oci::Linux::default();
    linux.set_cgroups_path(Some("/x".into()));
    container.spec.set_linux(Some(linux));
    container.spec.set_hooks(Some(oci::Hooks::default()));
    let before = container.spec.clone();
    let plan = plan(&container, &sandbox(), || "1".into(), kind_by_name).unwrap();
    assert_eq!(container.spec, before);
    assert!(plan.spec.hooks().is_none());
    assert!(plan.spec.linux().as_ref().unwrap().cgroups_path().is_none());
}

/// Namespaces joined by path are the host's; only of an IPC namespace the guest is told that it is the pod's.
#[test]
fn an_ipc_namespace_by_path_is_the_pods() {
    let mut container = container(Vec::new());
    let linux = serde_json::json!({"namespaces": [
        {"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "uts", "path": "/proc/77/ns/uts"}, {"type": "cgroup"}
    ]});
    container
        .spec
        .set_linux(Some(serde_json::from_value(linux).unwrap()));
    let plan = plan(&container, &sandbox(), || "1".into(), kind_by_name).unwrap();
    let sent = plan.spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    let paths: Vec<_> = sent.iter().map(|ns| ns.path().clone()).collect();
    assert_eq!(paths, [Some("/proc/77/ns/ipc".into()), None, None]);
}

/// K-06: of the hooks only those that run in the container reach the guest.
#[test]
fn k06_start_container_hooks_reach_the_guest() {
    let mut container = container(Vec::new());
    let hook = |path: &str| {
        let mut hook = oci::Hook::default();
        hook.set_path(path.into());
        vec![hook]
    };
    let mut hooks = oci::Hooks::default();
    hooks
        .set_start_container(Some(hook("/inside")))
        .set_poststop(Some(hook("/host")));
    container.spec.set_hooks(Some(hooks));
    let plan = plan(&container, &sandbox(), || "1".into(), kind_by_name).unwrap();
    let sent = plan.spec.hooks().as_ref().unwrap();
    assert_eq!(sent.start_container(), &Some(hook("/inside")));
    assert!(sent.poststop().is_none());
}

/// C-08: what annotations added to the resources is in the guest's spec, which had no such section.
#[test]
fn c08_swappiness_and_swap_reach_the_guests_spec() {
    let mut container = container(Vec::new());
    container.spec.set_linux(None);
    let mut memory = oci::LinuxMemory::default();
    memory.set_swappiness(Some(60)).set_swap(Some(1 << 20));
    container.resources.set_memory(Some(memory));
    let plan = plan(&container, &sandbox(), || "1".into(), kind_by_name).unwrap();
    let linux = plan.spec.linux().clone().unwrap();
    let sent = linux.resources().as_ref().unwrap().memory().unwrap();
    assert_eq!((sent.swappiness(), sent.swap()), (Some(60), Some(1 << 20)));
}

#[test]
fn c30_destinations_that_climb_are_refused_by_name() {
    for bad in ["/b/../../c", "..", "/", "/a/.."] {
        let error = planned_in(&sandbox(), vec![bind("/a", bad)]).unwrap_err();
        assert!(error.to_string().contains(bad), "{error}");
    }
    assert_eq!(
        planned(vec![bind("/a", "b/c")]).shares[1].destination,
        Path::new("/b/c")
    );
}

#[test]
fn c30_a_source_that_is_not_there_is_named() {
    let error = planned_in(&sandbox(), vec![bind("/v/absent", "/d")]).unwrap_err();
    assert_eq!(
        error.failure().message,
        "error mounting \"/v/absent\" to rootfs at \"/d\": stat /v/absent: no such file or directory"
    );
}

#[test]
fn ten_thousand_mounts_are_planned() {
    let mounts = (0..10_000).map(|n| bind("/data", &format!("/m/{n}"))).collect();
    assert_eq!(planned(mounts).shares.len(), 10_001);
}
