//! Counting translated code: QEMU with one more monitor.
//!
//! ```text
//!  supervisor ─starts─► script ─exec─► QEMU, its monitor at <directory>/<pid> ◄─"info jit"─ bench
//! ```
//! How many blocks a translated guest has executed for the first time does not depend on who else runs, which times do.
//!
//! Owns: the script and the question. Never: what the count means. Called by `compare`.

use crate::error::TaskError;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program that the product starts when nothing else is asked for.
const QEMU: &str = "qemu-system-x86_64";
/// How often QEMU (7.2) throws translated code away before there is any.
const EMPTY_FLUSHES: u64 = 2;
const PROMPT: &str = "(qemu) ";
const ANSWER: Duration = Duration::from_secs(60);

/// A stand-in for QEMU whose machines can be asked.
#[derive(Debug)]
pub(super) struct Monitor {
    script: PathBuf,
    sockets: PathBuf,
}

impl Monitor {
    /// Writes the script below `work`.
    pub(super) fn new(work: &Path) -> Result<Self, TaskError> {
        let sockets = work.join("monitor");
        let script = work.join("qemu-with-monitor");
        let path = sockets.display();
        let text = format!(
            "#!/bin/sh\nexec {QEMU} \"$@\" -chardev socket,id=count,path={path}/$$,server=on,wait=off -mon chardev=count\n"
        );
        std::fs::create_dir_all(&sockets).map_err(|e| TaskError::io(&sockets, e))?;
        std::fs::write(&script, text)
            .and_then(|()| std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)))
            .map_err(|e| TaskError::io(&script, e))?;
        Ok(Self { script, sockets })
    }

    /// What to start in QEMU's place.
    pub(super) fn script(&self) -> &Path {
        &self.script
    }

    /// Blocks that the machine of process `pid` has translated so far; `None` if it does not translate. After its room was
    /// used up and thrown away it counts anew, and this is an error.
    pub(super) fn blocks(&self, pid: i64) -> Result<Option<u64>, TaskError> {
        let path = self.sockets.join(pid.to_string());
        let ask = || {
            let mut stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(ANSWER))?;
            until_prompt(&mut stream)?;
            stream.write_all(b"info jit\n")?;
            until_prompt(&mut stream)
        };
        let text = ask().map_err(|e| TaskError::io(&path, e))?;
        match (count(&text, "TB count"), count(&text, "TB flush count")) {
            (None, _) => Ok(None),
            (blocks, Some(flushes)) if flushes <= EMPTY_FLUSHES => Ok(blocks),
            (_, flushes) => Err(TaskError::Metadata(format!(
                "QEMU threw translated code away {} times: its blocks cannot be counted",
                flushes.unwrap_or_default()
            ))),
        }
    }

    /// Removes what ended machines leave.
    pub(super) fn clear(&self) {
        // The next bench makes it again; what stays takes no room.
        let _ = std::fs::remove_dir_all(&self.sockets);
    }
}

fn until_prompt(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut text = Vec::new();
    let mut some = [0; 4096];
    while !text.ends_with(PROMPT.as_bytes()) {
        match stream.read(&mut some)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => text.extend_from_slice(&some[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The number behind `name`.
fn count(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_flushes_are_told_apart() {
        let text = "info jit\r\nTranslation buffer state:\r\nTB count            47501\r\nTB avg target size  17 max=512 bytes\r\n\
                    Statistics:\r\nTB flush count      3\r\n(qemu) ";
        assert_eq!(count(text, "TB count"), Some(47501));
        assert_eq!(count(text, "TB flush count"), Some(3));
        assert_eq!(
            count("JIT information is only available with accel=tcg", "TB count"),
            None
        );
    }
}
