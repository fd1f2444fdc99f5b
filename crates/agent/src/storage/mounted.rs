//! The table of mounts and the drivers that make them.
//!
//! Owns: what the agent has mounted for containers, counted by its users. Never: a container's own mounts (see `launch`). Called
//! through `storage`.

use super::kept::{Kept, KeptError};
use super::options::{Options, parse};
use super::watchable::Watchables;
use super::{StorageError, blocks};
use crate::modules::Modules;
use crate::paths::{self, PathError};
use crate::uevent;
use bulkhead_protocol::api::agent::Storage;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// For the kernel to find a file system that was plugged: 50 ms when nothing else is going on.
const PLUGGED: Duration = Duration::from_secs(30);

/// All storages of the guest.
#[derive(Debug)]
pub(crate) struct Storages {
    modules: Arc<Modules>,
    table: Mutex<BTreeMap<String, Entry>>,
    watchables: Watchables,
    kept: Kept,
}

#[derive(Debug)]
struct Entry {
    users: usize,
    /// Lives as long as the sandbox: its content is data that a restarted container finds again (C-35).
    lasting: bool,
}

fn failed(step: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.as_ref().display().to_string();
    move |source| StorageError::Io { step, path, source }
}

impl Storages {
    /// None yet.
    #[must_use]
    pub(crate) fn new(modules: Arc<Modules>) -> Self {
        Self {
            modules,
            table: Mutex::default(),
            watchables: Watchables::default(),
            kept: Kept::default(),
        }
    }

    /// Makes `storage` available, or takes part in it if its mount point is in use. `lasting` keeps it for the
    /// life of the sandbox.
    ///
    /// # Errors
    /// [`StorageError`]; nothing is left behind then.
    pub(crate) fn add(&self, storage: &Storage, lasting: bool) -> Result<(), StorageError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = table.get_mut(&storage.mount_point) {
            entry.users += 1;
            return Ok(());
        }
        self.make(storage)?;
        let data = matches!(storage.driver.as_str(), "ephemeral" | "local");
        let entry = Entry {
            users: 1,
            lasting: lasting || data,
        };
        table.insert(storage.mount_point.clone(), entry);
        Ok(())
    }

    /// Keeps the device of the shared file system, for a machine that is about to be saved without it.
    ///
    /// # Errors
    /// [`KeptError`]; the device is as it was then.
    pub(crate) fn keep_share(&self) -> Result<(), KeptError> {
        self.modules.load_if_there("virtiofs")?;
        self.kept.keep()
    }

    /// A container no longer uses `mount_point`; the last one unmounts it. Unknown is fine.
    ///
    /// # Errors
    /// [`StorageError::Io`] if it cannot be unmounted.
    pub(crate) fn release(&self, mount_point: &str) -> Result<(), StorageError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = table.get_mut(mount_point) else {
            return Ok(());
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 || entry.lasting {
            return Ok(());
        }
        table.remove(mount_point);
        self.watchables.remove(mount_point);
        // By its name: it was made link by link when it was mounted, and only the agent writes there.
        match umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {
                let _ = fs::remove_dir(mount_point);
                Ok(())
            }
            Err(errno) => Err(failed("unmounting", mount_point)(errno.into())),
        }
    }

    fn make(&self, storage: &Storage) -> Result<(), StorageError> {
        let Options { mut flags, data } = parse(&storage.options);
        let point = Path::new(&storage.mount_point);
        match storage.driver.as_str() {
            "virtiofs" => {
                self.modules.load_if_there("virtiofs")?;
                self.kept.give_back()?;
                shared(point, &storage.source, flags, &data)
            }
            "9p" => {
                self.modules.load_if_there("9pnet_virtio")?;
                self.modules.load_if_there("9p")?;
                at(point, &storage.source, "9p", flags, &data)
            }
            "blk" => {
                self.modules.load_if_there("virtio_blk")?;
                let device = blocks::find(&storage.source)?;
                self.modules.load_if_there(&storage.fstype)?;
                at(point, &device.to_string_lossy(), &storage.fstype, flags, &data)
            }
            "ephemeral" => at(point, "tmpfs", "tmpfs", flags, &data),
            "local" => local(point, &storage.options),
            "overlay" => {
                self.modules.load_if_there("overlay")?;
                overlay(point, &storage.options)
            }
            "watchable-bind" => self.watchable(storage, point),
            "bind" => {
                flags |= MsFlags::MS_BIND;
                bind(Path::new(&storage.source), point, flags)
            }
            other => Err(StorageError::Driver {
                driver: other.to_owned(),
            }),
        }
    }
}

impl Storages {
    /// A single file cannot be watched across the share either, but has no `..data` to follow: it is bound.
    fn watchable(&self, storage: &Storage, point: &Path) -> Result<(), StorageError> {
        let from = paths::open(Path::new(&storage.source))?;
        if !paths::is_directory(&from) {
            return bind(Path::new(&storage.source), point, MsFlags::MS_BIND);
        }
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        at(point, "watchable", "tmpfs", safe, "mode=0755")?;
        // The mount is the agent's own: its name is safe from here on.
        let added = self.watchables.add(&storage.mount_point, from, point.to_owned());
        added.map_err(|error| {
            let _ = umount2(point, MntFlags::UMOUNT_NOFOLLOW);
            failed("copying", &storage.source)(error)
        })
    }
}

