//! Kinds of namespaces.
//!
//! Owns: their flags and names. Never: enters one. Called by whoever starts a process or looks at one.

/// Kind of a namespace (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Mounts.
    Mount,
    /// Process ids; the started process is its pid 1 when new.
    Pid,
    /// Network.
    Network,
    /// System V IPC and message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Cgroup root.
    Cgroup,
}

impl Namespace {
    /// The `CLONE_NEW*` flag.
    #[must_use]
    pub const fn flag(self) -> i32 {
        match self {
            Self::Mount => libc::CLONE_NEWNS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
        }
    }

    /// Its name below `/proc/<pid>/ns`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
        }
    }
}
