//! finit_module(2): loading a kernel module from an open file.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The file is compressed and the kernel is to unpack it: `MODULE_INIT_COMPRESSED_FILE`.
const COMPRESSED: libc::c_int = 4;

/// Loads `file` with `parameters`. A module that is already there is success.
///
/// # Errors
/// The kernel's.
pub(crate) fn load(file: &File, parameters: &CStr, compressed: bool) -> io::Result<()> {
    let flags = if compressed { COMPRESSED } else { 0 };
    // SAFETY: the call reads an open descriptor and a NUL-terminated string that outlives it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EEXIST) {
        Ok(())
    } else {
        Err(error)
    }
}
