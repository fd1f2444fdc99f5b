//! Device programs that the kernel has checked and translated already.
//!
//! Most containers are given the same rules, and having the kernel verify and compile them is a tenth of what it takes
//! to make a container in a translated guest: a program is loaded once and attached to each cgroup that needs it.
//!
//! Owns: the programs used last. Never: what one says (see `devices`). Called by `cgroup`.

use crate::sys::bpf::{self, Instruction};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Most programs that are kept: a pod has few kinds of containers.
const CAPACITY: usize = 8;

/// The programs, newest last.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    kept: Mutex<VecDeque<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    text: Vec<Instruction>,
    program: Arc<OwnedFd>,
}

impl Programs {
    /// `text` as a program of the kernel.
    ///
    /// # Errors
    /// The kernel's, see [`bpf::load_device_program`].
    pub(crate) fn load(&self, text: Vec<Instruction>) -> io::Result<Arc<OwnedFd>> {
        self.load_by(text, bpf::load_device_program)
    }

    fn load_by(
        &self,
        text: Vec<Instruction>,
        load: impl FnOnce(&[Instruction]) -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<OwnedFd>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.iter().find(|loaded| loaded.text == text) {
            return Ok(found.program.clone());
        }
        let program = Arc::new(load(&text)?);
        if kept.len() == CAPACITY {
            kept.pop_front();
        }
        kept.push_back(Loaded {
            text,
            program: program.clone(),
        });
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn text(immediate: i32) -> Vec<Instruction> {
        vec![Instruction {
            code: 0x95,
            registers: 0,
            offset: 0,
            immediate,
        }]
    }

    #[test]
    fn the_same_rules_are_loaded_once() {
        let programs = Programs::default();
        let mut loads = 0;
        let mut load = |number| {
            let loaded = programs.load_by(text(number), |_| {
                loads += 1;
                File::open("/dev/null").map(OwnedFd::from)
            });
            loaded.unwrap().as_raw_fd()
        };
        let first = load(1);
        assert_eq!(load(1), first);
        assert_ne!(load(2), first);
        for other in 3..3 + CAPACITY {
            load(i32::try_from(other).unwrap());
        }
        load(1);
        assert_eq!(loads, 3 + CAPACITY, "one that was pushed out is loaded again");
    }

    #[test]
    fn what_the_kernel_refuses_is_not_kept() {
        let programs = Programs::default();
        let refused = || Err(io::Error::from_raw_os_error(libc::EACCES));
        assert!(programs.load_by(text(1), |_| refused()).is_err());
        assert!(programs.kept.lock().unwrap().is_empty());
    }
}
