//! The QEMU driver on real VMs. Run as root: `cargo test -p bulkhead-vmm --test qemu -- --ignored`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod lab;

use bulkhead_host::process::Spawn;
use bulkhead_model::vm::{KeyValue, SharedFs, VmPlan};
use bulkhead_vmm::{DeviceRequest, MemoryReuse, Origin, SavedMachine, VmExit, VmmError};
use lab::{Helper, LONG, Lab, line};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

fn disk(id: &str, path: std::path::PathBuf) -> DeviceRequest {
    DeviceRequest::Block {
        id: id.into(),
        path,
        readonly: false,
        format: "raw".into(),
    }
}

fn sysfs(pci_path: &str) -> String {
    // "04.0/00.0" is behind the port 0000:00:04.0; the number of the bus behind it is the guest's affair.
    let (port, device) = pci_path.split_once('/').unwrap();
    format!("/sys/bus/pci/devices/0000:00:{port}/0000:??:{device}")
}

/// Launch, surroundings of the process, every channel, kill.
#[tokio::test]
#[ignore = "needs a VM"]
async fn every_channel_is_connected_and_nothing_else_is_inherited() {
    // A descriptor without CLOEXEC must not reach QEMU.
    let leak = nix::unistd::pipe().unwrap();
    let mut lab = Lab::launch(|_| {}).await.unwrap();
    drop(leak);
    let process = lab.process;
    let proc = |file: &str| format!("/proc/{}/{file}", process.pid);
    let environ = std::fs::read(proc("environ")).unwrap();
    assert_eq!(
        String::from_utf8(environ).unwrap(),
        format!("BULKHEAD_SANDBOX=vmm-test-{}\0", lab.dir.path().display())
    );
    for namespace in ["net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of("self"), of(&process.pid.to_string()), "{namespace}");
    }
    let status = std::fs::read_to_string(proc("status")).unwrap();
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
        "{status}"
    );
    let mut pipes = 0;
    for entry in std::fs::read_dir(proc("fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        pipes += usize::from(target.to_string_lossy().starts_with("pipe:"));
    }
    assert_eq!(pipes, 1, "only standard error is a pipe");
    let cmdline = std::fs::read(proc("cmdline")).unwrap();
    let cmdline = String::from_utf8(cmdline).unwrap();
    assert!(!cmdline.contains("vmm-test"), "{cmdline}");

    lab.boot().await;
    lab.data.get_mut().write_all(b"hello\n").unwrap();
    assert_eq!(line(&mut lab.data), "hello");
    assert_eq!(lab.sh("echo $((6*7))"), "42");
    // The entropy source (virtio 1.2, device type 4).
    assert_eq!(lab.sh("cat /sys/bus/pci/devices/0000:00:01.0/device"), "0x1044");
    assert!(lab.vm().round_trips() >= 2);
    assert!(lab.end().await.contains("TEST-GUEST-UP"));
}

/// A disk plugged before the first instruction, one plugged into the running guest, both unplugged, the
/// slot used again; a disk taken back before the guest ever ran.
#[tokio::test]
#[ignore = "needs a VM"]
async fn disks_come_and_go() {
    let mut lab = Lab::launch(|plan| plan.root_ports = 2).await.unwrap();
    let (a, b) = (lab.disk("a"), lab.disk("b"));
    let hotplug = lab.vm().hotplug().unwrap();
    let first = hotplug.plug(disk("first", a.clone()), Vec::new()).await.unwrap();
    assert_eq!(
        (first.id.as_str(), first.pci_path.as_str()),
        ("first", "04.0/00.0")
    );
    hotplug.unplug("first", LONG).await.unwrap();
    let first = hotplug.plug(disk("first", a.clone()), Vec::new()).await.unwrap();
    assert_eq!(first.pci_path, "04.0/00.0");
    let taken = hotplug.plug(disk("first", b.clone()), Vec::new()).await;
    assert!(
        matches!(
            taken,
            Err(VmmError::Device {
                what: "the id is in use",
                ..
            })
        ),
        "{taken:?}"
    );
    lab.boot().await;
    assert!(
        lab.sh(&format!("cat {}/class", sysfs(&first.pci_path)))
            .contains("0x010000")
    );

    let second = lab
        .vm()
        .hotplug()
        .unwrap()
        .plug(disk("second", b.clone()), Vec::new())
        .await
        .unwrap();
    assert_eq!(second.pci_path, "05.0/00.0");
    lab.sh_until(&format!("[ -e {} ]", sysfs(&second.pci_path)));
    let full = lab
        .vm()
        .hotplug()
        .unwrap()
        .plug(disk("third", b.clone()), Vec::new())
        .await;
    assert!(matches!(full, Err(VmmError::Device { .. })), "{full:?}");
    let hotplug = lab.vm().hotplug().unwrap();
    hotplug.unplug("second", LONG).await.unwrap();
    hotplug.unplug("first", LONG).await.unwrap();
    let gone = hotplug.unplug("first", LONG).await;
    assert!(
        matches!(
            gone,
            Err(VmmError::Device {
                what: "is not plugged",
                ..
            })
        ),
        "{gone:?}"
    );
    lab.sh_until(&format!("! [ -e {} ]", sysfs(&first.pci_path)));
    // A back end that cannot be made leaves the slot free.
    let hotplug = lab.vm().hotplug().unwrap();
    let missing = hotplug
        .plug(disk("first", lab.dir.path().join("missing")), Vec::new())
        .await;
    assert!(matches!(missing, Err(VmmError::Qmp { .. })), "{missing:?}");
    let again = hotplug.plug(disk("first", a), Vec::new()).await.unwrap();
    assert_eq!(again.pci_path, "04.0/00.0");
    lab.sh_until(&format!("[ -e {} ]", sysfs(&again.pci_path)));
    lab.end().await;
}

