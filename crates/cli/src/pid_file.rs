//! `--pid-file`: the pid in decimal, without a newline, there completely or not at all.
//!
//! Owns: that file's form. Never: which pid it is. Called by create, run and exec.

use bulkhead_model::{Failure, FailureKind};
use std::io::{self, Write};
use std::path::Path;

/// Writes `pid` to `path`, through a file beside it and a rename.
///
/// # Errors
/// What the file system says, naming the path.
pub(crate) fn write(path: &Path, pid: i32) -> Result<(), Failure> {
    let fail = |e: io::Error| {
        Failure::new(
            FailureKind::InvalidArgument,
            format!("writing the pid file {}: {e}", path.display()),
        )
    };
    let name = path
        .file_name()
        .ok_or_else(|| fail(io::Error::from(io::ErrorKind::IsADirectory)))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let beside = path.with_file_name(hidden);
    let written = std::fs::File::create(&beside)
        .and_then(|mut file| write!(file, "{pid}"))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // Nothing of a failed write may stay; it may not have been made at all.
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_only_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write(&path, 41).unwrap();
        write(&path, 42).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "42");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = write(Path::new("/nonexistent/pid"), 1).unwrap_err();
        assert!(error.message.contains("/nonexistent/pid"), "{error}");
    }
}
