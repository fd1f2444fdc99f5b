//! Recording where the time of a sandbox goes.
//!
//! ```text
//!  begin(operation) ─► span … dropped, mark, what a client told, what the guest measured ─► end ─► file
//!       ▲                                                                                     └─► kept at the sandbox's end
//!       └─ spans from before it, outside of any operation
//! ```
//! A record costs a lock that nobody else holds and a push; nothing is written before the operation was answered,
//! nothing is synced. The newest [`MOST_OPERATIONS`] are kept, the sandbox's start among them.
//!
//! Owns: the record in memory and the translation of the guest's clock. Never: what is worth recording, and nothing
//! depends on what it says. Called by the engine and, beside it, by readers.

mod file;
mod guest_clock;
mod guest_steps;
mod record;
mod recorder;
mod timing;

pub use file::{MOST_KEPT, TimelineError, clear, find, keep, read, write};
pub use guest_steps::CPUS_GO;
pub use record::{MOST_OPERATIONS, MOST_SPANS};
pub use recorder::Recorder;
pub use timing::Timing;
