//! Mount options as fstab(5) writes them: flags, propagation, and data for the file system.

use nix::mount::MsFlags;

/// Options taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// What mount(2) takes as flags.
    pub(super) flags: MsFlags,
    /// What the file system takes, joined by commas.
    pub(super) data: String,
}

pub(super) fn parse(options: &[String]) -> Options {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options.iter().map(String::as_str) {
        match option {
            "defaults" | "rw" | "" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            other => data.push(other),
        }
    }
    Options {
        flags,
        data: data.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_apart() {
        let options = ["ro", "nosuid", "size=5", "mode=1777"].map(String::from);
        assert_eq!(
            parse(&options),
            Options {
                flags: MsFlags::MS_RDONLY | MsFlags::MS_NOSUID,
                data: "size=5,mode=1777".to_owned()
            }
        );
    }
}
