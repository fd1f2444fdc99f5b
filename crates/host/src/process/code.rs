//! The program's own code in memory, and doing without it.
//!
//! A process that has begun and now only waits needs a few pages of its program; those it came up with stay mapped all
//! the same, and count.
//!
//! Owns: where code and constants of this process lie. Never: what was written to, relocated addresses among it. Called
//! by processes that stand for others.

use std::io;
use std::ops::Range;

/// Where the code of this process and the read-only beginnings of its files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    ranges: Vec<Range<usize>>,
}

impl Code {
    /// Learns it from `/proc`, which must be the host's still: a container's could say anything.
    ///
    /// # Errors
    /// Reading proc_pid_maps(5).
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/maps")?))
    }

    fn parse(maps: &str) -> Self {
        Self {
            ranges: maps.lines().filter_map(untouched).collect(),
        }
    }

    /// Unmaps the pages that are there; each one that is needed comes back from its file. Returns the bytes looked at.
    pub fn forget(&self) -> usize {
        let mut bytes = 0;
        for range in &self.ranges {
            let length = range.end - range.start;
            // SAFETY: madvise(2): pages of a private mapping of a file that were not written to are read from the file
            // again when they are touched. Nothing writes to these: they were mapped by the loader from the program and
            // its libraries, executable and read-only, or read-only from the file's beginning, where tables for the
            // loader are; what the loader relocates lies behind them, in mappings of its own that are not taken
            // (`untouched`). The loader's mappings stay for as long as the process lives, which never unloads a library.
            // A range that is not mapped is refused, without effect.
            let done =
                unsafe { libc::madvise(range.start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
            if done == 0 {
                bytes += length;
            }
        }
        bytes
    }
}

/// The range of a line that nothing can have been written to: private code, or private constants from a file's start.
fn untouched(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let offset = words.next()?;
    let path = words.nth(2)?;
    let begins = usize::from_str_radix(offset, 16).ok()? == 0;
    if !path.starts_with('/') || !(permissions == "r-xp" || (permissions == "r--p" && begins)) {
        return None;
    }
    let at = |word| usize::from_str_radix(word, 16).ok();
    Some(at(start)?..at(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_beginnings_are_taken_and_what_was_written_to_is_not() {
        let maps = "\
555500000000-555500100000 r--p 00000000 08:01 7 /usr/bin/bulkhead
555500100000-555500300000 r-xp 000ff000 08:01 7 /usr/bin/bulkhead
555500300000-555500400000 r--p 002fe000 08:01 7 /usr/bin/bulkhead
555500400000-555500401000 rw-p 003fd000 08:01 7 /usr/bin/bulkhead
555500500000-555500600000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 r-xp 00000000 00:00 0
7f0000002000-7f0000003000 r-xs 00000000 08:01 9 /shared
7f0000004000-7f0000005000 rwxp 00000000 08:01 9 /written
7ffe00000000-7ffe00001000 r-xp 00000000 00:00 0 [vdso]
";
        let code = Code::parse(maps);
        let taken = [
            0x5555_0000_0000..0x5555_0010_0000,
            0x5555_0010_0000..0x5555_0030_0000,
        ];
        assert_eq!(code.ranges, taken);
    }

    #[test]
    fn what_is_forgotten_comes_back() {
        // What the loader relocated stays: calls through tables of functions work on.
        let words: Vec<Box<dyn std::fmt::Display>> = vec![Box::new(1), Box::new("two")];
        let code = Code::of_this_process().unwrap();
        assert!(!code.ranges.is_empty());
        assert!(code.forget() > 0);
        let text: String = words.iter().map(ToString::to_string).collect();
        assert_eq!(text, "1two");
    }
}
