//! Kernel modules: which are there, what they depend on, which the guest gets.
//!
//! Owns: reading a `/lib/modules/<release>` tree, names and dependencies from `.modinfo` (modinfo(8)), the
//! list of what a guest may need. Never: the archive they end up in. Called by [`super::build`].

use super::compression::Compression;
use super::elf::Elf;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// Packed when the kernel has them as modules; the agent loads each when it is first needed.
pub(super) const WANTED: &[&str] = &[
    "overlay",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_mem",
    "virtio_balloon",
    "virtio_scsi",
    "sd_mod",
    "vmw_vsock_virtio_transport",
    "9p",
    "9pnet_virtio",
    "erofs",
    "squashfs",
    "ext4",
    "nfit",
    "nd_pmem",
    "virtio_pmem",
    "dm_mod",
    "dm_verity",
];

/// Without these no agent can be reached: the guest has nothing that could load them in time.
pub(super) const REQUIRED_BUILT_IN: &[&str] = &["virtio_pci", "virtio_console"];

/// What is wrong with a module tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// A file or directory cannot be read.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A module file that is none.
    #[error("{path}: {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A dependency is nowhere.
    #[error("module {module} needs {dependency}, which is neither built in nor in the module tree")]
    MissingDependency {
        /// Who needs it.
        module: String,
        /// What is needed.
        dependency: String,
    },
    /// A module asked for by name is nowhere.
    #[error("module {module} is neither built in nor in {tree}")]
    Unknown {
        /// Its name.
        module: String,
        /// Where it was looked for.
        tree: PathBuf,
    },
    /// The kernel has as a module what the guest needs to be reached.
    #[error("{module} is a module of this kernel: expected it built in")]
    NotBuiltIn {
        /// Its name.
        module: String,
    },
}

/// A module in memory, uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Name with underscores.
    pub(super) name: String,
    /// Path below the tree, ending in `.ko`.
    pub(super) path: String,
    /// Names it depends on, in load order.
    pub(super) depends: Vec<String>,
    /// The file.
    pub(super) bytes: Vec<u8>,
}

/// What of the wanted list was found where.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// To pack, dependencies before dependants.
    pub(super) modules: Vec<Module>,
    /// Wanted, and part of the kernel already.
    pub(super) built_in: Vec<String>,
    /// Wanted, and not there at all.
    pub(super) absent: Vec<String>,
}

/// A `/lib/modules/<release>` directory.
#[derive(Debug)]
pub(super) struct ModuleTree {
    root: PathBuf,
    /// Name → file.
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl ModuleTree {
    /// Reads names only; no module is opened.
    pub(super) fn open(root: &Path) -> Result<Self, ModuleError> {
        let mut files = BTreeMap::new();
        walk(&root.join("kernel"), &mut files)?;
        let list = root.join("modules.builtin");
        let built_in = match std::fs::read_to_string(&list) {
            Ok(text) => text.lines().filter_map(|line| name_of(Path::new(line))).collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(source) => return Err(ModuleError::Io { path: list, source }),
        };
        Ok(Self {
            root: root.to_owned(),
            files,
            built_in,
        })
    }

    /// Names of those that are part of the kernel, one a line.
    pub(super) fn built_in(&self) -> String {
        self.built_in.iter().map(|name| format!("{name}\n")).collect()
    }

    /// What the guest gets: the wanted ones that are there, and all of `extra`.
    pub(super) fn select(&self, extra: &[String]) -> Result<Selection, ModuleError> {
        for name in REQUIRED_BUILT_IN {
            if self.files.contains_key(*name) {
                return Err(ModuleError::NotBuiltIn {
                    module: (*name).to_owned(),
                });
            }
        }
        let mut selection = Selection::default();
        let mut taken = BTreeSet::new();
        let extra: Vec<String> = extra.iter().map(|name| normal(name)).collect();
        for name in WANTED.iter().map(|n| (*n).to_owned()).chain(extra.clone()) {
            if self.built_in.contains(&name) {
                selection.built_in.push(name);
            } else if self.files.contains_key(&name) {
                self.take(&name, &mut taken, &mut selection.modules)?;
            } else if extra.contains(&name) {
                return Err(ModuleError::Unknown {
                    module: name,
                    tree: self.root.clone(),
                });
            } else {
                selection.absent.push(name);
            }
        }
        Ok(selection)
    }

    /// Adds a module behind everything it depends on.
    fn take(
        &self,
        name: &str,
        taken: &mut BTreeSet<String>,
        out: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        if !taken.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            return Ok(());
        };
        let module = self.read(name, file)?;
        for dependency in &module.depends {
            if !self.files.contains_key(dependency) && !self.built_in.contains(dependency) {
                return Err(ModuleError::MissingDependency {
                    module: name.to_owned(),
                    dependency: dependency.clone(),
                });
            }
            self.take(dependency, taken, out)?;
        }
        out.push(module);
        Ok(())
    }

    fn read(&self, name: &str, file: &Path) -> Result<Module, ModuleError> {
        let malformed = |what: String| ModuleError::Malformed {
            path: file.to_owned(),
            what,
        };
        let raw = std::fs::read(file).map_err(|source| ModuleError::Io {
            path: file.to_owned(),
            source,
        })?;
        let bytes = match Compression::of(&raw) {
            Some(kind) => kind.expand(&raw).map_err(malformed)?,
            None => raw,
        };
        let info = Elf::parse(&bytes)
            .and_then(|elf| elf.section(".modinfo"))
            .ok_or_else(|| malformed("it is no kernel module (no .modinfo)".to_owned()))?;
        let mut depends = dependencies(info);
        // A soft dependency that is not there is no fault.
        depends.retain(|d| d.hard || self.files.contains_key(&d.name));
        let path = file.strip_prefix(&self.root).unwrap_or(file).to_string_lossy();
        let end = path.rfind(".ko").map_or(path.len(), |at| at + 3);
        Ok(Module {
            name: name.to_owned(),
            path: path[..end].to_owned(),
            depends: depends.into_iter().map(|d| d.name).collect(),
            bytes,
        })
    }
}

