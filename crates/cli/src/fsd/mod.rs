//! `bulkhead fsd` (hidden): the shared-filesystem daemon of one sandbox, a vhost-user device of QEMU.
//!
//! ```text
//! supervisor ── listening socket (inherited) ──► fsd ◄── QEMU connects ── guest mounts "bulkhead"
//!     └── binds a rootfs below the share ── propagates (shared → slave) ──► seen by fsd
//! ```
//! Order, each step taking something away: descriptor limit raised, own namespaces entered with the share
//! as root ([`confine`]), seccomp filter, capabilities. Then it serves until QEMU disconnects.
//!
//! The socket listens before the daemon starts, so nobody waits for it to become ready.
//!
//! Owns: the `virtiofsd` library's settings. Never: what is bound into the share. Started by the supervisor
//! with the environment marker of its sandbox; called by `main`.

mod confine;
mod programs;

use bulkhead_host::inherited::take_inherited;
use confine::Confined;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use programs::Programs;
use std::io::Write;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Descriptors kept for the daemon itself: one for each of up to 509 memory regions of a vhost-user
/// device, and a hundred for sockets, events and files in the act of being opened.
const OWN_DESCRIPTORS: u64 = 509 + 100;

/// What it needs to act for any user of the guest on files of the host, and nothing more:
/// capabilities(7). `DAC_READ_SEARCH` is for open_by_handle_at(2).
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "MKNOD",
    "SETFCAP",
    "SETGID",
    "SETUID",
];

/// Arguments of the hidden verb.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct FsdArgs {
    /// Inherited listening vhost-user socket
    #[arg(long, value_name = "N")]
    pub(crate) socket_fd: RawFd,
    /// Directory to share: a mount point of its own, made shared by the caller
    #[arg(long, value_name = "DIR")]
    pub(crate) shared_dir: PathBuf,
    /// It is no mount point but a plain directory: nothing bound into it later would be seen
    #[arg(long)]
    pub(crate) plain: bool,
    /// How long the guest may keep names, attributes and contents
    #[arg(long, value_enum, default_value_t = Cache::Auto)]
    pub(crate) cache: Cache,
    /// Tell the guest which directories are mount points, so that inode numbers stay unique
    #[arg(long)]
    pub(crate) announce_submounts: bool,
}

/// Cache modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cache {
    /// Names and attributes for a second, contents while a file is open; a program's until it changes.
    Auto,
    /// Everything, for good.
    Always,
    /// Nothing.
    Never,
    /// Names and attributes for good, no contents.
    Metadata,
}

impl Cache {
    fn policy(self) -> CachePolicy {
        match self {
            Self::Auto => CachePolicy::Auto,
            Self::Always => CachePolicy::Always,
            Self::Never => CachePolicy::Never,
            Self::Metadata => CachePolicy::Metadata,
        }
    }

    /// How long the guest may trust a name or attribute.
    fn timeout(self) -> Duration {
        match self {
            Self::Auto => Duration::from_secs(1),
            Self::Never => Duration::ZERO,
            Self::Always | Self::Metadata => Duration::from_secs(24 * 3600),
        }
    }

