//! `doctor`: can this host run it, with what, and if not, what is missing and how to get it.
//!
//! Everything is looked at each time and nothing is changed; under 100 ms, most of it QEMU saying its version.
//! Exit status 0 when containers can be run.
//!
//! Owns: the questions and the words. Never: the answers (`vmm::probe`, `guest::Manifest`, `host::cgroup`).
//! Called by `lib`.

use crate::context::Context;
use crate::guest::Manifest;
use crate::tool;
use crate::verbs::{Outcome, print_json, print_text};
use bulkhead_config::{Config, Source};
use bulkhead_host::cgroup::Hierarchy;
use bulkhead_model::failure::chain;
use bulkhead_model::vm::Accelerator;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the VMM that is looked for in PATH.
const QEMU: &str = "qemu-system-x86_64";

/// The oldest QEMU it is tested with.
const OLDEST_QEMU: (u32, u32) = (7, 2);

/// QEMU says its version in a moment or not at all.
const VERSION_DEADLINE: Duration = Duration::from_secs(20);

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also compute the digests of kernel and initrd (takes longer)
    #[arg(long)]
    verify: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Findings {
    /// Containers can be run.
    ok: bool,
    accelerator: Execution,
    vmm: Vmm,
    kernel: GuestFile,
    initrd: GuestFile,
    shared_files: String,
    cgroups: String,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Execution {
    kind: Accelerator,
    why: String,
}

#[derive(Debug, Default, Serialize)]
struct Vmm {
    path: Option<PathBuf>,
    version: Option<String>,
}

#[derive(Debug, Serialize)]
struct GuestFile {
    path: PathBuf,
    /// Of the kernel, when the file is one that `guest build` installed.
    release: Option<String>,
    source: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Problem {
    what: String,
    fix: String,
}

impl Problem {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }
}

impl Doctor {
    /// Runs the verb.
    ///
    /// # Errors
    /// When the output cannot be written; what is wrong with the host is the output.
    pub(crate) fn run(&self, context: &Context) -> Outcome {
        let findings = self.look(context.config.as_deref());
        if self.json {
            print_json(&findings)?;
        } else {
            print_text(&text(&findings))?;
        }
        Ok(u8::from(!findings.ok))
    }

    fn look(&self, config_file: Option<&Path>) -> Findings {
        let mut problems = Vec::new();
        let config = Config::load(&Source::named(config_file)).unwrap_or_else(|error| {
            problems.push(Problem::new(
                chain(&error),
                "bulkhead config check FILE says what is wrong",
            ));
            Config::default()
        });
        let hypervisor = &config.settings().hypervisor;
        let (verdict, (vmm, vmm_problem)) = std::thread::scope(|scope| {
            let vmm = scope.spawn(|| vmm(hypervisor.path.as_deref()));
            let verdict = bulkhead_shim::accelerator::probe();
            let vmm = vmm.join().unwrap_or_else(|_| {
                (
                    Vmm::default(),
                    Some(Problem::new("QEMU could not be asked", "try again")),
                )
            });
            (verdict, vmm)
        });
        problems.extend(vmm_problem);
        let (kernel, initrd) = self.guest(&hypervisor.kernel, &hypervisor.initrd, &mut problems);
        if !nix::unistd::geteuid().is_root() {
            problems.push(Problem::new("this user is not root", "run it as root"));
        }
        let cgroups = match Hierarchy::detect() {
            Ok(Hierarchy::V1 { controllers, .. }) => {
                let names: Vec<&str> = controllers.keys().map(String::as_str).collect();
                format!("version 1 ({})", names.join(" "))
            }
            Ok(Hierarchy::V2 { .. }) => "version 2".to_owned(),
            // Logged at each start, not fatal there either.
            Err(error) => format!("none: {}", chain(&error)),
        };
        let shared_files = match (&*hypervisor.shared_fs, &hypervisor.virtio_fs_daemon) {
            ("virtio-fs", Some(daemon)) => format!("virtio-fs by {}", daemon.display()),
            ("virtio-fs", None) => "virtio-fs by the built-in daemon".to_owned(),
            (other, _) => other.to_owned(),
        };
        Findings {
            ok: problems.is_empty(),
            accelerator: Execution {
                kind: verdict.accelerator,
                why: verdict.reason,
            },
            vmm,
            kernel,
            initrd,
            shared_files,
            cgroups,
            problems,
        }
    }

    /// Kernel and initrd; when both are those of one `guest build`, against its manifest.
    fn guest(&self, kernel: &Path, initrd: &Path, problems: &mut Vec<Problem>) -> (GuestFile, GuestFile) {
        const BUILD: &str = "bulkhead guest build";
        let mut file = |path: &Path, what: &str| {
            if let Err(error) = std::fs::File::open(path) {
                problems.push(Problem::new(format!("{what} {}: {error}", path.display()), BUILD));
            }
            GuestFile {
                path: path.to_owned(),
                release: None,
                source: None,
            }
        };
        let mut found = (file(kernel, "kernel"), file(initrd, "initrd"));
        let dir = kernel.parent().unwrap_or(kernel);
        let installed_here = kernel == dir.join("vmlinux") && initrd == dir.join("initrd");
        if let Some(manifest) = Manifest::load(dir).ok().filter(|_| installed_here) {
            let checked = if self.verify {
                manifest.verify(dir)
            } else {
                manifest.check_sizes(dir)
            };
            // A file that is missing has been told.
            if let Err(error) = checked
                && problems.is_empty()
            {
                problems.push(Problem::new(chain(&error), "bulkhead guest build --force"));
            }
            found.0.release = Some(manifest.release);
            found.0.source = Some(manifest.source);
        }
        found
    }
}

/// The VMM and its version.
fn vmm(configured: Option<&Path>) -> (Vmm, Option<Problem>) {
    const INSTALL: &str = "apt-get install qemu-system-x86";
    let path = match configured {
        Some(path) => Some(path.to_owned()),
        None => in_path(QEMU),
    };
    let Some(path) = path else {
        return (
            Vmm::default(),
            Some(Problem::new(format!("no {QEMU} in PATH"), INSTALL)),
        );
    };
    let said = tool::run(
        &path.to_string_lossy(),
        &["--version"],
        Path::new("/"),
        VERSION_DEADLINE,
    );
    let (version, problem) = match said {
        Ok(text) => judge_version(&text),
        Err(error) => (None, Some(Problem::new(chain(&error), INSTALL))),
    };
    let vmm = Vmm {
        path: Some(path),
        version,
    };
    (vmm, problem)
}

fn judge_version(said: &str) -> (Option<String>, Option<Problem>) {
    let expected = format!("QEMU {}.{} or newer", OLDEST_QEMU.0, OLDEST_QEMU.1);
    let Some(version) = said
        .split("version ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
    else {
        let line = said.lines().next().unwrap_or_default();
        return (
            None,
            Some(Problem::new(
                format!("the VMM calls itself {line:?}"),
                format!("install {expected}"),
            )),
        );
    };
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let problem = (found < OLDEST_QEMU).then(|| {
        Problem::new(
            format!("QEMU is version {version}"),
            format!("install {expected}"),
        )
    });
    (Some(version.to_owned()), problem)
}

fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn text(findings: &Findings) -> String {
    let kind = match findings.accelerator.kind {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG (translated)",
    };
    let shown = |path: &Option<PathBuf>| path.as_ref().map_or("none".into(), |p| p.display().to_string());
    let guest = |file: &GuestFile| match &file.release {
        Some(release) => format!("{} ({release})", file.path.display()),
        None => file.path.display().to_string(),
    };
    let mut text = String::new();
    for (name, value) in [
        ("guest code", format!("{kind}: {}", findings.accelerator.why)),
        (
            "VMM",
            format!(
                "{} {}",
                shown(&findings.vmm.path),
                findings.vmm.version.as_deref().unwrap_or_default()
            ),
        ),
        ("kernel", guest(&findings.kernel)),
        ("initrd", guest(&findings.initrd)),
        ("shared files", findings.shared_files.clone()),
        ("cgroups", findings.cgroups.clone()),
    ] {
        text.push_str(&format!("{name:<13} {}\n", value.trim_end()));
    }
    for problem in &findings.problems {
        text.push_str(&format!(
            "problem       {}\n  to do       {}\n",
            problem.what, problem.fix
        ));
    }
    text.push_str(if findings.ok {
        "This host can run containers.\n"
    } else {
        "This host cannot run containers.\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_vmm() {
        let judge = |text: &str| {
            let (version, problem) = judge_version(text);
            (version, problem.is_some())
        };
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n";
        assert_eq!(judge(debian), (Some("7.2.22".into()), false));
        assert_eq!(
            judge("QEMU emulator version 10.0.0\n"),
            (Some("10.0.0".into()), false)
        );
        assert_eq!(
            judge("QEMU emulator version 6.2.0\n"),
            (Some("6.2.0".into()), true)
        );
        assert_eq!(judge("something else\n"), (None, true));
    }

    #[test]
    fn a_host_without_anything_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c.toml");
        std::fs::write(
            &config,
            "[hypervisor]\npath = \"/nonexistent/qemu\"\nkernel = \"/nonexistent/vmlinux\"\n\
             initrd = \"/nonexistent/initrd\"\n",
        )
        .unwrap();
        let doctor = Doctor {
            json: false,
            verify: false,
        };
        let findings = doctor.look(Some(&config));
        assert!(!findings.ok);
        let text = text(&findings);
        for word in [
            "/nonexistent/qemu",
            "/nonexistent/vmlinux",
            "guest build",
            "apt-get install",
            "cannot run",
        ] {
            assert!(text.contains(word), "{word} is not in:\n{text}");
        }
    }

    #[test]
    fn a_damaged_guest_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let asset = crate::guest::Asset::of(b"good");
        let manifest = Manifest::new("6".into(), "test".into(), asset.clone(), asset.clone(), asset);
        std::fs::write(
            dir.path().join("manifest.json"),
            serde_json::to_vec(&manifest).unwrap(),
        )
        .unwrap();
        let (kernel, initrd) = (dir.path().join("vmlinux"), dir.path().join("initrd"));
        let look = |verify: bool| {
            let doctor = Doctor { json: false, verify };
            let mut problems = Vec::new();
            let (found, _) = doctor.guest(&kernel, &initrd, &mut problems);
            (found.release, problems.len())
        };
        assert_eq!(look(false).1, 2, "both files are missing");
        std::fs::write(&kernel, b"good").unwrap();
        std::fs::write(&initrd, b"evil").unwrap();
        assert_eq!(look(false), (Some("6".into()), 0));
        assert_eq!(look(true), (Some("6".into()), 1));
        std::fs::write(&initrd, b"longer").unwrap();
        assert_eq!(look(false).1, 1);
    }
}
