//! QEMU's arguments.
//!
//! Owns: the machine that every sandbox of one plan has in common. Never: an id, socket path or MAC of a
//! sandbox (sockets are inherited descriptors, devices come by QMP later), so equal plans give equal lines
//! and a saved machine fits them all. The exception is virtio-9p, which QEMU cannot plug: its line names the shared
//! directory, and no saved machine has one. Called by `launch`. Source: qemu-system-x86_64(1), 7.2.

use super::bus::{FIRST_ROOT_PORT, SHARE_SLOT, root_port};
use super::kernel_line::kernel_line;
use super::limits::check;
use super::line::{Line, escaped, pairs, virtio};
use super::memory::{VIRTIO_MEM, backend, growth_mib, memory, reclaims};
use super::start::{CONSOLE_FD, CONTROL_FD, DATA_FD, QMP_FD, Start};
use crate::VmmError;
use bulkhead_model::VmPlan;
use bulkhead_model::vm::{Accelerator, KeyValue, SharedFs};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Kernel and libc copy and clear memory with `rep movsb` and `rep stosb` on a CPU that says these are fast. A translated one
/// goes byte by byte then, where it would go by words.
const TRANSLATED_CPU: &str = "max,erms=off,fsrm=off";
/// Thread that serves disks when the plan asks for one.
pub(super) const IOTHREAD: &str = "io0";

/// All arguments after the program.
pub(super) fn command_line(
    plan: &VmPlan,
    accelerator: Accelerator,
    tsc_khz: Option<u32>,
    start: Start,
    share: Option<&(PathBuf, String)>,
) -> Result<Vec<OsString>, VmmError> {
    check(plan, accelerator)?;
    let mut line = machine_line(plan, accelerator, start);
    if let SharedFs::Virtio9p { .. } = plan.shared_fs {
        let (directory, tag) = share.ok_or_else(|| VmmError::Unsupported {
            option: "shared_fs",
            value: "virtio-9p".into(),
            expected: "a directory to share",
        })?;
        shared_directory(&mut line, plan, directory, tag);
    }
    if matches!(start, Start::Saved { .. }) {
        line.option("-incoming", "defer");
    } else {
        line.option("-kernel", &plan.kernel)
            .option("-initrd", &plan.initrd)
            .option("-append", kernel_line(plan, accelerator, tsc_khz));
    }
    Ok(line.0)
}

/// What makes the machine of a plan what it is, kernel parameters included: everything but the paths of kernel and
/// initrd.
pub(super) fn signature(
    plan: &VmPlan,
    accelerator: Accelerator,
    tsc_khz: Option<u32>,
) -> Result<String, VmmError> {
    check(plan, accelerator)?;
    let unsaved = |option, value: &str| {
        Err(VmmError::Unsupported {
            option,
            value: value.into(),
            expected: "ordinary memory, for a machine that is saved",
        })
    };
    if plan.hugepages {
        return unsaved("enable_hugepages", "true");
    }
    if plan.memory_backend.is_some() {
        return unsaved("file_mem_backend", "a directory");
    }
    if plan.memory_prealloc {
        return unsaved("enable_mem_prealloc", "true");
    }
    if plan.virtio_mem {
        return unsaved("enable_virtio_mem", "true");
    }
    let mut line = machine_line(plan, accelerator, Start::BootInto);
    if let SharedFs::Virtio9p { .. } = plan.shared_fs {
        // Which directory it is the guest learns when it mounts it: each machine has its own.
        shared_directory(&mut line, plan, Path::new("/"), "");
    }
    line.option("-append", kernel_line(plan, accelerator, tsc_khz));
    let words: Vec<_> = line.0.iter().map(|word| word.to_string_lossy()).collect();
    Ok(words.join("\n"))
}