    /// Contents are not cached: a shared mapping is only possible when allowed apart.
    fn bypasses_page_cache(self) -> bool {
        matches!(self, Self::Never | Self::Metadata)
    }
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsdError {
    /// The socket's number is wrong.
    #[error("--socket-fd {number}")]
    Socket {
        /// The number.
        number: RawFd,
        /// Why it cannot be used.
        #[source]
        source: std::io::Error,
    },
    /// The descriptor limit.
    #[error("raising the limit of open files")]
    Limit(#[source] nix::Error),
    /// The hard limit leaves nothing for the guest.
    #[error("the hard limit of open files is {limit}: expected more than {OWN_DESCRIPTORS}")]
    LimitTooLow {
        /// RLIMIT_NOFILE.
        limit: u64,
    },
    /// Namespaces or root.
    #[error("{shared}")]
    Confine {
        /// The share.
        shared: PathBuf,
        /// The step that failed.
        #[source]
        source: confine::ConfineError,
    },
    /// The system call filter.
    #[error("system call filter: {0}")]
    Seccomp(String),
    /// Capabilities.
    #[error("dropping capabilities: {0}")]
    Capabilities(String),
    /// The file system.
    #[error("file system")]
    FileSystem(#[source] std::io::Error),
    /// The vhost-user device.
    #[error("vhost-user: {0}")]
    Device(String),
}

/// Serves the share until QEMU disconnects.
///
/// # Errors
/// The step that failed; the process ends, and with it everything it set up.
pub(crate) fn run(arguments: &FsdArgs) -> Result<(), FsdError> {
    StderrLog::install();
    let socket = |source| FsdError::Socket {
        number: arguments.socket_fd,
        source,
    };
    let listener = UnixListener::from(take_inherited(arguments.socket_fd).map_err(socket)?);
    // Proves that it is a listening unix socket before anything is given up.
    listener.local_addr().map_err(socket)?;
    let limit = raise_descriptor_limit()?;
    let guest_fd_limit = limit
        .checked_sub(OWN_DESCRIPTORS)
        .filter(|left| *left > 0)
        .ok_or(FsdError::LimitTooLow { limit })?;
    let confined =
        confine::enter(&arguments.shared_dir, arguments.plain).map_err(|source| FsdError::Confine {
            shared: arguments.shared_dir.clone(),
            source,
        })?;
    enable_seccomp(SeccompAction::Kill, false).map_err(|e| FsdError::Seccomp(e.to_string()))?;
    drop_capabilities()?;
    let fs =
        PassthroughFs::new(settings(arguments, guest_fd_limit, confined)).map_err(FsdError::FileSystem)?;
    let fs = Programs::new(fs, arguments.cache == Cache::Auto);
    serve(fs, Listener::from(listener))
}

fn settings(arguments: &FsdArgs, guest_fd_limit: u64, confined: Confined) -> Config {
    let cache = arguments.cache;
    Config {
        entry_timeout: cache.timeout(),
        attr_timeout: cache.timeout(),
        cache_policy: cache.policy(),
        root_dir: "/".to_owned(),
        // File capabilities and user attributes of images are extended attributes.
        xattr: true,
        proc_sfd_rawfd: Some(confined.descriptors),
        proc_mountinfo_rawfd: Some(confined.mountinfo),
        announce_submounts: arguments.announce_submounts,
        // A handle needs no open descriptor: a large rootfs fits under any limit.
        inode_file_handles: InodeFileHandlesMode::Prefer,
        readdirplus: cache != Cache::Never,
        // Without it a program that maps a file shared gets ENODEV in these modes.
        allow_mmap: cache.bypasses_page_cache(),
        guest_fd_limit,
        // The library takes the maps out once and treats "no map given" as one to build.
        uid_map: Some(Vec::new()),
        gid_map: Some(Vec::new()),
        ..Config::default()
    }
}

fn serve(fs: Programs, mut listener: Listener) -> Result<(), FsdError> {
    let device = |e: &dyn std::fmt::Display| FsdError::Device(e.to_string());
    let backend = VhostUserFsBackendBuilder::default()
        .build(fs)
        .map_err(|e| device(&e))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon =
        VhostUserDaemon::new("fsd".to_owned(), Arc::new(backend), memory).map_err(|e| device(&e))?;
    daemon.start(&mut listener).map_err(|e| device(&e))?;
    // A second client would wait for ever: refuse it.
    drop(listener);
    match daemon.wait() {
        Ok(()) => Ok(()),
        // QEMU ended, or was killed in the middle of a message.
        Err(vhost_user_backend::Error::HandleRequest(
            VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
        )) => Ok(()),
        Err(other) => Err(device(&other)),
    }
}

/// Raises the soft limit to the hard one; the hard one needs CAP_SYS_RESOURCE, which root may lack.
fn raise_descriptor_limit() -> Result<u64, FsdError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(FsdError::Limit)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(FsdError::Limit)?;
    }
    Ok(hard)
}

fn drop_capabilities() -> Result<(), FsdError> {
    let failed = |e: capng::Error| FsdError::Capabilities(e.to_string());
    capng::clear(capng::Set::BOTH);
    capng::updatev(
        capng::Action::ADD,
        capng::Type::PERMITTED | capng::Type::EFFECTIVE,
        CAPABILITIES.to_vec(),
    )
    .map_err(failed)?;
    capng::apply(capng::Set::BOTH).map_err(failed)
}

/// The library's warnings as lines on standard error, which the supervisor reads into the sandbox log.
struct StderrLog;

impl StderrLog {
    fn install() {
        // A logger that is set already is as good.
        if log::set_logger(&StderrLog).is_ok() {
            log::set_max_level(log::LevelFilter::Warn);
        }
    }
}

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // Nobody reads any more: nothing to be done about it.
            let _ = writeln!(std::io::stderr(), "{}", record.args());
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: FsdArgs,
    }

    #[test]
    fn arguments_as_the_supervisor_writes_them() {
        let line = "fsd --socket-fd 5 --shared-dir /share --plain --cache never --announce-submounts";
        let parsed = Line::try_parse_from(line.split(' ')).unwrap().arguments;
        assert_eq!(
            parsed,
            FsdArgs {
                socket_fd: 5,
                shared_dir: "/share".into(),
                plain: true,
                cache: Cache::Never,
                announce_submounts: true,
            }
        );
        for (name, cache) in [
            ("auto", Cache::Auto),
            ("always", Cache::Always),
            ("metadata", Cache::Metadata),
        ] {
            let line = format!("fsd --socket-fd 3 --shared-dir / --cache {name}");
            let parsed = Line::try_parse_from(line.split(' ')).unwrap().arguments;
            assert_eq!(parsed.cache, cache);
        }
        assert!(
            Line::try_parse_from(["fsd", "--socket-fd", "3", "--shared-dir", "/", "--cache", "x"]).is_err()
        );
    }

    #[test]
    fn a_socket_that_is_not_there_is_named() {
        let arguments = FsdArgs {
            socket_fd: 999_999,
            shared_dir: "/".into(),
            plain: false,
            cache: Cache::Auto,
            announce_submounts: false,
        };
        let error = run(&arguments).unwrap_err().to_string();
        assert!(error.contains("--socket-fd 999999"), "{error}");
    }
}
