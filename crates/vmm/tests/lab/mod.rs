//! What the VM tests stand on: a busybox guest with a shell on its control port.
//!
//! The kernel comes from `BULKHEAD_TEST_KERNEL` or the installed guest; the initrd is made here, so these
//! tests need no agent.

use bulkhead_host::process::Child;
use bulkhead_model::vm::{Accelerator, BlockPlan, SharedFs};
use bulkhead_model::{HostProcess, VmPlan};
use bulkhead_vmm::{Launch, Origin, Qemu, Vm, Vmm, VmmError};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;
use tempfile::TempDir;

/// These machines may be slow for minutes.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Runs shell commands that arrive on the control port; answers end with a line `=<status>`.
/// The data port echoes.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for port in /sys/class/virtio-ports/*; do
  case $(cat $port/name) in
    org.bulkhead.control) control=/dev/${port##*/} ;;
    org.bulkhead.data) data=/dev/${port##*/} ;;
  esac
done
cat <>$data >&0 &
echo TEST-GUEST-UP >/dev/console
exec 0<>$control 1>&0 2>&0
stty raw -echo 2>/dev/null
echo up
while read -r line; do eval "$line"; echo "=$?"; done
"#;

/// A plan for a small VM.
pub(crate) fn plan(dir: &Path) -> VmPlan {
    let kernel = std::env::var_os("BULKHEAD_TEST_KERNEL").map(PathBuf::from);
    VmPlan {
        hypervisor: "qemu-system-x86_64".into(),
        kernel: kernel.unwrap_or_else(|| "/var/lib/bulkhead/guest/vmlinux".into()),
        initrd: initrd(dir),
        kernel_params: Vec::new(),
        machine_type: "q35".into(),
        machine_options: Vec::new(),
        cpu_features: Vec::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 256,
        max_memory_mib: 1024,
        memory_slots: 4,
        memory_prealloc: false,
        hugepages: false,
        memory_backend: None,
        mlock: false,
        virtio_mem: false,
        root_ports: 3,
        entropy_source: "/dev/urandom".into(),
        shared_fs: SharedFs::None,
        boot_timeout_s: 60,
        debug: false,
        base_vcpus: 1,
        base_memory_mib: 256,
        asset_hashes: Vec::new(),
        firmware: None,
        block: BlockPlan::default(),
        iommu: false,
        iommu_platform: false,
        disable_vhost_net: false,
        vfio_on_root_bus: false,
        reclaim_freed_memory: false,
    }
}

/// A started VM and the host ends of its channels.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) plan: VmPlan,
    pub(crate) process: HostProcess,
    vm: Option<Box<dyn Vm>>,
    /// Everything the guest's serial console says. Read all the time: a socket holds some 280 bytes that come
    /// one by one, then the guest's kernel waits for each.
    console: Option<JoinHandle<String>>,
    pub(crate) control: BufReader<UnixStream>,
    pub(crate) data: BufReader<UnixStream>,
}

impl Lab {
    /// Launches with CPUs stopped.
    pub(crate) async fn launch(change: impl FnOnce(&mut VmPlan)) -> Result<Self, VmmError> {
        Self::launch_as("test", change).await
    }

    /// The same with a word of its own in the process's mark.
    pub(crate) async fn launch_as(word: &str, change: impl FnOnce(&mut VmPlan)) -> Result<Self, VmmError> {
        Self::launch_from(Origin::Boot, word, change).await
    }

    /// The same for a machine that comes to life otherwise.
    pub(crate) async fn launch_from(
        origin: Origin,
        word: &str,
        change: impl FnOnce(&mut VmPlan),
    ) -> Result<Self, VmmError> {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan(dir.path());
        change(&mut plan);
        let (qmp_listener, qmp) = channel(dir.path(), "qmp");
        let (control_listener, control) = channel(dir.path(), "control");
        let (data_listener, data) = channel(dir.path(), "data");
        let (console_listener, console) = channel(dir.path(), "console");
        let launch = Launch {
            plan: plan.clone(),
            accelerator: Accelerator::Tcg,
            qmp_listener,
            qmp: qmp.into(),
            control_listener,
            data_listener,
            console_listener,
            stderr: std::fs::File::create(dir.path().join("stderr")).unwrap().into(),
            marker: format!("vmm-{word}-{}", dir.path().display()),
            cgroup_procs: vec![dir.path().join("no-such-cgroup.procs")],
            share: Some((dir.path().to_owned(), "shared".into())),
            origin,
        };
        let vm = Qemu::new(None).launch(launch).await?;
        let reader = |stream: UnixStream| {
            stream.set_read_timeout(Some(LONG)).unwrap();
            BufReader::new(stream)
        };
        let (control, data) = (reader(control), reader(data));
        let console = Some(spawn(move || follow(console)));
        Ok(Self {
            dir,
            plan,
            process: vm.process(),
            vm: Some(vm),
            console,
            control,
            data,
        })
    }

