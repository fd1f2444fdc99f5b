//! Sharing a container's files with the guest, and the spec as the guest gets it (C-07, C-30 to C-37).
//!
//! ```text
//!  vanilla spec ──plan──► SharePlan { shares, patched spec } ──┬─ bound on the host (journaled) ─► guest's share
//!                            ▲                                 └─ storages: tmpfs, directories, watched copies
//!                     kind of each volume
//! ```
//!
//! Owns: which mounts are shared, under what names, and the rewriting of the spec. Never: binding (the
//! engine does, through the platform). Called by container creation.

mod plan;
mod shared;
pub mod volume;

pub use plan::{DEFAULT_SHM_BYTES, SharePlan, plan};
pub use shared::{Share, guest_rootfs};
