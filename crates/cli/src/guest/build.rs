//! Making and installing a guest.
//!
//! ```text
//! package or files ─► kernel + modules ─► vmlinux, modules.cpio ─┐
//!                                          agent ─► initrd ──────┴─► manifest.json (last)
//! ```
//! Every file is written under a temporary name, synced and renamed, the manifest last: a build that is cut
//! short leaves files that do not match the manifest, which the next build and `doctor` notice.
//!
//! Owns: the order of steps and what is reused. Never: formats. Called by [`super::run`].

use super::error::GuestError;
use super::initrd::{agent_archive, module_archive};
use super::kernel::Kernel;
use super::manifest::{Asset, MANIFEST, Manifest};
use super::module::{ModuleTree, Selection, WANTED};
use super::package::{Package, unpack};
use nix::fcntl::{Flock, FlockArg};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Modules as a cpio archive of their own, so that a new agent needs no new kernel.
const MODULE_ARCHIVE: &str = "modules.cpio";

/// Changes when what is packed beside the modules does.
const ARCHIVE_FORM: u32 = 2;

/// Where kernel and modules come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KernelSource {
    /// The newest package of the host's distribution.
    Newest,
    /// A package file.
    Package(PathBuf),
    /// A kernel file and, if it has any, its modules.
    Files {
        /// bzImage or vmlinux.
        kernel: PathBuf,
        /// `lib/modules/<release>`.
        modules: Option<PathBuf>,
    },
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// Kernel and modules.
    pub(crate) source: KernelSource,
    /// The static agent.
    pub(crate) agent: PathBuf,
    /// Where to install.
    pub(crate) out: PathBuf,
    /// Modules beside the usual ones.
    pub(crate) modules: Vec<String>,
    /// Also when nothing has changed.
    pub(crate) force: bool,
}

/// What a build did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    /// The guest that is installed now.
    pub(crate) manifest: Manifest,
    /// Whether anything was written.
    pub(crate) changed: bool,
}

/// Kernel part of a guest: what lies in the directory already, or what is to be written.
struct KernelPart {
    manifest: Manifest,
    module_archive: Vec<u8>,
    /// `None` when the installed one stays.
    vmlinux: Option<Vec<u8>>,
}

/// Makes a guest and installs it.
///
/// # Errors
/// The first step that failed; an installed guest stays usable.
pub(crate) fn build(order: &Order) -> Result<Built, GuestError> {
    let agent = read(&order.agent)?;
    let agent_asset = Asset::of(&agent);
    std::fs::create_dir_all(&order.out).map_err(|e| GuestError::io(&order.out, e))?;
    let _lock = lock(&order.out)?;
    let installed = Manifest::load(&order.out)
        .ok()
        .filter(|m| !order.force && m.verify(&order.out).is_ok());
    let (key, source) = kernel_key(order)?;
    if let Some(manifest) = &installed
        && manifest.kernel_key == key
        && manifest.agent == agent_asset
    {
        return Ok(Built {
            manifest: manifest.clone(),
            changed: false,
        });
    }
    let reusable = installed.filter(|m| m.kernel_key == key);
    let part = match reusable.and_then(|m| reuse(&order.out, m)) {
        Some(part) => part,
        None => make_kernel(order, &source, &key)?,
    };
    let mut initrd = agent_archive(&agent);
    initrd.extend_from_slice(&part.module_archive);
    let mut manifest = part.manifest;
    manifest.initrd = Asset::of(&initrd);
    manifest.agent = agent_asset;
    if let Some(vmlinux) = &part.vmlinux {
        install(&order.out, "vmlinux", vmlinux)?;
        install(&order.out, MODULE_ARCHIVE, &part.module_archive)?;
    }
    install(&order.out, "initrd", &initrd)?;
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(GuestError::Encode)?;
    text.push(b'\n');
    install(&order.out, MANIFEST, &text)?;
    Ok(Built {
        manifest,
        changed: true,
    })
}

/// The kernel source once its name is known.
enum Found {
    Apt(Package),
    Deb(PathBuf),
    Files {
        kernel: PathBuf,
        modules: Option<PathBuf>,
    },
}

