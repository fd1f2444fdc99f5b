//! random(4): mixing a seed into the kernel's pool and having it used at once; numbers before there is one.

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

/// Fills `buffer` without waiting for the pool: numbers that differ from boot to boot, but no secrets.
/// (Reading `/dev/urandom` this early has the kernel gather entropy first: seconds on an emulated CPU.)
///
/// # Errors
/// The kernel's; `EINVAL` before Linux 5.6.
pub(crate) fn early(buffer: &mut [u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe one live, writable slice.
    let got = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), libc::GRND_INSECURE) };
    match usize::try_from(got) {
        // Up to 256 bytes are never cut short, getrandom(2).
        Ok(count) if count == buffer.len() => Ok(()),
        Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
