//! A shared file system's device that the guest keeps while its machine is saved without it.
//!
//! ```text
//!  found at boot, driver bound, never used ──keep──► kept: its registers as they were, hot-plug's event off
//!      saved: the VMM takes the device away; the kernel goes on believing in it, nobody touches it
//!  kept ──give back──► the VMM plugged one alike in the same place: registers written, event on again
//! ```
//! QEMU (7.2) saves no machine that has such a device. Plugged into a guest that does not know it, the kernel has to find it:
//! hot-plug through ACPI, the bus behind the port, addresses, the driver, an interrupt. That is the larger part of what a start
//! does between the agent's first word and the mount, and all code that runs once. A kernel that was saved with the device
//! has all of it behind itself, and what a new device lacks is in registers that can be read and written (PCI 3.0, 6.1;
//! virtio 1.2, 4.1.4), all of them through the file of its configuration space. Queues nobody used are as new on both sides.
//!
//! Owns: what is kept. Never: decides that it is to be kept (the host), or touches a device that was used. Called when the
//! guest is configured.

use super::registers::{
    CONFIGURATION, FEATURES_OFFERED, FEATURES_TAKEN, QUEUES, Queue, Registers, capabilities,
};
use crate::modules::ModuleError;
use crate::pci::children;
use crate::steps::step;
use crate::uevent;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Devices of the driver.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtiofs";
/// Where the kernel tells of hot-plug on PCI: bit 1 of the general purpose events (QEMU, acpi_pci_hotplug.rst).
const EVENT: &str = "/sys/firmware/acpi/interrupts/gpe01";
/// For one that is there from the boot on.
const DEADLINE: Duration = Duration::from_secs(30);

/// PCI 3.0, 6.1: registers of every function.
const COMMAND: usize = 0x04;
const CACHE_LINE: usize = 0x0c;
const ADDRESSES: std::ops::Range<usize> = 0x10..0x28;
/// Capabilities by number, and what is read of them.
const EXPRESS: u8 = 0x10;
const EXPRESS_CONTROL: usize = 8;
const MSI_X: u8 = 0x11;
const MSI_X_ON: u8 = 0x80;

/// virtio 1.2, 2.1.
const ACKNOWLEDGED: u8 = 1 | 2;
const FEATURES_OK: u8 = 8;
const IN_USE: u8 = ACKNOWLEDGED | FEATURES_OK | 4;

/// Why a device cannot be kept, or given back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    /// Its driver.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A file of sysfs.
    #[error("{step} {}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Not a device that can be.
    #[error("the device of the shared file system {what}")]
    Device {
        /// What is wrong with it.
        what: &'static str,
    },
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeptError + use<> {
    let path = path.to_owned();
    move |source| KeptError::Io { step, path, source }
}

fn unfit(what: &'static str) -> KeptError {
    KeptError::Device { what }
}

/// What its driver told a device, and the ways to it: opened before the machine is saved, they are open in every clone.
#[derive(Debug)]
struct Device<S = File> {
    /// Its configuration space.
    path: PathBuf,
    registers: Registers<S>,
    configuration: [u8; CONFIGURATION],
    features: [u32; 2],
    queues: Vec<Queue>,
}

/// The device that is kept, and hot-plug's event, if one is.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Option<(Device, File)>>);

impl Kept {
    fn device(&self) -> MutexGuard<'_, Option<(Device, File)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the device of the one shared file system there is, which nobody has mounted. From here on nothing that is
    /// plugged into a port is found, until it was given back.
    ///
    /// # Errors
    /// [`KeptError`]; nothing is changed then.
    pub(super) fn keep(&self) -> Result<(), KeptError> {
        let driver = Path::new(DRIVER);
        let directory = uevent::wait_for(DEADLINE, || bound(driver))
            .map_err(failed("waiting for a device of", driver))?
            .ok_or_else(|| unfit("did not turn up"))?;
        let kept = Device::at(&directory)?;
        let path = Path::new(EVENT);
        let told = fs::read_to_string(path).map_err(failed("reading", path))?;
        if !told.split_whitespace().any(|word| word == "enabled") {
            return Err(unfit("is not hot-plugged through ACPI"));
        }
        let event = File::options().write(true).open(path);
        let event = event.map_err(failed("opening", path))?;
        tell(&event, "disable\n")?;
        *self.device() = Some((kept, event));
        Ok(())
    }

