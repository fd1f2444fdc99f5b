//! Giving way to every other process.
//!
//! Owns: this process's nice value. Called by background work, before it starts anything: children inherit it.

use nix::errno::Errno;

/// The lowest priority there is, setpriority(2).
const NICEST: i32 = 19;

/// Gives this thread, and what it starts from now on, the lowest priority.
///
/// # Errors
/// setpriority(2); it never refuses to lower.
pub fn give_way() -> std::io::Result<()> {
    // SAFETY: plain numbers; 0 is the caller itself.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_that_gave_way_starts_gives_way() {
        let nice = std::thread::spawn(|| {
            give_way().unwrap();
            std::thread::spawn(|| {
                // Field 19 of proc_pid_stat(5); the name before it may hold blanks.
                let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
                let rest = stat.rsplit(") ").next().unwrap().to_owned();
                rest.split(' ').nth(16).unwrap().to_owned()
            })
            .join()
            .unwrap()
        });
        assert_eq!(nice.join().unwrap(), "19");
    }
}
