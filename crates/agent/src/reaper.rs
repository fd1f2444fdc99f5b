//! PID 1 reaps every process of the guest, in one place, and hands statuses out by pid.
//!
//! ```text
//!  expect() ─► Claim ─ launch ─► claim.watch(pid, tell) ──► tell(status) when the pid is reaped
//!      while a claim is open, statuses nobody waits for are kept: the process may end before it is watched
//! ```
//!
//! Owns: wait(2). Never: knows what a process was. A thread of its own; it ends only with the guest.

use bulkhead_model::ExitStatus;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Tell = Box<dyn FnOnce(ExitStatus) + Send>;

#[derive(Default)]
struct Table {
    watched: HashMap<i32, Tell>,
    early: HashMap<i32, ExitStatus>,
    claims: usize,
}

/// Handle on the reaping thread's table.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    table: Arc<Mutex<Table>>,
}

/// While it lives, no status is thrown away.
pub(crate) struct Claim {
    reaper: Reaper,
}

impl Reaper {
    /// Starts the thread. To be called by PID 1 after the fork server was started, so there is always a child.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let table = reaper.clone();
        std::thread::Builder::new()
            .name("reaper".to_owned())
            .stack_size(64 << 10)
            .spawn(move || table.run())?;
        Ok(reaper)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw(), ExitStatus::Code(code as u8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid.as_raw(), ExitStatus::Signal(signal as i32 as u8));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                // No child left: the fork server is gone, and without it the guest is of no use.
                Err(errno) => crate::power_off(&format!("nothing left to reap: {errno}")),
            }
        }
    }

    fn ended(&self, pid: i32, status: ExitStatus) {
        let tell = {
            let mut table = self.lock();
            let tell = table.watched.remove(&pid);
            if tell.is_none() && table.claims > 0 {
                table.early.insert(pid, status);
            }
            tell
        };
        if let Some(tell) = tell {
            tell(status);
        }
    }

    /// To be called before a process is started that will be watched.
    #[must_use]
    pub(crate) fn expect(&self) -> Claim {
        self.lock().claims += 1;
        Claim { reaper: self.clone() }
    }
}

impl Claim {
    /// Calls `tell` once `pid` has ended, at once if it has.
    pub(crate) fn watch(self, pid: i32, tell: impl FnOnce(ExitStatus) + Send + 'static) {
        let early = {
            let mut table = self.reaper.lock();
            match table.early.remove(&pid) {
                Some(status) => Some((status, tell)),
                None => {
                    table.watched.insert(pid, Box::new(tell));
                    None
                }
            }
        };
        if let Some((status, tell)) = early {
            tell(status);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = self.reaper.lock();
        table.claims -= 1;
        if table.claims == 0 {
            table.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_status_that_comes_before_the_watch_is_kept_while_claimed() {
        let reaper = Reaper::default();
        reaper.ended(5, ExitStatus::Code(1));
        let claim = reaper.expect();
        reaper.ended(6, ExitStatus::Code(2));
        let (tell, told) = mpsc::channel();
        claim.watch(6, move |status| tell.send(status).unwrap());
        assert_eq!(told.try_recv().unwrap(), ExitStatus::Code(2));
        assert!(reaper.lock().early.is_empty());

        let claim = reaper.expect();
        let (tell, told) = mpsc::channel();
        claim.watch(5, move |status| tell.send(status).unwrap());
        assert!(told.try_recv().is_err(), "pid 5 ended before anyone claimed it");
        reaper.ended(5, ExitStatus::Signal(9));
        assert_eq!(told.try_recv().unwrap(), ExitStatus::Signal(9));
    }
}
