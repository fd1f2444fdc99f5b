//! Who sits where on the root bus.
//!
//! ```text
//!  pcie.0:  01 rng, balloon   02 serial (control, data)   03 virtio-mem   04 … root ports rp0, rp1, …   1e 9p   1f chipset
//! ```
//!
//! Owns: the numbers and names of root ports. Never: which of them is in use (see `slots`). Called by `command_line`,
//! `limits` and hot-plug.

/// Device number of the first root port on `pcie.0`.
pub(super) const FIRST_ROOT_PORT: u32 = 4;
/// Device number of the shared directory when QEMU itself serves it.
pub(super) const SHARE_SLOT: u32 = 0x1e;
/// Root ports that fit before that.
pub(super) const MAX_ROOT_PORTS: u32 = SHARE_SLOT - FIRST_ROOT_PORT;

/// Name of root port `slot`.
pub(super) fn root_port(slot: u32) -> String {
    format!("rp{slot}")
}
