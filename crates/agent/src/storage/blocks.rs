//! Finding a hot-plugged disk by its PCI path: slot by slot, down through bridges.

use super::StorageError;
use crate::uevent;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// `03/00`: device 0 behind the port in slot 3 of the root bus.
fn slots(source: &str) -> Result<Vec<u8>, StorageError> {
    let slots: Option<Vec<u8>> = source
        .split('/')
        .map(|slot| u8::from_str_radix(slot, 16).ok().filter(|slot| *slot < 32))
        .collect();
    slots.ok_or_else(|| StorageError::PciPath {
        source_path: source.to_owned(),
    })
}

/// The directory of the device in `/sys`, if it is there by now.
fn directory(slots: &[u8]) -> Option<PathBuf> {
    let mut at = PathBuf::from("/sys/devices/pci0000:00");
    let mut bus = "0000:00".to_owned();
    for slot in slots {
        at.push(format!("{bus}:{slot:02x}.0"));
        // The one bus behind a bridge; a device has none.
        if let Some(next) = children(&at.join("pci_bus")).next() {
            bus = next;
        }
    }
    at.is_dir().then_some(at)
}

fn children(directory: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn disk(slots: &[u8]) -> Option<PathBuf> {
    let device = directory(slots)?;
    let name = children(&device)
        .filter(|name| name.starts_with("virtio"))
        .find_map(|name| children(&device.join(name).join("block")).next())?;
    let node = Path::new("/dev").join(name);
    node.exists().then_some(node)
}

/// The device node of the disk at PCI path `source`; waits for it.
pub(super) fn find(source: &str) -> Result<PathBuf, StorageError> {
    let slots = slots(source)?;
    uevent::wait_for(DEADLINE, || disk(&slots))
        .map_err(|error| StorageError::Io {
            step: "waiting for",
            path: source.to_owned(),
            source: error,
        })?
        .ok_or_else(|| StorageError::NoDevice {
            source_path: source.to_owned(),
            seconds: DEADLINE.as_secs(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_paths() {
        assert_eq!(slots("03/00").unwrap(), [3, 0]);
        assert_eq!(slots("1f").unwrap(), [31]);
        for bad in ["", "20", "x/0", "03//00", "/dev/vda"] {
            assert!(slots(bad).is_err(), "{bad}");
        }
    }
}
