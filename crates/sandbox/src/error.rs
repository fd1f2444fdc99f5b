//! Why the engine refused or failed.
//!
//! Owns: the classes. Never: text for decisions. Mapped to [`Failure`] once, at the command boundary.

use bulkhead_model::failure::chain;
use bulkhead_model::{ContainerId, Failure, FailureKind, IllegalMove, SandboxId, State};
use bulkhead_protocol::GuestError;
use bulkhead_vmm::{VmExit, VmmError};
use std::io;
use std::path::{Path, PathBuf};

/// An engine error; its sources hold the cause.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The container is unknown.
    #[error("container {0} does not exist")]
    NoContainer(ContainerId),
    /// The sandbox never came to be, or is no more.
    #[error("container {id} does not exist: its sandbox was never completed and has been cleaned up")]
    Gone {
        /// The sandbox.
        id: SandboxId,
    },
    /// The process is unknown.
    #[error("process {0} does not exist")]
    NoProcess(String),
    /// The id is taken.
    #[error("{what} {id} already in use")]
    InUse {
        /// `container` or `exec`.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// The sandbox is in the wrong state (C-23).
    #[error("cannot {operation}: sandbox {id} is {state}, expected running")]
    SandboxState {
        /// What was asked.
        operation: &'static str,
        /// The sandbox.
        id: SandboxId,
        /// Its state.
        state: State,
    },
    /// The container is in the wrong state.
    #[error("cannot {operation} a container that is {state}: expected {expected}")]
    ContainerState {
        /// What was asked.
        operation: &'static str,
        /// Its state.
        state: State,
        /// What would do.
        expected: &'static str,
    },
    /// The state machine has no such move (C-01).
    #[error(transparent)]
    Move(#[from] IllegalMove),
    /// A step of the boot failed, or a verb lost the VM or its agent.
    #[error("sandbox {id}: {step} failed")]
    Boot {
        /// The sandbox.
        id: SandboxId,
        /// The step.
        step: &'static str,
        /// The cause.
        #[source]
        source: Box<SandboxError>,
        /// Last lines of the guest console.
        console: Vec<String>,
    },
    /// The sandbox could not boot earlier, or its VM has ended.
    #[error("sandbox {id} has no running VM")]
    NoVm {
        /// The sandbox.
        id: SandboxId,
    },
    /// The VM cannot go on without its files.
    #[error("the shared-filesystem daemon ended")]
    DaemonEnded,
    /// Called off.
    #[error("{operation} was called off by a kill or delete")]
    Cancelled {
        /// What was called off.
        operation: &'static str,
    },
    /// VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// Guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Host.
    #[error("{step}{}", path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    Host {
        /// What was being done.
        step: &'static str,
        /// On what.
        path: Option<PathBuf>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The sandbox's network namespace cannot be used.
    #[error("network namespace")]
    Namespace {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An interface of the sandbox's network cannot be passed to the guest.
    #[error("network interface {interface}")]
    Interface {
        /// Its name.
        interface: String,
        /// Why.
        #[source]
        source: Box<SandboxError>,
    },
    /// A bind mount whose source cannot be used; runc's words.
    #[error("error mounting {source_path:?} to rootfs at {destination:?}: stat {}", source_path.display())]
    Mount {
        /// Its source on the host.
        source_path: PathBuf,
        /// Its destination in the container.
        destination: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A memory limit that could only be met by killing.
    #[error(
        "memory limit {limit_bytes} bytes: the container holds {held_bytes} bytes, expected a limit above that"
    )]
    BelowUse {
        /// The limit asked for.
        limit_bytes: u64,
        /// Memory in use beside caches.
        held_bytes: u64,
    },
    /// Input the engine cannot serve.
    #[error("{what}: {value}: expected {expected}")]
    Invalid {
        /// Which input.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

impl SandboxError {
    /// A host error.
    pub fn host(step: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Host {
            step,
            path: Some(path.into()),
            source,
        }
    }

    /// A host error that is about no path, for `map_err`.
    pub(crate) fn during(step: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |source| Self::Host {
            step,
            path: None,
            source,
        }
    }

    /// A bind mount that cannot be made for `source`'s sake.
    pub fn mount(source_path: &Path, destination: &Path, source: io::Error) -> Self {
        let source = match source.kind() {
            io::ErrorKind::NotFound => io::Error::new(source.kind(), "no such file or directory"),
            _ => source,
        };
        Self::Mount {
            source_path: source_path.to_owned(),
            destination: destination.to_owned(),
            source,
        }
    }

    /// Its class.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoContainer(_) | Self::NoProcess(_) | Self::Gone { .. } => FailureKind::NotFound,
            Self::InUse { .. } => FailureKind::AlreadyExists,
            Self::SandboxState { .. }
            | Self::ContainerState { .. }
            | Self::Move(_)
            | Self::BelowUse { .. } => FailureKind::FailedPrecondition,
            Self::Boot { source, .. } | Self::Interface { source, .. } => source.kind(),
            Self::NoVm { .. } | Self::DaemonEnded => FailureKind::Unavailable,
            Self::Cancelled { .. } => FailureKind::Cancelled,
            Self::Vmm(VmmError::Deadline { .. }) | Self::Guest(GuestError::Deadline { .. }) => {
                FailureKind::DeadlineExceeded
            }
            Self::Vmm(VmmError::Unsupported { .. } | VmmError::Verify { .. } | VmmError::Digest { .. })
            | Self::Invalid { .. }
            | Self::Mount { .. }
            | Self::Namespace { .. } => FailureKind::InvalidArgument,
            Self::Vmm(_) | Self::Host { .. } => FailureKind::Internal,
            Self::Guest(GuestError::Refused { kind, .. }) => *kind,
            Self::Guest(GuestError::Gone { .. }) => FailureKind::Unavailable,
            Self::Guest(_) => FailureKind::Internal,
        }
    }

    /// Whether the VM or its agent is to blame: the guest's console may say more.
    #[must_use]
    pub(crate) fn lost_the_guest(&self) -> bool {
        if let Self::Interface { source, .. } = self {
            return source.lost_the_guest();
        }
        matches!(
            self,
            Self::Guest(GuestError::Gone { .. } | GuestError::Deadline { .. })
                | Self::Vmm(VmmError::Ended { .. } | VmmError::Deadline { .. })
                | Self::DaemonEnded
        )
    }

    /// Whether a boot that failed this way may have failed for the accelerator's sake: the VM ended, could not
    /// be driven, or its agent did not come up in time.
    #[must_use]
    pub(crate) fn may_be_the_accelerator(&self) -> bool {
        match self {
            Self::Boot { source, .. } => source.may_be_the_accelerator(),
            Self::Vmm(VmmError::Ended { .. } | VmmError::Deadline { .. })
            | Self::Guest(GuestError::Deadline { .. } | GuestError::Gone { .. }) => true,
            _ => false,
        }
    }

    /// Whether a start from a template that failed this way may do better as a boot: the VMM could not load it, or
    /// its guest did not answer.
    #[must_use]
    pub(crate) fn may_be_the_template(&self) -> bool {
        match self {
            Self::Boot { source, .. } => source.may_be_the_template(),
            Self::Vmm(error) => !matches!(error, VmmError::Binary { .. } | VmmError::Asset { .. }),
            Self::Guest(_) => true,
            _ => false,
        }
    }

    /// Whether the VMM was killed from outside (or for want of memory): what it was given is not to blame.
    #[must_use]
    pub(crate) fn is_a_kill(&self) -> bool {
        match self {
            Self::Boot { source, .. } => source.is_a_kill(),
            Self::Vmm(VmmError::Ended { exit, .. }) => *exit == VmExit::Signal(9),
            _ => false,
        }
    }

    /// As clients see it.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let console = match self {
            Self::Boot { console, .. } => console.clone(),
            _ => Vec::new(),
        };
        Failure {
            kind: self.kind(),
            message: chain(self),
            console,
        }
    }
}
