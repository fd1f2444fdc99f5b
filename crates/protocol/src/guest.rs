//! The guest as the engine sees it: one trait, spoken in model terms.
//!
//! Owns: the calls and what they promise. Never: transport details (see `client`).
//! Implemented by `client::Client` (real) and by the engine's fake. Called by `sandbox`.

use crate::network::GuestNetwork;
use async_trait::async_trait;
use bulkhead_model::{ContainerId, ExitStatus, ProcessKey};
use std::os::fd::OwnedFd;

/// Id of one stdio stream on the data port; the host hands them out, starting at 1.
pub type StreamId = u32;

/// What the agent said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestHello {
    /// Version of the wire.
    pub protocol_version: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Names of optional abilities.
    pub capabilities: Vec<String>,
    /// Guest CLOCK_BOOTTIME in nanoseconds when the agent was ready.
    pub ready_boottime_ns: u64,
    /// The same when the kernel had started it; 0 when it does not say.
    pub init_boottime_ns: u64,
    /// Made once at agent start, kept in guest memory only.
    pub boot_nonce: String,
}

/// One thing the agent did during a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestStep {
    /// What.
    pub name: String,
    /// Guest CLOCK_BOOTTIME in nanoseconds.
    pub begin_ns: u64,
    /// The same.
    pub end_ns: u64,
}

/// What the agent says a call did, on the guest's own CLOCK_BOOTTIME in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSteps {
    /// When it took the call up.
    pub received_ns: u64,
    /// When it was done with it.
    pub answered_ns: u64,
    /// What it did meanwhile.
    pub steps: Vec<GuestStep>,
}

/// A mount the agent makes in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuestStorage {
    /// See `agent.proto`.
    pub driver: String,
    /// Tag, path or PCI path.
    pub source: String,
    /// File system type.
    pub fstype: String,
    /// Mount options.
    pub options: Vec<String>,
    /// Absolute path in the guest.
    pub mount_point: String,
}

/// Who the guest is to be.
#[derive(Debug, Clone, Default)]
pub struct GuestIdentity {
    /// Host name; empty leaves it.
    pub hostname: String,
    /// NIS domain name; empty leaves it.
    pub domainname: String,
    /// Wall clock in nanoseconds since the Unix epoch; 0 leaves it.
    pub time_ns: u64,
    /// Seed for the entropy pool.
    pub entropy: Vec<u8>,
    /// Mounts of the whole sandbox.
    pub storages: Vec<GuestStorage>,
    /// Modules to load, each `name parameter…`.
    pub kernel_modules: Vec<String>,
    /// Shared `/dev/shm` in bytes, 0 for none.
    pub shm_bytes: u64,
    /// More agent output.
    pub debug: bool,
    /// Calls are told as events (O-15).
    pub tracing: bool,
    /// The machine is about to be saved: what is in free memory is overwritten with zeroes.
    pub settle: bool,
    /// The machine is about to be saved without the device of its share: the guest is to keep what the device knows.
    pub keep_share: bool,
}

/// Streams of a process; 0 means not connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuestStdio {
    /// Host to guest.
    pub stdin: StreamId,
    /// Guest to host.
    pub stdout: StreamId,
    /// Guest to host; 0 with a terminal.
    pub stderr: StreamId,
    /// The process gets a terminal.
    pub terminal: bool,
    /// Initial width in characters, 0 unset.
    pub columns: u16,
    /// Initial height in characters, 0 unset.
    pub rows: u16,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct GuestContainer {
    /// Its id.
    pub id: ContainerId,
    /// The patched OCI spec as JSON (C-07).
    pub spec: Vec<u8>,
    /// Its root directory in the guest.
    pub rootfs: String,
    /// Its bundle's directory on the host: what hooks in the container are told (K-06).
    pub bundle: String,
    /// Its own mounts.
    pub storages: Vec<GuestStorage>,
    /// Its streams.
    pub stdio: GuestStdio,
    /// `MS_MOVE` in place of `pivot_root`.
    pub no_pivot: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
    /// Apply the spec's seccomp filter.
    pub seccomp: bool,
    /// Pipe capacity in bytes, 0 for the default.
    pub pipe_bytes: u32,
    /// The whole of `/dev` is bound into it (C-34): nothing is made there.
    pub whole_dev: bool,
    /// Whose pid namespace it is in.
    pub pids: GuestPids,
    /// Its process runs at once; else it waits for [`Guest::start_container`].
    pub start: bool,
}

