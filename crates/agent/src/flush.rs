//! Flushing what would be lost with the VM.
//!
//! ```text
//!  a process of a container lives, or there is a disk ─ yes ─► sync(2)
//!                                                     └ no ──► nothing can be lost
//! ```
//! Data that outlives the VM lies on disks and in shared files. Shared files are written through, and what a process
//! wrote by a mapping is written back when it unmaps them or ends. So without disks and without processes sync(2) would
//! only have the host flush a file system of its own, whose cache outlives the VM.
//!
//! Owns: whether there is anything to flush. Never: when. Called by `service` before the VM is ended, and when a
//! container's process ended: then the host need not ask.

use crate::cgroup;
use std::fs;
use std::path::Path;

/// Where the kernel lists block devices.
const DISKS: &str = "/sys/block";

/// Block devices whose content is guest memory.
const VOLATILE: [&str; 2] = ["ram", "zram"];

/// Flushes all file systems if there is anything that could be lost. Blocks.
pub(crate) fn flush() {
    if is_needed() {
        nix::unistd::sync();
    }
}

/// Whether there is anything that could be lost.
#[must_use]
pub(crate) fn is_needed() -> bool {
    cgroup::populated() || has_disk(Path::new(DISKS))
}

/// Whether `directory` lists a device that has a size and is not memory; what cannot be read counts as one.
fn has_disk(directory: &Path) -> bool {
    let entries = match fs::read_dir(directory) {
        // A kernel without block devices.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
        Err(_) => return true,
        Ok(entries) => entries,
    };
    entries.map_while(Result::ok).any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let memory = VOLATILE.iter().any(|prefix| name.starts_with(prefix));
        // A loop device without a file has the size 0.
        !memory && fs::read_to_string(entry.path().join("size")).map_or(true, |size| size.trim() != "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(list: &[(&str, &str)]) -> bool {
        let temp = tempfile::tempdir().unwrap();
        for (name, size) in list {
            fs::create_dir(temp.path().join(name)).unwrap();
            fs::write(temp.path().join(name).join("size"), size).unwrap();
        }
        has_disk(temp.path())
    }

    #[test]
    fn disks_and_loops_in_use_are_flushed_memory_is_not() {
        assert!(!disks(&[]));
        assert!(!disks(&[
            ("ram0", "8192\n"),
            ("zram0", "8192\n"),
            ("loop0", "0\n")
        ]));
        assert!(disks(&[("ram0", "8192\n"), ("vda", "2048\n")]));
        assert!(disks(&[("loop3", "2048\n")]));
        assert!(!has_disk(Path::new("/nonexistent/block")));
    }

    #[test]
    fn a_disk_of_unknown_size_is_flushed() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("vda")).unwrap();
        assert!(has_disk(temp.path()));
    }
}
