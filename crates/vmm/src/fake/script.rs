//! What is scripted: which step goes wrong, and how.
//!
//! Owns: the words of the script and of the record. Never: does any of it. Called by tests of the engine.

/// What can be asked of a VMM or VM, and so what can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// [`crate::Vmm::launch`] of a machine that boots.
    Launch,
    /// [`crate::Vmm::launch`] of a saved machine.
    Restore,
    /// [`crate::Snapshot::save`].
    Save,
    /// [`crate::Vmm::adopt`].
    Adopt,
    /// [`crate::Vm::resume`].
    Resume,
    /// [`crate::Vm::halt`].
    Halt,
    /// [`crate::Vm::hold`].
    Hold,
    /// [`crate::Vm::kill`].
    Kill,
    /// [`crate::Hotplug::plug`].
    Plug,
    /// [`crate::Hotplug::unplug`].
    Unplug,
    /// [`crate::Resize::set_vcpus`].
    Vcpus,
    /// [`crate::Resize::set_memory`].
    Memory,
}

/// How it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error; nothing was done.
    Fail,
    /// No answer, ever: only a deadline of the caller or the end of the VM helps. A `Kill` that hangs
    /// honours its own deadline.
    Hang,
    /// The VM ends during the step.
    End,
}

/// A call that was made: the step and the device id or number it was about.
pub type Call = (Step, String);
