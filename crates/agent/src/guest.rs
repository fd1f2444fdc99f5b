//! The guest as a whole: its services, its containers, its identity.
//!
//! Owns: the table of containers and the sandbox's shared /dev/shm. Never: speaks the wire (see `service`).
//! Calls block.

use crate::cgroup::{Cgroup, CgroupError};
use crate::container::Container;
use crate::engine::Engine;
use crate::events::Events;
use crate::launch::{Refusal, Reserve};
use crate::modules::Modules;
use crate::network::Networks;
use crate::oom::OomWatch;
use crate::pause;
use crate::programs::Programs;
use crate::reaper::Reaper;
use crate::reclaim;
use crate::spec::Facts;
use crate::steps::step;
use crate::storage::Storages;
use crate::sys::{entropy, names};
use bulkhead_model::FailureKind;
use bulkhead_protocol::api::agent::{
    ConfigureRequest, CreateContainerRequest, Storage, UpdateNetworkRequest,
};
use bulkhead_protocol::guest_end::Endpoint;
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the sandbox's shared /dev/shm is mounted.
const SHM: &str = "/run/bulkhead/shm";

/// What everything in the guest uses.
pub(crate) struct Services {
    /// Makes processes.
    pub(crate) engine: Box<dyn Engine>,
    /// The wire.
    pub(crate) endpoint: Endpoint,
    /// Exit statuses.
    pub(crate) reaper: Reaper,
    /// Mounts.
    pub(crate) storages: Storages,
    /// Kernel modules.
    pub(crate) modules: Arc<Modules>,
    /// What the host is told.
    pub(crate) events: Arc<Events>,
    /// Out-of-memory kills.
    pub(crate) oom: OomWatch,
    /// Device programs in the kernel.
    pub(crate) programs: Programs,
    /// A cgroup without limits for the next container.
    pub(crate) spare: Mutex<Option<Spare>>,
    /// Major number of the agent's own ports.
    pub(crate) port_major: Option<u32>,
}

/// What a container is made in.
pub(crate) struct Spare {
    /// Its cgroup.
    pub(crate) cgroup: Arc<Cgroup>,
    /// A process that waits in it.
    pub(crate) reserve: Option<Reserve>,
}

impl Services {
    /// A new cgroup for container `id`: the one that was set aside, if there is one.
    ///
    /// # Errors
    /// See [`Cgroup::create`].
    pub(crate) fn cgroup(&self, id: &str) -> Result<Spare, CgroupError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(
            || {
                Ok(Spare {
                    cgroup: Arc::new(Cgroup::create(id)?),
                    reserve: None,
                })
            },
            Ok,
        )
    }

    /// Sets `spare` aside for the next container.
    pub(crate) fn keep_spare(&self, spare: Spare) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(spare);
    }
}

#[derive(Default)]
struct Table {
    containers: BTreeMap<String, Arc<Container>>,
    /// Namespaces with a path are this one's.
    first: Option<String>,
    shm: bool,
}

/// The guest.
pub(crate) struct Guest {
    /// Its services.
    pub(crate) services: Services,
    table: Mutex<Table>,
    /// Keeps the pid namespace that the pod's containers share, if any does. Held while it is made: of two that come at
    /// once one makes it, and who asks for something else does not wait.
    pause: Mutex<Option<Container>>,
    traced: AtomicBool,
    /// The driver that reports free pages was looked for: once, since the machine's balloon is there from its boot on.
    reports: AtomicBool,
    networks: Networks,
}

