//! Hot-plugged devices by their PCI path: slot by slot, down through bridges.
//!
//! Owns: the form of a path and its directory in /sys. Never: waits. Called by `storage` and `network`.

use std::fs;
use std::path::{Path, PathBuf};

/// The slots of `04.0/00.0`, or short `04/00`: device 0 behind the port in slot 4 of the root bus. Hexadecimal,
/// functions are 0; `None` for anything else.
#[must_use]
pub(crate) fn slots(path: &str) -> Option<Vec<u8>> {
    path.split('/')
        .map(|slot| {
            let slot = slot.strip_suffix(".0").unwrap_or(slot);
            u8::from_str_radix(slot, 16).ok().filter(|slot| *slot < 32)
        })
        .collect()
}

/// The directory of the device in `/sys`, if it is there by now.
#[must_use]
pub(crate) fn directory(slots: &[u8]) -> Option<PathBuf> {
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

/// Names in a directory; none if it is not there.
pub(crate) fn children(directory: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_paths() {
        assert_eq!(slots("03/00").unwrap(), [3, 0]);
        assert_eq!(slots("0a.0/00.0").unwrap(), [10, 0]);
        assert_eq!(slots("1f").unwrap(), [31]);
        for bad in ["", "20", "x/0", "03//00", "/dev/vda", "03.1/00"] {
            assert!(slots(bad).is_none(), "{bad}");
        }
    }
}
