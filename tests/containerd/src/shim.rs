//! A shim without containerd: the test plays containerd's part.
//!
//! ```text
//!  bundle ─► `shim start` ─► address ─► call(method, message) … ─► Shutdown      `shim delete`
//! ```

use crate::place::{Engine, Place};
use bulkhead_e2e::{Lab, Outcome};
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, KillRequest, Mount,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{self, Client, Code, Request};
use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest a call may take.
const DEADLINE: Duration = Duration::from_secs(180);

/// A refusal: its code and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// gRPC code.
    pub code: Code,
    /// One line.
    pub message: String,
}

/// A bundle as containerd makes it: config.json, and an empty `rootfs` for the mounts of the create.
#[derive(Debug)]
pub struct Bundle {
    /// Container id.
    pub id: String,
    /// The directory.
    pub dir: PathBuf,
    lower: PathBuf,
    /// The FIFO the shim's log lines come through.
    log: std::fs::File,
}

impl Bundle {
    /// Makes one whose process is a shell script.
    #[must_use]
    pub fn make(place: &Place, id: &str, script: &str) -> Self {
        Self::with(place, id, script, |_| {})
    }

    /// The same with a changed config.json.
    #[must_use]
    pub fn with(place: &Place, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> Self {
        let source = bulkhead_e2e::Bundle::make(&place.dir().join(format!("{id}-source"))).script(script);
        let dir = place.dir().join(id);
        std::fs::create_dir_all(dir.join("rootfs")).unwrap();
        let text = std::fs::read(source.dir().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["root"] = json!({ "path": "rootfs" });
        change(&mut config);
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let lower = source.rootfs();
        place.note(place.token(), id);
        let log = dir.join("log");
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let log = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(log)
            .unwrap();
        Self {
            id: id.to_owned(),
            dir,
            lower,
            log,
        }
    }

    /// What came through the log FIFO since the last call.
    #[must_use]
    pub fn logged(&self) -> String {
        let mut text = Vec::new();
        // Ends with the error that there is nothing more for now.
        let _ = (&self.log).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// An overlay as the snapshotter would hand it over.
    #[must_use]
    pub fn overlay(&self) -> Mount {
        let below = |name: &str| {
            let path = self.dir.with_file_name(format!("{}-{name}", self.id));
            std::fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                format!("workdir={}", below("work")),
                format!("upperdir={}", below("upper")),
                format!("lowerdir={}", self.lower.display()),
            ],
            ..Mount::default()
        }
    }

    /// The directory the overlay writes to.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.with_file_name(format!("{}-upper", self.id))
    }

    /// A bind of the files themselves.
    #[must_use]
    pub fn bind(&self, options: &[&str]) -> Mount {
        Mount {
            type_: "bind".to_owned(),
            source: self.lower.display().to_string(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Mount::default()
        }
    }

    /// A FIFO in the bundle; its path.
    #[must_use]
    pub fn fifo(&self, name: &str) -> String {
        let path = self.dir.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        path.display().to_string()
    }
}

/// A connection to a shim.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    /// Where it listens.
    pub address: String,
}

impl Shim {
    /// `start`: what containerd does before the create.
    #[must_use]
    pub fn invoke(place: &Place, engine: Engine, bundle: &Bundle, action: &str) -> Outcome {
        let directory = bundle.dir.to_str().unwrap();
        let args = [
            "-namespace",
            place.token(),
            "-address",
            "",
            "-publish-binary",
            "/bin/true",
            "-id",
            &bundle.id,
            "-bundle",
            directory,
            action,
        ];
        place
            .program(engine.shim(), &args)
            .directory(&bundle.dir)
            .env("BULKHEAD_CONFIG", Lab::config().to_str().unwrap())
            .run()
    }

    /// Starts a shim, or finds the pod's, and connects.
    #[track_caller]
    #[must_use]
    pub fn start(place: &Place, engine: Engine, bundle: &Bundle) -> Self {
        let address = Self::invoke(place, engine, bundle, "start").ok().text();
        Self::connect(address.trim())
    }

    /// Connects to an address.
    #[must_use]
    pub fn connect(address: &str) -> Self {
        Self {
            client: Client::connect(address).unwrap(),
            address: address.to_owned(),
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        Path::new(self.address.trim_start_matches("unix://"))
    }

    /// Calls a method of a service.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn ask<T: Message>(&self, service: &str, method: &str, message: &impl Message) -> Result<T, Refused> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            timeout_nano: i64::try_from(DEADLINE.as_nanos()).unwrap(),
            payload: message.write_to_bytes().unwrap(),
            ..Request::default()
        };
        match self.client.request(request) {
            Ok(response) => Ok(T::parse_from_bytes(&response.payload).unwrap()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Refused {
                code: status.code(),
                message: status.message,
            }),
            Err(other) => panic!("{service}/{method}: {other}"),
        }
    }

    /// Calls a method of the Task service.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn call<T: Message>(&self, method: &str, message: &impl Message) -> Result<T, Refused> {
        self.ask("containerd.task.v2.Task", method, message)
    }

    /// Create, with the overlay as root file system and no streams.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn create(&self, bundle: &Bundle) -> Result<CreateTaskResponse, Refused> {
        self.create_as(bundle, |_| {})
    }

    /// Create with a changed request.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn create_as(
        &self,
        bundle: &Bundle,
        change: impl FnOnce(&mut CreateTaskRequest),
    ) -> Result<CreateTaskResponse, Refused> {
        let mut request = CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.dir.display().to_string(),
            rootfs: vec![bundle.overlay()],
            ..CreateTaskRequest::default()
        };
        change(&mut request);
        self.call("Create", &request)
    }

    /// Start of a container or an exec.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn begin(&self, id: &str, exec: &str) -> Result<StartResponse, Refused> {
        let request = StartRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..StartRequest::default()
        };
        self.call("Start", &request)
    }

    /// Kill.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn kill(&self, id: &str, exec: &str, signal: u32) -> Result<Empty, Refused> {
        let request = KillRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            ..KillRequest::default()
        };
        self.call("Kill", &request)
    }

    /// Wait.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn wait(&self, id: &str, exec: &str) -> Result<WaitResponse, Refused> {
        let request = WaitRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..WaitRequest::default()
        };
        self.call("Wait", &request)
    }

    /// State.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn state(&self, id: &str, exec: &str) -> Result<StateResponse, Refused> {
        let request = StateRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..StateRequest::default()
        };
        self.call("State", &request)
    }

    /// Delete.
    ///
    /// # Errors
    /// The status the shim answers with.
    pub fn delete(&self, id: &str, exec: &str) -> Result<DeleteResponse, Refused> {
        let request = DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..DeleteRequest::default()
        };
        self.call("Delete", &request)
    }

    /// Shutdown; a shim that is gone before its answer has arrived has done it.
    pub fn shutdown(&self, id: &str) {
        let request = ShutdownRequest {
            id: id.to_owned(),
            ..ShutdownRequest::default()
        };
        let _ = self.client.request(Request {
            service: "containerd.task.v2.Task".to_owned(),
            method: "Shutdown".to_owned(),
            timeout_nano: i64::try_from(DEADLINE.as_nanos()).unwrap(),
            payload: request.write_to_bytes().unwrap(),
            ..Request::default()
        });
    }
}
