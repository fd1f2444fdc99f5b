//! What a path or a mount is: contract rows M-01 to M-06 and M-12.
//!
//! Owns: classification by path and stat. Never: mounts anything; only [`bind_source`] creates its target.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Why a path could not be classified.
#[derive(Debug, thiserror::Error)]
pub enum FactError {
    /// A path that must be set is empty.
    #[error("{what} is empty: expected a path")]
    Empty {
        /// Which one.
        what: &'static str,
    },
    /// A file could not be looked at or made.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done to it.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The path is on the file system of `/`, so no mount point of its own was found (M-04).
    #[error("mount point not found for {}", path.display())]
    NoMountPoint {
        /// The path.
        path: PathBuf,
    },
}

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceNumber {
    /// From a `dev_t` (M-03): major in bits 8 to 19, minor in bits 0 to 7 and 20 to 31.
    #[must_use]
    pub(crate) const fn from_dev(dev: u64) -> Self {
        Self {
            major: ((dev >> 8) & 0xfff) as u32,
            minor: ((dev & 0xff) | ((dev >> 12) & 0xf_ff00)) as u32,
        }
    }
}

/// The device behind a path (M-04).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathDevice {
    /// Its number.
    pub device: DeviceNumber,
    /// Where the file system is mounted; `None` for a device file.
    pub mount_point: Option<PathBuf>,
}

/// M-01: whether a path, cleaned as text, is `/proc` or `/sys` or below.
#[must_use]
pub fn is_system_mount(path: &Path) -> bool {
    let path = clean(path);
    path.starts_with("/proc") || path.starts_with("/sys")
}

/// M-02: whether a path is `/dev` itself or something below it that exists and is no regular file.
#[must_use]
pub fn is_host_device(path: &Path) -> bool {
    let path = clean(path);
    if path == Path::new("/dev") {
        return true;
    }
    path.starts_with("/dev") && std::fs::metadata(&path).is_ok_and(|meta| !meta.is_file())
}

/// M-04: the device of a path, and where that is mounted.
///
/// # Errors
/// [`FactError`]: empty, cannot be looked at, or on the file system of `/`.
pub fn device_for_path(path: &Path) -> Result<PathDevice, FactError> {
    if path.as_os_str().is_empty() {
        return Err(FactError::Empty { what: "path" });
    }
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| FactError::Io { what, path, source }
    };
    let path = std::path::absolute(path).map_err(failed("making absolute", path))?;
    let meta = std::fs::metadata(&path).map_err(failed("looking at", &path))?;
    if is_host_device(&path) {
        return Ok(PathDevice {
            device: DeviceNumber::from_dev(meta.rdev()),
            mount_point: None,
        });
    }
    let device = DeviceNumber::from_dev(meta.dev());
    let found = |mount_point: PathBuf| PathDevice {
        device,
        mount_point: Some(mount_point),
    };
    let mut at = path.clone();
    loop {
        let Some(parent) = at.parent().map(Path::to_owned) else {
            // Walked up to "/" on one device: only "/" itself is its own mount point.
            return if path == Path::new("/") {
                Ok(found(at))
            } else {
                Err(FactError::NoMountPoint { path })
            };
        };
        let above = std::fs::metadata(&parent).map_err(failed("looking at", &parent))?;
        if above.dev() != meta.dev() {
            return Ok(found(at));
        }
        at = parent;
    }
}

/// M-05: whether a device is a device-mapper one.
///
/// # Errors
/// Any error but not-found.
pub fn is_device_mapper(device: DeviceNumber) -> Result<bool, FactError> {
    let path = PathBuf::from(format!("/sys/dev/block/{}:{}/dm", device.major, device.minor));
    match std::fs::metadata(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FactError::Io {
            what: "looking at",
            path,
            source,
        }),
    }
}

/// M-06: resolves the source of a bind and makes a destination of the same kind (mode 0755 for what is
/// created). Returns the resolved source.
///
/// # Errors
/// [`FactError`] naming the source or the destination.
pub fn bind_source(source: &Path, destination: &Path) -> Result<PathBuf, FactError> {
    for (what, path) in [("bind source", source), ("bind destination", destination)] {
        if path.as_os_str().is_empty() {
            return Err(FactError::Empty { what });
        }
    }
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| FactError::Io { what, path, source }
    };
    let resolved = std::fs::canonicalize(source).map_err(failed("resolving bind source", source))?;
    let meta = std::fs::metadata(&resolved).map_err(failed("looking at bind source", source))?;
    let create_failed = || failed("creating bind destination", destination);
    let directories = if meta.is_dir() {
        Some(destination)
    } else {
        destination.parent()
    };
    if let Some(directories) = directories {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directories)
            .map_err(create_failed())?;
    }
    if !meta.is_dir() {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o755)
            .open(destination)
            .map_err(create_failed())?;
    }
    Ok(resolved)
}