/// The arguments that a machine and the one it was saved from have in common.
fn machine_line(plan: &VmPlan, accelerator: Accelerator, start: Start) -> Line {
    let mut line = Line(Vec::new());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
        line.flag(flag);
    }
    line.option("-name", "bulkhead,debug-threads=on")
        .option("-display", "none")
        .option("-rtc", "base=utc")
        .option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        )
        .option("-machine", machine(plan, accelerator));
    match accelerator {
        Accelerator::Kvm => {
            line.option("-accel", "kvm")
                .option("-cpu", cpu("host", &plan.cpu_features))
                .option("-smp", format!("cpus={},maxcpus={}", plan.vcpus, plan.max_vcpus));
        }
        Accelerator::Tcg => {
            // Guest kernels refuse vCPU hot-plug on a translated machine: declare them all, start only some.
            // 32 MiB hold the translated code of a container start: less costs time (16 MiB half as much again), more is not
            // used (the default is 1 GiB).
            line.option("-accel", "tcg,thread=multi,tb-size=32")
                .option("-cpu", cpu(TRANSLATED_CPU, &plan.cpu_features))
                .option("-smp", format!("cpus={0},maxcpus={0}", plan.max_vcpus));
        }
    }
    memory(&mut line, plan, start);
    if let Some(firmware) = &plan.firmware {
        line.option("-bios", firmware);
    }
    channels(&mut line, plan);
    devices(&mut line, plan);
    line
}

fn machine(plan: &VmPlan, accelerator: Accelerator) -> String {
    // Everything off is a device no guest of ours drives; probing for it would cost boot time.
    let mut machine = format!(
        "{},memory-backend=mem0,usb=off,vmport=off,smm=off,sata=off,smbus=off,i8042=off,dump-guest-core=off",
        plan.machine_type
    );
    if plan.iommu && accelerator == Accelerator::Kvm {
        machine.push_str(",kernel-irqchip=split");
    }
    pairs(&mut machine, &plan.machine_options);
    machine
}

fn cpu(model: &str, features: &[KeyValue]) -> String {
    let mut cpu = model.to_owned();
    pairs(&mut cpu, features);
    cpu
}

