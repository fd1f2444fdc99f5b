//! Whether `/dev/kvm` runs guest code at hardware speed: a loop of a million steps in a tiny long-mode guest.
//!
//! ```text
//!  open ─► VM ─► 64 KiB: page tables, code ─► vCPU ─► KVM_RUN ─► halted after … / time is up
//! ```
//!
//! Software implementations of the KVM interface pass every check of presence and simple guests too, but
//! not this one: hardware needs less than a millisecond, such an implementation seconds.
//!
//! Owns: the ioctls. Never: decides (see `vmm::probe`). Source: Linux Documentation/virt/kvm/api.rst.

use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What became of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// It ran to its end in this time.
    Halted(Duration),
    /// It was stopped by the limit.
    TimedOut,
    /// The guest left for another reason: `exit_reason` of `struct kvm_run`.
    Failed(u32),
}

/// Steps of the loop.
const STEPS: u32 = 1_000_000;
/// Beyond the limit, for setting up and tearing down, and until a kernel that does not stop is given up.
const GRACE: Duration = Duration::from_millis(40);

const API_VERSION: i32 = 12;
const GET_API_VERSION: libc::c_ulong = 0xae00;
const CREATE_VM: libc::c_ulong = 0xae01;
const GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
const CREATE_VCPU: libc::c_ulong = 0xae41;
const SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
const SET_TSS_ADDR: libc::c_ulong = 0xae47;
const RUN: libc::c_ulong = 0xae80;
const SET_REGS: libc::c_ulong = 0x4090_ae82;
const GET_SREGS: libc::c_ulong = 0x8138_ae83;
const SET_SREGS: libc::c_ulong = 0x4138_ae84;
const SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

const EXIT_HLT: u32 = 5;
const EXIT_INTR: u32 = 10;
/// Offset of `exit_reason` in `struct kvm_run`.
const EXIT_REASON: usize = 8;

const MEMORY_BYTES: usize = 64 << 10;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const CODE: usize = 0x4000;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    bytes: u64,
    host_address: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Table {
    base: u64,
    limit: u16,
    padding: [u16; 3],
}

#[repr(C)]
#[derive(Default)]
struct SpecialRegisters {
    cs: Segment,
    ds: Segment,
    es: Segment,
    fs: Segment,
    gs: Segment,
    ss: Segment,
    tr: Segment,
    ldt: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

#[repr(C)]
#[derive(Default)]
struct Registers {
    /// rax to r15 in the order of `struct kvm_regs`; none matters here.
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
struct SignalMask {
    bytes: u32,
    set: [u8; 8],
}

// The ioctl numbers carry these sizes.
const _: () = assert!(size_of::<MemoryRegion>() == 0x20);
const _: () = assert!(size_of::<SpecialRegisters>() == 0x138);
const _: () = assert!(size_of::<Registers>() == 0x90);

/// Opens the device; this alone proves nothing about what is behind it.
///
/// # Errors
/// What open(2) reports: `NotFound`, `PermissionDenied`, …
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(path)?.into())
}

/// Runs the loop in a guest, for at most `limit`; returns at latest 40 ms after that, even if the kernel
/// does not.
///
/// # Errors
/// What the ioctls report, `Unsupported` for another API version than 12.
pub fn measure(device: OwnedFd, limit: Duration) -> io::Result<Loop> {
    // The signal that stops the vCPU. It is blocked in the thread and let through only while the guest
    // runs, so no handler is ever called; sent to the thread, it is gone with it.
    let signal = libc::SIGRTMIN() + 3;
    let (started, start) = mpsc::channel();
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || {
            let _ = done.send(run(&device, signal, &started));
        })?;
    // A thread that never reports is left behind; it holds a few pages and no lock.
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let ended = |error| match error {
        mpsc::RecvTimeoutError::Timeout => Err(late()),
        // The sender went first: the thread failed on the way, and its result says how.
        mpsc::RecvTimeoutError::Disconnected => Ok(None),
    };
    let Some(thread) = start.recv_timeout(GRACE).map(Some).or_else(ended)? else {
        return result.recv_timeout(GRACE).map_err(|_| late())?;
    };
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(_) => {
            // SAFETY: plain system call; a thread that has ended meanwhile is ESRCH, and its id cannot
            // belong to another thread group's thread because the group is named.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
            match result.recv_timeout(GRACE) {
                Ok(result) => result,
                Err(_) => Ok(Loop::TimedOut),
            }
        }
    }
}

fn run(device: &OwnedFd, signal: i32, started: &mpsc::Sender<libc::pid_t>) -> io::Result<Loop> {
    block(signal)?;
    // SAFETY: plain system call without arguments.
    let thread = unsafe { libc::gettid() };
    if ioctl(device, GET_API_VERSION, 0)? != API_VERSION {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let vm = owned(ioctl(device, CREATE_VM, 0)?);
    // Where Intel processors without unrestricted guests keep a task state: any three unused pages.
    let _ = ioctl(&vm, SET_TSS_ADDR, 0xfffb_d000);
    let memory = Mapping::anonymous(MEMORY_BYTES)?;
    memory.fill(&image());
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_address: 0,
        bytes: MEMORY_BYTES as u64,
        host_address: memory.address as u64,
    };
    ioctl(&vm, SET_USER_MEMORY_REGION, &raw const region as usize)?;
    let cpu = owned(ioctl(&vm, CREATE_VCPU, 0)?);
    let state_bytes = usize::try_from(ioctl(device, GET_VCPU_MMAP_SIZE, 0)?).unwrap_or(0);
    let state = Mapping::of(&cpu, state_bytes.max(4096))?;
    registers(&cpu)?;
    let allowed = SignalMask {
        bytes: 8,
        set: all_but(signal),
    };
    ioctl(&cpu, SET_SIGNAL_MASK, &raw const allowed as usize)?;
    let _ = started.send(thread);
    let begin = Instant::now();
    match ioctl(&cpu, RUN, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => return Ok(Loop::TimedOut),
        other => other?,
    };
    Ok(match state.u32_at(EXIT_REASON) {
        EXIT_HLT => Loop::Halted(begin.elapsed()),
        EXIT_INTR => Loop::TimedOut,
        reason => Loop::Failed(reason),
    })
}