    /// Gives back what is kept; without anything kept there is nothing to do.
    ///
    /// # Errors
    /// [`KeptError`]: the device is not there, or another.
    pub(super) fn give_back(&self) -> Result<(), KeptError> {
        let Some((device, event)) = self.device().take() else {
            return Ok(());
        };
        let _step = step("give its device back");
        device.write()?;
        // It was told of a device that it knows: only news count from here on. Refused when there is nothing to clear.
        let _ = tell(&event, "clear\n");
        tell(&event, "enable\n")
    }
}

fn tell(event: &File, word: &str) -> Result<(), KeptError> {
    event
        .write_all_at(word.as_bytes(), 0)
        .map_err(failed("writing", Path::new(EVENT)))
}

/// The PCI device below the only one that a driver has.
fn bound(driver: &Path) -> Option<PathBuf> {
    let device = children(driver).find(|name| name.starts_with("virtio"))?;
    let device = fs::canonicalize(driver.join(device)).ok()?;
    device.parent().map(Path::to_owned)
}

impl Device {
    fn at(directory: &Path) -> Result<Self, KeptError> {
        let path = directory.join("config");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(failed("opening", &path))?;
        Self::read(path, file)
    }
}

impl<S: FileExt> Device<S> {
    fn read(path: PathBuf, space: S) -> Result<Self, KeptError> {
        let mut configuration = [0; CONFIGURATION];
        space
            .read_exact_at(&mut configuration, 0)
            .map_err(failed("reading", &path))?;
        let signalled = capabilities(&configuration)
            .any(|(number, at)| number == MSI_X && configuration[at + 3] & MSI_X_ON != 0);
        if signalled {
            return Err(unfit("has message-signalled interrupts"));
        }
        let registers = Registers::of(space, &configuration).ok_or_else(|| unfit("has no registers"))?;
        if registers.status().map_err(failed("reading", &path))? != IN_USE {
            return Err(unfit("is not in use by its driver"));
        }
        let told = || {
            let count = u16::from_le_bytes(registers.read(QUEUES)?);
            let queues = (0..count).filter_map(|number| registers.queue(number).transpose());
            let queues = queues.collect::<io::Result<Vec<_>>>()?;
            io::Result::Ok((registers.features(FEATURES_TAKEN)?, queues))
        };
        let (features, queues) = told().map_err(failed("reading", &path))?;
        Ok(Self {
            path,
            registers,
            configuration,
            features,
            queues,
        })
    }

    fn write(&self) -> Result<(), KeptError> {
        let writing = || failed("writing", &self.path);
        let space = &self.registers.space;
        let mut identity = [0; 4];
        space.read_exact_at(&mut identity, 0).map_err(writing())?;
        // Of one that is not there everything reads as ones.
        if identity != self.configuration[..4] {
            return Err(unfit("is not where it was"));
        }
        let control = capabilities(&self.configuration).find(|(number, _)| *number == EXPRESS);
        let control = control.map(|(_, at)| at + EXPRESS_CONTROL);
        let pieces = [ADDRESSES, CACHE_LINE..CACHE_LINE + 2]
            .into_iter()
            .chain(control.map(|at| at..at + 2))
            // Last: it answers at its addresses from then on.
            .chain(std::iter::once(COMMAND..COMMAND + 2));
        for piece in pieces {
            let at = piece.start as u64;
            let bytes = self.configuration.get(piece).unwrap_or_default();
            space.write_all_at(bytes, at).map_err(writing())?;
        }
        self.negotiate().map_err(writing())?
    }