/// Mounts the file system of tag `source`, which may have been plugged a moment ago: the kernel knows no tag
/// (EINVAL) whose device it has not found yet.
fn shared(point: &Path, source: &str, flags: MsFlags, data: &str) -> Result<(), StorageError> {
    let mut refused = None;
    let mounted = uevent::wait_for(PLUGGED, || match at(point, source, "virtiofs", flags, data) {
        Err(StorageError::Io { source, step, path }) if source.raw_os_error() == Some(libc::EINVAL) => {
            refused = Some(StorageError::Io { step, path, source });
            None
        }
        other => Some(other),
    })
    .map_err(failed("waiting for", source))?;
    match (mounted, refused) {
        (Some(mounted), _) => mounted,
        (None, Some(refused)) => Err(refused),
        (None, None) => Err(failed("waiting for", source)(std::io::ErrorKind::TimedOut.into())),
    }
}

fn at(point: &Path, source: &str, fstype: &str, flags: MsFlags, data: &str) -> Result<(), StorageError> {
    let directory = paths::make_directory(point)?;
    mount(
        Some(source),
        &paths::handle(&directory),
        Some(fstype),
        flags,
        Some(data),
    )
    .map_err(|errno| match errno {
        nix::errno::Errno::ENODEV => StorageError::FileSystem {
            fstype: fstype.to_owned(),
        },
        errno => failed("mounting", point)(errno.into()),
    })
}

fn bind(source: &Path, point: &Path, flags: MsFlags) -> Result<(), StorageError> {
    let from = paths::open(source)?;
    let to = if paths::is_directory(&from) {
        paths::make_directory(point)?
    } else {
        make_file(point)?
    };
    mount(
        Some(&paths::handle(&from)),
        &paths::handle(&to),
        None::<&str>,
        flags & (MsFlags::MS_BIND | MsFlags::MS_REC),
        None::<&str>,
    )
    .map_err(|errno| failed("binding", source)(errno.into()))?;
    if (flags - MsFlags::MS_REC) != MsFlags::MS_BIND {
        // Flags of a bind are only taken by a second call, on the new mount.
        let top = paths::open(point)?;
        mount(
            None::<&str>,
            &paths::handle(&top),
            None::<&str>,
            flags | MsFlags::MS_REMOUNT,
            None::<&str>,
        )
        .map_err(|errno| failed("remounting", point)(errno.into()))?;
    }
    Ok(())
}

fn make_file(point: &Path) -> Result<std::os::fd::OwnedFd, StorageError> {
    let (Some(parent), Some(name)) = (point.parent(), point.file_name()) else {
        return Err(PathError::Outside {
            path: point.to_owned(),
        }
        .into());
    };
    let directory = paths::make_directory(parent)?;
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    nix::fcntl::openat(&directory, name, flags, mode).map_err(|errno| failed("making", point)(errno.into()))
}

/// A directory of the guest's own.
fn local(point: &Path, options: &[String]) -> Result<(), StorageError> {
    let directory = paths::make_directory(point)?;
    for option in options {
        let Some((key, value)) = option.split_once('=') else {
            continue;
        };
        let bad = |expected| StorageError::Option {
            option: option.clone(),
            expected,
        };
        match key {
            "mode" => {
                let mode = u32::from_str_radix(value, 8).map_err(|_| bad("mode=OCTAL"))?;
                fs::set_permissions(paths::handle(&directory), Permissions::from_mode(mode & 0o7777))
                    .map_err(failed("setting the mode of", point))?;
            }
            "gid" => {
                let gid = value.parse().map_err(|_| bad("gid=NUMBER"))?;
                std::os::unix::fs::chown(paths::handle(&directory), None, Some(gid))
                    .map_err(failed("setting the group of", point))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Layers are given to the kernel as open directories.
fn overlay(point: &Path, options: &[String]) -> Result<(), StorageError> {
    let mut open = Vec::new();
    let mut data = Vec::new();
    let mut plain = Vec::new();
    for option in options {
        let Some((key, value)) = option.split_once('=') else {
            plain.push(option.clone());
            continue;
        };
        match key {
            "lowerdir" | "upperdir" | "workdir" => {
                let mut names = Vec::new();
                for layer in value.split(':') {
                    let directory = if key == "lowerdir" {
                        paths::open(Path::new(layer))?
                    } else {
                        paths::make_directory(Path::new(layer))?
                    };
                    names.push(paths::handle(&directory).to_string_lossy().into_owned());
                    open.push(directory);
                }
                data.push(format!("{key}={}", names.join(":")));
            }
            _ => plain.push(option.clone()),
        }
    }
    let Options { flags, data: rest } = parse(&plain);
    if !rest.is_empty() {
        data.push(rest);
    }
    at(point, "overlay", "overlay", flags, &data.join(","))
}
