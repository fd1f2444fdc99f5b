//! Memory the guest does not use and the host should have.
//!
//! ```text
//!  running      pages freed ──► the balloon's driver reports them, seconds later ──► the host takes them
//!  to be saved  a file of zeroes takes the free pages used last ─► removed: holes in what is saved
//! ```
//!
//! Owns: that the driver is there, and what is in free memory when a machine is saved. Never: memory in use. Called
//! when the guest is configured.

use crate::modules::{ModuleError, Modules};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Driver of the device that reports free pages.
const BALLOON: &str = "virtio_balloon";
/// Its device id in sysfs: virtio specification 1.2, 5.5.
const BALLOON_ID: &str = "0x0005";
/// Where the devices are.
const DEVICES: &str = "/sys/bus/virtio/devices";
/// On the agent's own tmpfs.
const ZEROES: &str = "/zeroes";
/// What a boot leaves behind is the initial RAM disk, most of all, and less than twice as much with it.
const LEFT_BY_A_BOOT: usize = 32 << 20;
/// Of the free memory at most this part is touched: a small machine must not run out of it.
const PART: u64 = 4;
const PIECE: usize = 1 << 20;

/// Loads the balloon's driver where the machine has the device and the kernel the driver as a module.
///
/// # Errors
/// A driver that is there and cannot be loaded.
pub(crate) fn start_reporting(modules: &Modules) -> Result<(), ModuleError> {
    if !has_balloon(Path::new(DEVICES)) {
        return Ok(());
    }
    match modules.load(BALLOON) {
        // A kernel of the user's own may do without: nothing is given back then.
        Err(ModuleError::Missing { .. }) => Ok(()),
        done => done,
    }
}

fn has_balloon(devices: &Path) -> bool {
    fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .any(|device| {
            fs::read_to_string(device.path().join("device")).is_ok_and(|id| id.trim() == BALLOON_ID)
        })
}

/// Overwrites the free pages that were in use before: what was freed last is given out first, and
/// pages that were never used are zero already.
///
/// # Errors
/// The file system of the agent, which is memory.
pub(crate) fn settle() -> io::Result<()> {
    let most = free_bytes(&fs::read_to_string("/proc/meminfo")?) / PART;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let written = write_zeroes(Path::new(ZEROES), most.min(LEFT_BY_A_BOOT));
    // Whatever became of it, its pages are not to be saved.
    fs::remove_file(ZEROES)?;
    written
}

fn write_zeroes(path: &Path, bytes: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![0; PIECE];
    for _ in 0..bytes / PIECE {
        file.write_all(&piece)?;
    }
    Ok(())
}

/// MemFree of proc_meminfo(5), in bytes; 0 when it is not told.
fn free_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balloon_is_known_by_its_number() {
        let devices = tempfile::tempdir().unwrap();
        assert!(!has_balloon(devices.path()));
        for (name, id) in [("virtio0", "0x0004\n"), ("virtio1", "0x0003\n")] {
            fs::create_dir(devices.path().join(name)).unwrap();
            fs::write(devices.path().join(name).join("device"), id).unwrap();
        }
        assert!(!has_balloon(devices.path()));
        fs::write(devices.path().join("virtio1/device"), "0x0005\n").unwrap();
        assert!(has_balloon(devices.path()));
        assert!(!has_balloon(&devices.path().join("none")));
    }

    #[test]
    fn free_memory_is_read_in_kib() {
        let meminfo =
            "MemTotal:        2043376 kB\nMemFree:         2012416 kB\nMemAvailable:    1979128 kB\n";
        assert_eq!(free_bytes(meminfo), 2_012_416 << 10);
        assert_eq!(free_bytes("MemTotal: 1 kB\n"), 0);
    }

    #[test]
    fn zeroes_are_as_many_as_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zeroes");
        write_zeroes(&path, 3 * PIECE).unwrap();
        assert!(fs::read(&path).unwrap() == vec![0; 3 * PIECE]);
    }
}
