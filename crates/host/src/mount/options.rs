//! Mounts as engines describe them: type, source and the options of mount(8) in one list.
//!
//! Owns: which options are flags, and layers whose paths do not fit into the kernel's page. Never: what is mounted
//! where. Called for root file systems that an engine hands over as mounts.

use super::tree::MountError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::path::{Path, PathBuf};

/// mount(2) copies one page of options, its terminating zero included.
const MOST_OPTION_BYTES: usize = 4095;

/// Name, whether it sets or clears, flag.
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("atime", false, MsFlags::MS_NOATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("defaults", true, MsFlags::empty()),
    ("dev", false, MsFlags::MS_NODEV),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("nodev", true, MsFlags::MS_NODEV),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("suid", false, MsFlags::MS_NOSUID),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
];

/// Mounts `source` of type `fs_type` at `target`, which exists. `bind` and `rbind` are options or the type.
///
/// # Errors
/// [`MountError`] naming the target.
pub fn mount_by_options(
    fs_type: &str,
    source: &str,
    target: &Path,
    options: &[String],
) -> Result<(), MountError> {
    let (mut flags, data) = sorted(options);
    if fs_type == "bind" {
        flags |= MsFlags::MS_BIND;
    }
    let failed = |call| {
        let target = target.to_owned();
        move |errno: nix::errno::Errno| MountError {
            call,
            target,
            source: errno.into(),
        }
    };
    if flags.contains(MsFlags::MS_BIND) {
        let how = flags & (MsFlags::MS_BIND | MsFlags::MS_REC);
        mount(Some(source), target, None::<&str>, how, None::<&str>).map_err(failed("binding to"))?;
        let rest = flags & !MsFlags::MS_REC;
        if rest != MsFlags::MS_BIND {
            // A bind takes its other flags by a remount only (mount(2)).
            let again = rest | MsFlags::MS_REMOUNT;
            mount(None::<&str>, target, None::<&str>, again, None::<&str>)
                .map_err(failed("setting the flags of"))?;
        }
        return Ok(());
    }
    let text = data.join(",");
    if text.len() <= MOST_OPTION_BYTES {
        return mount(Some(source), target, Some(fs_type), flags, Some(text.as_str()))
            .map_err(failed("mounting at"));
    }
    let Some((directory, shorter)) = relative(&data) else {
        return Err(failed("mounting at")(nix::errno::Errno::E2BIG));
    };
    // The working directory is changed for a thread of its own only, which ends with it.
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(&directory)?;
            mount(Some(source), target, Some(fs_type), flags, Some(shorter.as_str()))
        });
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(failed("mounting at"))
}

/// Flags, and what the file system is told.
fn sorted(options: &[String]) -> (MsFlags, Vec<&str>) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, set, flag)) => flags.set(*flag, *set),
            None => data.push(option.as_str()),
        }
    }
    (flags, data)
}

/// The same options with the lower layers named from the directory they have in common; `None` if that does not make
/// them short enough.
fn relative(data: &[&str]) -> Option<(PathBuf, String)> {
    let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let common = layers
        .first()?
        .ancestors()
        .skip(1)
        .find(|dir| layers.iter().all(|layer| layer.starts_with(dir)))?;
    let names: Option<Vec<&str>> = layers
        .iter()
        .map(|layer| layer.strip_prefix(common).ok()?.to_str())
        .collect();
    let names = names?.join(":");
    let all: Vec<String> = data
        .iter()
        .map(|option| {
            if option.starts_with("lowerdir=") {
                format!("lowerdir={names}")
            } else {
                (*option).to_owned()
            }
        })
        .collect();
    let text = all.join(",");
    (text.len() <= MOST_OPTION_BYTES).then(|| (common.to_owned(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(all: &[&str]) -> Vec<String> {
        all.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn flags_are_told_from_what_the_file_system_takes() {
        let all = options(&["ro", "nosuid", "upperdir=/u", "index=off", "rw", "rbind"]);
        let (flags, data) = sorted(&all);
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(data, ["upperdir=/u", "index=off"]);
    }

    #[test]
    fn many_layers_are_named_from_their_common_directory() {
        let base = format!("/var/lib/{}", "x".repeat(60));
        let layers: Vec<String> = (0..60).map(|n| format!("{base}/{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let (directory, text) = relative(&["workdir=/w", &lower]).unwrap();
        assert_eq!(directory, Path::new(&base));
        assert!(text.starts_with("workdir=/w,lowerdir=0/fs:1/fs:"), "{text}");
        let too_many: Vec<String> = (0..900).map(|n| format!("{base}/{n}/fs")).collect();
        assert_eq!(relative(&[&format!("lowerdir={}", too_many.join(":"))]), None);
    }
}
