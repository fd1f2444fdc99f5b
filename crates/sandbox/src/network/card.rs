//! A network card of the VM and what stands for it on the host.
//!
//! Owns: what of a card is journaled, and saved. Never: plugs one. Called by the parent module.

use crate::journal::Resource;
use crate::network::{NetworkModel, NetworkSpace};
use bulkhead_model::Interface;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A plugged card; saved with the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Index of its interface in the namespace.
    pub index: u32,
    /// Name of its tap there.
    pub tap: String,
    /// Device id in the VM.
    pub device: String,
    /// PCI path as the guest sees it.
    pub pci_path: String,
}

/// A sandbox's network as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNetwork {
    /// Where the namespace was found.
    pub path: PathBuf,
    /// Device and inode of the namespace.
    pub namespace: (u64, u64),
    /// Its cards.
    pub cards: Vec<Card>,
}

/// What connecting a card acquires, in the order it does.
pub(super) fn resources(
    space: &dyn NetworkSpace,
    interface: &Interface,
    tap: &str,
    model: NetworkModel,
) -> Vec<Resource> {
    let namespace = space.identity();
    let path = space.path().to_owned();
    let link = Resource::Link {
        name: tap.to_owned(),
        namespace,
        path: path.clone(),
    };
    match model {
        NetworkModel::Macvtap => vec![link],
        NetworkModel::TcFilter => vec![
            link,
            Resource::Redirect {
                index: interface.index,
                interface: interface.name.clone(),
                tap: tap.to_owned(),
                namespace,
                path,
            },
        ],
    }
}

/// The tap an entry of the journal belongs to.
pub(super) fn tap_of(resource: &Resource) -> Option<&str> {
    match resource {
        Resource::Link { name, .. } => Some(name),
        Resource::Redirect { tap, .. } => Some(tap),
        _ => None,
    }
}