/// A shared file system plugged before the first instruction, taken out, and one plugged into the running
/// guest; the daemon is the one that comes with QEMU 7.2.
#[tokio::test]
#[ignore = "needs a VM"]
async fn a_shared_file_system_is_mounted_cold_and_hot() {
    let mut lab = Lab::launch(|_| {}).await.unwrap();
    let dir = lab.dir.path().to_owned();
    let share = |id: &str| {
        let source = dir.join(format!("share-{id}"));
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), format!("hello {id}\n")).unwrap();
        let socket = dir.join(format!("socket-{id}"));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let daemon = Spawn::new("/usr/lib/qemu/virtiofsd")
            .args(["--fd=3", "-o", "sandbox=chroot", "-o"])
            .arg(format!("source={}", source.display()))
            .env("BULKHEAD_SANDBOX", "vmm-test")
            .fd(listener.into(), 3)
            .spawn()
            .unwrap()
            .child;
        let request = DeviceRequest::SharedFs {
            id: id.into(),
            tag: format!("tag-{id}"),
            socket,
            cache_size_mib: 0,
        };
        (Helper(daemon), request)
    };
    let (daemon, request) = share("cold");
    lab.vm()
        .hotplug()
        .unwrap()
        .plug(request, Vec::new())
        .await
        .unwrap();
    lab.boot().await;
    assert_eq!(
        lab.sh("mkdir /m; mount -t virtiofs tag-cold /m && cat /m/file"),
        "hello cold"
    );
    lab.sh("umount /m");
    lab.vm().hotplug().unwrap().unplug("cold", LONG).await.unwrap();
    assert!(
        daemon.0.wait(LONG).unwrap().is_some(),
        "the daemon ends when its client is gone"
    );

    let (daemon, request) = share("hot");
    lab.vm()
        .hotplug()
        .unwrap()
        .plug(request, Vec::new())
        .await
        .unwrap();
    lab.sh_until("mount -t virtiofs tag-hot /m 2>/dev/null");
    assert_eq!(lab.sh("cat /m/file"), "hello hot");
    lab.end().await;
    assert!(
        daemon.0.wait(LONG).unwrap().is_some(),
        "the daemon ends with the VM"
    );
}

/// C-24: more vCPUs and memory appear in the guest, memory goes again.
#[tokio::test]
#[ignore = "needs a VM"]
async fn c24_vcpus_and_memory_change() {
    let mut lab = Lab::launch(|plan| plan.max_vcpus = 2).await.unwrap();
    lab.boot().await;
    assert_eq!(lab.sh("nproc"), "1");
    let resize = lab.vm().resize().unwrap();
    assert_eq!(resize.vcpus().await.unwrap(), 2);
    assert_eq!(resize.set_vcpus(2).await.unwrap(), 2);
    let many = resize.set_vcpus(3).await;
    assert!(
        matches!(many, Err(VmmError::Unsupported { option: "vcpus", .. })),
        "{many:?}"
    );
    lab.sh("echo 1 >/sys/devices/system/cpu/cpu1/online");
    assert_eq!(lab.sh("nproc"), "2");

    let blocks = |lab: &mut Lab| -> usize {
        lab.sh("ls -d /sys/devices/system/memory/memory* | wc -l")
            .parse()
            .unwrap()
    };
    let before = blocks(&mut lab);
    let resize = lab.vm().resize().unwrap();
    assert_eq!(resize.set_memory(256 + 200).await.unwrap(), 512);
    lab.sh_until(&format!(
        "[ $(ls -d /sys/devices/system/memory/memory* | wc -l) = {} ]",
        before + 2
    ));
    let resize = lab.vm().resize().unwrap();
    assert_eq!(resize.set_memory(512 + 128).await.unwrap(), 640);
    let much = resize.set_memory(4096).await;
    assert!(
        matches!(much, Err(VmmError::Unsupported { option: "memory", .. })),
        "{much:?}"
    );
    // The second DIMM goes, then the first; the boot memory stays.
    assert_eq!(resize.set_memory(512).await.unwrap(), 512);
    assert_eq!(resize.set_memory(100).await.unwrap(), 256);
    lab.sh_until(&format!(
        "[ $(ls -d /sys/devices/system/memory/memory* | wc -l) = {before} ]"
    ));
    lab.end().await;
}

