//! A real network namespace.
//!
//! Owns: a descriptor of it and a watch in it. Never: order or journal. Everything runs inside by
//! [`Netns::run`], on threads of their own (K-05).

use crate::journal::Resource;
use crate::network::{NetworkModel, NetworkSource, NetworkSpace, TapRequest, refuse_hosts_own, scan};
use async_trait::async_trait;
use bulkhead_host::net::{Netlink, Watch, link, macvtap, redirect, tap, vhost_net};
use bulkhead_host::netns::Netns;
use bulkhead_model::failure::chain;
use bulkhead_model::{Failure, FailureKind, HostProcess, NetworkPlan, NetworkScan, SandboxPlan};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

struct RealSpace {
    netns: Arc<Netns>,
    identity: (u64, u64),
    path: PathBuf,
    watch: AsyncFd<Watch>,
}

/// An error with its causes in one line: what is passed on is text.
fn said(error: impl std::error::Error) -> io::Error {
    io::Error::other(chain(&error))
}

fn path_of(process: HostProcess) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", process.pid))
}

/// Opens a namespace, checked not to be the one this process is in.
fn open_foreign(path: &Path) -> io::Result<Netns> {
    let netns = Netns::open(path).map_err(said)?;
    if netns.is_current().map_err(said)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} is the host's own network namespace: expected one of the pod's own, as a VM cannot share the host's network",
                path.display()
            ),
        ));
    }
    Ok(netns)
}

/// Checks what can be known of a plan's network before anything is made for its sandbox.
///
/// # Errors
/// `InvalidArgument`: the host's own namespace, a path that is missing or something else.
pub fn check_network(plan: &SandboxPlan) -> Result<(), Failure> {
    check(plan).map_err(|error| {
        Failure::new(
            FailureKind::InvalidArgument,
            format!("network of {}: {}", plan.id, chain(&error)),
        )
    })
}

/// See [`check_network`].
pub(super) fn check(plan: &SandboxPlan) -> io::Result<()> {
    refuse_hosts_own(plan)?;
    match &plan.network {
        NetworkPlan::Existing { path } => open_foreign(path).map(drop),
        NetworkPlan::New | NetworkPlan::None => Ok(()),
    }
}

/// Opens it and begins to watch it.
pub(super) fn open(source: &NetworkSource) -> io::Result<Arc<dyn NetworkSpace>> {
    let (netns, path) = match source {
        NetworkSource::Path(path) => (open_foreign(path)?, path.clone()),
        NetworkSource::Process(process) => {
            // Its pid may be another's by the time the file is open: alive after that means it was not.
            let path = path_of(*process);
            let netns = open_foreign(&path)?;
            if !bulkhead_host::process::alive(process.pid, process.start_time).map_err(said)? {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!(
                        "process {} has ended, and its network namespace with it",
                        process.pid
                    ),
                ));
            }
            (netns, path)
        }
        NetworkSource::New => (Netns::new().map_err(said)?, PathBuf::from("(a new one)")),
    };
    let identity = netns.identity()?;
    let watch = netns.run(Watch::begin).map_err(said)?.map_err(said)?;
    Ok(Arc::new(RealSpace {
        netns: Arc::new(netns),
        identity,
        path,
        watch: AsyncFd::new(watch)?,
    }))
}

impl RealSpace {
    /// Runs `code` inside, beside this thread: readers are answered meanwhile.
    async fn inside<T: Send + 'static>(
        &self,
        code: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let netns = Arc::clone(&self.netns);
        tokio::task::spawn_blocking(move || netns.run(code).map_err(said)?)
            .await
            .map_err(io::Error::other)?
    }
}

#[async_trait]
impl NetworkSpace for RealSpace {
    fn identity(&self) -> (u64, u64) {
        self.identity
    }

    fn path(&self) -> &Path {
        &self.path
    }

    async fn scan(&self) -> io::Result<NetworkScan> {
        self.inside(|| scan().map_err(said)).await
    }

    async fn connect(&self, request: TapRequest) -> io::Result<Vec<OwnedFd>> {
        self.inside(move || connect(&request)).await
    }

    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.watch.readable().await?;
            ready.clear_ready();
            if self.watch.get_ref().drain()? {
                return Ok(());
            }
        }
    }

    fn undo(&self, resource: &Resource) -> io::Result<()> {
        let resource = resource.clone();
        self.netns.run(|| undo_inside(&resource)).map_err(said)?
    }
}

fn connect(request: &TapRequest) -> io::Result<Vec<OwnedFd>> {
    let TapRequest {
        interface,
        tap: name,
        queues,
        ..
    } = request;
    let mut fds = match request.model {
        NetworkModel::Macvtap => macvtap(name, interface.index, *queues).map_err(said)?,
        NetworkModel::TcFilter => {
            let fds = tap(name, *queues, interface.mtu).map_err(said)?;
            let index = link::index(name)
                .map_err(said)?
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("the tap {name} is gone")))?;
            let mut netlink = Netlink::open().map_err(said)?;
            redirect::add(&mut netlink, interface.index, index).map_err(said)?;
            redirect::add(&mut netlink, index, interface.index).map_err(said)?;
            fds
        }
    };
    if request.vhost {
        fds.extend(vhost_net(*queues));
    }
    Ok(fds)
}

/// Undoes a link or a redirection by its journal entry alone. A namespace that is gone, or whose path leads to
/// another one, has taken it along.
pub(super) fn undo(resource: &Resource) -> io::Result<()> {
    let (Resource::Link { namespace, path, .. } | Resource::Redirect { namespace, path, .. }) = resource
    else {
        return Ok(());
    };
    let Ok(netns) = Netns::open(path) else {
        return Ok(());
    };
    if netns.identity()? != *namespace {
        return Ok(());
    }
    netns.run(|| undo_inside(resource)).map_err(said)?
}

fn undo_inside(resource: &Resource) -> io::Result<()> {
    let mut netlink = Netlink::open().map_err(said)?;
    match resource {
        Resource::Link { name, .. } => link::remove(&mut netlink, name).map_err(said),
        Resource::Redirect { index, tap, .. } => redirect::remove(&mut netlink, *index, tap).map_err(said),
        _ => Ok(()),
    }
}
