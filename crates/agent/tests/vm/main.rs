//! The agent in a real virtual machine: QEMU, a real kernel, its own initial RAM disk, busybox as the container.
//!
//! Needs root, QEMU, busybox and mke2fs, and the guest of `bulkhead guest build` (or `BULKHEAD_TEST_KERNEL` and
//! `BULKHEAD_TEST_INITRD`). Every test has a machine of its own.

#![allow(
    clippy::unwrap_used,
    reason = "a test may panic; clippy only knows that of test functions"
)]

mod containers;
mod machine;
mod rehearsal;
mod runtime_spec;
mod storages;
