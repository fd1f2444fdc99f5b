//! Taps (tuntap.rst): Ethernet frames on descriptors.
//!
//! Owns: TUNSETIFF. A tap made here lives as long as one of its descriptors does: whatever becomes of the
//! process that has them, nothing is left. Never: makes one that persists.

use super::{Netlink, NetlinkError, link};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const DEVICE: &str = "/dev/net/tun";

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The device node cannot be opened.
    #[error("opening {path}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the interface.
    #[error("making the tap {name}")]
    Make {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be set up; it is gone again.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Makes the tap `name` with `queues` queues (from 1) and the MTU of what it stands for, up; returns one
/// descriptor a queue, not blocking, with the virtio header on each frame.
///
/// # Errors
/// [`TapError`]; `EBUSY` when the name is taken. Nothing is left then.
pub fn tap(name: &str, queues: u16, mtu: u32) -> Result<Vec<OwnedFd>, TapError> {
    let make = |source| TapError::Make {
        name: name.to_owned(),
        source,
    };
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut descriptors = Vec::new();
    for _ in 0..queues {
        let file = open(DEVICE)?;
        attach(&file, name, flags).map_err(make)?;
        descriptors.push(OwnedFd::from(file));
    }
    let index = link::index(name)?.ok_or_else(|| make(io::ErrorKind::NotFound.into()))?;
    // Read-only /proc/sys: then the guest sees a few reports of the host's, which do no harm.
    let _ = link::silence_ipv6(name);
    let mut netlink = Netlink::open()?;
    link::set_mtu(&mut netlink, index, mtu)?;
    link::set_up(&mut netlink, index, true)?;
    Ok(descriptors)
}

/// A device node for frames, to read and write, not blocking.
pub(super) fn open(path: &str) -> Result<File, TapError> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| TapError::Open {
            path: path.to_owned(),
            source,
        })
}

fn attach(file: &File, name: &str, flags: i32) -> io::Result<()> {
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    link::check_name(name).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: `request` has the size of `struct ifreq`: a terminated name, checked to leave room for its zero,
    // then the flags as a short. The kernel reads it and writes the name back into it.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
