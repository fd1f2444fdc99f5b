//! The cloud kernel of the host's distribution: finding, fetching and unpacking its package.
//!
//! Owns: the questions asked of apt and dpkg. Never: what is inside a kernel. Called by [`super::build`].

use crate::tool::{ToolError, run};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names of kernel packages without signatures, the ones that hold plain files.
const PATTERN: &str = "^linux-image-[0-9].*-cloud-amd64-unsigned$";

/// The first cloud kernel that has the drivers a guest boots with built in. Lists that know only older ones, like
/// those of a machine image, are fetched anew.
const FIRST_GOOD: &str = "linux-image-6.12";

/// For questions to the local package lists.
const QUERY_DEADLINE: Duration = Duration::from_secs(120);

/// For anything that goes over the network or unpacks.
const FETCH_DEADLINE: Duration = Duration::from_secs(900);

/// Ends a download that stalls long before the deadline.
const NETWORK_OPTIONS: [&str; 4] = ["-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60"];

/// Why there is no kernel package.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The host has no apt.
    #[error("this host has no apt to fetch a kernel with: give one with --kernel FILE --modules DIR")]
    NoApt,
    /// The package lists hold no kernel.
    #[error(
        "apt knows no package linux-image-*-cloud-amd64-unsigned: give a kernel with --kernel FILE --modules DIR"
    )]
    None,
    /// The archive is not there after the download.
    #[error("{dir} holds no .deb after the download of {package}")]
    NotFetched {
        /// Package name.
        package: String,
        /// Where it should be.
        dir: PathBuf,
    },
    /// The package lacks a part.
    #[error("{package} holds no {what}")]
    Incomplete {
        /// Package or file name.
        package: String,
        /// What is missing.
        what: &'static str,
    },
    /// The temporary directory.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A kernel package that apt can fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// Package name.
    pub(super) name: String,
    /// Package version.
    pub(super) version: String,
}

impl Package {
    /// The newest cloud kernel apt knows; the lists are fetched first if they hold none that is new enough.
    pub(super) fn newest() -> Result<Self, PackageError> {
        let root = Path::new("/");
        let search = || {
            run(
                "apt-cache",
                &["search", "--names-only", PATTERN],
                root,
                QUERY_DEADLINE,
            )
        };
        let mut names = match search() {
            Ok(names) => names,
            Err(ToolError::Start { .. }) => return Err(PackageError::NoApt),
            Err(e) => return Err(e.into()),
        };
        if is_outdated(&names) {
            match update() {
                Ok(()) => names = search()?,
                // What is known may do, and says better what is wrong if it does not.
                Err(_) if !names.trim().is_empty() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let name = newest_name(&names).ok_or(PackageError::None)?;
        let policy = run("apt-cache", &["policy", &name], root, QUERY_DEADLINE)?;
        let version = candidate(&policy).ok_or(PackageError::None)?;
        Ok(Self { name, version })
    }

    /// Fetches the package into `dir`; lists that are out of date are fetched again once.
    pub(super) fn fetch(&self, dir: &Path) -> Result<PathBuf, PackageError> {
        let wanted = format!("{}={}", self.name, self.version);
        let mut arguments = NETWORK_OPTIONS.to_vec();
        arguments.extend(["download", &wanted]);
        if let Err(first) = run("apt-get", &arguments, dir, FETCH_DEADLINE) {
            if update().is_err() {
                return Err(first.into());
            }
            run("apt-get", &arguments, dir, FETCH_DEADLINE)?;
        }
        entries(dir)?
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| PackageError::NotFetched {
                package: self.name.clone(),
                dir: dir.to_owned(),
            })
    }
}

/// What an unpacked kernel package holds.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// The bzImage.
    pub(super) kernel: PathBuf,
    /// `lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

/// Unpacks a kernel package into `dir`.
pub(super) fn unpack(deb: &Path, dir: &Path) -> Result<Unpacked, PackageError> {
    let (from, to) = (deb.to_string_lossy(), dir.to_string_lossy());
    run("dpkg", &["-x", &from, &to], Path::new("/"), FETCH_DEADLINE)?;
    let first = |below: &str, prefix: &str, what: &'static str| {
        entries(&dir.join(below))?
            .into_iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(prefix))
            })
            .ok_or_else(|| PackageError::Incomplete {
                package: deb.display().to_string(),
                what,
            })
    };
    Ok(Unpacked {
        kernel: first("boot", "vmlinuz-", "boot/vmlinuz-*")?,
        modules: first("lib/modules", "", "lib/modules/*")?,
    })
}

fn update() -> Result<(), ToolError> {
    let mut arguments = NETWORK_OPTIONS.to_vec();
    arguments.push("update");
    run("apt-get", &arguments, Path::new("/"), FETCH_DEADLINE).map(drop)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, PackageError> {
    let failed = |source| PackageError::Io {
        path: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        found.push(entry.map_err(failed)?.path());
    }
    found.sort();
    Ok(found)
}

/// The newest of the names in apt-cache's answer, one `name - description` a line.
fn newest_name(answer: &str) -> Option<String> {
    answer
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by(|a, b| compare(a, b))
        .map(str::to_owned)
}

/// Whether apt-cache's answer holds no kernel from [`FIRST_GOOD`] on.
fn is_outdated(answer: &str) -> bool {
    newest_name(answer).is_none_or(|name| compare(&name, FIRST_GOOD).is_lt())
}

/// Runs of digits compare as numbers, everything else as text.
fn compare(a: &str, b: &str) -> Ordering {
    parts(a).cmp(&parts(b))
}

fn parts(name: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, tail) = rest.split_at(text_end);
        let number_end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(number_end);
        found.push((text.to_owned(), number.parse().unwrap_or(0)));
        rest = tail;
    }
    found
}

fn candidate(policy: &str) -> Option<String> {
    let line = policy.lines().find_map(|l| l.trim().strip_prefix("Candidate:"))?;
    let version = line.trim();
    (!version.is_empty() && version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let answer = "linux-image-6.1.0-56-cloud-amd64-unsigned - Linux 6.1\n\
                      linux-image-6.12.9+deb12-cloud-amd64-unsigned - Linux 6.12\n\
                      linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12\n\
                      linux-image-6.12.99+deb12-cloud-amd64-unsigned - Linux 6.12\n";
        assert_eq!(
            newest_name(answer).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64-unsigned")
        );
        assert_eq!(newest_name(""), None);
    }

    #[test]
    fn lists_of_a_machine_image_are_outdated() {
        let old = "linux-image-6.1.0-47-cloud-amd64-unsigned - Linux 6.1\n";
        let new = "linux-image-6.12.9+deb12-cloud-amd64-unsigned - Linux 6.12\n";
        assert!(is_outdated(old));
        assert!(is_outdated(""));
        assert!(!is_outdated(new));
        assert!(!is_outdated(&format!("{old}{new}")));
    }

    #[test]
    fn the_candidate_is_read() {
        let policy =
            "linux-image-x:\n  Installed: (none)\n  Candidate: 6.12.117-1~deb12u1\n  Version table:\n";
        assert_eq!(candidate(policy).as_deref(), Some("6.12.117-1~deb12u1"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
    }

    #[test]
    fn a_directory_without_a_kernel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(&dir.path().join("no.deb"), dir.path()).unwrap_err();
        assert!(matches!(error, PackageError::Tool(_)), "{error}");
    }
}
