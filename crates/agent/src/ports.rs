//! The two virtio-serial ports to the host, found by name (virtio 1.2, 5.3 Console Device).
//!
//! Owns: their names. Never: what is said on them. Called by `main`, and for the device number no container gets.

use crate::uevent;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// Name of the port that carries calls.
pub(crate) const CONTROL: &str = "org.bulkhead.control";
/// Name of the port that carries stdio.
pub(crate) const DATA: &str = "org.bulkhead.data";

const CLASS: &str = "/sys/class/virtio-ports";
const DEADLINE: Duration = Duration::from_secs(60);

/// Why the host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// No port of that name turned up.
    #[error("no virtio port named {name} within {} s", DEADLINE.as_secs())]
    Missing {
        /// The name.
        name: &'static str,
    },
    /// It could not be looked for or opened.
    #[error("virtio port {name}")]
    Io {
        /// The name.
        name: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

fn device(name: &str) -> Option<String> {
    fs::read_dir(CLASS).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim() == name).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// Opens the port called `name`.
///
/// # Errors
/// [`PortError`].
pub(crate) fn open(name: &'static str) -> Result<OwnedFd, PortError> {
    let failed = |source| PortError::Io { name, source };
    let port = uevent::wait_for(DEADLINE, || device(name))
        .map_err(failed)?
        .ok_or(PortError::Missing { name })?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev").join(port))
        .map_err(failed)?;
    Ok(OwnedFd::from(file))
}

/// Major number of the ports' devices, to keep containers from them.
#[must_use]
pub(crate) fn major() -> Option<u32> {
    fs::read_to_string("/proc/devices")
        .ok()?
        .lines()
        .find_map(|line| line.trim().strip_suffix(" virtio-portsdev")?.trim().parse().ok())
}