/// Long mode, flat, at the first byte of the code.
fn registers(cpu: &OwnedFd) -> io::Result<()> {
    let mut special = SpecialRegisters::default();
    ioctl(cpu, GET_SREGS, &raw mut special as usize)?;
    let flat = Segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    special.cs = Segment {
        selector: 8,
        kind: 11,
        l: 1,
        ..flat
    };
    let data = Segment {
        selector: 16,
        kind: 3,
        db: 1,
        ..flat
    };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    // Protected mode, extension type, numeric errors, paging.
    special.cr0 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
    special.cr3 = PML4 as u64;
    // Physical address extension.
    special.cr4 = 1 << 5;
    // Long mode enabled and active.
    special.efer = 1 << 8 | 1 << 10;
    ioctl(cpu, SET_SREGS, &raw const special as usize)?;
    let registers = Registers {
        rip: CODE as u64,
        rflags: 2,
        ..Registers::default()
    };
    ioctl(cpu, SET_REGS, &raw const registers as usize)?;
    Ok(())
}

/// Guest memory: three page tables that map the first 2 MiB onto themselves, then the code.
fn image() -> Vec<u8> {
    let mut image = vec![0; CODE];
    // Present and writable; the last one is a large page.
    for (at, entry) in [(PML4, PDPT as u64 | 3), (PDPT, PD as u64 | 3), (PD, 0x83)] {
        image[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
    // mov ecx, STEPS
    image.push(0xb9);
    image.extend(STEPS.to_le_bytes());
    // dec ecx; jnz to the dec; hlt
    image.extend([0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    image
}

fn ioctl(fd: &OwnedFd, request: libc::c_ulong, argument: usize) -> io::Result<i32> {
    // SAFETY: the descriptor is borrowed, so open. Every request above takes either a number or a pointer
    // to a live value of the size its number carries (checked above), which the caller keeps on its stack.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    Ok(Errno::result(result)?)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor (an error is negative and went another way).
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn block(signal: i32) -> io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset before use; only this thread's mask changes.
    let result = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// The kernel's signal set (64 bits, signal 1 is bit 0) with everything blocked but `signal`.
fn all_but(signal: i32) -> [u8; 8] {
    (!(1u64 << (signal - 1))).to_le_bytes()
}

/// Memory of this process that is unmapped when dropped.
struct Mapping {
    address: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn of(fd: &OwnedFd, bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::MAP_SHARED, fd.as_raw_fd())
    }

    fn map(bytes: usize, flags: i32, fd: RawFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address the kernel chooses; nothing existing is touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { address, bytes })
        }
    }

    fn fill(&self, image: &[u8]) {
        let length = image.len().min(self.bytes);
        // SAFETY: the mapping is writable and at least `length` bytes; the guest does not run yet.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), self.address.cast(), length) };
    }

    fn u32_at(&self, offset: usize) -> u32 {
        // SAFETY: offset 8 of a mapping of at least a page, aligned; volatile because the kernel writes it.
        unsafe {
            self.address
                .cast::<u8>()
                .add(offset)
                .cast::<u32>()
                .read_volatile()
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and no reference into it outlives this value.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_a_loop_that_halts() {
        let image = image();
        assert_eq!(
            &image[CODE..],
            [0xb9, 0x40, 0x42, 0x0f, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xf4]
        );
        assert_eq!(image[PD], 0x83);
    }

    #[test]
    fn only_one_signal_gets_through() {
        assert_eq!(all_but(1), [0xfe, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(all_but(64), [255, 255, 255, 255, 255, 255, 255, 0x7f]);
    }

    #[test]
    fn a_missing_device_is_not_found() {
        assert_eq!(
            open(Path::new("/dev/no-such-kvm")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_file_that_is_no_kvm_is_an_error_at_once() {
        let begin = Instant::now();
        assert!(measure(open(Path::new("/dev/null")).unwrap(), Duration::from_millis(20)).is_err());
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    /// Whatever is behind `/dev/kvm` here, it is measured or given up in time.
    #[test]
    #[ignore = "needs root"]
    fn the_device_answers_within_its_limit() {
        let Ok(device) = open(Path::new("/dev/kvm")) else {
            return;
        };
        let begin = Instant::now();
        let outcome = measure(device, Duration::from_millis(20));
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{outcome:?} after {:?}",
            begin.elapsed()
        );
        if let Ok(Loop::Halted(time)) = outcome {
            assert!(time < Duration::from_secs(1));
        }
    }
}
