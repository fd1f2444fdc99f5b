//! Kernel modules out of the initial RAM disk, loaded when needed, with what they depend on.
//!
//! Owns: `/lib/modules/<release>` and its `modules.dep` (modules.dep(5)). Never: loads what was not asked for.
//! Called by `storage` and by configuration.

use crate::sys::module;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// The initial RAM disk does not have it.
    #[error("kernel module {name:?} is not in the guest")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The kernel refused it.
    #[error("kernel module {name:?}")]
    Load {
        /// Its name.
        name: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It is there already, and does not take the parameter any more.
    #[error(
        "parameter {parameter:?} of kernel module {name:?}, which is there already: expected one that can be set"
    )]
    Parameter {
        /// The module's name.
        name: String,
        /// As it was asked for.
        parameter: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// The modules there are.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    directory: PathBuf,
    index: OnceLock<BTreeMap<String, Entry>>,
    loaded: Mutex<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    file: PathBuf,
    needs: Vec<String>,
}

/// `kernel/fs/overlayfs/overlay.ko.xz` is `overlay`; the kernel takes `-` and `_` as one.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn parse(text: &str) -> BTreeMap<String, Entry> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| {
            let entry = Entry {
                file: PathBuf::from(file.trim()),
                needs: needs.split_whitespace().map(name_of).collect(),
            };
            (name_of(file.trim()), entry)
        })
        .collect()
}

/// Sets the parameters of a module whose directory is `there`.
fn set(there: &Path, name: &str, parameters: &str) -> Result<(), ModuleError> {
    for parameter in parameters.split_whitespace() {
        // A bare one is a switch that is on, as for insmod(8).
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, "1"));
        let key = key.replace('-', "_");
        let path = there.join("parameters").join(key);
        let written = File::options().write(true).open(path);
        written
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|source| ModuleError::Parameter {
                name: name.to_owned(),
                parameter: parameter.to_owned(),
                source,
            })?;
    }
    Ok(())
}

impl Modules {
    /// Those below `directory` for the running kernel; none is fine.
    #[must_use]
    pub(crate) fn of(directory: &Path) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            directory: directory.join(release.trim()),
            ..Self::default()
        }
    }

    fn index(&self) -> &BTreeMap<String, Entry> {
        self.index.get_or_init(|| {
            parse(&fs::read_to_string(self.directory.join("modules.dep")).unwrap_or_default())
        })
    }

    /// Loads `name parameter…`; one that is built in or loaded is fine, and has its parameters set.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub(crate) fn load(&self, line: &str) -> Result<(), ModuleError> {
        let line = line.trim();
        let (name, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let name = name.replace('-', "_");
        // A line that was carried out needs no second look; neither does a module of which nothing is wanted.
        if self.is_settled(line) || (parameters.is_empty() && self.is_settled(&name)) {
            return Ok(());
        }
        let there = Path::new("/sys/module").join(&name);
        if there.exists() || self.built_in(&name) {
            set(&there, &name, parameters)?;
            self.settle(&name);
            self.settle(line);
            return Ok(());
        }
        let mut order = Vec::new();
        self.collect(&name, &mut order)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for one in order {
            if loaded.contains(&one) {
                continue;
            }
            let parameters = if one == name { parameters } else { "" };
            self.insert(&one, parameters)
                .map_err(|source| ModuleError::Load {
                    name: one.clone(),
                    source,
                })?;
            loaded.push(one);
        }
        loaded.push(line.to_owned());
        Ok(())
    }

    /// Modules never go: one that was found needs no second look.
    fn is_settled(&self, name: &str) -> bool {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().any(|one| one == name)
    }

    fn settle(&self, name: &str) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.push(name.to_owned());
    }

    /// Whether the kernel lists it among what is part of it; not every such module is in /sys.
    fn built_in(&self, name: &str) -> bool {
        !self.index().contains_key(name)
            && fs::read_to_string(self.directory.join("modules.builtin"))
                .is_ok_and(|list| list.lines().any(|line| name_of(line) == name))
    }

    /// Loads `name` if it is there: for what may as well be built in.
    ///
    /// # Errors
    /// [`ModuleError::Load`] only.
    pub(crate) fn load_if_there(&self, name: &str) -> Result<(), ModuleError> {
        match self.load(name) {
            Err(ModuleError::Missing { .. }) => Ok(()),
            other => other,
        }
    }

    /// Dependencies first.
    fn collect(&self, name: &str, order: &mut Vec<String>) -> Result<(), ModuleError> {
        if order.iter().any(|known| known == name) {
            return Ok(());
        }
        let entry = self.index().get(name).ok_or_else(|| ModuleError::Missing {
            name: name.to_owned(),
        })?;
        // modules.dep lists all of them for each module, so this ends even for a broken file with a cycle.
        for need in entry.needs.iter().rev().filter(|need| *need != name) {
            if !order.contains(need) {
                order.push(need.clone());
            }
        }
        order.push(name.to_owned());
        Ok(())
    }

    fn insert(&self, name: &str, parameters: &str) -> io::Result<()> {
        let entry = self
            .index()
            .get(name)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let parameters = CString::new(parameters)?;
        let compressed = entry.file.extension().is_some_and(|extension| extension != "ko");
        module::load(
            &File::open(self.directory.join(&entry.file))?,
            &parameters,
            compressed,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let modules = Modules::default();
        modules
            .index
            .set(parse(
                "kernel/c.ko: kernel/b.ko kernel/a-x.ko\nkernel/b.ko: kernel/a-x.ko\nkernel/a-x.ko:\n",
            ))
            .unwrap();
        let mut order = Vec::new();
        modules.collect("c", &mut order).unwrap();
        assert_eq!(order, ["a_x", "b", "c"]);
        assert!(matches!(
            modules.collect("d", &mut order),
            Err(ModuleError::Missing { .. })
        ));
    }

    #[test]
    fn parameters_of_one_that_is_there_are_set_or_named() {
        let directory = tempfile::tempdir().unwrap();
        let parameters = directory.path().join("parameters");
        std::fs::create_dir(&parameters).unwrap();
        for key in ["metacopy", "switch_on"] {
            std::fs::write(parameters.join(key), "").unwrap();
        }
        set(directory.path(), "overlay", "metacopy=on switch-on").unwrap();
        let read = |key: &str| std::fs::read_to_string(parameters.join(key)).unwrap();
        assert_eq!(
            (read("metacopy").as_str(), read("switch_on").as_str()),
            ("on", "1")
        );
        let error = set(directory.path(), "overlay", "nowhere=1").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("\"nowhere=1\" of kernel module \"overlay\""),
            "{error}"
        );
    }

    #[test]
    fn what_is_built_in_need_not_be_loaded() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("modules.builtin"), "no_such_dm_verity\n").unwrap();
        let modules = Modules {
            directory: directory.path().to_owned(),
            ..Modules::default()
        };
        modules.load("no-such-dm-verity").unwrap();
        assert!(matches!(
            modules.load("no-such-tun"),
            Err(ModuleError::Missing { .. })
        ));
    }

    #[test]
    fn names_lose_directories_and_endings() {
        assert_eq!(name_of("kernel/fs/overlayfs/overlay.ko.xz"), "overlay");
        assert_eq!(name_of("virtio-net.ko"), "virtio_net");
    }
}
