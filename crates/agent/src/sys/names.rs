//! setdomainname(2).

use std::io;

/// Sets the NIS domain name of the caller's UTS namespace.
///
/// # Errors
/// The kernel's; `EINVAL` above 64 bytes.
pub(crate) fn set_domain(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe one live string slice, which is only read.
    let done = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
