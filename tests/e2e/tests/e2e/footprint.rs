//! Memory a sandbox has no use for is the host's.

use crate::mounts::inside;
use bulkhead_e2e::{Lab, VERB, until};
use serde_json::{Value, json};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

/// The guest reports a sixteenth of its free memory every two seconds, on a machine that may be busy.
const REPORTED: Duration = Duration::from_secs(300);

/// What the memory of a VM takes on the host, in MiB: mapped or not, it is one file of the VMM's.
fn memory_of(pid: i32) -> u64 {
    let blocks = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"))
        })
        .filter_map(|fd| std::fs::metadata(fd.path()).ok())
        .max_by_key(MetadataExt::size)
        .expect("a VM without memory")
        .blocks();
    (blocks * 512) >> 20
}

/// The template that sandboxes start from, made now or before, here or by another test.
fn template(lab: &Lab) -> Value {
    let mut found = None;
    until("there is a template", VERB, || {
        let said = lab.call(&["template", "create"]).within(VERB).run().ok().text();
        let key = said.split(' ').next().unwrap();
        let list = lab
            .call(&["template", "list", "--format", "json"])
            .run()
            .ok()
            .json();
        let mut all = list.as_array().unwrap().iter();
        found = all
            .find(|one| one["key"] == key && one["condition"] == "ready")
            .cloned();
        found.is_some()
    });
    found.unwrap()
}

/// Linux fills what it frees of the initial RAM disk with this: linux/poison.h, `POISON_FREE_INITMEM`.
const FREED_BY_A_BOOT: u8 = 0xcc;

/// The initial RAM disk, which QEMU puts at the end of the memory, is needed to boot; it is not saved, and copied at
/// each start.
#[test]
#[ignore = "needs a VM"]
fn what_a_boot_freed_is_not_in_a_template() {
    let lab = Lab::new();
    let memory = &template(&lab)["manifest"]["memory"]["path"];
    let file = std::fs::File::open(memory.as_str().unwrap()).unwrap();
    let initrd = std::fs::metadata(Lab::config().with_file_name("initrd"))
        .unwrap()
        .len();
    let mut end = vec![0; usize::try_from(initrd).unwrap()];
    let at = file.metadata().unwrap().len() - initrd;
    file.read_exact_at(&mut end, at).unwrap();
    let pages = end.chunks_exact(4096);
    let all = pages.len();
    let freed = pages
        .filter(|page| page.iter().all(|byte| *byte == FREED_BY_A_BOOT))
        .count();
    // All of them, if nobody overwrites them; none with the lean kernel, and a part of the distribution's larger disk.
    assert!(freed * 2 < all, "{freed} of {all} pages");
}

/// A container, in a VM from a template, that fills 200 MiB and frees them: the host has them back soon, and the shared files, whose daemon maps
/// the same memory, are as they were.
#[test]
#[ignore = "needs a VM"]
fn freed_memory_goes_back_to_the_host() {
    let lab = Lab::new();
    let words = "0123456789abcdef".repeat(100_000);
    let bundle = lab
        .bundle()
        .script("exec sleep 600")
        .file("words", &words)
        .with(|config| {
            let memory = json!({"destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": ["size=300m"]});
            config["mounts"].as_array_mut().unwrap().push(memory);
        });
    let id = lab.id();
    // Also in a machine that goes on from a saved one, as most do.
    let _ = template(&lab);
    lab.run_detached(&bundle, &id);
    let inspected = lab.call(&["inspect", &id]).run().ok().json();
    assert!(inspected["provenance"]["template"].is_string(), "{inspected}");
    let vmm = lab.pid_of(&id, "vmm");
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let shared =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    // Where the memory itself gets no huge pages, nothing around it does.
    if shared.contains("[never]") {
        assert!(status.contains("THP_enabled:\t0"), "{status}");
    }
    let idle = memory_of(vmm);
    inside(
        &lab,
        &id,
        "tr '\\0' x < /dev/zero | head -c 209715200 > /memory/filled",
    );
    let full = memory_of(vmm);
    assert!(
        full >= idle + 190,
        "{idle} MiB idle, {full} MiB with 200 MiB in use"
    );
    inside(&lab, &id, "rm /memory/filled");
    until("the host has most of it back", REPORTED, || {
        memory_of(vmm) <= full - 150
    });
    let sum = inside(&lab, &id, "md5sum < /words");
    let again = inside(&lab, &id, "cat /words /words | head -c 1600000 | md5sum");
    assert_eq!(sum, again);
    // And what was given back can be had again.
    let filled =
        "tr '\\0' y < /dev/zero | head -c 104857600 > /memory/again && tr -d y < /memory/again | wc -c";
    assert_eq!(inside(&lab, &id, filled), "0");
    lab.delete(&id);
}
