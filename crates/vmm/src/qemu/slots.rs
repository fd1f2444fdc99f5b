//! Which device is on which root port.
//!
//! ```text
//!  free ──reserve──► plugging ──settle──► plugged ──leave──► leaving ──release──► free
//!    ▲                   │ failed                               │ deadline passed: stays
//!    └───────────────────┘
//! ```
//!
//! Owns: the table. Never: talks to QEMU. Called by `hotplug`, which rebuilds it from QEMU's object tree
//! after a gap.

use std::collections::BTreeMap;

/// Which back end stands behind a device; it is named after the slot, so it can be found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A socket to a vhost-user daemon.
    SharedFs,
    /// A block node.
    Block,
    /// A tap.
    Net,
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Being added.
    Plugging,
    /// There.
    Plugged,
    /// Asked to go; the guest has not let go yet.
    Leaving,
}

/// A device on a root port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Occupant {
    /// Device id.
    pub(super) id: String,
    /// Its kind.
    pub(super) kind: Kind,
    /// Its stage.
    pub(super) stage: Stage,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The id is in use.
    Taken,
    /// Every root port has a device.
    Full,
}

/// The root ports of a VM.
#[derive(Debug, Default)]
pub(super) struct Slots {
    count: u32,
    used: BTreeMap<u32, Occupant>,
}

impl Slots {
    /// `count` free root ports.
    pub(super) fn new(count: u32) -> Self {
        Self {
            count,
            used: BTreeMap::new(),
        }
    }

    /// Reserves the lowest free slot.
    pub(super) fn reserve(&mut self, id: &str, kind: Kind) -> Result<u32, Refused> {
        if self.find(id).is_some() {
            return Err(Refused::Taken);
        }
        let slot = (0..self.count)
            .find(|slot| !self.used.contains_key(slot))
            .ok_or(Refused::Full)?;
        self.used.insert(
            slot,
            Occupant {
                id: id.to_owned(),
                kind,
                stage: Stage::Plugging,
            },
        );
        Ok(slot)
    }

    /// Puts a device found in a running VM where it is.
    pub(super) fn found(&mut self, slot: u32, occupant: Occupant) {
        self.used.insert(slot, occupant);
    }

    /// Moves a slot's device to a stage; returns the stage it was in.
    pub(super) fn mark(&mut self, slot: u32, stage: Stage) -> Option<Stage> {
        self.used
            .get_mut(&slot)
            .map(|occupant| std::mem::replace(&mut occupant.stage, stage))
    }

    /// Frees a slot.
    pub(super) fn release(&mut self, slot: u32) {
        self.used.remove(&slot);
    }

    /// The slot of a device.
    pub(super) fn find(&self, id: &str) -> Option<(u32, Occupant)> {
        self.used
            .iter()
            .find(|(_, o)| o.id == id)
            .map(|(slot, o)| (*slot, o.clone()))
    }

    /// Ids of the devices of a kind.
    pub(super) fn of(&self, kind: Kind) -> Vec<String> {
        let of = self.used.values().filter(|occupant| occupant.kind == kind);
        of.map(|occupant| occupant.id.clone()).collect()
    }

    /// Slots without a device.
    pub(super) fn free(&self) -> Vec<u32> {
        (0..self.count)
            .filter(|slot| !self.used.contains_key(slot))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lowest_free_first_and_reused() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.reserve("a", Kind::Block), Ok(0));
        assert_eq!(slots.reserve("a", Kind::Net), Err(Refused::Taken));
        assert_eq!(slots.reserve("b", Kind::Net), Ok(1));
        assert_eq!(slots.reserve("c", Kind::Net), Err(Refused::Full));
        slots.release(0);
        assert_eq!(slots.reserve("c", Kind::SharedFs), Ok(0));
        assert!(slots.free().is_empty());
        assert_eq!(slots.of(Kind::SharedFs), ["c"]);
        assert!(slots.of(Kind::Block).is_empty());
    }

    #[test]
    fn a_device_that_will_not_leave_keeps_its_slot() {
        let mut slots = Slots::new(1);
        let slot = slots.reserve("a", Kind::Block).unwrap();
        assert_eq!(slots.mark(slot, Stage::Plugged), Some(Stage::Plugging));
        assert_eq!(slots.mark(slot, Stage::Leaving), Some(Stage::Plugged));
        assert_eq!(slots.reserve("b", Kind::Block), Err(Refused::Full));
        assert_eq!(slots.mark(slot, Stage::Leaving), Some(Stage::Leaving));
        assert_eq!(slots.mark(7, Stage::Leaving), None);
    }

    proptest! {
        /// Whatever is plugged and unplugged in whatever order, no two devices share a slot or an id.
        #[test]
        fn no_slot_twice(moves in proptest::collection::vec((any::<bool>(), 0u8..6), 0..60)) {
            let mut slots = Slots::new(4);
            for (plug, id) in moves {
                let id = id.to_string();
                if plug {
                    let _ = slots.reserve(&id, Kind::Block);
                } else if let Some((slot, _)) = slots.find(&id) {
                    slots.release(slot);
                }
                let ids: std::collections::BTreeSet<_> = slots.used.values().map(|o| &o.id).collect();
                prop_assert_eq!(ids.len(), slots.used.len());
                prop_assert_eq!(slots.used.len() + slots.free().len(), 4);
            }
        }
    }
}