/// What identifies the kernel part without making it.
fn kernel_key(order: &Order) -> Result<(String, Found), GuestError> {
    let (name, found) = match &order.source {
        KernelSource::Newest => {
            let package = Package::newest()?;
            (
                format!("{} {}", package.name, package.version),
                Found::Apt(package),
            )
        }
        KernelSource::Package(deb) => (format!("deb {}", digest(deb)?), Found::Deb(deb.clone())),
        KernelSource::Files { kernel, modules } => {
            let tree = modules.as_deref().map(|dir| {
                // A tree is taken for unchanged while its index is: depmod rewrites that with every change.
                digest(&dir.join("modules.order")).unwrap_or_default()
            });
            (
                format!("file {} {}", digest(kernel)?, tree.unwrap_or_default()),
                Found::Files {
                    kernel: kernel.clone(),
                    modules: modules.clone(),
                },
            )
        }
    };
    let list = format!("{ARCHIVE_FORM} {WANTED:?} {:?}", order.modules);
    Ok((format!("{name} {}", Asset::of(list.as_bytes()).sha256), found))
}

fn digest(path: &Path) -> Result<String, GuestError> {
    Ok(Asset::read(path).map_err(|e| GuestError::io(path, e))?.sha256)
}

fn reuse(out: &Path, manifest: Manifest) -> Option<KernelPart> {
    let module_archive = std::fs::read(out.join(MODULE_ARCHIVE)).ok()?;
    // An empty archive beside a list of modules is a file cut short.
    (!module_archive.is_empty() || manifest.modules.is_empty()).then_some(KernelPart {
        manifest,
        module_archive,
        vmlinux: None,
    })
}

