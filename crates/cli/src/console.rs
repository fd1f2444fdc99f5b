//! Where the standard streams of a container or exec process come from (K-04).
//!
//! | terminal | `--console` | `--console-socket` | detached | streams |
//! | --- | --- | --- | --- | --- |
//! | no | | | | the caller's own three |
//! | yes | path | | any | the terminal at that path (it wins) |
//! | yes | | path | yes | a new pair, the master sent over the socket |
//! | yes | | | no | a new pair, the master kept for the user's terminal |
//!
//! Every other combination is an error. Owns: that choice. Never: copies data. Called by create, run, exec.

use bulkhead_host::pty::{self, PtyError, WindowSize};
use bulkhead_model::{Failure, FailureKind, oci};
use bulkhead_shim::stub::Stdio;
use clap::Args;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// How long the owner of a console socket may take to accept the terminal.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// Options that choose the terminal.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ConsoleFlags {
    /// Unix socket that gets the master of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Terminal to use as the process's own; wins over --console-socket
    #[arg(long, value_name = "PATH")]
    pub(crate) console: Option<PathBuf>,
}

/// What was chosen.
#[derive(Debug)]
pub(crate) struct Console {
    /// For the stub.
    pub(crate) stdio: Stdio,
    /// The other end of its terminal, when it is this process's to serve.
    pub(crate) master: Option<OwnedFd>,
}

impl Console {
    /// Opens what the flags and the process ask for. `detach`: the caller will not stay.
    ///
    /// # Errors
    /// A combination that cannot work, a terminal or socket that cannot be opened; both name the path.
    pub(crate) fn open(flags: &ConsoleFlags, process: &oci::Process, detach: bool) -> Result<Self, Failure> {
        let refuse = |why: &str| Err(Failure::new(FailureKind::InvalidArgument, why));
        let terminal = process.terminal().unwrap_or(false);
        let socket = flags
            .console_socket
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        let console = flags.console.as_ref().filter(|path| !path.as_os_str().is_empty());
        match (terminal, console, socket) {
            (false, None, None) => {
                let stdio = Stdio::inherit()
                    .map_err(|e| failure(format!("duplicating the standard streams: {e}")))?;
                Ok(Self { stdio, master: None })
            }
            (false, Some(_), _) => refuse("cannot use --console if the process has no terminal"),
            (false, None, Some(_)) => {
                refuse("cannot use console socket if bulkhead will not detach or allocate tty")
            }
            (true, Some(path), _) => {
                let slave = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(nix::libc::O_NOCTTY)
                    .open(path)
                    .map_err(|e| failure(format!("opening the console {}: {e}", path.display())))?;
                if !std::io::IsTerminal::is_terminal(&slave) {
                    return Err(failure(format!(
                        "the console {} is no terminal: expected the path of one",
                        path.display()
                    )));
                }
                Ok(Self {
                    stdio: Stdio::Terminal(slave.into()),
                    master: None,
                })
            }
            (true, None, Some(_)) if !detach => {
                refuse("cannot use console socket if bulkhead will not detach or allocate tty")
            }
            (true, None, None) if detach => {
                refuse("cannot allocate tty if bulkhead will detach without setting console socket")
            }
            (true, None, socket) => {
                let pair = pty::open().map_err(|e| broken(&e))?;
                if let Some(size) = process.console_size() {
                    resize(&pair.master, size);
                }
                let master = match socket {
                    None => Some(pair.master),
                    Some(path) => {
                        pty::send_to_console_socket(path, &pair.master, SEND_DEADLINE)
                            .map_err(|e| broken(&e))?;
                        None
                    }
                };
                Ok(Self {
                    stdio: Stdio::Terminal(pair.slave),
                    master,
                })
            }
        }
    }
}

fn resize(master: &OwnedFd, size: oci::Box) {
    let clamp = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let size = WindowSize {
        columns: clamp(size.width()),
        rows: clamp(size.height()),
    };
    // A size the kernel does not take leaves the terminal without one, as if none had been given.
    let _ = pty::set_window_size(master.as_fd(), size);
}

fn broken(error: &PtyError) -> Failure {
    Failure::from_chain(FailureKind::InvalidArgument, error)
}

fn failure(message: String) -> Failure {
    Failure::new(FailureKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn process(terminal: bool) -> oci::Process {
        serde_json::from_value(serde_json::json!({
            "terminal": terminal, "user": {"uid": 0, "gid": 0}, "cwd": "/",
            "consoleSize": {"width": 100, "height": 40},
        }))
        .unwrap()
    }

    fn flags(console: Option<&str>, socket: Option<&str>) -> ConsoleFlags {
        ConsoleFlags {
            console_socket: socket.map(PathBuf::from),
            console: console.map(PathBuf::from),
        }
    }

    /// K-04: without either there is none; what cannot work is refused.
    #[test]
    fn k04_combinations() {
        let open = |terminal, detach, flags: &ConsoleFlags| Console::open(flags, &process(terminal), detach);
        let none = flags(None, None);
        let plain = open(false, true, &none).unwrap();
        assert!(matches!(plain.stdio, Stdio::Streams { .. }) && plain.master.is_none());
        let own = open(true, false, &none).unwrap();
        assert!(matches!(own.stdio, Stdio::Terminal(_)));
        let size = pty::window_size(own.master.unwrap().as_fd()).unwrap();
        assert_eq!((size.columns, size.rows), (100, 40));
        let socket = flags(None, Some("/nonexistent/socket"));
        for (terminal, detach, flags, words) in [
            (true, true, &none, "without setting console socket"),
            (true, false, &socket, "will not detach or allocate tty"),
            (false, true, &socket, "will not detach or allocate tty"),
            (true, true, &socket, "/nonexistent/socket"),
            (
                true,
                true,
                &flags(Some("/nonexistent/tty"), None),
                "/nonexistent/tty",
            ),
            (true, true, &flags(Some("/dev/null"), None), "/dev/null"),
        ] {
            let failure = open(terminal, detach, flags).unwrap_err();
            assert!(failure.message.contains(words), "{failure}");
        }
    }

    /// K-04: the path of `--console` wins over the socket.
    #[test]
    fn k04_console_wins() {
        let pair = pty::open().unwrap();
        let path = pair.path.to_str().unwrap().to_owned();
        let both = flags(Some(&path), Some("/nonexistent/socket"));
        let console = Console::open(&both, &process(true), true).unwrap();
        assert!(matches!(console.stdio, Stdio::Terminal(_)) && console.master.is_none());
    }

    /// K-04: the master goes over the socket and is closed here.
    #[test]
    fn k04_console_socket() {
        use bulkhead_host::deadline::Deadline;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        let console = Console::open(&flags(None, path.to_str()), &process(true), true).unwrap();
        assert!(console.master.is_none());
        let (stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 64];
        let deadline = Deadline::after(Duration::from_secs(60));
        let (_, fds) = bulkhead_host::fdpass::receive(stream.as_fd(), &mut buffer, 1, deadline).unwrap();
        assert_eq!(fds.len(), 1);
        let size = pty::window_size(fds[0].as_fd()).unwrap();
        assert_eq!((size.columns, size.rows), (100, 40));
    }
}
