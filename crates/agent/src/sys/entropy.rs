//! random(4): mixing a seed into the kernel's pool and having it used at once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// Most bytes taken of a seed.
const MAX_SEED: usize = 512;

#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_SEED],
}

/// Credits `seed` (at most 512 bytes of it) to the kernel's pool and reseeds the generator.
///
/// # Errors
/// `/dev/urandom` cannot be opened, or the kernel refuses.
pub(crate) fn add(seed: &[u8]) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/urandom")?;
    let length = seed.len().min(MAX_SEED);
    let mut info = PoolInfo {
        entropy_count: (length * 8) as libc::c_int,
        buf_size: length as libc::c_int,
        buf: [0; MAX_SEED],
    };
    info.buf[..length].copy_from_slice(&seed[..length]);
    // SAFETY: `info` has the layout of `struct rand_pool_info` with a buffer at least `buf_size` long.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