    pub(crate) fn vm(&self) -> &dyn Vm {
        self.vm.as_deref().unwrap()
    }

    /// What a supervisor that dies leaves: the process, and nobody connected to its machine protocol.
    pub(crate) fn forget_vm(&mut self) {
        self.vm = None;
    }

    /// Takes the VM over with nothing but what a supervisor saves.
    pub(crate) async fn adopt_vm(&mut self) {
        let qmp = UnixStream::connect(self.dir.path().join("qmp")).unwrap();
        let vm = Qemu::new(None)
            .adopt(self.process, self.plan.clone(), qmp.into())
            .await
            .unwrap();
        self.vm = Some(vm);
    }

    /// Resumes and waits for the guest's shell.
    pub(crate) async fn boot(&mut self) {
        self.vm().resume().await.unwrap();
        assert_eq!(line(&mut self.control), "up");
    }

    /// Runs a command in the guest; its output, and the status it must have been 0.
    pub(crate) fn sh(&mut self, command: &str) -> String {
        writeln!(self.control.get_mut(), "{command}").unwrap();
        let mut output = String::new();
        loop {
            let line = line(&mut self.control);
            match line.strip_prefix('=') {
                Some("0") => return output.trim_end().to_owned(),
                Some(status) => panic!("{command}: status {status}: {output}"),
                None => output = format!("{output}{line}\n"),
            }
        }
    }

    /// Waits in the guest until `condition` holds, at most 60 s of guest time.
    pub(crate) fn sh_until(&mut self, condition: &str) {
        self.sh(&format!(
            "n=0; until {condition} || [ $n -ge 600 ]; do n=$((n+1)); usleep 100000; done; [ $n -lt 600 ]"
        ));
    }

    /// A sparse file to be used as a disk.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
        path
    }

    /// Kills the VM and checks that the process is gone; what its console said.
    pub(crate) async fn end(mut self) -> String {
        self.vm().kill(LONG).await.unwrap();
        assert!(!bulkhead_host::process::alive(self.process.pid, self.process.start_time).unwrap());
        self.console.take().unwrap().join().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failed test leaves no VM behind either.
        let _ = bulkhead_host::process::signal_exact(self.process.pid, self.process.start_time, 9);
    }
}

/// A helper process that does not outlive its test.
pub(crate) struct Helper(pub(crate) Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill_and_wait(LONG);
    }
}

fn follow(mut console: UnixStream) -> String {
    let mut text = Vec::new();
    let _ = console.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A listening socket in `dir` and a client connected to it.
pub(crate) fn channel(dir: &Path, name: &str) -> (OwnedFd, UnixStream) {
    let path = dir.join(name);
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    (listener.into(), client)
}

/// One line, without its end.
pub(crate) fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'), "the channel ended: {line:?}");
    line.trim_end().to_owned()
}

/// An initrd of busybox and [`INIT`], as a cpio archive of the "newc" format.
fn initrd(dir: &Path) -> PathBuf {
    let busybox = std::fs::read("/bin/busybox").expect("the VM tests need busybox-static");
    let mut archive = Vec::new();
    for name in ["bin", "proc", "sys", "dev"] {
        entry(&mut archive, name, 0o40755, &[]);
    }
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, INIT.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    let path = dir.join("initrd");
    std::fs::write(&path, archive).unwrap();
    path
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let inode = archive.len();
    let fields = [
        inode,
        mode as usize,
        0,
        0,
        1,
        0,
        data.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        write!(archive, "{field:08X}").unwrap();
    }
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
