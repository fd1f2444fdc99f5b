//! `setup`: the Debian packages that building, running and testing need.

use crate::error::TaskError;
use crate::tool::Tool;
use std::time::Duration;

/// Package and what it is for.
const PACKAGES: &[(&str, &str)] = &[
    ("ca-certificates", "fetching crates"),
    ("gcc", "linking"),
    ("libc6-dev", "linking"),
    ("pkg-config", "finding the libraries below"),
    ("libseccomp-dev", "agent and shared-filesystem daemon"),
    ("libcap-ng-dev", "shared-filesystem daemon"),
    ("protobuf-compiler", "the CRI client of the tests"),
    ("qemu-system-x86", "virtual machines"),
    ("busybox-static", "root file system of demo and tests"),
    ("iproute2", "network tests"),
    ("procps", "tests"),
    ("util-linux", "tests"),
    ("librsvg2-bin", "tests draw what is to open in a browser"),
    ("runc", "the conformance tests run on it too"),
    ("crun", "comparison in the bench"),
    ("containerd", "the tests of its shim"),
    (
        "containernetworking-plugins",
        "pods in the tests of containerd's shim",
    ),
    ("iptables", "ports those pods publish"),
];

const APT_DEADLINE: Duration = Duration::from_secs(1800);

/// Installs what is missing; says nothing when all is there.
pub(crate) fn run() -> Result<(), TaskError> {
    if std::env::consts::ARCH != "x86_64" || std::env::consts::OS != "linux" {
        return Err(TaskError::Machine {
            found: format!("{} {}", std::env::consts::ARCH, std::env::consts::OS),
        });
    }
    install_missing(PACKAGES)
}

/// Installs those of `packages` that are missing; each comes with what it is for.
pub(crate) fn install_missing(packages: &[(&'static str, &str)]) -> Result<(), TaskError> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(TaskError::NeedsRootToInstall(missing.join(" ")));
    }
    for name in &missing {
        let why = packages
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, why)| why);
        eprintln!("missing: {name} ({why})");
    }
    // A machine that has run apt before has lists that usually will do.
    if install(&missing).is_err() {
        update_lists()?;
        install(&missing)?;
    }
    Ok(())
}

/// Fetches the package lists anew.
pub(crate) fn update_lists() -> Result<(), TaskError> {
    apt("update").run()
}

fn missing(packages: &[(&'static str, &str)]) -> Result<Vec<&'static str>, TaskError> {
    let mut missing = Vec::new();
    for (name, _) in packages {
        let query = Tool::new("dpkg-query")
            .args(["-W", "-f=${Status}", name])
            .deadline(Duration::from_secs(60))
            .outcome();
        match query {
            Ok(outcome) if outcome.stdout.ends_with(" installed") => {}
            Ok(_) => missing.push(*name),
            Err(TaskError::Start { .. }) => {
                return Err(TaskError::Machine {
                    found: "without dpkg".to_owned(),
                });
            }
            Err(other) => return Err(other),
        }
    }
    Ok(missing)
}

fn install(names: &[&str]) -> Result<(), TaskError> {
    apt("install")
        .args(["-y", "-q", "--no-install-recommends"])
        .args(names)
        .run()
}

fn apt(verb: &str) -> Tool {
    Tool::new("apt-get")
        .args(["-o", "Acquire::Retries=3"])
        .arg(verb)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .deadline(APT_DEADLINE)
}
