//! Signal dispositions on the way to execve(2).

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// What a new program expects: the default action for every signal, and none blocked. Handlers are gone since the
/// clone and would not survive execve(2); what is ignored would, and that is the one signal the Rust runtime ignores.
pub(crate) fn reset() {
    // SAFETY: the default action installs no code.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // An empty mask cannot be refused.
    let _ = SigSet::empty().thread_set_mask();
}
