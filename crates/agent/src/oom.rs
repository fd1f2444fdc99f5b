//! Out-of-memory kills as they happen: `memory.events` of every container's cgroup (cgroup-v2.rst, inotify(7)).
//!
//! Owns: one inotify instance and its thread. Never: polls.

use crate::cgroup::Cgroup;
use crate::events::Events;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

struct Watched {
    container: String,
    cgroup: Weak<Cgroup>,
    seen: u64,
}

/// Watches cgroups for kills.
pub(crate) struct OomWatch {
    inotify: Arc<Inotify>,
    watched: Arc<Mutex<HashMap<WatchDescriptor, Watched>>>,
}

impl OomWatch {
    /// Starts the thread; kills are told to `events`.
    ///
    /// # Errors
    /// No inotify instance or thread.
    pub(crate) fn start(events: Arc<Events>) -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let watched: Arc<Mutex<HashMap<WatchDescriptor, Watched>>> = Arc::default();
        let (source, table) = (inotify.clone(), watched.clone());
        std::thread::Builder::new()
            .name("oom".to_owned())
            .stack_size(64 << 10)
            .spawn(move || {
                while let Ok(changes) = source.read_events() {
                    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                    for change in changes {
                        if change.mask.contains(AddWatchFlags::IN_IGNORED) {
                            table.remove(&change.wd);
                        } else if let Some(entry) = table.get_mut(&change.wd) {
                            let kills = entry
                                .cgroup
                                .upgrade()
                                .map_or(entry.seen, |cgroup| cgroup.oom_kills());
                            if kills > entry.seen {
                                entry.seen = kills;
                                events.out_of_memory(&entry.container, kills);
                            }
                        }
                    }
                }
            })?;
        Ok(Self { inotify, watched })
    }

    /// Watches the new cgroup of `container` until it is removed. One that is watched already is that container's from
    /// now on.
    ///
    /// # Errors
    /// The kernel has no memory controller, or no more watches.
    pub(crate) fn add(&self, container: &str, cgroup: &Arc<Cgroup>) -> io::Result<()> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = watched.values_mut();
        if let Some(entry) = known.find(|entry| entry.cgroup.as_ptr() == Arc::as_ptr(cgroup)) {
            container.clone_into(&mut entry.container);
            return Ok(());
        }
        let descriptor = self
            .inotify
            .add_watch(&cgroup.path().join("memory.events"), AddWatchFlags::IN_MODIFY)?;
        watched.insert(
            descriptor,
            Watched {
                container: container.to_owned(),
                cgroup: Arc::downgrade(cgroup),
                seen: 0,
            },
        );
        Ok(())
    }
}
