//! Where the time of a sandbox went: operations, and what happened in them, on one clock.
//!
//! Every time is in nanoseconds of the host's CLOCK_BOOTTIME, clock_gettime(2); what the guest measured was
//! translated to it.
//!
//! Owns: the nouns, which are the format of the file as well: add-only, every field after version 1 has a default.
//! Never: clocks. Recorded by the engine, told by its clients, drawn by the command line.

use crate::{ContainerId, ExecId, SandboxId};
use serde::{Deserialize, Serialize};

/// The version this build writes; it reads all up to it.
pub const VERSION: u32 = 1;

/// Who was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// The command that was typed.
    Cli,
    /// The sandbox's supervisor.
    Supervisor,
    /// The pod's network.
    Network,
    /// The process that stands for a container on the host.
    Stub,
    /// Hooks of the bundle.
    Hooks,
    /// QEMU.
    Vmm,
    /// The shared-filesystem daemon.
    Fsd,
    /// The guest's kernel and agent.
    Guest,
}

impl Lane {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Cli,
        Self::Supervisor,
        Self::Network,
        Self::Stub,
        Self::Hooks,
        Self::Vmm,
        Self::Fsd,
        Self::Guest,
    ];

    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Supervisor => "supervisor",
            Self::Network => "network",
            Self::Stub => "stub",
            Self::Hooks => "hooks",
            Self::Vmm => "vmm",
            Self::Fsd => "fsd",
            Self::Guest => "guest",
        }
    }
}

/// Something that took time, or a moment: then it ends when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Whose.
    pub lane: Lane,
    /// What.
    pub name: String,
    /// From when on.
    pub begin_ns: u64,
    /// Until when; absent while it goes on.
    pub end_ns: Option<u64>,
    /// How many like it, one after the other, it stands for.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u32,
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_one(count: &u32) -> bool {
    *count == 1
}

impl Span {
    /// What took from `begin_ns` to `end_ns`.
    #[must_use]
    pub fn new(lane: Lane, name: impl Into<String>, begin_ns: u64, end_ns: u64) -> Self {
        Self {
            lane,
            name: name.into(),
            begin_ns,
            end_ns: Some(end_ns.max(begin_ns)),
            count: 1,
        }
    }

    /// A moment.
    #[must_use]
    pub fn mark(lane: Lane, name: impl Into<String>, at_ns: u64) -> Self {
        Self::new(lane, name, at_ns, at_ns)
    }

    /// Whether it is a moment.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        self.end_ns == Some(self.begin_ns)
    }
}

/// Something that was asked of a sandbox, or that it did by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// `boot`, `create`, `start`, `exec`, `exit`, `delete` and so on.
    pub name: String,
    /// Of which container; absent for the whole sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// Of which exec of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecId>,
    /// From when on.
    pub begin_ns: u64,
    /// Until when; absent while it goes on.
    pub end_ns: Option<u64>,
    /// What happened in it, in the order in which it became known.
    pub spans: Vec<Span>,
    /// Spans beyond the most that are kept.
    #[serde(default)]
    pub dropped: u32,
}

/// What a client measured of an operation by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The operation's name.
    pub operation: String,
    /// Of which container.
    pub container: ContainerId,
    /// Of which exec of it.
    #[serde(default)]
    pub exec: Option<ExecId>,
    /// What it measured.
    pub spans: Vec<Span>,
}

/// The newest operations of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Format version.
    pub version: u32,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Oldest first; its start is kept however many there were since.
    pub operations: Vec<Operation>,
    /// Operations there were between those that are kept.
    #[serde(default)]
    pub forgotten: u64,
    /// What the guest measured is at most this far from where it is shown; absent if it measured nothing.
    #[serde(default)]
    pub guest_error_ns: Option<u64>,
}

impl Timeline {
    /// One in which nothing happened.
    #[must_use]
    pub const fn new(sandbox: SandboxId) -> Self {
        Self {
            version: VERSION,
            sandbox,
            operations: Vec::new(),
            forgotten: 0,
            guest_error_ns: None,
        }
    }

    /// Whether anything of `container` is in it.
    #[must_use]
    pub fn names(&self, container: &ContainerId) -> bool {
        self.sandbox == SandboxId::from(container)
            || self
                .operations
                .iter()
                .any(|one| one.container.as_ref() == Some(container))
    }

    /// Only what concerns `container`: its own operations and those of the whole sandbox. All of it for the
    /// container that the sandbox is named after.
    #[must_use]
    pub fn of(mut self, container: &ContainerId) -> Self {
        if self.sandbox != SandboxId::from(container) {
            self.operations
                .retain(|one| one.container.as_ref().is_none_or(|of| of == container));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::new(text).unwrap()
    }

    fn operation(container: Option<&str>) -> Operation {
        Operation {
            name: "x".into(),
            container: container.map(id),
            exec: None,
            begin_ns: 1,
            end_ns: None,
            spans: Vec::new(),
            dropped: 0,
        }
    }

    #[test]
    fn a_neighbour_is_left_out() {
        let mut timeline = Timeline::new(SandboxId::new("pod").unwrap());
        timeline.operations = vec![
            operation(None),
            operation(Some("pod")),
            operation(Some("a")),
            operation(Some("b")),
        ];
        assert!(timeline.names(&id("a")) && timeline.names(&id("pod")) && !timeline.names(&id("c")));
        let left = |of: &str| -> Vec<Option<String>> {
            let shown = timeline.clone().of(&id(of)).operations;
            shown
                .iter()
                .map(|one| one.container.as_ref().map(ToString::to_string))
                .collect()
        };
        assert_eq!(left("a"), [None, Some("a".to_owned())]);
        assert_eq!(left("pod").len(), 4);
    }

    #[test]
    fn a_span_never_ends_before_it_begins() {
        assert!(Span::new(Lane::Cli, "x", 5, 3).is_mark());
        assert!(!Span::new(Lane::Cli, "x", 3, 5).is_mark());
    }

    #[test]
    fn lanes_are_named_as_in_json() {
        for lane in Lane::ALL {
            assert_eq!(serde_json::to_value(lane).unwrap(), lane.name());
        }
    }
}
