//! Starting the process that makes a template: this binary again, by its hidden verb `template-maker`.
//!
//! Owns: its start. Never: waits for it; it outlives the sandbox that asked, has its own deadline, and is found by
//! gc through its marker. Called by the real host.

use crate::template::Order;
use bulkhead_host::memory;
use bulkhead_host::process::{Namespace, Spawn};
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;

/// Descriptor on which it finds its order, as JSON.
pub const ORDER_FD: i32 = 3;

/// Where programs are looked for when this process has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `outside` is the mount namespace it is to be in: a VM it starts to wait must not keep this sandbox's mounts.
pub(super) fn spawn(order: &Order, outside: Option<&OwnedFd>) -> io::Result<()> {
    let mut file = File::from(memory::anonymous(c"order", 0)?);
    serde_json::to_writer(&file, order)?;
    file.rewind()?;
    // Reaped by whoever inherits it: this process ends with its sandbox.
    let mut spawn = Spawn::new("/proc/self/exe")
        .arg("template-maker")
        .env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()),
        )
        .fd(file.into(), ORDER_FD)
        .directory("/")
        .new_session();
    if let Some(outside) = outside {
        spawn = spawn.enter(Namespace::Mount, outside.try_clone()?);
    }
    spawn.spawn().map_err(io::Error::other)?;
    Ok(())
}
