//! How disks are given to a VM (O-11).

use serde::{Deserialize, Serialize};

/// Settings of every disk of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockPlan {
    /// Container root file systems and volumes on block devices go through the shared file system.
    pub disabled: bool,
    /// Serve disks in their own thread.
    pub iothreads: bool,
    /// Host cache mode; `None` leaves the VMM's default.
    pub cache: Option<BlockCache>,
}

/// Cache mode of a disk on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCache {
    /// Bypass the host page cache (O_DIRECT).
    pub direct: bool,
    /// Ignore flush requests of the guest.
    pub no_flush: bool,
}
