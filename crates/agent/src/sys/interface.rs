//! netdevice(7): bringing an interface up.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets IFF_UP on interface `name`.
///
/// # Errors
/// The kernel's; `EINVAL` for a name above 15 bytes.
pub(crate) fn up(socket: &impl AsFd, name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    if bytes.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    request[..bytes.len()].copy_from_slice(bytes);
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: `request` has the size and layout of `struct ifreq`: the name, then the flags as a short.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, request.as_ptr()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
