//! Finding processes by a mark in their environment, with no memory of having started them.
//!
//! Owns: the name of the mark and the walk over `/proc`. Never: signals what it finds.
//! Called by gc and by the tests' leak audit.

use std::io::{self, Read};

/// Environment variable that names the sandbox a host process belongs to.
pub const MARKER: &str = "BULKHEAD_SANDBOX";

/// Environments larger than this are not searched to their end: the kernel's own limit for arguments and
/// environment together is 6 MiB by default (execve(2), 3/4 of 8 MiB).
const MAX_ENVIRON_BYTES: u64 = 8 << 20;

/// Processes whose environment has `BULKHEAD_SANDBOX=<value>`, or the variable with any value for `None`:
/// pid, start time and value. Processes that end during the walk, or may not be read, are left out.
///
/// # Errors
/// When `/proc` itself cannot be listed.
pub fn marked(value: Option<&str>) -> io::Result<Vec<(i32, u64, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        // The start time is taken first and last: a pid reused in between is not reported.
        let Ok(Some(before)) = super::start_time(pid) else {
            continue;
        };
        let Some(mark) = environ(pid).and_then(|text| mark_in(&text)) else {
            continue;
        };
        if value.is_some_and(|wanted| wanted != mark) {
            continue;
        }
        if matches!(super::alive(pid, before), Ok(true)) {
            found.push((pid, before, mark));
        }
    }
    Ok(found)
}

fn environ(pid: i32) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/environ"))
        .ok()?
        .take(MAX_ENVIRON_BYTES)
        .read_to_end(&mut text)
        .ok()?;
    Some(text)
}

fn mark_in(environ: &[u8]) -> Option<String> {
    environ.split(|b| *b == 0).find_map(|entry| {
        let value = entry.strip_prefix(MARKER.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_a_whole_variable() {
        assert_eq!(mark_in(b"A=1\0BULKHEAD_SANDBOX=x y\0B=2\0"), Some("x y".into()));
        assert_eq!(mark_in(b"XBULKHEAD_SANDBOX=x\0BULKHEAD_SANDBOX_2=x\0"), None);
        assert_eq!(mark_in(b""), None);
    }
}
