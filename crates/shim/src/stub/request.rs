//! What a verb asks for when it wants a stub.
//!
//! Owns: the request and its defaults from a plan. Never: starts anything.

use super::View;
use bulkhead_model::{ContainerPlan, HostProcess, ProcessKey, oci};
use bulkhead_sandbox::StdioSet;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The standard streams of the process, as the stub holds them.
#[derive(Debug)]
pub enum Stdio {
    /// The slave of a pseudo-terminal; the stub puts it into raw mode and makes it its controlling terminal.
    Terminal(OwnedFd),
    /// Separate streams; one that is `None` is `/dev/null` on the stub and not there for the process.
    Streams {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
}

impl Stdio {
    /// Duplicates of this process's own three streams.
    ///
    /// # Errors
    /// What fcntl(2) reports; a stream that is closed is `None`, not an error.
    pub fn inherit() -> std::io::Result<Self> {
        use std::os::fd::AsFd;
        let duplicate = |fd: std::os::fd::BorrowedFd<'_>| match fd.try_clone_to_owned() {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.raw_os_error() == Some(nix::libc::EBADF) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(Self::Streams {
            stdin: duplicate(std::io::stdin().as_fd())?,
            stdout: duplicate(std::io::stdout().as_fd())?,
            stderr: duplicate(std::io::stderr().as_fd())?,
        })
    }
}

/// Streams for the supervisor alone: a stub without any of its own goes with them.
#[derive(Debug)]
pub struct Handover {
    /// Which there are.
    pub set: StdioSet,
    /// They, in that order.
    pub fds: Vec<OwnedFd>,
    /// Initial terminal size (columns, rows).
    pub size: Option<(u16, u16)>,
}

/// Where the stub lives.
#[derive(Debug)]
pub enum Namespaces {
    /// New ones: for a container.
    New {
        /// What the mount namespace shows.
        view: Box<View>,
        /// Network namespace to enter; see [`StubRequest::for_container`].
        network: NetworkChoice,
    },
    /// Those of the container's stub: for an exec.
    Join(HostProcess),
}

/// The stub's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkChoice {
    /// The one at this path.
    Path(PathBuf),
    /// A new, empty one.
    New,
    /// This process's own.
    Inherit,
}

impl NetworkChoice {
    /// What the spec says: of several network namespaces the last path that is not empty (O-05).
    #[must_use]
    pub fn of(spec: &oci::Spec) -> Self {
        let all: Vec<&oci::LinuxNamespace> = spec
            .linux()
            .iter()
            .filter_map(|linux| linux.namespaces().as_ref())
            .flatten()
            .filter(|ns| ns.typ() == oci::LinuxNamespaceType::Network)
            .collect();
        let path = all
            .iter()
            .rev()
            .filter_map(|ns| ns.path().as_ref())
            .find(|path| !path.as_os_str().is_empty());
        match path {
            Some(path) => Self::Path(path.clone()),
            None if all.is_empty() => Self::Inherit,
            None => Self::New,
        }
    }
}

/// A stub to be started.
#[derive(Debug)]
pub struct StubRequest {
    /// The process it stands for.
    pub key: ProcessKey,
    /// The supervisor's control socket.
    pub control_socket: PathBuf,
    /// Value of `BULKHEAD_SANDBOX` in its environment: `<sandbox marker>/stub`.
    pub marker: String,
    /// The streams the stub holds, duplicates of which the supervisor gets.
    pub stdio: Stdio,
    /// What the supervisor gets in place of those duplicates.
    pub handover: Option<Handover>,
    /// Where it lives.
    pub namespaces: Namespaces,
    /// Where it writes a line when something goes wrong later on; opened for appending.
    pub log: Option<OwnedFd>,
    /// The program; `None` is this one (tests name another).
    pub program: Option<PathBuf>,
}

impl StubRequest {
    /// For a container's own process: its view and network namespace from the plan.
    #[must_use]
    pub fn for_container(plan: &ContainerPlan, control_socket: PathBuf, marker: &str, stdio: Stdio) -> Self {
        Self {
            key: ProcessKey {
                container: plan.id.clone(),
                exec: None,
            },
            control_socket,
            marker: format!("{marker}/stub"),
            stdio,
            handover: None,
            namespaces: Namespaces::New {
                view: Box::new(View::of(plan)),
                network: NetworkChoice::of(&plan.spec),
            },
            log: None,
            program: None,
        }
    }

    /// Has it write what goes wrong later on to `path`, if that can be opened.
    pub fn log_to(&mut self, path: &Path) {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path);
        self.log = file.ok().map(OwnedFd::from);
    }

    /// For a further process: it joins the namespaces of the container's stub.
    #[must_use]
    pub fn for_exec(
        key: ProcessKey,
        container_stub: HostProcess,
        control_socket: PathBuf,
        marker: &str,
        stdio: Stdio,
    ) -> Self {
        Self {
            key,
            control_socket,
            marker: format!("{marker}/stub"),
            stdio,
            handover: None,
            namespaces: Namespaces::Join(container_stub),
            log: None,
            program: None,
        }
    }
}