/// A supervisor with no memory finds a predecessor's devices and can take them out.
#[tokio::test]
#[ignore = "needs a VM"]
async fn a_running_vm_is_taken_over() {
    let mut lab = Lab::launch(|_| {}).await.unwrap();
    let disk_file = lab.disk("a");
    lab.vm()
        .hotplug()
        .unwrap()
        .plug(disk("first", disk_file.clone()), Vec::new())
        .await
        .unwrap();
    lab.boot().await;
    lab.forget_vm();
    lab.adopt_vm().await;
    let hotplug = lab.vm().hotplug().unwrap();
    let second = hotplug
        .plug(disk("second", lab.dir.path().join("a2")), Vec::new())
        .await;
    assert!(second.is_err());
    hotplug.unplug("first", LONG).await.unwrap();
    let again = hotplug.plug(disk("second", disk_file), Vec::new()).await.unwrap();
    assert_eq!(again.pci_path, "04.0/00.0");
    assert_eq!(lab.sh("echo alive"), "alive");
    lab.vm().kill(LONG).await.unwrap();
    assert!(matches!(
        lab.vm().exited().await,
        VmExit::Signal(9) | VmExit::Unknown
    ));
}

/// A guest kernel that panics ends the VM; so does a signal, which is reported as one.
#[tokio::test]
#[ignore = "needs a VM"]
async fn the_end_is_seen_whatever_its_cause() {
    let mut lab = Lab::launch(|_| {}).await.unwrap();
    lab.boot().await;
    writeln!(lab.control.get_mut(), "echo c >/proc/sysrq-trigger").unwrap();
    let exit = tokio::time::timeout(LONG, lab.vm().exited()).await.unwrap();
    assert_eq!(exit, VmExit::Code(0));
    let late = lab.vm().resume().await;
    assert!(
        matches!(late, Err(VmmError::Ended { step: "cont", .. })),
        "{late:?}"
    );
    let console = lab.end().await;
    assert!(console.contains("Kernel panic"), "{console}");

    let lab = Lab::launch(|_| {}).await.unwrap();
    let process = lab.process;
    bulkhead_host::process::signal_exact(process.pid, process.start_time, 11).unwrap();
    assert_eq!(
        tokio::time::timeout(LONG, lab.vm().exited()).await.unwrap(),
        VmExit::Signal(11)
    );
}

/// What QEMU refuses at start is told in its own words, at once, and nothing is left.
#[tokio::test]
#[ignore = "needs a VM"]
async fn a_start_that_fails_says_why() {
    let missing = Lab::launch(|plan| plan.hypervisor = "/nowhere/qemu".into())
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&missing, VmmError::Binary { path, .. } if path.ends_with("qemu")),
        "{missing:?}"
    );

    let no_kernel = Lab::launch(|plan| plan.kernel = "/nowhere/vmlinux".into())
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&no_kernel, VmmError::Asset { what: "kernel", path, .. } if path.ends_with("vmlinux")),
        "{no_kernel:?}"
    );

    let junk = Lab::launch(|plan| plan.kernel = "/etc/passwd".into())
        .await
        .err()
        .unwrap();
    match &junk {
        VmmError::Ended {
            exit: VmExit::Code(1),
            stderr,
            ..
        } => assert!(!stderr.is_empty()),
        other => panic!("{other:?}"),
    }

    let option = Lab::launch(|plan| {
        plan.machine_options = vec![KeyValue {
            key: "no-such-thing".into(),
            value: Some("on".into()),
        }];
    });
    match option.await.err().unwrap() {
        VmmError::Ended { stderr, .. } => assert!(stderr.contains("no-such-thing"), "{stderr}"),
        other => panic!("{other:?}"),
    }
}

