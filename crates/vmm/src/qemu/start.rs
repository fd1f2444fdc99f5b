//! How a machine starts, and the descriptors it finds.
//!
//! Owns: what the arguments and the spawning of one process must agree on. Never: an argument. Called by `launch`,
//! `command_line` and `memory`.

/// Descriptor numbers the VMM finds its listening sockets at.
pub(super) const QMP_FD: i32 = 3;
pub(super) const CONTROL_FD: i32 = 4;
pub(super) const DATA_FD: i32 = 5;
pub(super) const CONSOLE_FD: i32 = 6;
/// And the file that is its memory, if it is to have one.
pub(super) const MEMORY_FD: i32 = 7;

/// How a machine starts, as far as its arguments tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The kernel boots, in memory of the VMM's own.
    Boot,
    /// The kernel boots in the memory file, to be saved.
    BootInto,
    /// A saved machine goes on: the memory file is mapped shared, or copy-on-write.
    Saved { shared: bool },
}