impl Guest {
    /// A guest without containers.
    #[must_use]
    pub(crate) fn new(services: Services) -> Self {
        Self {
            services,
            table: Mutex::default(),
            pause: Mutex::default(),
            traced: AtomicBool::new(false),
            reports: AtomicBool::new(false),
            networks: Networks::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes on an identity; may be repeated.
    ///
    /// # Errors
    /// [`Refusal`] naming the part that failed.
    pub(crate) fn configure(&self, request: &ConfigureRequest) -> Result<(), Refusal> {
        let services = &self.services;
        self.traced.store(request.tracing, Ordering::Relaxed);
        if request.time_ns > 0 {
            let _step = step("set the clock");
            let time = TimeSpec::from_duration(Duration::from_nanos(request.time_ns));
            nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)
                .map_err(|errno| Refusal::internal("setting the clock", &errno))?;
        }
        if !request.entropy.is_empty() {
            entropy::add(&request.entropy).map_err(|error| Refusal::internal("adding entropy", &error))?;
        }
        if !request.hostname.is_empty() {
            nix::unistd::sethostname(&request.hostname)
                .map_err(|errno| Refusal::internal(&format!("host name {:?}", request.hostname), &errno))?;
        }
        if !request.domainname.is_empty() {
            names::set_domain(&request.domainname).map_err(|error| {
                Refusal::internal(&format!("domain name {:?}", request.domainname), &error)
            })?;
        }
        for module in &request.kernel_modules {
            let _step = step("load a module");
            services.modules.load(module).map_err(|error| Refusal {
                kind: FailureKind::InvalidArgument,
                message: bulkhead_model::failure::chain(&error),
            })?;
        }
        if !self.reports.load(Ordering::Relaxed) {
            match reclaim::start_reporting(&services.modules) {
                Ok(()) => self.reports.store(true, Ordering::Relaxed),
                // The machine works without.
                Err(error) => eprintln!("bulkhead-agent: {}", bulkhead_model::failure::chain(&error)),
            }
        }
        for storage in &request.storages {
            self.add_shared(storage)?;
        }
        if request.shm_bytes > 0 {
            self.add_shared(&Storage {
                driver: "ephemeral".to_owned(),
                options: vec![
                    format!("size={}", request.shm_bytes),
                    "mode=1777".to_owned(),
                    "nosuid".to_owned(),
                    "nodev".to_owned(),
                    "noexec".to_owned(),
                ],
                mount_point: SHM.to_owned(),
                ..Storage::default()
            })?;
            self.table().shm = true;
        }
        if request.keep_share {
            let kept = services.storages.keep_share();
            kept.map_err(|error| Refusal::internal("keeping the share's device", &error))?;
        }
        if request.settle {
            reclaim::settle().map_err(|error| Refusal::internal("settling", &error))?;
        }
        Ok(())
    }

    /// Whether calls are traced (O-15).
    #[must_use]
    pub(crate) fn is_traced(&self) -> bool {
        self.traced.load(Ordering::Relaxed)
    }

    /// Makes the network what `request` says.
    ///
    /// # Errors
    /// [`Refusal`] naming the interface.
    pub(crate) fn update_network(&self, request: &UpdateNetworkRequest) -> Result<(), Refusal> {
        self.networks.update(&self.services.modules, request)
    }

    fn add_shared(&self, storage: &Storage) -> Result<(), Refusal> {
        let _step = step("mount what is shared");
        self.services
            .storages
            .add(storage, true)
            .map_err(|error| Refusal {
                kind: FailureKind::InvalidArgument,
                message: bulkhead_model::failure::chain(&error),
            })
    }

    /// Makes a container; returns the pid of its process.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is left behind then.
    pub(crate) fn create(&self, request: &CreateContainerRequest) -> Result<i32, Refusal> {
        let id = bulkhead_model::ContainerId::new(request.container.clone()).map_err(|error| Refusal {
            kind: FailureKind::InvalidArgument,
            message: error.to_string(),
        })?;
        let facts = {
            let table = self.table();
            if table.containers.contains_key(id.as_str()) {
                return Err(Refusal {
                    kind: FailureKind::AlreadyExists,
                    message: format!("container {:?} exists in the guest", id.as_str()),
                });
            }
            let first = table.first.as_ref().and_then(|first| table.containers.get(first));
            Facts {
                first: first
                    .filter(|first| !first.init().ended())
                    .map(|first| first.init().pid),
                shm: table.shm.then(|| PathBuf::from(SHM)),
                ..Facts::default()
            }
        };
        let facts = Facts {
            pids: self.pids(request)?,
            ..facts
        };
        let container = Arc::new(Container::make(&self.services, request, facts)?);
        if request.start
            && let Err(refusal) = container.start(&self.services)
        {
            // Nobody knows of it yet: its end is this call's.
            if let Err(left) = container.remove(&self.services) {
                self.services.events.log("warn", left.message);
            }
            return Err(refusal);
        }
        let pid = container.init().pid;
        let mut table = self.table();
        table.first.get_or_insert_with(|| id.as_str().to_owned());
        table.containers.insert(id.as_str().to_owned(), container);
        Ok(pid)
    }

    /// A process in whose pid namespace the container of `request` is to be, if that is another's.
    fn pids(&self, request: &CreateContainerRequest) -> Result<Option<i32>, Refusal> {
        if !request.pids_of.is_empty() {
            return Ok(Some(self.container(&request.pids_of)?.init().pid));
        }
        if !request.pod_pids {
            return Ok(None);
        }
        let mut kept = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ended) = kept.take_if(|pause| pause.init().ended()) {
            // It was killed, and its containers with it.
            ended.remove(&self.services)?;
        }
        let pause = match kept.take() {
            Some(pause) => pause,
            None => pause::start(&self.services)?,
        };
        Ok(Some(kept.insert(pause).init().pid))
    }

    /// A container by id.
    ///
    /// # Errors
    /// Not found.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Refusal> {
        self.table().containers.get(id).cloned().ok_or_else(|| Refusal {
            kind: FailureKind::NotFound,
            message: format!("container {id:?} does not exist in the guest"),
        })
    }

    /// Takes a container down. Unknown is success.
    ///
    /// # Errors
    /// [`Refusal`]; the container stays then, and the call can be repeated.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Refusal> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        container.remove(&self.services)?;
        let mut table = self.table();
        table.containers.remove(id);
        if table.first.as_deref() == Some(id) {
            table.first = None;
        }
        Ok(())
    }
}
