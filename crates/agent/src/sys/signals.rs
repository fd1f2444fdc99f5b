//! Signal dispositions on the way to execve(2).

/// Sets every signal to its default action and unblocks all, as a new program expects
/// (the Rust runtime ignores SIGPIPE, and ignored signals survive execve).
pub(crate) fn reset() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no code; numbers that cannot be set only make the call fail.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // An empty mask cannot be refused.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}
