//! Mounts the agent makes for the host.

use crate::machine::{Machine, spec};
use bulkhead_model::{ExitStatus, FailureKind};
use bulkhead_protocol::{Guest, GuestError, GuestIdentity, GuestStorage};
use serde_json::json;

fn storage(driver: &str, source: &str, options: &[&str], mount_point: &str) -> GuestStorage {
    GuestStorage {
        driver: driver.to_owned(),
        source: source.to_owned(),
        fstype: driver.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        mount_point: mount_point.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn every_driver_makes_its_mount() {
    let machine = Machine::boot().await;
    let identity = GuestIdentity {
        storages: vec![
            storage(
                "ephemeral",
                "tmpfs",
                &["size=1048576", "mode=0750"],
                "/run/bulkhead/share/volumes/e",
            ),
            storage("local", "local", &["mode=0777"], "/run/bulkhead/share/volumes/l"),
            storage(
                "bind",
                "/run/bulkhead/share/disk/rootfs/etc",
                &["ro"],
                "/run/bulkhead/share/volumes/b",
            ),
            storage(
                "overlay",
                "overlay",
                &[
                    "lowerdir=/run/bulkhead/share/disk/rootfs",
                    "upperdir=/run/bulkhead/up",
                    "workdir=/run/bulkhead/work",
                ],
                "/run/bulkhead/share/volumes/o",
            ),
        ],
        ..GuestIdentity::default()
    };
    machine.ok(machine.guest.configure(identity).await);
    let script = "grep ' /e ' /proc/mounts | cut -d' ' -f3; stat -c %a /l; cat /b/plain; touch /b/x; touch /o/new; ls /o/bin/busybox; df -k /e | tail -1 | tr -s ' ' | cut -d' ' -f2";
    let mut spec = spec(&["sh", "-c", script]);
    for name in ["e", "l", "b", "o"] {
        let source = format!("/run/bulkhead/share/volumes/{name}");
        let mount = json!({"destination": format!("/{name}"), "type": "bind", "source": source, "options": ["rbind", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    let (exit, stdout, stderr) = machine.run("c1", &spec).await;
    assert_eq!(exit.status, ExitStatus::Code(0));
    assert_eq!(
        stdout, "tmpfs\n777\nnot a program\n/o/bin/busybox\n1024\n",
        "{stderr}"
    );
    assert!(stderr.contains("/b/x: Read-only file system"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn c32_a_watched_volume_follows_a_swap() {
    let machine = Machine::boot().await;
    let make = "mkdir -p /tmp/cm/..1 && echo one > /tmp/cm/..1/key && ln -s ..1 /tmp/cm/..data && ln -s ..data/key /tmp/cm/key";
    let (exit, _, stderr) = machine.run("maker", &spec(&["sh", "-c", make])).await;
    assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
    let point = "/run/bulkhead/share/watchable/cm";
    let source = "/run/bulkhead/share/disk/rootfs/tmp/cm";
    let identity = GuestIdentity {
        storages: vec![storage("watchable-bind", source, &[], point)],
        ..GuestIdentity::default()
    };
    machine.ok(machine.guest.configure(identity).await);
    // busybox here has nothing that uses inotify; the order of events is proven on the copying itself.
    let watch = "grep ' /cm ' /proc/mounts | cut -d' ' -f3; cat /cm/key; until [ $(cat /cm/key) = two ]; do sleep 1; done; ls -A /cm";
    let mut watcher = spec(&["sh", "-c", watch]);
    watcher["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/cm", "type": "bind", "source": point, "options": ["rbind", "ro"]}));
    let (stdio, output) = machine.collect();
    machine.ok(machine.create("watcher", &watcher, stdio).await);
    machine.ok(machine
        .guest
        .start_container(&crate::machine::container("watcher"))
        .await);
    let swap = "cd /tmp/cm; mkdir ..2 && echo two > ..2/key && ln -s ..2 ..data_tmp && mv -T ..data_tmp ..data && rm -r ..1";
    let (exit, _, stderr) = machine.run("maker", &spec(&["sh", "-c", swap])).await;
    assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
    machine.end(&crate::machine::key("watcher", None)).await;
    let stdout = output.stdout.join().unwrap();
    assert_eq!(stdout, "tmpfs\none\n..2\n..data\nkey\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn paths_that_lead_away_are_refused() {
    let machine = Machine::boot().await;
    // A container leaves a link where the host will want a mount.
    let link = "mkdir -p /tmp/v && ln -s /proc /tmp/v/out";
    let (exit, _, stderr) = machine.run("c1", &spec(&["sh", "-c", link])).await;
    assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
    let through = "/run/bulkhead/share/disk/rootfs/tmp/v/out/sys";
    for bad in [
        storage("ephemeral", "tmpfs", &[], "/etc"),
        storage("ephemeral", "tmpfs", &[], "/run/bulkhead/../x"),
        storage("ephemeral", "tmpfs", &[], through),
        storage("bind", "/proc/1/root", &[], "/run/bulkhead/share/volumes/b"),
        storage("bind", through, &[], "/run/bulkhead/share/volumes/b"),
        storage(
            "overlay",
            "overlay",
            &["lowerdir=/etc"],
            "/run/bulkhead/share/volumes/o",
        ),
        storage("magic", "x", &[], "/run/bulkhead/share/volumes/m"),
        storage("blk", "x", &[], "/run/bulkhead/share/volumes/m"),
    ] {
        let identity = GuestIdentity {
            storages: vec![bad.clone()],
            ..GuestIdentity::default()
        };
        let refused = machine.guest.configure(identity).await;
        assert!(
            matches!(
                refused,
                Err(GuestError::Refused {
                    kind: FailureKind::InvalidArgument,
                    ..
                })
            ),
            "{bad:?}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn the_guest_takes_on_its_identity() {
    let machine = Machine::bare().await;
    let identity = GuestIdentity {
        hostname: "vm-1".to_owned(),
        domainname: "example.org".to_owned(),
        time_ns: 1_600_000_000_000_000_000,
        storages: vec![crate::machine::disk("/run/bulkhead/share/disk")],
        shm_bytes: 8 << 20,
        ..GuestIdentity::default()
    };
    machine.ok(machine.guest.configure(identity.clone()).await);
    machine.ok(machine.guest.configure(identity).await);
    let mut spec = spec(&[
        "sh",
        "-c",
        "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname; date +%Y; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
    ]);
    spec["hostname"] = json!(null);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev/shm" && mount["type"] != "mqueue");
    mounts
        .push(json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]}));
    let (_, stdout, stderr) = machine.run("c1", &spec).await;
    assert_eq!(stdout, "vm-1\nexample.org\n2020\n8192\n", "{stderr}");
    let (cpus, memory) = machine.ok(machine.guest.online(1, true).await);
    assert_eq!(cpus, 1);
    assert!(memory > 256 << 20, "{memory}");
    assert_eq!(machine.ok(machine.guest.online(2, false).await).0, 2);
    machine.ok(machine.guest.sync().await);
}
