//! keyctl(2): a session keyring of its own for a container.

use std::ffi::CStr;
use std::io;

/// Joins a new session keyring called `name`.
///
/// # Errors
/// The kernel's; `ENOSYS` where it has no keyrings.
pub(crate) fn join_new_session(name: &CStr) -> io::Result<()> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING (1) reads one NUL-terminated string that outlives the call.
    let key = unsafe { libc::syscall(libc::SYS_keyctl, 1, name.as_ptr()) };
    if key < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
