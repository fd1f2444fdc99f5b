//! seccomp(2): installing a filter that was compiled before.

use std::io;

const SET_MODE_FILTER: libc::c_uint = 1;

/// Has every system call of this thread from now on judged by `program`, classic BPF, one instruction a number in the
/// machine's byte order (`struct sock_filter`).
///
/// # Errors
/// `EACCES` without no_new_privs and without CAP_SYS_ADMIN; `EINVAL` for a program the kernel refuses.
pub(crate) fn install(program: &[u64], flags: u32) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: an instruction is eight bytes with an alignment of four, as `struct sock_filter` has; the kernel reads
    // `len` of them and writes none, and they outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