/// Whose pid namespace a container is in; if its spec names one at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GuestPids {
    /// Its own.
    #[default]
    Own,
    /// That of the pod.
    Pod,
    /// That of another container.
    Of(ContainerId),
}

/// How a process in the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestExit {
    /// Its status.
    pub status: ExitStatus,
    /// The kernel killed something of it for want of memory.
    pub out_of_memory: bool,
    /// Such kills in the container until then.
    pub out_of_memory_kills: u64,
    /// Bytes written to standard output until the end.
    pub stdout_offset: u64,
    /// Bytes written to standard error until the end.
    pub stderr_offset: u64,
    /// No process of any container was left then, and nothing to flush: [`Guest::sync`] has nothing to do until another
    /// container is made.
    pub settled: bool,
}

/// One process inside the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuestProcess {
    /// Pid in the guest.
    pub pid: i32,
    /// Parent's pid.
    pub ppid: i32,
    /// User id.
    pub uid: u32,
    /// User name as the container knows it, or the number.
    pub user: String,
    /// Exec id if it was started by an exec.
    pub exec: Option<String>,
    /// Command line.
    pub command: String,
    /// CPU seconds used.
    pub cpu_s: u64,
    /// Start: seconds since the Unix epoch.
    pub started_s: u64,
    /// Terminal or `?`.
    pub tty: String,
    /// State letter.
    pub state: String,
}

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// A log line of the agent.
    Log {
        /// `error`, `warn`, `info`, `debug`.
        level: String,
        /// One line.
        message: String,
        /// Nanoseconds since the Unix epoch, guest clock.
        time_ns: u64,
    },
    /// A process of the container was killed for want of memory.
    OutOfMemory {
        /// The container.
        container: String,
        /// Kills so far, this one included.
        kills: u64,
    },
}

/// Why a guest call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// The agent refused or failed.
    #[error("{message}")]
    Refused {
        /// Its class.
        kind: bulkhead_model::FailureKind,
        /// One line from the agent.
        message: String,
    },
    /// No answer within the deadline.
    #[error("the agent did not answer {call} within {seconds} s")]
    Deadline {
        /// Which call.
        call: &'static str,
        /// The deadline in seconds.
        seconds: u64,
    },
    /// The connection ended.
    #[error("the connection to the agent ended during {call}")]
    Gone {
        /// Which call.
        call: &'static str,
    },
    /// The guest speaks something else.
    #[error("the agent broke the protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
    /// A host-side stream could not be served.
    #[error("stdio stream {stream}")]
    Stream {
        /// Which.
        stream: StreamId,
        /// Why.
        #[source]
        source: std::sync::Arc<std::io::Error>,
    },
}

