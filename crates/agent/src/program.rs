//! Finding the program of a process: runs inside the container, as its user, just before execve(2).
//!
//! Owns: the search rule and its error texts, which are runc's. Never: runs on the agent's own view of files.
//! Called by the container's own process and by exec.

use crate::passwd;
use bulkhead_model::FailureKind;
use nix::unistd::{AccessFlags, access};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

/// Everything execve(2) takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// Path of the file to run.
    pub(crate) path: CString,
    /// Its arguments.
    pub(crate) arguments: Vec<CString>,
    /// Its environment.
    pub(crate) environment: Vec<CString>,
}

/// Why there is nothing to run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProgramError {
    /// No arguments at all.
    #[error("process.args is empty: expected at least the program's name")]
    Empty,
    /// An argument or variable holds a NUL byte.
    #[error("process.{what} {value:?} contains a NUL byte")]
    Nul {
        /// `args` or `env`.
        what: &'static str,
        /// The text.
        value: String,
    },
    /// A bare name that no directory of PATH has.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath {
        /// The name.
        name: String,
    },
    /// A path that does not exist.
    #[error("exec: {name:?}: stat {name}: no such file or directory")]
    NotFound {
        /// The path.
        name: String,
    },
    /// A directory.
    #[error("exec: {name:?}: is a directory")]
    Directory {
        /// The path.
        name: String,
    },
    /// Not executable for this user.
    #[error("exec: {name:?}: permission denied")]
    Permission {
        /// The name or path.
        name: String,
    },
}

impl ProgramError {
    /// Its class.
    #[must_use]
    pub(crate) const fn kind(&self) -> FailureKind {
        match self {
            Self::Empty | Self::Nul { .. } => FailureKind::InvalidArgument,
            Self::NotInPath { .. } | Self::NotFound { .. } => FailureKind::ProgramNotFound,
            Self::Directory { .. } | Self::Permission { .. } => FailureKind::ProgramNotExecutable,
        }
    }
}

enum Candidate {
    Good,
    Missing,
    Directory,
    Forbidden,
}

fn examine(path: &Path) -> Candidate {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Candidate::Directory,
        Ok(_) if access(path, AccessFlags::X_OK).is_ok() => Candidate::Good,
        Ok(_) => Candidate::Forbidden,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Candidate::Forbidden,
        Err(_) => Candidate::Missing,
    }
}

fn find(name: &str, search: Option<&str>) -> Result<String, ProgramError> {
    let name_of = || name.to_owned();
    if name.contains('/') {
        return match examine(Path::new(name)) {
            Candidate::Good => Ok(name_of()),
            Candidate::Missing => Err(ProgramError::NotFound { name: name_of() }),
            Candidate::Directory => Err(ProgramError::Directory { name: name_of() }),
            Candidate::Forbidden => Err(ProgramError::Permission { name: name_of() }),
        };
    }
    let mut forbidden = false;
    for directory in search.into_iter().flat_map(|search| search.split(':')) {
        let path = match directory {
            "" => format!("./{name}"),
            directory => format!("{directory}/{name}"),
        };
        match examine(Path::new(&path)) {
            Candidate::Good => return Ok(path),
            Candidate::Forbidden => forbidden = true,
            Candidate::Missing | Candidate::Directory => {}
        }
    }
    Err(if forbidden {
        ProgramError::Permission { name: name_of() }
    } else {
        ProgramError::NotInPath { name: name_of() }
    })
}

fn text(what: &'static str, value: &str) -> Result<CString, ProgramError> {
    CString::new(value).map_err(|_| ProgramError::Nul {
        what,
        value: value.to_owned(),
    })
}

impl Program {
    /// Resolves the program in the caller's view of files, working directory and user, who is `uid`.
    ///
    /// # Errors
    /// [`ProgramError`] in runc's words.
    pub(crate) fn resolve(
        arguments: &[String],
        variables: &[String],
        uid: u32,
    ) -> Result<Self, ProgramError> {
        let name = arguments.first().ok_or(ProgramError::Empty)?;
        let search = variables
            .iter()
            .rev()
            .find_map(|variable| variable.strip_prefix("PATH="));
        let path = find(name, search)?;
        let mut environment = variables
            .iter()
            .map(|variable| text("env", variable))
            .collect::<Result<Vec<_>, _>>()?;
        if !variables.iter().any(|variable| variable.starts_with("HOME=")) {
            environment.push(text("env", &format!("HOME={}", home(uid)))?);
        }
        Ok(Self {
            path: text("args", &path)?,
            arguments: arguments
                .iter()
                .map(|argument| text("args", argument))
                .collect::<Result<_, _>>()?,
            environment,
        })
    }

    /// Becomes the program. Returns only if that fails.
    #[must_use]
    pub(crate) fn run(&self) -> nix::errno::Errno {
        match nix::unistd::execve(&self.path, &self.arguments, &self.environment) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

fn home(uid: u32) -> String {
    File::open("/etc/passwd")
        .ok()
        .and_then(|file| passwd::parse(file).find(|user| user.uid == uid))
        .map(|user| user.home)
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn resolve(args: &[&str], env: &[&str]) -> Result<Program, ProgramError> {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Program::resolve(&list(args), &list(env), 0)
    }

    #[test]
    fn a_bare_name_is_searched_in_the_last_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let path = format!("PATH=/nowhere:{}", directory.path().display());
        let found = || resolve(&["tool", "x"], &["PATH=/other", &path, "A=b"]);
        assert_eq!(
            found(),
            Err(ProgramError::Permission {
                name: "tool".to_owned()
            })
        );
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = found().unwrap();
        assert_eq!(program.path.to_str().unwrap(), file.to_str().unwrap());
        assert_eq!(program.arguments.len(), 2);
        assert!(
            program
                .environment
                .iter()
                .any(|v| v.to_bytes().starts_with(b"HOME="))
        );
    }

    #[test]
    fn errors_are_in_runcs_words() {
        let missing = resolve(&["foo"], &["PATH=/nowhere"]).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"foo\": executable file not found in $PATH"
        );
        assert_eq!(missing.kind(), FailureKind::ProgramNotFound);
        let missing = resolve(&["/no/foo"], &[]).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "exec: \"/no/foo\": stat /no/foo: no such file or directory"
        );
        let directory = resolve(&["/tmp"], &[]).unwrap_err();
        assert_eq!(directory.to_string(), "exec: \"/tmp\": is a directory");
        assert_eq!(directory.kind(), FailureKind::ProgramNotExecutable);
        assert_eq!(resolve(&[], &[]).unwrap_err(), ProgramError::Empty);
        let nul = resolve(&["/bin/sh", "a\0b"], &[]).unwrap_err();
        assert!(matches!(nul, ProgramError::Nul { what: "args", .. }));
    }
}
