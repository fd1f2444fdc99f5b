//! The registers that all virtio devices on PCI have, through the window in configuration space.
//!
//! Owns: where they are and how they are reached. Never: what is written to them, or when (see `kept`). Called by that.

use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of configuration space that are looked at.
pub(super) const CONFIGURATION: usize = 256;
/// PCI 3.0, 6.1: where the list of capabilities begins.
pub(super) const CAPABILITIES: usize = 0x34;
/// A capability of a vendor's own, as virtio's are.
pub(super) const VENDOR: u8 = 0x09;

/// virtio 1.2, 4.1.4.3: the registers all devices have, by their place in the structure of type 1.
pub(super) const COMMON: u8 = 1;
/// 4.1.4.9: the structure of type 5 is a window in configuration space to the others; its fields. The kernel lets nobody map
/// the registers of a device with a driver (`CONFIG_IO_STRICT_DEVMEM`).
pub(super) const WINDOW: u8 = 5;
pub(super) const WINDOW_RESOURCE: u64 = 4;
pub(super) const WINDOW_OFFSET: u64 = 8;
pub(super) const WINDOW_LENGTH: u64 = 12;
pub(super) const WINDOW_DATA: u64 = 16;
pub(super) const FEATURES_OFFERED: (u32, u32) = (0, 4);
pub(super) const FEATURES_TAKEN: (u32, u32) = (8, 12);
pub(super) const QUEUES: u32 = 18;
pub(super) const STATUS: u32 = 20;
pub(super) const QUEUE: u32 = 22;
pub(super) const QUEUE_SIZE: u32 = 24;
pub(super) const QUEUE_ENABLE: u32 = 28;
pub(super) const QUEUE_RINGS: [u32; 6] = [32, 36, 40, 44, 48, 52];

/// One queue, as its driver set it up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Queue {
    number: u16,
    size: u16,
    /// Addresses of descriptors, driver and device area, low half first.
    rings: [u32; 6],
}

/// Capabilities of a configuration space: number and place.
pub(super) fn capabilities(configuration: &[u8; CONFIGURATION]) -> impl Iterator<Item = (u8, usize)> {
    let mut next = configuration[CAPABILITIES];
    // Each takes four bytes at least: more of them than fit go round in circles.
    (0..CONFIGURATION / 4).map_while(move |_| {
        let at = usize::from(next & !3);
        if at == 0 {
            return None;
        }
        next = configuration[at + 1];
        Some((configuration[at], at))
    })
}

/// A structure of a device: where its capability is, and the resource and the offset it names.
fn structure(configuration: &[u8; CONFIGURATION], wanted: u8) -> Option<(u64, u8, u32)> {
    capabilities(configuration).find_map(|(number, at)| {
        let (kind, resource) = (*configuration.get(at + 3)?, *configuration.get(at + 4)?);
        let offset = configuration.get(at + 8..at + 12)?;
        let offset = u32::from_le_bytes(offset.try_into().ok()?);
        (number == VENDOR && kind == wanted).then_some((at as u64, resource, offset))
    })
}

/// The registers all devices have, through the window of this one.
#[derive(Debug)]
pub(super) struct Registers<S> {
    /// Its configuration space.
    pub(super) space: S,
    window: u64,
    resource: u8,
    offset: u32,
}

impl<S: FileExt> Registers<S> {
    pub(super) fn of(space: S, configuration: &[u8; CONFIGURATION]) -> Option<Self> {
        let (window, ..) = structure(configuration, WINDOW)?;
        let (_, resource, offset) = structure(configuration, COMMON)?;
        Some(Self {
            space,
            window,
            resource,
            offset,
        })
    }

    /// Has the window show the `length` bytes at a register.
    fn show(&self, register: u32, length: u32) -> io::Result<()> {
        let Self { space, window, .. } = self;
        space.write_all_at(&[self.resource], window + WINDOW_RESOURCE)?;
        space.write_all_at(&(self.offset + register).to_le_bytes(), window + WINDOW_OFFSET)?;
        space.write_all_at(&length.to_le_bytes(), window + WINDOW_LENGTH)
    }

    pub(super) fn read<const N: usize>(&self, register: u32) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.show(register, N as u32)?;
        self.space.read_exact_at(&mut bytes, self.window + WINDOW_DATA)?;
        Ok(bytes)
    }

    pub(super) fn write<const N: usize>(&self, register: u32, bytes: [u8; N]) -> io::Result<()> {
        self.show(register, N as u32)?;
        self.space.write_all_at(&bytes, self.window + WINDOW_DATA)
    }

    pub(super) fn status(&self) -> io::Result<u8> {
        self.read::<1>(STATUS).map(|[status]| status)
    }

    pub(super) fn set_status(&self, status: u8) -> io::Result<()> {
        self.write(STATUS, [status])
    }

    /// Both halves of a set of features.
    pub(super) fn features(&self, (select, value): (u32, u32)) -> io::Result<[u32; 2]> {
        let half = |half: u32| {
            self.write(select, half.to_le_bytes())?;
            self.read(value).map(u32::from_le_bytes)
        };
        Ok([half(0)?, half(1)?])
    }

    pub(super) fn queue(&self, number: u16) -> io::Result<Option<Queue>> {
        self.write(QUEUE, number.to_le_bytes())?;
        if u16::from_le_bytes(self.read(QUEUE_ENABLE)?) != 1 {
            return Ok(None);
        }
        let mut rings = [0; QUEUE_RINGS.len()];
        for (ring, register) in rings.iter_mut().zip(QUEUE_RINGS) {
            *ring = u32::from_le_bytes(self.read(register)?);
        }
        let size = u16::from_le_bytes(self.read(QUEUE_SIZE)?);
        Ok(Some(Queue { number, size, rings }))
    }

    pub(super) fn set_queue(&self, queue: &Queue) -> io::Result<()> {
        self.write(QUEUE, queue.number.to_le_bytes())?;
        self.write(QUEUE_SIZE, queue.size.to_le_bytes())?;
        for (ring, register) in queue.rings.iter().zip(QUEUE_RINGS) {
            self.write(register, ring.to_le_bytes())?;
        }
        self.write(QUEUE_ENABLE, 1_u16.to_le_bytes())
    }
}
