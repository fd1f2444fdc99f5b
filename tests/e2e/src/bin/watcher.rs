//! Runs inside a container: prints what inotify(7) tells of a directory, a line for each event.
//!
//! Owns: nothing. Never: ends by itself. Called by the tests of watched volumes.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("expected a directory")?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
    inotify.add_watch(directory.as_str(), what)?;
    let mut out = std::io::stdout();
    writeln!(out, "watching")?;
    out.flush()?;
    loop {
        for event in inotify.read_events()? {
            writeln!(out, "{:?} {:?}", event.mask, event.name.unwrap_or_default())?;
        }
        out.flush()?;
    }
}