fn make_kernel(order: &Order, found: &Found, key: &str) -> Result<KernelPart, GuestError> {
    let work = tempfile::Builder::new()
        .prefix("bulkhead-guest-")
        .tempdir()
        .map_err(|e| GuestError::io(&std::env::temp_dir(), e))?;
    let (name, kernel, modules) = match found {
        Found::Apt(package) => {
            let deb = package.fetch(work.path())?;
            let unpacked = unpack(&deb, &work.path().join("x"))?;
            let name = format!("{} {}", package.name, package.version);
            (name, unpacked.kernel, Some(unpacked.modules))
        }
        Found::Deb(deb) => {
            let unpacked = unpack(deb, &work.path().join("x"))?;
            let name = deb
                .file_name()
                .unwrap_or(deb.as_os_str())
                .to_string_lossy()
                .into_owned();
            (name, unpacked.kernel, Some(unpacked.modules))
        }
        Found::Files { kernel, modules } => (kernel.display().to_string(), kernel.clone(), modules.clone()),
    };
    let parsed =
        Kernel::parse(read(&kernel)?).map_err(|source| GuestError::Kernel { path: kernel, source })?;
    let (selection, built_in) = match &modules {
        Some(tree) => {
            let tree = ModuleTree::open(tree)?;
            (tree.select(&order.modules)?, tree.built_in())
        }
        None if order.modules.is_empty() => (Selection::default(), String::new()),
        None => return Err(GuestError::ModulesWithoutTree(order.modules.join(" "))),
    };
    let module_archive = module_archive(&parsed.release, &selection.modules, &built_in);
    let empty = Asset::of(&[]);
    let mut manifest = Manifest::new(
        parsed.release,
        name,
        Asset::of(&parsed.vmlinux),
        empty.clone(),
        empty,
    );
    manifest.modules = selection.modules.into_iter().map(|m| m.name).collect();
    manifest.built_in = selection.built_in;
    manifest.absent = selection.absent;
    key.clone_into(&mut manifest.kernel_key);
    Ok(KernelPart {
        manifest,
        module_archive,
        vmlinux: Some(parsed.vmlinux),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, GuestError> {
    std::fs::read(path).map_err(|e| GuestError::io(path, e))
}

/// Keeps a second builder out; released when dropped.
fn lock(out: &Path) -> Result<Flock<std::fs::File>, GuestError> {
    let path = out.join(".lock");
    let file = std::fs::File::create(&path).map_err(|e| GuestError::io(&path, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => GuestError::Busy(out.to_owned()),
        other => GuestError::io(&path, other.into()),
    })
}

/// Puts a file in place in one step.
fn install(out: &Path, name: &str, bytes: &[u8]) -> Result<(), GuestError> {
    let target = out.join(name);
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(out)?;
        file.write_all(bytes)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(&target)?;
        std::fs::File::open(out)?.sync_all()
    };
    write().map_err(|e| GuestError::io(&target, e))
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::sample;
    use super::*;

    fn order(dir: &Path) -> Order {
        let kernel = dir.join("vmlinux-in");
        let text = b"Linux version 6.12.1-test (a@b)\0";
        std::fs::write(&kernel, sample(".rodata", text, "Xen", 18)).unwrap();
        let modules = dir.join("tree");
        std::fs::create_dir_all(modules.join("kernel")).unwrap();
        std::fs::write(
            modules.join("kernel/overlay.ko"),
            sample(".modinfo", b"depends=\0", "x", 1),
        )
        .unwrap();
        let agent = dir.join("agent");
        std::fs::write(&agent, b"agent one").unwrap();
        Order {
            source: KernelSource::Files {
                kernel,
                modules: Some(modules),
            },
            agent,
            out: dir.join("out"),
            modules: Vec::new(),
            force: false,
        }
    }

    #[test]
    fn a_guest_is_built_once_and_again_when_its_parts_change() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(dir.path());
        let first = build(&order).unwrap();
        assert!(first.changed);
        assert_eq!(first.manifest.release, "6.12.1-test");
        assert_eq!(first.manifest.modules, ["overlay"]);
        first.manifest.verify(&order.out).unwrap();
        assert!(!build(&order).unwrap().changed);

        std::fs::write(&order.agent, b"agent two").unwrap();
        let second = build(&order).unwrap();
        assert!(second.changed);
        assert_eq!(second.manifest.kernel, first.manifest.kernel);
        assert_ne!(second.manifest.initrd, first.manifest.initrd);
        assert_eq!(second.manifest.modules, ["overlay"]);
        second.manifest.verify(&order.out).unwrap();

        std::fs::write(order.out.join("vmlinux"), b"damaged").unwrap();
        let third = build(&order).unwrap();
        assert!(third.changed);
        third.manifest.verify(&order.out).unwrap();

        let forced = Order { force: true, ..order };
        assert!(build(&forced).unwrap().changed);
        let leftovers = std::fs::read_dir(&forced.out)
            .unwrap()
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".new-")
            })
            .count();
        assert_eq!(leftovers, 0);
    }

    #[test]
    fn a_failed_build_leaves_the_installed_guest() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(dir.path());
        let first = build(&order).unwrap();
        let bad = dir.path().join("bad");
        std::fs::write(&bad, b"no kernel").unwrap();
        let broken = Order {
            source: KernelSource::Files {
                kernel: bad,
                modules: None,
            },
            ..order.clone()
        };
        let error = build(&broken).unwrap_err().to_string();
        assert!(error.contains("bad"), "{error}");
        first.manifest.verify(&order.out).unwrap();
        let missing = Order {
            agent: dir.path().join("no-agent"),
            ..order.clone()
        };
        assert!(build(&missing).unwrap_err().to_string().contains("no-agent"));
        let without = Order {
            modules: vec!["tun".into()],
            source: KernelSource::Files {
                kernel: dir.path().join("vmlinux-in"),
                modules: None,
            },
            ..order
        };
        assert!(build(&without).unwrap_err().to_string().contains("tun"));
    }

    #[test]
    fn a_kernel_without_modules_brings_the_list_of_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let mut order = order(dir.path());
        let tree = dir.path().join("lean");
        std::fs::create_dir_all(tree.join("kernel")).unwrap();
        std::fs::write(tree.join("modules.builtin"), "kernel/fs/overlayfs/overlay.ko\n").unwrap();
        if let KernelSource::Files { modules, .. } = &mut order.source {
            *modules = Some(tree);
        }
        let built = build(&order).unwrap();
        assert_eq!(built.manifest.built_in, ["overlay"]);
        assert!(built.manifest.modules.is_empty());
        let initrd = std::fs::read(order.out.join("initrd")).unwrap();
        let list = b"lib/modules/6.12.1-test/modules.builtin";
        assert!(memchr::memmem::find(&initrd, list).is_some());
        std::fs::write(&order.agent, b"agent two").unwrap();
        build(&order).unwrap();
        let initrd = std::fs::read(order.out.join("initrd")).unwrap();
        assert!(
            memchr::memmem::find(&initrd, list).is_some(),
            "kept with a new agent"
        );
    }

    #[test]
    fn two_builders_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(dir.path());
        std::fs::create_dir_all(&order.out).unwrap();
        let held = lock(&order.out).unwrap();
        assert!(matches!(build(&order), Err(GuestError::Busy(_))));
        drop(held);
        build(&order).unwrap();
    }
}
