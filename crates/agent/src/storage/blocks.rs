//! Finding a hot-plugged disk by its PCI path.

use super::StorageError;
use crate::pci::{children, directory, slots};
use crate::uevent;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

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
    let slots = slots(source).ok_or_else(|| StorageError::PciPath {
        source_path: source.to_owned(),
    })?;
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
