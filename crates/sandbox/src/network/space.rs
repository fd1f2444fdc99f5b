//! The network namespace of a sandbox, as one seam: the real one behind it, or a fake that fails on demand.
//!
//! Owns: the trait. Never: order, journal, cards (see [`super`]). Implemented by [`crate::host`] and by the
//! fault-injection fake.

use crate::journal::Resource;
use async_trait::async_trait;
use bulkhead_model::{HostProcess, Interface, NetworkScan};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How frames get from an interface of the namespace to the VMM and back (option `internetworking_model`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkModel {
    /// A tap, and tc filters both ways.
    TcFilter,
    /// A macvtap on the interface.
    Macvtap,
}

/// Which namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkSource {
    /// The one at this path.
    Path(PathBuf),
    /// The one this process lives in.
    Process(HostProcess),
    /// A new one that nobody else knows.
    New,
}

/// The host's end of a card, to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapRequest {
    /// The interface it stands for.
    pub interface: Interface,
    /// Name of the tap.
    pub tap: String,
    /// How the two are connected.
    pub model: NetworkModel,
    /// Queue pairs, from 1.
    pub queues: u16,
    /// Use the host kernel's vhost-net where there is one.
    pub vhost: bool,
}

/// A network namespace that is held open.
#[async_trait]
pub trait NetworkSpace: Send + Sync {
    /// Device and inode.
    fn identity(&self) -> (u64, u64);
    /// Where a process with no memory finds it.
    fn path(&self) -> &Path;
    /// What is in it, without what sandboxes made there.
    async fn scan(&self) -> io::Result<NetworkScan>;
    /// Makes tap and redirections; returns a descriptor for each queue, then, with vhost-net, another for each.
    async fn connect(&self, request: TapRequest) -> io::Result<Vec<OwnedFd>>;
    /// Resolves after a change of links, addresses, routes or neighbours; every change is followed by a return.
    async fn changed(&self) -> io::Result<()>;
    /// Undoes what [`Self::connect`] made, from the journal's entry. What is not there any more is success.
    fn undo(&self, resource: &Resource) -> io::Result<()>;
}