/// M-12: whether an option is among the options, exactly.
#[must_use]
pub fn has_option<S: AsRef<str>>(options: &[S], option: &str) -> bool {
    options.iter().any(|have| have.as_ref() == option)
}

/// M-12: whether an option begins with a prefix.
#[must_use]
pub fn has_option_prefix<S: AsRef<str>>(options: &[S], prefix: &str) -> bool {
    options.iter().any(|have| have.as_ref().starts_with(prefix))
}

/// M-12: whether the path itself is a symbolic link; what does not exist is not.
#[must_use]
pub fn is_symlink(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_symlink())
}

/// Whether a path is a block device (links followed).
#[must_use]
pub fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::CurDir => {}
            other => cleaned.push(other),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m_01_system_mounts_by_cleaned_path() {
        for (path, is) in [
            ("/proc", true),
            ("/proc/1/ns", true),
            ("/sys/", true),
            ("/a/../sys/fs", true),
            ("/process", false),
            ("/home/sys", false),
            ("sys", false),
        ] {
            assert_eq!(is_system_mount(Path::new(path)), is, "{path}");
        }
    }

    #[test]
    fn m_02_host_devices() {
        for (path, is) in [
            ("/dev", true),
            ("/dev/null", true),
            ("/dev/../dev/null", true),
            ("/dev/no-such-thing", false),
            ("/devices", false),
            ("/etc/passwd", false),
        ] {
            assert_eq!(is_host_device(Path::new(path)), is, "{path}");
        }
    }

    #[test]
    fn m_03_major_and_minor_bits() {
        let device = DeviceNumber::from_dev(0x1234_5678);
        assert_eq!((device.major, device.minor), (0x456, 0x1_2378));
    }

    #[test]
    fn m_04_device_and_mount_point() {
        let null = device_for_path(Path::new("/dev/null")).unwrap();
        assert_eq!(
            (null.device, null.mount_point),
            (DeviceNumber { major: 1, minor: 3 }, None)
        );
        let root = device_for_path(Path::new("/")).unwrap();
        assert_eq!(root.mount_point.as_deref(), Some(Path::new("/")));
        let proc = device_for_path(Path::new("/proc/self/net")).unwrap();
        assert!(proc.mount_point.unwrap().starts_with("/proc"));
        assert!(matches!(
            device_for_path(Path::new("")),
            Err(FactError::Empty { .. })
        ));
        let missing = device_for_path(Path::new("/no/such")).unwrap_err().to_string();
        assert!(missing.contains("/no/such"), "{missing}");
        // Cargo's own directory may be a mount of its own; then there is nothing to see here.
        let etc = device_for_path(Path::new("/etc"));
        assert!(matches!(etc, Err(FactError::NoMountPoint { .. })) || etc.unwrap().mount_point.is_some());
    }

    #[test]
    fn m_05_an_unknown_device_is_not_device_mapper() {
        let device = DeviceNumber {
            major: 4095,
            minor: 1,
        };
        assert!(!is_device_mapper(device).unwrap());
    }

    #[test]
    fn m_06_a_bind_target_matches_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let target = dir.path().join("a/b/target");
        assert_eq!(bind_source(&link, &target).unwrap(), file.canonicalize().unwrap());
        assert!(target.is_file());
        let target = dir.path().join("c/d");
        bind_source(dir.path(), &target).unwrap();
        assert!(target.is_dir());
        assert!(matches!(
            bind_source(Path::new(""), &target),
            Err(FactError::Empty { what: "bind source" })
        ));
        assert!(matches!(
            bind_source(&file, Path::new("")),
            Err(FactError::Empty {
                what: "bind destination"
            })
        ));
        let error = bind_source(&dir.path().join("gone"), &target)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/gone"), "{error}");
    }

    #[test]
    fn m_12_options_and_links() {
        let options = ["ro", "size=64m"];
        assert!(has_option(&options, "ro") && !has_option(&options, "size"));
        assert!(has_option_prefix(&options, "size=") && !has_option_prefix(&options, "mode="));
        assert!(is_symlink(Path::new("/proc/self/exe")) && !is_symlink(Path::new("/proc")));
        assert!(!is_symlink(Path::new("/no/such")));
    }
}
