//! The pod network: each interface of the sandbox's namespace becomes a card of the VM, and stays one for as long
//! as it is there.
//!
//! ```text
//!  first create ─► open ─► scan ─► journal ─► tap ─► plug ─► … ─► guest told once ─► container made
//!  namespace changed ─► scan ─► cards unplugged, plugged ─► guest told
//!  end ─► VM ends ─► journal backwards: redirections, taps
//! ```
//! The hooks that fill a namespace have run when the first container is asked for, and the VM boots meanwhile.
//! Nothing of a card is on the VMM's command line: it is plugged into a VM that runs, booted or restored.
//!
//! Owns: the cards and their order. Never: how a tap is made (see [`NetworkSpace`]), what the guest does with a
//! card. Called by `create`, `start`, the engine's task on a change, and recovery.

mod card;
mod scan;
mod space;

pub use card::{Card, SavedNetwork};
pub use scan::scan;
pub use space::{NetworkModel, NetworkSource, NetworkSpace, TapRequest};

use crate::error::SandboxError;
use crate::journal::{Entry, Resource};
use crate::world::{Event, World};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{HostProcess, Interface, NetworkPlan, NetworkScan, SandboxPlan};
use bulkhead_protocol::{GuestInterface, GuestNetwork};
use bulkhead_vmm::{DeviceRequest, Hotplug, VmmError};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long a guest may take to let go of a card.
const UNPLUG_DEADLINE: Duration = Duration::from_secs(30);

/// The operation of the timeline when something changed in the namespace by itself.
const FOLLOWING: &str = "network";

/// What names of taps begin with; a sandbox's own mark and a number follow.
const TAP_PREFIX: &str = "bh";
/// Characters of the sandbox's marker in a tap's name, which has 15 bytes at most.
const MARK: usize = 8;