/// The text of a `modules.dep` for these modules: each line names a module and all it needs, the nearest
/// first, as depmod(8) writes it.
pub(super) fn dep_file(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut text = String::new();
    for module in modules {
        let mut closure: Vec<&Module> = Vec::new();
        gather(
            module,
            &by_name,
            &mut BTreeSet::from([module.name.as_str()]),
            &mut closure,
        );
        text.push_str(&module.path);
        text.push(':');
        for dependency in closure.iter().rev() {
            text.push(' ');
            text.push_str(&dependency.path);
        }
        text.push('\n');
    }
    text
}

/// Dependencies of `module`, each behind its own dependencies; `seen` ends cycles.
fn gather<'a>(
    module: &'a Module,
    by_name: &BTreeMap<&str, &'a Module>,
    seen: &mut BTreeSet<&'a str>,
    out: &mut Vec<&'a Module>,
) {
    for dependency in &module.depends {
        if let Some(found) = by_name.get(dependency.as_str())
            && seen.insert(found.name.as_str())
        {
            gather(found, by_name, seen, out);
            out.push(found);
        }
    }
}

struct Dependency {
    name: String,
    hard: bool,
}

fn dependencies(info: &[u8]) -> Vec<Dependency> {
    let mut found = Vec::new();
    for entry in info.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        if let Some(list) = entry.strip_prefix("softdep=pre:") {
            let before = list.split("post:").next().unwrap_or_default();
            found.extend(before.split_whitespace().map(|name| Dependency {
                name: normal(name),
                hard: false,
            }));
        } else if let Some(list) = entry.strip_prefix("depends=") {
            found.extend(
                list.split(',')
                    .filter(|name| !name.is_empty())
                    .map(|name| Dependency {
                        name: normal(name),
                        hard: true,
                    }),
            );
        }
    }
    found
}

fn normal(name: &str) -> String {
    name.trim().replace('-', "_")
}

/// Module name of a path like `kernel/fs/ext4/ext4.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, rest) = file.split_once(".ko")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| normal(stem))
}

fn walk(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let failed = |source| ModuleError::Io {
        path: dir.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::sample;
    use super::*;

    fn tree(built_in: &str, modules: &[(&str, &str)]) -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("kernel/x")).unwrap();
        std::fs::write(dir.path().join("modules.builtin"), built_in).unwrap();
        for (name, info) in modules {
            let info = format!("license=GPL\0{info}\0");
            let file = sample(".modinfo", info.as_bytes(), "x", 1);
            std::fs::write(dir.path().join(format!("kernel/x/{name}.ko")), file).unwrap();
        }
        let tree = ModuleTree::open(dir.path()).unwrap();
        (dir, tree)
    }

    fn names(selection: &Selection) -> Vec<&str> {
        selection.modules.iter().map(|m| m.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let (_dir, tree) = tree(
            "kernel/fs/ext4/ext4.ko\n",
            &[
                ("virtio_net", "depends=net-failover"),
                ("net_failover", "depends=failover"),
                ("failover", "depends="),
                ("dm-mod", "depends="),
                ("dm-verity", "depends=dm-mod,ext4"),
                ("unrelated", "depends="),
            ],
        );
        let selection = tree.select(&[]).unwrap();
        assert_eq!(
            names(&selection),
            ["failover", "net_failover", "virtio_net", "dm_mod", "dm_verity"]
        );
        assert_eq!(selection.built_in, ["ext4"]);
        assert!(selection.absent.contains(&"overlay".to_owned()));
        let text = dep_file(&selection.modules);
        assert!(
            text.contains("kernel/x/virtio_net.ko: kernel/x/net_failover.ko kernel/x/failover.ko\n"),
            "{text}"
        );
        assert!(text.contains("kernel/x/failover.ko:\n"), "{text}");
    }

    #[test]
    fn extra_modules_are_added_or_named_in_the_error() {
        let (_dir, tree) = tree("", &[("nf-tables", "softdep=pre: nowhere post: x\0depends=")]);
        assert_eq!(names(&tree.select(&["nf-tables".into()]).unwrap()), ["nf_tables"]);
        let error = tree.select(&["nosuch".into()]).unwrap_err().to_string();
        assert!(error.contains("nosuch"), "{error}");
    }

    #[test]
    fn a_hard_dependency_that_is_nowhere_is_an_error() {
        let (_dir, tree) = tree("", &[("overlay", "depends=ghost")]);
        let error = tree.select(&[]).unwrap_err().to_string();
        assert!(error.contains("overlay") && error.contains("ghost"), "{error}");
    }

    #[test]
    fn a_modular_console_cannot_work() {
        let (_dir, tree) = tree("", &[("virtio_console", "depends=")]);
        let error = tree.select(&[]).unwrap_err().to_string();
        assert!(error.contains("virtio_console"), "{error}");
    }

    #[test]
    fn a_cycle_ends() {
        let (_dir, tree) = tree("", &[("overlay", "depends=xfs"), ("xfs", "depends=overlay")]);
        let selection = tree.select(&[]).unwrap();
        assert_eq!(selection.modules.len(), 2);
        assert_eq!(dep_file(&selection.modules).lines().count(), 2);
    }
}
