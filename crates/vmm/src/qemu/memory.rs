//! The memory of a machine, as arguments.
//!
//! Owns: its backend, the room to grow, whether what the guest frees goes back to the host. Never: the growing (see
//! `resize`). Called by `command_line` and `resize`.

use super::line::{Line, escaped};
use super::start::{MEMORY_FD, Start};
use bulkhead_model::VmPlan;
use bulkhead_model::vm::SharedFs;
use std::ffi::OsString;

/// QOM id of the memory device when the plan asks for virtio-mem.
pub(super) const VIRTIO_MEM: &str = "vmem0";
/// Memory is added in blocks of this many MiB: the guest kernel's memory block size on x86-64.
pub(super) const MEMORY_BLOCK_MIB: u32 = 128;

pub(super) fn memory(line: &mut Line, plan: &VmPlan, start: Start) {
    let mut size = format!("size={}M", plan.memory_mib);
    // Room for growth exists only with slots for DIMMs or a device that grows.
    let growth = growth_mib(plan);
    if growth > 0 {
        let slots = if plan.virtio_mem { 0 } else { plan.memory_slots };
        size.push_str(&format!(",slots={slots},maxmem={}M", plan.memory_mib + growth));
    }
    line.option("-m", size);
    let backend = match start {
        Start::Boot => backend(plan, "mem0", plan.memory_mib, plan.memory_prealloc),
        Start::BootInto | Start::Saved { .. } => {
            let share = if start == (Start::Saved { shared: false }) {
                "off"
            } else {
                "on"
            };
            let mib = plan.memory_mib;
            // Opened once more through /proc: it may be a file without a name.
            format!(
                "memory-backend-file,id=mem0,size={mib}M,share={share},mem-path=/proc/self/fd/{MEMORY_FD}"
            )
            .into()
        }
    };
    line.option("-object", backend);
    if plan.mlock {
        line.option("-overcommit", "mem-lock=on");
    }
}

/// Whether QEMU punches holes into the memory where the guest reports free pages.
///
/// Not into memory that is to stay: locked, touched beforehand, or huge pages, which a pool might not give again. And
/// only with virtio-fs: any other machine may go on from a saved one by mapping its file copy-on-write, and QEMU
/// (7.2, `ram_block_discard_range`) punches the file, which is every other machine's too.
pub(super) fn reclaims(plan: &VmPlan) -> bool {
    plan.reclaim_freed_memory
        && !plan.mlock
        && !plan.memory_prealloc
        && !plan.hugepages
        && matches!(plan.shared_fs, SharedFs::VirtioFs { .. })
}

/// MiB by which the VM can grow: whole blocks between its boot size and its maximum.
pub(super) fn growth_mib(plan: &VmPlan) -> u32 {
    let room = plan.max_memory_mib.saturating_sub(plan.memory_mib);
    let room = room - room % MEMORY_BLOCK_MIB;
    if plan.virtio_mem || plan.memory_slots > 0 {
        room
    } else {
        0
    }
}

/// Arguments of a memory backend; `share=on` because vhost-user daemons map guest memory.
pub(super) fn backend(plan: &VmPlan, id: &str, mib: u32, prealloc: bool) -> OsString {
    let mut text = OsString::new();
    match &plan.memory_backend {
        Some(directory) => {
            text.push("memory-backend-file,mem-path=");
            text.push(escaped(directory));
        }
        None if plan.hugepages => text.push("memory-backend-memfd,hugetlb=on"),
        None => text.push("memory-backend-memfd"),
    }
    text.push(format!(",id={id},size={mib}M,share=on"));
    if prealloc {
        text.push(",prealloc=on");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::testing::{line, plan};
    use super::*;

    #[test]
    fn memory_backends() {
        let mut plan = plan();
        assert!(line(&plan).contains(
            "-m size=256M,slots=4,maxmem=1024M -object memory-backend-memfd,id=mem0,size=256M,share=on "
        ));
        plan.hugepages = true;
        plan.memory_prealloc = true;
        plan.mlock = true;
        let huge = line(&plan);
        assert!(huge.contains("memory-backend-memfd,hugetlb=on,id=mem0,size=256M,share=on,prealloc=on"));
        assert!(huge.contains("-overcommit mem-lock=on"));
        plan.memory_backend = Some("/dev/shm/a,b".into());
        assert!(line(&plan).contains("memory-backend-file,mem-path=/dev/shm/a,,b,id=mem0"));
    }

    #[test]
    fn growth_is_whole_blocks_or_nothing() {
        let mut plan = plan();
        plan.max_memory_mib = 256 + 300;
        assert!(line(&plan).contains("maxmem=512M"));
        plan.max_memory_mib = 256 + 100;
        assert!(line(&plan).contains("-m size=256M -object"));
        plan.max_memory_mib = 0;
        assert!(line(&plan).contains("-m size=256M -object"));
        plan.max_memory_mib = 1024;
        plan.memory_slots = 0;
        assert!(line(&plan).contains("-m size=256M -object"));
        plan.virtio_mem = true;
        let grown = line(&plan);
        assert!(grown.contains("-m size=256M,slots=0,maxmem=1024M"), "{grown}");
        assert!(
            grown.contains("id=memgrow,size=768M")
                && grown.contains("virtio-mem-pci,id=vmem0,memdev=memgrow")
        );
    }

    #[test]
    fn freed_memory_goes_back_where_nobody_else_has_it_and_it_is_not_to_stay() {
        let with = |change: fn(&mut VmPlan)| {
            let mut plan = plan();
            plan.reclaim_freed_memory = true;
            plan.shared_fs = SharedFs::VirtioFs {
                daemon: None,
                cache: "auto".into(),
                cache_size_mib: 0,
            };
            change(&mut plan);
            line(&plan)
        };
        let balloon = "-device virtio-balloon-pci,id=balloon,free-page-reporting=on,bus=pcie.0,addr=01.1,";
        let all = with(|_| {});
        assert!(all.contains(balloon), "{all}");
        assert!(all.contains("virtio-rng-pci,rng=rng0,bus=pcie.0,addr=01.0,multifunction=on,"));
        let without: [fn(&mut VmPlan); 6] = [
            |p| p.reclaim_freed_memory = false,
            |p| p.mlock = true,
            |p| p.memory_prealloc = true,
            |p| p.hugepages = true,
            // Those whose clones share the file of their memory.
            |p| p.shared_fs = SharedFs::None,
            |p| p.shared_fs = SharedFs::Virtio9p { msize: 8192 },
        ];
        for change in without {
            let line = with(change);
            assert!(
                !line.contains("balloon") && !line.contains("multifunction"),
                "{line}"
            );
        }
    }
}