/// Whether a link of this name was made by a sandbox: `bh`, eight hexadecimal digits, a dot, a number.
#[must_use]
pub(crate) fn is_ours(name: &str) -> bool {
    let parts = name
        .strip_prefix(TAP_PREFIX)
        .and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(mark, number)| {
        mark.len() == MARK
            && mark.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The network of a sandbox.
pub struct Network {
    space: Arc<dyn NetworkSpace>,
    model: NetworkModel,
    cards: Vec<Card>,
    /// The last look.
    scan: NetworkScan,
    /// Interfaces that could not be had, until they are gone: they are not tried again for every change.
    refused: BTreeSet<u32>,
    /// What the guest was asked for last, whatever it answered.
    asked: GuestNetwork,
    /// A change was reported and not looked at yet.
    pending: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Network {
    fn new(
        space: Arc<dyn NetworkSpace>,
        model: NetworkModel,
        cards: Vec<Card>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let pending = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn(watch(Arc::clone(&space), Arc::clone(&pending), events));
        Self {
            space,
            model,
            cards,
            scan: NetworkScan::default(),
            refused: BTreeSet::new(),
            asked: GuestNetwork::default(),
            pending,
            watcher,
        }
    }

    /// As it is saved.
    #[must_use]
    pub fn saved(&self) -> SavedNetwork {
        SavedNetwork {
            path: self.space.path().to_owned(),
            namespace: self.space.identity(),
            cards: self.cards.clone(),
        }
    }

    /// The namespace, if `resource` is in it.
    pub(crate) fn holds(&self, resource: &Resource) -> Option<Arc<dyn NetworkSpace>> {
        match resource {
            Resource::Link { namespace, .. } | Resource::Redirect { namespace, .. }
                if *namespace == self.space.identity() =>
            {
                Some(Arc::clone(&self.space))
            }
            _ => None,
        }
    }

    /// What the guest is to have now: the interfaces that have cards, and what is on them.
    fn wanted(&self) -> GuestNetwork {
        let with_card = |interface: &Interface| {
            let card = self.cards.iter().find(|card| card.index == interface.index)?;
            Some(GuestInterface {
                pci_path: card.pci_path.clone(),
                interface: interface.clone(),
            })
        };
        let interfaces: Vec<GuestInterface> = self.scan.interfaces.iter().filter_map(with_card).collect();
        let has = |name: &str| interfaces.iter().any(|one| one.interface.name == name);
        let routes = self.scan.routes.iter().filter(|route| has(&route.interface));
        let neighbours = self.scan.neighbours.iter().filter(|it| has(&it.interface));
        GuestNetwork {
            routes: routes.cloned().collect(),
            neighbours: neighbours.cloned().collect(),
            interfaces,
        }
    }
}

/// Reports changes of a namespace, one report until it was looked at.
async fn watch(space: Arc<dyn NetworkSpace>, pending: Arc<AtomicBool>, events: mpsc::UnboundedSender<Event>) {
    loop {
        if let Err(error) = space.changed().await {
            tracing::error!(%error, path = %space.path().display(), "watching the network namespace");
            return;
        }
        if !pending.swap(true, Ordering::AcqRel) && events.send(Event::NetworkChanged).is_err() {
            return;
        }
    }
}

/// The model of a plan; `None` when the guest is to have loopback only.
fn model(plan: &SandboxPlan) -> Option<NetworkModel> {
    match plan.network_model.as_str() {
        "none" => None,
        "macvtap" => Some(NetworkModel::Macvtap),
        // The option table has no fourth.
        _ => Some(NetworkModel::TcFilter),
    }
}

/// Where the namespace of a plan is; `None` when nothing is to be looked for. `stub` stands for the container that
/// makes the sandbox.
fn source(plan: &SandboxPlan, stub: Option<HostProcess>) -> Option<NetworkSource> {
    match (&plan.network, stub) {
        (NetworkPlan::Existing { path }, _) => Some(NetworkSource::Path(path.clone())),
        (NetworkPlan::New, Some(stub)) => Some(NetworkSource::Process(stub)),
        (NetworkPlan::New, None) => Some(NetworkSource::New),
        (NetworkPlan::None, _) => None,
    }
}

fn of_interface(interface: &str) -> impl FnOnce(SandboxError) -> SandboxError {
    let interface = interface.to_owned();
    move |source| SandboxError::Interface {
        interface,
        source: Box::new(source),
    }
}

impl World {
    /// Opens the sandbox's namespace and plugs a card for each of its interfaces; [`Self::tell_network`] makes them
    /// known to the guest.
    ///
    /// # Errors
    /// [`SandboxError::Namespace`], [`SandboxError::Interface`]; what was acquired is in the journal.
    pub(crate) async fn join_network(&mut self, stub: Option<HostProcess>) -> Result<(), SandboxError> {
        let (Some(model), Some(source)) = (model(&self.plan), source(&self.plan, stub)) else {
            return Ok(());
        };
        let opened = self
            .timeline
            .during(Lane::Network, "open the network namespace", || {
                self.platform.open_network(&source)
            });
        let space = opened.map_err(|source| SandboxError::Namespace { source })?;
        self.network = Some(Network::new(space, model, Vec::new(), self.events()));
        self.scan_network().await?;
        let found = self.network.as_ref().map(|network| network.scan.clone());
        let found = found.unwrap_or_default();
        for name in &found.ignored {
            tracing::info!(
                interface = name,
                "not passed to the guest: no card can stand for its kind"
            );
        }
        for interface in &found.interfaces {
            self.plug_card(interface).await?;
        }
        Ok(())
    }

    /// Takes a saved network on again; its changes since are looked for by the engine's task.
    pub(crate) fn rejoin_network(&mut self, saved: SavedNetwork) {
        let Some(model) = model(&self.plan) else { return };
        match self
            .platform
            .open_network(&NetworkSource::Path(saved.path.clone()))
        {
            Ok(space) if space.identity() == saved.namespace => {
                let network = Network::new(space, model, saved.cards, self.events());
                network.pending.store(true, Ordering::Release);
                self.network = Some(network);
                self.network_changed();
            }
            Ok(_) => tracing::warn!(path = %saved.path.display(), "another network namespace is there now"),
            Err(error) => tracing::warn!(%error, "the network namespace is gone"),
        }
    }

    /// Has the engine look at the namespace.
    pub(crate) fn network_changed(&self) {
        // An engine that is not there yet finds it in its inbox; one that has ended needs no network.
        let _ = self.events().send(Event::NetworkChanged);
    }

    /// Brings cards and guest up to date with the namespace.
    ///
    /// # Errors
    /// The first failure; everything else was brought up to date all the same.
    pub(crate) async fn sync_network(&mut self) -> Result<(), SandboxError> {
        // A VM that ended needs no cards.
        if self.network.is_none() || self.live().is_err() {
            return Ok(());
        }
        self.scan_network().await?;
        self.drop_orphans().await;
        let Some(network) = self.network.as_mut() else {
            return Ok(());
        };
        let there = network.scan.interfaces.clone();
        network
            .refused
            .retain(|index| there.iter().any(|it| it.index == *index));
        let gone: Vec<Card> = network
            .cards
            .iter()
            .filter(|card| !there.iter().any(|it| it.index == card.index))
            .cloned()
            .collect();
        let new: Vec<&Interface> = there
            .iter()
            .filter(|it| !network.cards.iter().any(|card| card.index == it.index))
            .filter(|it| !network.refused.contains(&it.index))
            .collect();
        let mut first = Ok(());
        for card in gone {
            self.unplug_card(&card).await;
        }
        for interface in new {
            if let Err(error) = self.plug_card(interface).await {
                if let Some(network) = self.network.as_mut() {
                    network.refused.insert(interface.index);
                }
                first = first.and(Err(error));
            }
        }
        let told = self.tell_network().await;
        first.and(told)
    }

    /// Tells the guest what its network is to be, if that is not what it was told last.
    ///
    /// # Errors
    /// The agent's, which names the interface.
    pub(crate) async fn tell_network(&mut self) -> Result<(), SandboxError> {
        let guest = self.live()?.guest;
        let Some(network) = self.network.as_mut() else {
            return Ok(());
        };
        let wanted = network.wanted();
        if wanted == network.asked {
            return Ok(());
        }
        self.timeline.begin_unless_open(FOLLOWING);
        let _telling = self.timeline.span(Lane::Network, "tell the guest its network");
        network.asked = wanted.clone();
        guest.update_network(wanted).await?;
        Ok(())
    }

    async fn scan_network(&mut self) -> Result<(), SandboxError> {
        let Some(network) = self.network.as_mut() else {
            return Ok(());
        };
        let _looking = self.timeline.span(Lane::Network, "look at the network namespace");
        // Before the look: what changes during it is reported once more.
        network.pending.store(false, Ordering::Release);
        network.scan = network.space.scan().await.map_err(|source| SandboxError::Host {
            step: "looking at the network namespace",
            path: Some(network.space.path().to_owned()),
            source,
        })?;
        Ok(())
    }

    /// Connects and plugs one card. On failure nothing of it is left.
    async fn plug_card(&mut self, interface: &Interface) -> Result<(), SandboxError> {
        let Some(network) = &self.network else {
            return Ok(());
        };
        let model = match network.model {
            NetworkModel::Macvtap if !interface.kind.carries_macvtap() => NetworkModel::TcFilter,
            other => other,
        };
        let space = Arc::clone(&network.space);
        let tap = self.free_tap();
        let queues = u16::try_from(self.plan.vm.vcpus)
            .unwrap_or(u16::MAX)
            .min(interface.queues)
            .max(1);
        let resources = card::resources(space.as_ref(), interface, &tap, model);
        let entries = self
            .journal
            .intend_all(resources)
            .map_err(|e| SandboxError::host("writing the journal", self.paths.journal(), e))?;
        let request = TapRequest {
            interface: interface.clone(),
            tap: tap.clone(),
            model,
            queues,
            vhost: !self.plan.vm.disable_vhost_net,
        };
        self.timeline.begin_unless_open(FOLLOWING);
        let plugging = self.timeline.again(Lane::Network, "plug a card");
        let connected = self.connect_card(space.as_ref(), request).await;
        drop(plugging);
        match connected {
            Ok(card) => {
                tracing::info!(
                    interface = interface.name,
                    tap,
                    pci = card.pci_path,
                    "card plugged"
                );
                if let Some(network) = self.network.as_mut() {
                    network.cards.push(card);
                }
                self.save()
            }
            Err(error) => {
                self.undo_entries(&entries).await;
                Err(of_interface(&interface.name)(error))
            }
        }
    }

    async fn connect_card(
        &self,
        space: &dyn NetworkSpace,
        request: TapRequest,
    ) -> Result<Card, SandboxError> {
        let vm = self.live()?.vm;
        let hotplug = hotplug(vm.as_ref())?;
        let (interface, queues, tap) = (request.interface.clone(), request.queues, request.tap.clone());
        let fds = space
            .connect(request)
            .await
            .map_err(SandboxError::during("connecting it to the VM"))?;
        let device = format!("net{}", interface.index);
        let plugged = hotplug
            .plug(
                DeviceRequest::Net {
                    id: device.clone(),
                    mac: interface.mac.to_string(),
                    queues,
                },
                fds,
            )
            .await?;
        Ok(Card {
            index: interface.index,
            tap,
            device,
            pci_path: plugged.pci_path,
        })
    }

    /// Unplugs a card whose interface is gone. A guest that does not let go keeps a dead card.
    async fn unplug_card(&mut self, card: &Card) {
        self.timeline.begin_unless_open(FOLLOWING);
        let unplugging = self.timeline.again(Lane::Network, "unplug a card");
        self.unplug_device(&card.device).await;
        drop(unplugging);
        if let Some(network) = self.network.as_mut() {
            network.cards.retain(|other| other.index != card.index);
        }
        let entries = self.entries_of(|tap| tap == card.tap);
        self.undo_entries(&entries).await;
        tracing::info!(tap = card.tap, "card unplugged");
        self.save_logged();
    }

    async fn unplug_device(&self, device: &str) {
        let Ok(live) = self.live() else { return };
        let unplugged = match hotplug(live.vm.as_ref()) {
            Ok(hotplug) => hotplug.unplug(device, UNPLUG_DEADLINE).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        if let Err(error) = unplugged {
            tracing::warn!(%error, device, "unplugging a network card");
        }
    }

    /// Undoes what a change that was called off left halfway.
    async fn drop_orphans(&mut self) {
        let Some(network) = &self.network else { return };
        let known: Vec<String> = network.cards.iter().map(|card| card.tap.clone()).collect();
        let entries = self.entries_of(|tap| !known.iter().any(|one| one == tap));
        if entries.is_empty() {
            return;
        }
        let indexes: Vec<u32> = self
            .journal
            .held()
            .into_iter()
            .filter(|(entry, _)| entries.contains(entry))
            .filter_map(|(_, resource)| match resource {
                Resource::Redirect { index, .. } => Some(index),
                _ => None,
            })
            .collect();
        for index in indexes {
            self.unplug_device(&format!("net{index}")).await;
        }
        self.undo_entries(&entries).await;
    }

    /// Entries of the journal that belong to taps.
    fn entries_of(&self, which: impl Fn(&str) -> bool) -> Vec<Entry> {
        let held = self.journal.held().into_iter();
        held.filter(|(_, resource)| card::tap_of(resource).is_some_and(&which))
            .map(|(entry, _)| entry)
            .collect()
    }

    /// Undoes these entries; what sticks stays in the journal for the sandbox's end.
    async fn undo_entries(&mut self, entries: &[Entry]) {
        let others: Vec<Entry> = self
            .journal
            .held()
            .into_iter()
            .map(|(entry, _)| entry)
            .filter(|entry| !entries.contains(entry))
            .collect();
        self.undo_since(&others).await;
    }

    /// A name for a tap that this sandbox does not use.
    fn free_tap(&self) -> String {
        let mark: String = self.paths.marker.chars().take(MARK).collect();
        let held = self.journal.held();
        let used = |name: &str| held.iter().any(|(_, it)| card::tap_of(it) == Some(name));
        let mut number = 0_u32;
        loop {
            let name = format!("{TAP_PREFIX}{mark}.{number}");
            if !used(&name) {
                return name;
            }
            number += 1;
        }
    }
}

fn hotplug(vm: &dyn bulkhead_vmm::Vm) -> Result<&dyn Hotplug, SandboxError> {
    let unsupported = || VmmError::Unsupported {
        option: "internetworking_model",
        value: "tcfilter or macvtap".into(),
        expected: "a VMM that can plug devices",
    };
    Ok(vm.hotplug().ok_or_else(unsupported)?)
}

/// Why a plan's network is refused before anything is made for it.
pub(crate) fn refuse_hosts_own(plan: &SandboxPlan) -> io::Result<()> {
    if plan.network == NetworkPlan::None && model(plan).is_some() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the spec has no network namespace, which asks for the host's own: expected an entry of type \"network\" in linux.namespaces, as a VM cannot share the host's network",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_known_by_their_names() {
        for ours in ["bh0123abcd.0", "bhdeadbeef.117"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "bh0",
            "eth0",
            "bh0123abcd",
            "bh0123abcd.",
            "bh0123abcx.0",
            "bh0123abcd.x",
            "br0123abcd.0",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