/// Every option of a plan is one that QEMU takes, with its sandbox on.
#[tokio::test]
#[ignore = "needs a VM"]
async fn every_option_of_a_plan_starts() {
    type Change = fn(&mut bulkhead_model::VmPlan);
    let changes: [(&str, Change); 11] = [
        ("ports", |p| p.root_ports = 26),
        ("no ports", |p| p.root_ports = 0),
        ("versioned machine", |p| p.machine_type = "pc-q35-7.2".into()),
        ("prealloc and lock", |p| {
            (p.memory_prealloc, p.mlock) = (true, true)
        }),
        ("backed by a directory", |p| {
            p.memory_backend = Some("/dev/shm".into())
        }),
        ("virtio-mem", |p| p.virtio_mem = true),
        ("no room to grow", |p| p.max_memory_mib = p.memory_mib),
        ("iommu", |p| {
            (p.iommu, p.iommu_platform, p.virtio_mem) = (true, true, true)
        }),
        ("iothreads", |p| p.block.iothreads = true),
        ("balloon", |p| {
            p.reclaim_freed_memory = true;
            p.shared_fs = SharedFs::VirtioFs {
                daemon: None,
                cache: "auto".into(),
                cache_size_mib: 0,
            };
        }),
        ("vcpus", |p| (p.vcpus, p.max_vcpus) = (2, 16)),
    ];
    for (name, change) in changes {
        let lab = Lab::launch(change)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        if lab.plan.root_ports > 0 {
            let plugged = lab
                .vm()
                .hotplug()
                .unwrap()
                .plug(disk("disk", lab.disk("a")), Vec::new())
                .await;
            assert_eq!(
                plugged.unwrap_or_else(|error| panic!("{name}: {error}")).pci_path,
                "04.0/00.0"
            );
        }
        if lab.plan.virtio_mem {
            assert_eq!(
                lab.vm().resize().unwrap().set_memory(300).await.unwrap(),
                384,
                "{name}"
            );
        }
        lab.end().await;
    }
}

/// A caller that gives up in the middle of a start leaves no VMM.
#[test]
#[ignore = "needs a VM"]
fn a_start_given_up_leaves_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut given_up = 0;
    for millis in [0, 1, 2, 5, 10, 20, 40] {
        runtime.block_on(async {
            let start = Lab::launch_as("given-up", |_| {});
            match tokio::time::timeout(Duration::from_millis(millis), start).await {
                Ok(lab) => drop(lab.unwrap().end().await),
                Err(_) => given_up += 1,
            }
        });
    }
    // Waits for clones that are under way.
    drop(runtime);
    assert!(given_up > 0);
    let left = bulkhead_host::process::marked(None).unwrap();
    let left: Vec<_> = left
        .iter()
        .filter(|(_, _, mark)| mark.contains("given-up"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A machine is saved and goes on twice, with a copy of its memory and copy-on-write: what its shell knew it knows,
/// devices can be plugged, and the file of the memory stays as it was. Each serves a directory of its own, as the first
/// did. One whose state is cut short is an error.
#[tokio::test]
#[ignore = "needs a VM"]
async fn a_saved_machine_goes_on_with_a_copy_and_copy_on_write() {
    let dir = tempfile::tempdir().unwrap();
    let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&memory)
        .unwrap();
    file.set_len(256 << 20).unwrap();
    let serves = |plan: &mut VmPlan| plan.shared_fs = SharedFs::Virtio9p { msize: 8192 };
    let mut first = Lab::launch_from(Origin::BootInto(file.into()), "first", serves)
        .await
        .unwrap();
    first.boot().await;
    first.sh("word=remembered");
    let file = File::create(&state).unwrap().into();
    first.vm().snapshot().unwrap().save(file, LONG).await.unwrap();
    first.end().await;
    let before = std::fs::read(&memory).unwrap();
    let saved = |reuse| {
        Origin::Saved(SavedMachine {
            state: File::open(&state).unwrap().into(),
            memory: File::open(&memory).unwrap().into(),
            reuse,
        })
    };
    for reuse in [MemoryReuse::Copy, MemoryReuse::CopyOnWrite] {
        let mut again = Lab::launch_from(saved(reuse), "again", serves).await.unwrap();
        again.vm().resume().await.unwrap();
        assert_eq!(again.sh("echo $word"), "remembered", "{reuse:?}");
        // A 9p transport (virtio 1.2, device type 9).
        assert_eq!(again.sh("cat /sys/bus/pci/devices/0000:00:1e.0/device"), "0x1049");
        again.sh("head -c 10000000 /dev/zero | tr '\\0' x > /filled");
        let path = again.disk("late");
        let plugged = again
            .vm()
            .hotplug()
            .unwrap()
            .plug(disk("late", path), Vec::new())
            .await
            .unwrap();
        again.sh_until(&format!("[ -e {} ]", sysfs(&plugged.pci_path)));
        again.end().await;
    }
    assert!(
        std::fs::read(&memory).unwrap() == before,
        "the file of the memory was written to"
    );
    std::fs::write(&state, &std::fs::read(&state).unwrap()[..100_000]).unwrap();
    let cut = Lab::launch_from(saved(MemoryReuse::CopyOnWrite), "cut", serves).await;
    assert!(matches!(&cut, Err(VmmError::Ended { .. })), "{:?}", cut.err());
}
