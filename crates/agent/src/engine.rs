//! What makes a container's processes; everything else about a container is the agent's own.
//!
//! ```text
//!  create ─► (waits) ─► start ─► exec … ─► forget
//! ```
//!
//! Owns: the trait and its first implementation, by `libcontainer` in workers of the fork server. Signals, limits,
//! freezing, statistics and waiting need only the cgroup and the pid and are not part of it.

use crate::launch::{CreateOrder, ExecOrder, Launched, Launcher, Order, Refusal, UserMaps};
use bulkhead_model::oci::{LinuxNamespaceType, Spec};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A container to be made.
#[derive(Debug)]
pub(crate) struct Blueprint {
    /// Its id.
    pub(crate) id: String,
    /// The rewritten spec.
    pub(crate) spec: Spec,
    /// Maps of the user namespace to make; the spec then has one without a path.
    pub(crate) users: Option<UserMaps>,
    /// `MS_MOVE` in place of `pivot_root`.
    pub(crate) no_pivot: bool,
    /// Keep the session keyring.
    pub(crate) no_new_keyring: bool,
}

/// What the engine knows a container by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handle(String);

/// Makes containers. Calls block.
pub(crate) trait Engine: Send + Sync {
    /// Makes a container; its process waits for `start`. Without a terminal `stdio` has three descriptors.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is left behind then.
    fn create(&self, blueprint: &Blueprint, stdio: Vec<OwnedFd>) -> Result<(Handle, Launched), Refusal>;

    /// Lets its process run.
    ///
    /// # Errors
    /// [`Refusal`].
    fn start(&self, container: &Handle) -> Result<(), Refusal>;

    /// Runs a further process.
    ///
    /// # Errors
    /// [`Refusal`].
    fn exec(&self, order: ExecOrder, stdio: Vec<OwnedFd>) -> Result<Launched, Refusal>;

    /// Drops what is kept about a container whose processes are gone. Unknown is fine.
    fn forget(&self, container: &Handle);
}

fn name_user_namespace(spec: &mut Spec, file: &Path) {
    let Some(linux) = spec.linux_mut() else { return };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut namespaces {
        if namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none() {
            namespace.set_path(Some(file.to_owned()));
        }
    }
    linux.set_namespaces(Some(namespaces));
}

/// `libcontainer`, one worker process per call.
#[derive(Debug)]
pub(crate) struct Library {
    launcher: Launcher,
    directory: PathBuf,
    count: AtomicU64,
}

impl Library {
    /// Keeps its state below `directory`.
    #[must_use]
    pub(crate) fn new(launcher: Launcher, directory: &Path) -> Self {
        Self {
            launcher,
            directory: directory.to_owned(),
            count: AtomicU64::new(0),
        }
    }

    fn bundle(&self, handle: &Handle) -> PathBuf {
        self.directory.join("bundles").join(&handle.0)
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

impl Engine for Library {
    fn create(&self, blueprint: &Blueprint, stdio: Vec<OwnedFd>) -> Result<(Handle, Launched), Refusal> {
        // A number, not the id: socket paths below the state directory must stay short (unix(7): 107 bytes).
        let handle = Handle(self.count.fetch_add(1, Ordering::Relaxed).to_string());
        let bundle = self.bundle(&handle);
        let users = blueprint.users.clone().map(|maps| (maps, bundle.join("users")));
        let mut spec = blueprint.spec.clone();
        if let Some((_, file)) = &users {
            name_user_namespace(&mut spec, file);
        }
        let write = || -> io::Result<()> {
            fs::create_dir_all(&bundle)?;
            fs::create_dir_all(self.state())?;
            fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)
        };
        write().map_err(|error| Refusal::internal("writing the bundle", &error))?;
        let order = Order::Create(CreateOrder {
            name: handle.0.clone(),
            bundle,
            state: self.state(),
            no_pivot: blueprint.no_pivot,
            keyring: (!blueprint.no_new_keyring).then(|| format!("_ses.{}", blueprint.id)),
            users,
            terminal: stdio.is_empty(),
        });
        match self.launcher.launch(&order, &stdio) {
            Ok(launched) => Ok((handle, launched)),
            Err(refusal) => {
                self.forget(&handle);
                Err(refusal)
            }
        }
    }

    fn start(&self, container: &Handle) -> Result<(), Refusal> {
        let socket = self.state().join(&container.0).join("notify.sock");
        UnixStream::connect(socket)
            .and_then(|mut stream| stream.write_all(b"start container"))
            .map_err(|error| Refusal::internal("starting the container's process", &error))
    }

    fn exec(&self, order: ExecOrder, stdio: Vec<OwnedFd>) -> Result<Launched, Refusal> {
        self.launcher.launch(&Order::Exec(Box::new(order)), &stdio)
    }

    fn forget(&self, container: &Handle) {
        // In memory (tmpfs), and only a few files: a failure here cannot be anything but "not there".
        let _ = fs::remove_dir_all(self.bundle(container));
        let _ = fs::remove_dir_all(self.state().join(&container.0));
    }
}
