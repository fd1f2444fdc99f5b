//! The API of a sandbox: one enum. OCI verbs and shim calls become the same values.
//!
//! Owns: what can be asked of a sandbox and what it answers. Never: transport (see `shim::client`).

use bulkhead_model::plan::RootMount;
use bulkhead_model::timeline::{Timeline, Told};
use bulkhead_model::{
    ContainerId, ContainerPlan, ExitStatus, HostProcess, ProcessKey, SandboxSnapshot, stats::ContainerStats,
};
use bulkhead_protocol::GuestProcess;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which descriptors of an `Attach` are there; they come in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioSet {
    /// The process gets a terminal. Without another flag one descriptor comes, the pty slave in raw mode, used in both
    /// directions; otherwise its input and output come apart, as `stdin` and `stdout` say.
    pub terminal: bool,
    /// Standard input follows.
    pub stdin: bool,
    /// Standard output follows.
    pub stdout: bool,
    /// Standard error follows.
    pub stderr: bool,
}

/// Asked of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// A stub reports for duty and hands over duplicates of its stdio. The connection stays open and
    /// carries [`Notice`]s to the stub; the stub may send `Signal` and `Resize` for its own process on it.
    /// The connection's end without an exit means the stub died: its process is killed.
    Attach {
        /// The process it stands for.
        key: ProcessKey,
        /// The stub itself.
        stub: HostProcess,
        /// Which descriptors came along.
        stdio: StdioSet,
        /// Initial terminal size (columns, rows).
        size: Option<(u16, u16)>,
    },
    /// Waits for the boot; answers its failure.
    AwaitBoot,
    /// Mounts a container's root file system; its create follows. A failure leaves nothing mounted.
    MountRoot {
        /// The container.
        id: ContainerId,
        /// The directory it is mounted at.
        target: PathBuf,
        /// What is mounted there, in order.
        mounts: Vec<RootMount>,
    },
    /// Makes a container (C-10); waits for the boot if need be. Its stub attached before.
    Create {
        /// The container.
        plan: Box<ContainerPlan>,
    },
    /// Makes a container and lets its process run: `Create` and `Start` with nothing between them.
    Run {
        /// The container.
        plan: Box<ContainerPlan>,
    },
    /// C-12.
    Start {
        /// The container.
        id: ContainerId,
    },
    /// Starts a further process (C-16); its stub attached before.
    Exec {
        /// Container and exec id.
        key: ProcessKey,
        /// OCI process.
        process: Box<bulkhead_model::oci::Process>,
    },
    /// C-17.
    Signal {
        /// The process.
        key: ProcessKey,
        /// Signal number, 1 to 64.
        signal: i32,
        /// Every process of the container.
        all: bool,
    },
    /// C-18.
    Resize {
        /// The process.
        key: ProcessKey,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Ends the standard input of a process.
    CloseStdin {
        /// The process.
        key: ProcessKey,
    },
    /// Waits until the process has ended and its output was delivered; answers [`Reply::Exited`].
    Wait {
        /// The process.
        key: ProcessKey,
    },
    /// Removes a container (C-15); the last one takes the sandbox with it and the supervisor ends
    /// after it answered. With `force` a running container is stopped first.
    Delete {
        /// The container.
        id: ContainerId,
        /// Also when it is not stopped.
        force: bool,
    },
    /// A stop with patience (C-14): the container's process gets time to end by itself, then it is killed. The
    /// container stays, stopped.
    Stop {
        /// The container.
        id: ContainerId,
        /// How long it may take to end by itself, in milliseconds.
        patience_ms: u64,
    },
    /// Waits until more than `out_of_memory` processes of the container were killed for want of memory, or its own
    /// has ended; answers [`Reply::Happened`].
    Watch {
        /// The container.
        id: ContainerId,
        /// Kills the asker knows of.
        out_of_memory: u64,
    },
    /// C-21.
    Pause {
        /// The container.
        id: ContainerId,
    },
    /// C-21.
    Resume {
        /// The container.
        id: ContainerId,
    },
    /// C-20; OCI LinuxResources.
    Update {
        /// The container.
        id: ContainerId,
        /// What to change.
        resources: Box<bulkhead_model::oci::LinuxResources>,
    },
    /// C-22; answers [`Reply::Processes`].
    Processes {
        /// The container.
        id: ContainerId,
    },
    /// C-19; answers [`Reply::Stats`].
    Stats {
        /// The container.
        id: ContainerId,
    },
    /// The published snapshot; never waits. Answers [`Reply::Snapshot`].
    Snapshot,
    /// Live state as a tree; answers [`Reply::Tree`].
    Inspect,
    /// Where its time went; never waits. Answers [`Reply::Timeline`].
    Timeline,
    /// What the client measured of an operation it asks for next, or asked for. On a connection it gets no answer.
    Tell {
        /// What.
        told: Told,
        /// The operation was carried out already.
        late: bool,
    },
    /// Takes everything down, whatever state it is in.
    Shutdown,
}

/// Answered by a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// To `Wait`.
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// When: nanoseconds since the Unix epoch.
        at_ns: u64,
    },
    /// To `Watch`.
    Happened {
        /// Kills for want of memory so far.
        out_of_memory: u64,
        /// The container's own process has ended.
        ended: bool,
    },
    /// To `Processes`.
    Processes {
        /// All of the container's.
        processes: Vec<GuestProcess>,
    },
    /// To `Stats`.
    Stats {
        /// The figures.
        stats: Box<ContainerStats>,
    },
    /// To `Snapshot`.
    Snapshot {
        /// The sandbox.
        snapshot: Box<SandboxSnapshot>,
    },
    /// To `Inspect`.
    Tree {
        /// Free-form for readers; keys are documented in docs/inspect.md.
        tree: serde_json::Value,
    },
    /// To `Timeline`.
    Timeline {
        /// The newest operations.
        timeline: Box<Timeline>,
    },
}

/// Told to a stub on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// The stub's descriptor 0, 1 or 2 is no longer used: close it.
    StreamEnded {
        /// 0 stdin, 1 stdout, 2 stderr.
        stream: u8,
    },
    /// The process ended; its output may still be on its way. Told of processes that have no stub.
    Ended {
        /// How.
        status: ExitStatus,
        /// When: nanoseconds since the Unix epoch.
        at_ns: u64,
    },
    /// The process ended and all of its output is out: exit with this.
    Exited {
        /// How.
        status: ExitStatus,
    },
}
