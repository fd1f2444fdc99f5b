//! A user namespace made ahead of the container, so that the library joins it like any other (it can make one
//! itself only together with systemd).
//!
//! ```text
//! worker: fork ─► child: unshare, waits ─► worker: writes the maps, binds ns/user to a file ─► child ends
//! ```
//!
//! Owns: the namespace's file until it is dropped; what is in the namespace keeps it alive after that.

use super::order::IdMap;
use crate::sys::fork::{self, Side};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The file that stands for the namespace.
pub(super) struct UserNamespace {
    file: PathBuf,
}

fn lines(map: &[IdMap]) -> String {
    map.iter()
        .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
        .collect()
}

impl UserNamespace {
    /// Makes one with these maps, to be found at `file`. The caller has one thread.
    pub(super) fn make(file: &Path, uids: &[IdMap], gids: &[IdMap]) -> io::Result<Self> {
        let (mut ready, tell_ready) = io::pipe()?;
        let (mut done, tell_done) = io::pipe()?;
        match fork::child()? {
            Side::Child => {
                drop((ready, tell_done));
                if unshare(CloneFlags::CLONE_NEWUSER).is_ok() {
                    let _ = (&tell_ready).write_all(b"r");
                    // Until the parent has the namespace, or is gone.
                    let _ = done.read(&mut [0]);
                }
                std::process::exit(0);
            }
            Side::Parent(child) => {
                drop((tell_ready, done));
                let mut bind = || -> io::Result<()> {
                    ready.read_exact(&mut [0])?;
                    fs::write(format!("/proc/{child}/uid_map"), lines(uids))?;
                    fs::write(format!("/proc/{child}/gid_map"), lines(gids))?;
                    File::create(file)?;
                    let namespace = format!("/proc/{child}/ns/user");
                    mount(
                        Some(namespace.as_str()),
                        file,
                        None::<&str>,
                        MsFlags::MS_BIND,
                        None::<&str>,
                    )?;
                    Ok(())
                };
                let bound = bind();
                drop(tell_done);
                waitpid(child, None)?;
                bound?;
                Ok(Self {
                    file: file.to_owned(),
                })
            }
        }
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        // Both are in memory and this process's own.
        let _ = umount2(&self.file, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.file);
    }
}
