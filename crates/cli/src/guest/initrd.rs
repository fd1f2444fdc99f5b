//! The guest's initial RAM disk: an uncompressed cpio archive with the agent as `/init`.
//!
//! Owns: the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst) and what lies where
//! in the guest. Never: choosing modules. Called by [`super::build`].

use super::module::{Module, dep_file};
use std::collections::BTreeSet;

/// Directories the agent mounts on before anything else.
const DIRECTORIES: &[&str] = &["dev", "lib", "lib/modules", "proc", "run", "sys", "tmp"];

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// The part with the agent. Archives may follow one another: the kernel unpacks them all.
pub(super) fn agent_archive(agent: &[u8]) -> Vec<u8> {
    let mut archive = Newc::default();
    for directory in DIRECTORIES {
        archive.entry(directory, S_IFDIR | 0o755, (0, 0), &[]);
    }
    // The kernel opens it for the standard streams of /init.
    archive.entry("dev/console", S_IFCHR | 0o600, (5, 1), &[]);
    archive.entry("init", S_IFREG | 0o755, (0, 0), agent);
    archive.finish()
}

/// The part with the modules, below `/lib/modules/<release>`, and the list of those the kernel has built in; comes after
/// the agent's.
pub(super) fn module_archive(release: &str, modules: &[Module], built_in: &str) -> Vec<u8> {
    if modules.is_empty() && built_in.is_empty() {
        return Vec::new();
    }
    let mut archive = Newc::default();
    let base = format!("lib/modules/{release}");
    let mut made = BTreeSet::new();
    let list = format!("{base}/modules.builtin");
    archive.parents(&list, &mut made);
    archive.entry(&list, S_IFREG | 0o644, (0, 0), built_in.as_bytes());
    for module in modules {
        archive.parents(&format!("{base}/{}", module.path), &mut made);
    }
    let list = dep_file(modules);
    archive.entry(
        &format!("{base}/modules.dep"),
        S_IFREG | 0o644,
        (0, 0),
        list.as_bytes(),
    );
    for module in modules {
        archive.entry(
            &format!("{base}/{}", module.path),
            S_IFREG | 0o644,
            (0, 0),
            &module.bytes,
        );
    }
    archive.finish()
}

/// A cpio archive being written. Times are zero: the same input gives the same bytes.
#[derive(Debug, Default)]
struct Newc {
    bytes: Vec<u8>,
    entries: u32,
}

impl Newc {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // A file beyond 4 GiB cannot be told in this format, nor fit in a guest.
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Directory entries for all parents of `path` not made yet.
    fn parents(&mut self, path: &str, made: &mut BTreeSet<String>) {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if !DIRECTORIES.contains(&parent) && made.insert(parent.to_owned()) {
                self.entry(parent, S_IFDIR | 0o755, (0, 0), &[]);
            }
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        // The kernel reads whole 512-byte blocks.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and contents of each entry.
    fn read(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0usize;
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[6 + n * 8..14 + n * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            assert_eq!(at % 4, 0);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((
                name,
                u32::try_from(mode).unwrap(),
                archive[data..data + size].to_vec(),
            ));
            let next = (data + size).next_multiple_of(4);
            at += next;
            archive = &archive[next..];
        }
    }

    fn module(name: &str) -> Module {
        Module {
            name: name.to_owned(),
            path: format!("kernel/drivers/{name}.ko"),
            depends: Vec::new(),
            bytes: name.as_bytes().to_vec(),
        }
    }

    #[test]
    fn everything_is_where_the_agent_looks() {
        let parts = [
            agent_archive(b"agent"),
            module_archive("6.1-x", &[module("a"), module("bb")], "tun\n"),
        ];
        assert!(parts.iter().all(|part| part.len() % 512 == 0));
        let entries: Vec<_> = parts.iter().flat_map(|part| read(part)).collect();
        let find = |name: &str| {
            entries
                .iter()
                .find(|e| e.0 == name)
                .unwrap_or_else(|| panic!("{name}"))
        };
        assert_eq!(find("init").2, b"agent");
        assert_eq!(find("init").1, S_IFREG | 0o755);
        assert_eq!(find("lib/modules/6.1-x/kernel/drivers/bb.ko").2, b"bb");
        assert_eq!(find("lib/modules/6.1-x/modules.builtin").2, b"tun\n");
        assert!(
            find("lib/modules/6.1-x/modules.dep")
                .2
                .starts_with(b"kernel/drivers/a.ko:\n")
        );
        // Every parent comes before its children, once.
        for (index, (name, ..)) in entries.iter().enumerate() {
            if let Some((parent, _)) = name.rsplit_once('/') {
                let parents: Vec<_> = (0..entries.len()).filter(|i| entries[*i].0 == parent).collect();
                assert_eq!(parents.len(), 1, "{parent}");
                assert!(parents[0] < index, "{parent} after {name}");
            }
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(agent_archive(b"x"), agent_archive(b"x"));
        assert_eq!(
            module_archive("1", &[module("a")], ""),
            module_archive("1", &[module("a")], "")
        );
        assert!(module_archive("1", &[], "").is_empty());
    }
}