fn channels(line: &mut Line, plan: &VmPlan) {
    for (id, fd) in [
        ("qmp", QMP_FD),
        ("control", CONTROL_FD),
        ("data", DATA_FD),
        ("console", CONSOLE_FD),
    ] {
        line.option("-chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
    }
    line.option("-mon", "chardev=qmp,mode=control");
    // Port 0 is a console's by the virtio specification, so two ports need a bus of three.
    line.option(
        "-device",
        virtio(plan, "virtio-serial-pci,id=serial,bus=pcie.0,addr=02,max_ports=3"),
    )
    .option(
        "-device",
        "virtserialport,bus=serial.0,nr=1,chardev=control,name=org.bulkhead.control",
    )
    .option(
        "-device",
        "virtserialport,bus=serial.0,nr=2,chardev=data,name=org.bulkhead.data",
    )
    .option("-device", "isa-serial,chardev=console");
}

fn devices(line: &mut Line, plan: &VmPlan) {
    if plan.iommu {
        line.option("-device", "intel-iommu,intremap=on,caching-mode=on");
    }
    let mut source = OsString::from("rng-random,id=rng0,filename=");
    source.push(escaped(&plan.entropy_source));
    let mut rng = "virtio-rng-pci,rng=rng0,bus=pcie.0,addr=01.0".to_owned();
    if reclaims(plan) {
        rng.push_str(",multifunction=on");
    }
    line.option("-object", source)
        .option("-device", virtio(plan, &rng))
        .option("-device", "vmgenid,guid=auto");
    if reclaims(plan) {
        let balloon = "virtio-balloon-pci,id=balloon,free-page-reporting=on,bus=pcie.0,addr=01.1";
        line.option("-device", virtio(plan, balloon));
    }
    if plan.block.iothreads {
        line.option("-object", format!("iothread,id={IOTHREAD}"));
    }
    if plan.virtio_mem && growth_mib(plan) > 0 {
        line.option("-object", backend(plan, "memgrow", growth_mib(plan), false))
            .option(
                "-device",
                virtio(
                    plan,
                    &format!(
                        "virtio-mem-pci,id={VIRTIO_MEM},memdev=memgrow,requested-size=0,bus=pcie.0,addr=03"
                    ),
                ),
            );
    }
    for slot in 0..plan.root_ports {
        // io-reserve=0: the 4 KiB of I/O space a port claims otherwise run out at the sixteenth.
        line.option(
            "-device",
            format!(
                "pcie-root-port,id={},bus=pcie.0,addr={:x},chassis={chassis},slot={chassis},io-reserve=0",
                root_port(slot),
                FIRST_ROOT_PORT + slot,
                chassis = slot + 1,
            ),
        );
    }
}

/// Owners and modes are the host's own, as with virtio-fs. What is bound into the directory later is on other
/// devices: their inode numbers are told apart by being mapped.
fn shared_directory(line: &mut Line, plan: &VmPlan, directory: &Path, tag: &str) {
    let mut share = OsString::from("local,id=fs0,security_model=passthrough,multidevs=remap,path=");
    share.push(escaped(directory));
    let device = format!("virtio-9p-pci,id=fs0,fsdev=fs0,mount_tag={tag},bus=pcie.0,addr={SHARE_SLOT:x}");
    line.option("-fsdev", share)
        .option("-device", virtio(plan, &device));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{line, plan};
    use super::*;
    use std::ffi::OsStr;

    fn refused(change: impl FnOnce(&mut VmPlan)) -> String {
        let mut plan = plan();
        change(&mut plan);
        match command_line(&plan, Accelerator::Tcg, None, Start::Boot, None) {
            Err(error @ VmmError::Unsupported { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn confined_from_the_first_day() {
        assert!(
            line(&plan())
                .contains("-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
        );
    }

    #[test]
    fn root_ports_are_numbered_from_four() {
        let line = line(&plan());
        assert!(
            line.contains("pcie-root-port,id=rp0,bus=pcie.0,addr=4,chassis=1,slot=1"),
            "{line}"
        );
        assert!(line.contains("pcie-root-port,id=rp2,bus=pcie.0,addr=6,chassis=3,slot=3"));
        assert!(!line.contains("id=rp3"));
    }

    #[test]
    fn machine_and_cpu_options_are_appended() {
        let mut plan = plan();
        plan.machine_options = vec![KeyValue {
            key: "hpet".into(),
            value: Some("off".into()),
        }];
        plan.cpu_features = vec![
            KeyValue {
                key: "pmu".into(),
                value: Some("off".into()),
            },
            KeyValue {
                key: "+avx".into(),
                value: None,
            },
        ];
        let line = line(&plan);
        assert!(line.contains("dump-guest-core=off,hpet=off "), "{line}");
        assert!(
            line.contains("-cpu max,erms=off,fsrm=off,pmu=off,+avx "),
            "{line}"
        );
    }

    #[test]
    fn hardware_gets_hot_pluggable_vcpus_and_the_translator_all_at_once() {
        let mut plan = plan();
        plan.vcpus = 2;
        plan.max_vcpus = 8;
        assert!(line(&plan).contains("-smp cpus=8,maxcpus=8 "));
        let kvm = command_line(&plan, Accelerator::Kvm, None, Start::Boot, None).unwrap();
        let kvm = kvm.join(OsStr::new(" ")).into_string().unwrap();
        assert!(
            kvm.contains("-accel kvm -cpu host -smp cpus=2,maxcpus=8 "),
            "{kvm}"
        );
    }

    /// O-12: served by QEMU itself, and confined all the same.
    #[test]
    fn o12_a_directory_shared_by_9p() {
        let mut plan = plan();
        plan.shared_fs = SharedFs::Virtio9p { msize: 8192 };
        let share = (PathBuf::from("/s,1"), "tag".to_owned());
        let line = command_line(&plan, Accelerator::Tcg, None, Start::Boot, Some(&share)).unwrap();
        let line = line.join(OsStr::new(" ")).into_string().unwrap();
        assert!(
            line.contains(
                "-fsdev local,id=fs0,security_model=passthrough,multidevs=remap,path=/s,,1 -device "
            ),
            "{line}"
        );
        assert!(
            line.contains("virtio-9p-pci,id=fs0,fsdev=fs0,mount_tag=tag,bus=pcie.0,addr=1e,"),
            "{line}"
        );
        assert!(line.contains("-sandbox on,"));
        // A directory is of no use to the other kinds.
        plan.shared_fs = SharedFs::None;
        let line = command_line(&plan, Accelerator::Tcg, None, Start::Boot, Some(&share)).unwrap();
        assert!(line.iter().all(|word| word != "-fsdev"));
    }

    #[test]
    fn what_this_machine_cannot_do_is_named() {
        assert!(refused(|p| p.machine_type = "microvm".into()).contains("microvm"));
        assert!(refused(|p| p.machine_type = "pc-q35-7.2,accel=kvm".into()).contains("comma"));
        assert!(refused(|p| p.root_ports = 27).contains("at most 26"));
        assert!(refused(|p| p.vcpus = 0).contains("vcpus: 0"));
        assert!(refused(|p| p.vcpus = 2).contains("vcpus: 2"));
        assert!(
            refused(|p| p.shared_fs = SharedFs::Virtio9p { msize: 8192 }).contains("a directory to share")
        );
        assert!(refused(|p| p.memory_mib = 0).contains("memory: 0"));
        let long = KeyValue {
            key: "x".repeat(2000),
            value: None,
        };
        assert!(refused(|p| p.kernel_params = vec![long]).contains("2047"));
        let split = KeyValue {
            key: "a\nb".into(),
            value: None,
        };
        assert!(refused(|p| p.kernel_params = vec![split]).contains("line end"));
    }

    #[test]
    fn a_saved_machine_is_the_one_it_was_saved_from() {
        let plan = plan();
        let words = |start| {
            let line = command_line(&plan, Accelerator::Tcg, None, start, None).unwrap();
            line.join(OsStr::new(" ")).into_string().unwrap()
        };
        let into = words(Start::BootInto);
        let copy = words(Start::Saved { shared: true });
        let mapped = words(Start::Saved { shared: false });
        assert!(into.contains("share=on,mem-path=/proc/self/fd/7 ") && into.contains("-kernel "));
        assert!(!copy.contains("-kernel") && !copy.contains("-append") && !copy.contains("-initrd"));
        assert!(copy.ends_with(" -incoming defer"));
        assert_eq!(copy.replace("share=on,mem-path", "share=off,mem-path"), mapped);
        let common = into.split(" -kernel").next().unwrap();
        assert_eq!(copy.strip_suffix(" -incoming defer"), Some(common));
    }

    #[test]
    fn a_signature_knows_kernel_parameters_and_no_paths() {
        let signature = |plan: &VmPlan| signature(plan, Accelerator::Tcg, None).unwrap();
        let one = plan();
        let mut other = plan();
        other.kernel = "/elsewhere/vmlinux".into();
        other.initrd = "/elsewhere/initrd".into();
        assert_eq!(signature(&one), signature(&other));
        other.kernel_params = vec![KeyValue {
            key: "a".into(),
            value: None,
        }];
        assert_ne!(signature(&one), signature(&other));
        other = plan();
        other.memory_mib += 128;
        assert_ne!(signature(&one), signature(&other));
        // That files are served by QEMU counts, which ones does not.
        other = plan();
        other.shared_fs = SharedFs::Virtio9p { msize: 8192 };
        assert_ne!(signature(&one), signature(&other));
    }

    #[test]
    fn a_machine_with_a_directory_is_saved_with_one_and_goes_on_with_another() {
        let mut plan = plan();
        plan.shared_fs = SharedFs::Virtio9p { msize: 8192 };
        let words = |start, directory: &str| {
            let share = (PathBuf::from(directory), "tag".to_owned());
            let line = command_line(&plan, Accelerator::Tcg, None, start, Some(&share)).unwrap();
            line.join(OsStr::new(" ")).into_string().unwrap()
        };
        let saved = words(Start::BootInto, "/empty");
        let goes_on = words(Start::Saved { shared: false }, "/own");
        let expected = saved.split(" -kernel").next().unwrap();
        let expected = expected
            .replace("share=on,mem-path", "share=off,mem-path")
            .replace("path=/empty", "path=/own");
        assert_eq!(goes_on.strip_suffix(" -incoming defer"), Some(&*expected));
    }

    #[test]
    fn what_cannot_be_saved_has_no_signature() {
        let refused = |change: fn(&mut VmPlan)| {
            let mut plan = plan();
            change(&mut plan);
            matches!(
                signature(&plan, Accelerator::Tcg, None),
                Err(VmmError::Unsupported { .. })
            )
        };
        assert!(!refused(|_| {}));
        assert!(refused(|p| p.hugepages = true));
        assert!(refused(|p| p.memory_backend = Some("/d".into())));
        assert!(refused(|p| p.memory_prealloc = true));
        assert!(refused(|p| p.virtio_mem = true));
        assert!(refused(|p| p.machine_type = "microvm".into()));
    }
}
