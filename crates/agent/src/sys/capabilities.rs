//! capset(2) and the capability calls of prctl(2).
//!
//! Owns: the calls. Never: which capabilities (see `launch::privileges`). A set is a number whose bit N is
//! capability N of linux/capability.h.

use std::io;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Low words first: `struct __user_cap_data_struct[2]`.
#[repr(C)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the three sets of the calling thread.
///
/// # Errors
/// `EPERM` for a capability that is not permitted now.
pub(crate) fn set(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Half {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: version 3 of the call reads a header and two halves, both alive and of the kernel's layout.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn control(option: libc::c_int, second: libc::c_ulong, third: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: these requests take integers only.
    let done = unsafe { libc::prctl(option, second, third, none, none) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes every capability that is not in `kept` out of the bounding set.
///
/// # Errors
/// `EPERM` without CAP_SETPCAP.
pub(crate) fn bound(kept: u64) -> io::Result<()> {
    for number in 0..64_u32 {
        if kept & (1 << number) != 0 {
            continue;
        }
        match control(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0) {
            Ok(()) => {}
            // The first number this kernel does not know: it has no more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `wanted`; each must be permitted and inheritable.
///
/// # Errors
/// `EPERM` for one that is not.
pub(crate) fn ambient(wanted: u64) -> io::Result<()> {
    control(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
        0,
    )?;
    (0..64_u32)
        .filter(|number| wanted & (1 << number) != 0)
        .try_for_each(|number| {
            control(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                libc::c_ulong::from(number),
            )
        })
}