/// The agent of one sandbox. Every call has a deadline of its own (except `wait` and `next_events`)
/// and ends early with [`GuestError::Gone`] when the connection does.
#[async_trait]
pub trait Guest: Send + Sync {
    /// What the agent said when it came up.
    fn hello(&self) -> &GuestHello;
    /// Calls answered so far.
    fn calls(&self) -> u64;
    /// What the last call that says so did; at most once for each call. `None` from an agent that does not measure.
    fn take_steps(&self) -> Option<GuestSteps> {
        None
    }
    /// Gives the guest its identity and shared mounts.
    async fn configure(&self, identity: GuestIdentity) -> Result<(), GuestError>;
    /// Makes a container; returns its guest pid.
    async fn create_container(&self, container: GuestContainer) -> Result<i32, GuestError>;
    /// Lets its process run.
    async fn start_container(&self, id: &ContainerId) -> Result<(), GuestError>;
    /// Kills the rest and forgets it. Unknown is success.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), GuestError>;
    /// Starts a further process; `process` is OCI JSON. Returns its guest pid.
    async fn exec(&self, key: &ProcessKey, process: Vec<u8>, stdio: GuestStdio) -> Result<i32, GuestError>;
    /// Sends a signal, to every process of the container if `all`. "No such process" is success (C-17).
    async fn signal(&self, key: &ProcessKey, signal: i32, all: bool) -> Result<(), GuestError>;
    /// Waits for the end of a process; its output may still be on its way (see [`Self::delivered`]).
    /// No deadline.
    async fn wait(&self, key: &ProcessKey) -> Result<GuestExit, GuestError>;
    /// Waits until everything up to `offset` of an output stream has reached its sink, or the stream has
    /// ended, or its sink is gone. No deadline; ends with `Gone` when the connection does. Stream 0 is
    /// delivered at once.
    async fn delivered(&self, stream: StreamId, offset: u64) -> Result<(), GuestError>;
    /// Lets the agent forget an exec.
    async fn forget(&self, key: &ProcessKey) -> Result<(), GuestError>;
    /// Sets the window size.
    async fn resize(&self, key: &ProcessKey, columns: u16, rows: u16) -> Result<(), GuestError>;
    /// The processes of a container.
    async fn processes(&self, id: &ContainerId) -> Result<Vec<GuestProcess>, GuestError>;
    /// Freezes it.
    async fn pause(&self, id: &ContainerId) -> Result<(), GuestError>;
    /// Thaws it.
    async fn resume(&self, id: &ContainerId) -> Result<(), GuestError>;
    /// Applies OCI LinuxResources (JSON).
    async fn update(&self, id: &ContainerId, resources: Vec<u8>) -> Result<(), GuestError>;
    /// Its statistics.
    async fn stats(&self, id: &ContainerId) -> Result<bulkhead_model::stats::ContainerStats, GuestError>;
    /// Brings CPUs (exactly `cpus`, 0 leaves them) and memory online; returns CPUs and memory bytes there are.
    async fn online(&self, cpus: u32, memory: bool) -> Result<(u32, u64), GuestError>;
    /// Waits for events after sequence number `after`. No deadline.
    async fn next_events(&self, after: u64) -> Result<Vec<(u64, GuestEvent)>, GuestError>;
    /// Makes the guest's network this, the whole of it; waits for cards that are being plugged.
    async fn update_network(&self, network: GuestNetwork) -> Result<(), GuestError>;
    /// Has a guest without containers make one, run it and remove it: what is done once is done then.
    async fn rehearse(&self) -> Result<(), GuestError>;
    /// Flushes file systems.
    async fn sync(&self) -> Result<(), GuestError>;

    /// Copies what the guest sends on `stream` to `sink` until it ends; the sink is closed then.
    /// A sink that is gone (EPIPE) closes the guest's side.
    fn connect_output(&self, stream: StreamId, sink: OwnedFd) -> Result<(), GuestError>;
    /// Copies `source` to the guest until its end of file, which is passed on.
    fn connect_input(&self, stream: StreamId, source: OwnedFd) -> Result<(), GuestError>;
    /// Ends an input stream as if its source had ended.
    fn close_input(&self, stream: StreamId);
    /// Drops a stream whose process was never started, or that nobody cares for any more: its descriptor is
    /// closed, and what still comes on it is discarded.
    fn disconnect(&self, stream: StreamId) {
        let _ = stream;
    }
    /// Resolves when `stream` has ended in either direction, or the connection has.
    async fn stream_ended(&self, stream: StreamId);
}