    /// virtio 1.2, 3.1.1: what a driver does first.
    fn negotiate(&self) -> io::Result<Result<(), KeptError>> {
        let registers = &self.registers;
        registers.set_status(0)?;
        registers.set_status(ACKNOWLEDGED)?;
        let offered = registers.features(FEATURES_OFFERED)?;
        let mut both = self.features.iter().zip(offered);
        if both.any(|(taken, offered)| taken & !offered != 0) {
            return Ok(Err(unfit("cannot do what it could")));
        }
        for (half, taken) in (0_u32..).zip(self.features) {
            registers.write(FEATURES_TAKEN.0, half.to_le_bytes())?;
            registers.write(FEATURES_TAKEN.1, taken.to_le_bytes())?;
        }
        registers.set_status(ACKNOWLEDGED | FEATURES_OK)?;
        if registers.status()? & FEATURES_OK == 0 {
            return Ok(Err(unfit("does not take its features")));
        }
        for queue in &self.queues {
            registers.set_queue(queue)?;
        }
        registers.set_status(IN_USE)?;
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::registers::*;
    use super::*;
    use std::os::unix::fs::symlink;

    /// Where the window is.
    const AT: usize = 0x60;
    /// And the common registers, in their resource.
    const OFFSET: u32 = 0x100;

    /// A device of two queues: its configuration space, and what is behind the window.
    #[derive(Debug)]
    struct Model {
        configuration: [u8; CONFIGURATION],
        offered: [u32; 2],
        taken: [u32; 2],
        half: usize,
        status: u8,
        queue: usize,
        /// Size, whether it is in use, and where its rings are.
        queues: [(u16, u16, [u32; 6]); 2],
    }

    #[derive(Debug, Clone)]
    struct Space(std::sync::Arc<Mutex<Model>>);

    impl Space {
        fn in_use() -> Self {
            let mut configuration = [0_u8; CONFIGURATION];
            configuration[..8].copy_from_slice(&[0xf4, 0x1a, 0x5a, 0x10, 0x07, 0x04, 0x10, 0]);
            configuration[CACHE_LINE] = 16;
            configuration[0x20..0x24].copy_from_slice(&[0x0c, 0, 0, 0xfe]);
            configuration[CAPABILITIES] = 0x40;
            configuration[0x40..0x44].copy_from_slice(&[EXPRESS, AT as u8, 2, 0]);
            configuration[0x48] = 0x2f;
            configuration[AT..AT + 4].copy_from_slice(&[VENDOR, 0x80, 20, WINDOW]);
            configuration[0x80..0x85].copy_from_slice(&[VENDOR, 0xa0, 16, COMMON, 4]);
            configuration[0x88..0x8c].copy_from_slice(&OFFSET.to_le_bytes());
            configuration[0xa0..0xa4].copy_from_slice(&[MSI_X, 0, 1, 0]);
            let model = Model {
                configuration,
                offered: [3, 5],
                taken: [1, 4],
                half: 0,
                status: IN_USE,
                queue: 0,
                queues: [(128, 1, [7; 6]), (1024, 1, [8, 9, 10, 11, 12, 13])],
            };
            Self(std::sync::Arc::new(Mutex::new(model)))
        }

        /// New: it knows who it is, and nothing else.
        fn blank(&self) {
            let mut model = self.0.lock().unwrap();
            model.configuration[COMMAND..COMMAND + 2].fill(0);
            model.configuration[CACHE_LINE] = 0;
            model.configuration[ADDRESSES].fill(0);
            model.configuration[0x48] = 0;
            model.taken = [0; 2];
            model.status = 0;
            model.queues = [(128, 0, [0; 6]), (1024, 0, [0; 6])];
        }

        fn with<T>(&self, act: impl FnOnce(&mut Model) -> T) -> T {
            act(&mut self.0.lock().unwrap())
        }

        fn device(&self) -> Result<Device<Space>, KeptError> {
            Device::read("/config".into(), self.clone())
        }
    }

    impl Model {
        fn field(&self, field: u64) -> u32 {
            let at = AT + field as usize;
            u32::from_le_bytes(self.configuration[at..at + 4].try_into().unwrap())
        }

        /// The register that the window shows, after it was written to if there is a value.
        fn access(&mut self, value: Option<u32>) -> u32 {
            assert_eq!(self.configuration[AT + WINDOW_RESOURCE as usize], 4);
            let register = self.field(WINDOW_OFFSET) - OFFSET;
            let size = match register {
                STATUS => 1,
                QUEUES..QUEUE_RINGS_AT => 2,
                _ => 4,
            };
            assert_eq!(self.field(WINDOW_LENGTH), size, "of register {register}");
            let queue = &mut self.queues[self.queue];
            let new = value.unwrap_or_default();
            match (register, value.is_some()) {
                (0 | 8, true) => self.half = new as usize,
                (4, false) => return self.offered[self.half],
                (12, true) => self.taken[self.half] = new,
                (12, false) => return self.taken[self.half],
                (QUEUES, false) => return 2,
                (STATUS, true) => self.status = new as u8,
                (STATUS, false) => return self.status.into(),
                (QUEUE, true) => self.queue = new as usize,
                (QUEUE_SIZE, true) => queue.0 = new as u16,
                (QUEUE_SIZE, false) => return queue.0.into(),
                (QUEUE_ENABLE, true) => queue.1 = new as u16,
                (QUEUE_ENABLE, false) => return queue.1.into(),
                (QUEUE_RINGS_AT..56, write) => {
                    let ring = &mut queue.2[(register - QUEUE_RINGS_AT) as usize / 4];
                    if write {
                        *ring = new;
                    }
                    return *ring;
                }
                other => panic!("register {other:?}"),
            }
            0
        }
    }

    const QUEUE_RINGS_AT: u32 = QUEUE_RINGS[0];
    const DATA: u64 = AT as u64 + WINDOW_DATA;

    impl FileExt for Space {
        fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
            self.with(|model| {
                if at == DATA {
                    let value = model.access(None).to_le_bytes();
                    bytes.copy_from_slice(&value[..bytes.len()]);
                } else {
                    bytes.copy_from_slice(&model.configuration[at as usize..][..bytes.len()]);
                }
            });
            Ok(bytes.len())
        }

        fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
            self.with(|model| {
                if at == DATA {
                    let mut value = [0; 4];
                    value[..bytes.len()].copy_from_slice(bytes);
                    model.access(Some(u32::from_le_bytes(value)));
                } else {
                    model.configuration[at as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            });
            Ok(bytes.len())
        }
    }

    #[test]
    fn a_new_device_gets_what_the_old_one_had() {
        let space = Space::in_use();
        let kept = space.device().unwrap();
        let state = |model: &mut Model| {
            let mut configuration = model.configuration;
            configuration[AT..AT + 20].fill(0);
            (configuration, model.taken, model.status, model.queues)
        };
        let before = space.with(state);
        space.blank();
        kept.write().unwrap();
        assert_eq!(space.with(state), before);
    }

    #[test]
    fn a_queue_without_a_driver_stays_so() {
        let space = Space::in_use();
        space.with(|model| model.queues[0] = (128, 0, [0; 6]));
        let kept = space.device().unwrap();
        space.blank();
        kept.write().unwrap();
        assert_eq!(space.with(|model| [model.queues[0].1, model.queues[1].1]), [0, 1]);
    }

    #[test]
    fn another_device_is_left_alone() {
        let space = Space::in_use();
        let kept = space.device().unwrap();
        let refused = || match kept.write() {
            Err(KeptError::Device { what }) => what,
            other => panic!("{other:?}"),
        };
        space.blank();
        space.with(|model| model.offered = [3, 1]);
        assert_eq!(refused(), "cannot do what it could");
        assert_eq!(space.with(|model| model.status), ACKNOWLEDGED);
        // Nothing is there.
        space.with(|model| model.configuration = [0xff; CONFIGURATION]);
        assert_eq!(refused(), "is not where it was");
        assert_eq!(space.with(|model| model.configuration), [0xff; CONFIGURATION]);
    }

    #[test]
    fn what_cannot_be_kept_is_not() {
        let space = Space::in_use();
        let refused = || match space.device() {
            Err(KeptError::Device { what }) => what,
            other => panic!("{other:?}"),
        };
        space.with(|model| model.status = ACKNOWLEDGED);
        assert_eq!(refused(), "is not in use by its driver");
        space.with(|model| model.configuration[0xa3] = MSI_X_ON);
        assert_eq!(refused(), "has message-signalled interrupts");
        space.with(|model| model.configuration[0xa3] = 0);
        space.with(|model| model.configuration[0x83] = 2);
        assert_eq!(refused(), "has no registers");
        // A list that bites its tail.
        space.with(|model| model.configuration[0xa1] = 0x40);
        let configuration = space.with(|model| model.configuration);
        assert_eq!(capabilities(&configuration).count(), CONFIGURATION / 4);
    }

    #[test]
    fn the_device_is_found_by_its_driver() {
        let root = tempfile::tempdir().unwrap();
        let driver = root.path().join("driver");
        fs::create_dir(&driver).unwrap();
        fs::write(driver.join("bind"), "").unwrap();
        assert_eq!(bound(&driver), None);
        let device = root.path().join("0000:01:00.0/virtio3");
        fs::create_dir_all(&device).unwrap();
        symlink(&device, driver.join("virtio3")).unwrap();
        let expected = fs::canonicalize(root.path().join("0000:01:00.0")).unwrap();
        assert_eq!(bound(&driver), Some(expected));
        assert_eq!(bound(&root.path().join("none")), None);
    }
}
