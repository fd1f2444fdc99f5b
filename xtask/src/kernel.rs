//! `kernel`: the lean guest kernel, from the distribution's kernel source and `guest/kernel.config`.
//!
//! ```text
//! linux-source-* ─apt─► tree ─tinyconfig + fragment─► .config (checked) ─make─► vmlinux ─strip─► target/kernel
//! ```
//! The same source, fragment and compiler give the same bytes: user, host, time and number of the build are fixed. What
//! they were is in `kernel.json`, beside the digest of the result; an equal key needs no new build.
//!
//! Owns: the build. Never: what is in the kernel (see the fragment), what a guest is made of (see `bulkhead guest build`).

use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the build needs beside what `setup` installs, and what for.
const PACKAGES: &[(&str, &str)] = &[
    ("flex", "kernel configuration"),
    ("bison", "kernel configuration"),
    ("bc", "kernel build"),
    ("libelf-dev", "kernel build"),
    ("make", "kernel build"),
    ("xz-utils", "kernel source"),
];

/// The series that is built: the one the distribution's cloud kernel is of, with long-term support.
const SOURCE: &str = "linux-source-6.12";

/// Changes when the steps below do.
const RECIPE: &str = "1";

/// Long enough for a slow machine whose other core is busy.
const BUILD: Duration = Duration::from_secs(7200);

/// What makes two builds equal.
const FIXED: &[(&str, &str)] = &[
    ("KBUILD_BUILD_TIMESTAMP", "@0"),
    ("KBUILD_BUILD_USER", "bulkhead"),
    ("KBUILD_BUILD_HOST", "bulkhead"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
];

/// Options of `kernel`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KernelArguments {
    /// Build also when nothing has changed, and say whether the result is the same
    #[arg(long)]
    again: bool,
}

/// Builds it unless it is there.
pub(crate) fn run(workspace: &Workspace, arguments: &KernelArguments) -> Result<(), TaskError> {
    setup::install_missing(PACKAGES)?;
    let out = workspace.kernel();
    let fragment = workspace.root().join("guest/kernel.config");
    let key = json!({
        "source": newest_source()?,
        "fragment": digest(&fragment)?,
        "compiler": Tool::new("gcc").arg("--version").output()?.lines().next(),
        "linker": Tool::new("ld").arg("--version").output()?.lines().next(),
        "recipe": RECIPE,
    });
    let record = read_record(&out);
    let same = |record: &Value| record["key"] == key && intact(&out, record);
    let there = record.as_ref().is_some_and(same);
    if there && !arguments.again {
        println!("{} is up to date", out.join("vmlinux").display());
        return Ok(());
    }
    let work = out.join("work");
    // Left by a build that was cut short.
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).map_err(|e| TaskError::io(&work, e))?;
    let tree = unpack(&work, &key)?;
    configure(&tree, &fragment)?;
    make(&tree, &["-j2", "vmlinux"])?;
    let made = collect(&tree, &out, key)?;
    fs::remove_dir_all(&work).map_err(|e| TaskError::io(&work, e))?;
    println!("{}", serde_json::to_string_pretty(&made).unwrap_or_default());
    match record.filter(|_| there) {
        Some(former) if former["sha256"] != made["sha256"] => Err(TaskError::KernelDiffers {
            former: former["sha256"].to_string(),
            made: made["sha256"].to_string(),
        }),
        Some(_) => {
            println!("the same as before");
            Ok(())
        }
        None => Ok(()),
    }
}

/// Version of the source package apt would fetch.
fn newest_source() -> Result<String, TaskError> {
    let ask = || {
        let policy = Tool::new("apt-cache").args(["policy", SOURCE]).output()?;
        Ok::<_, TaskError>(candidate(&policy))
    };
    if let Some(version) = ask()? {
        return Ok(version);
    }
    setup::update_lists()?;
    ask()?.ok_or(TaskError::NoKernelSource(SOURCE))
}

fn candidate(policy: &str) -> Option<String> {
    let line = policy.lines().find_map(|l| l.trim().strip_prefix("Candidate:"))?;
    Some(line.trim().to_owned()).filter(|version| !version.is_empty() && version != "(none)")
}

fn unpack(work: &Path, key: &Value) -> Result<PathBuf, TaskError> {
    let wanted = format!("{SOURCE}={}", key["source"].as_str().unwrap_or_default());
    let fetch = || {
        Tool::new("apt-get")
            .args(["download", &wanted])
            .directory(work)
            .run()
    };
    if fetch().is_err() {
        setup::update_lists()?;
        fetch()?;
    }
    let script = "dpkg -x *.deb . && rm *.deb && nice tar xf usr/src/*.tar.xz && rm -r usr";
    Tool::new("sh").args(["-c", script]).directory(work).run()?;
    Ok(work.join(SOURCE))
}

fn make(tree: &Path, what: &[&str]) -> Result<(), TaskError> {
    let tool = Tool::new("nice").args(["make", "-s"]).args(what).directory(tree);
    FIXED
        .iter()
        .fold(tool, |tool, (key, value)| tool.env(key, value))
        .deadline(BUILD)
        .run()
}

/// The smallest configuration there is, and the fragment on top; each line of that must have survived.
fn configure(tree: &Path, fragment: &Path) -> Result<(), TaskError> {
    make(tree, &["tinyconfig"])?;
    Tool::new("scripts/kconfig/merge_config.sh")
        .args(["-m", ".config"])
        .arg(fragment)
        .directory(tree)
        .output()?;
    make(tree, &["olddefconfig"])?;
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| TaskError::io(path, e));
    let lost = lost(&read(fragment)?, &read(&tree.join(".config"))?);
    if lost.is_empty() {
        Ok(())
    } else {
        Err(TaskError::KernelOptions(lost.join(", ")))
    }
}

/// Lines of the fragment that the configuration does not have.
fn lost(fragment: &str, config: &str) -> Vec<String> {
    fragment
        .lines()
        .filter(|line| match line.strip_prefix("# CONFIG_") {
            Some(rest) => {
                let name = rest.split_whitespace().next().unwrap_or(rest);
                config
                    .lines()
                    .any(|set| set.starts_with(&format!("CONFIG_{name}=")))
            }
            None => line.starts_with("CONFIG_") && !config.lines().any(|set| set == *line),
        })
        .map(str::to_owned)
        .collect()
}

/// Puts the results in place, the record last.
fn collect(tree: &Path, out: &Path, key: Value) -> Result<Value, TaskError> {
    let release = Tool::new("make")
        .args(["-s", "kernelrelease"])
        .directory(tree)
        .output()?;
    let modules = out.join("modules");
    fs::create_dir_all(modules.join("kernel")).map_err(|e| TaskError::io(&modules, e))?;
    let vmlinux = out.join("vmlinux");
    Tool::new("strip")
        .arg("-o")
        .arg(&vmlinux)
        .arg(tree.join("vmlinux"))
        .run()?;
    for (from, to) in [
        ("System.map", "System.map"),
        (".config", "config"),
        ("modules.builtin", "modules/modules.builtin"),
    ] {
        let from = tree.join(from);
        fs::copy(&from, out.join(to)).map_err(|e| TaskError::io(&from, e))?;
    }
    // There are none; a tree without the list is not taken for one.
    let order = modules.join("modules.order");
    fs::write(&order, "").map_err(|e| TaskError::io(&order, e))?;
    let bytes = fs::metadata(&vmlinux)
        .map_err(|e| TaskError::io(&vmlinux, e))?
        .len();
    let made = json!({
        "key": key, "release": release.trim(), "sha256": digest(&vmlinux)?, "bytes": bytes,
    });
    let path = out.join("kernel.json");
    fs::write(&path, format!("{made:#}\n")).map_err(|e| TaskError::io(&path, e))?;
    Ok(made)
}

fn read_record(out: &Path) -> Option<Value> {
    let text = fs::read(out.join("kernel.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn intact(out: &Path, record: &Value) -> bool {
    digest(&out.join("vmlinux")).is_ok_and(|digest| record["sha256"] == digest)
}

fn digest(path: &Path) -> Result<String, TaskError> {
    let line = Tool::new("sha256sum").arg(path).output()?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod options {
    use super::*;

    #[test]
    fn what_did_not_survive_is_named() {
        let fragment = "# words\nCONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        let config = "CONFIG_A=y\nCONFIG_B=\"y\"\nCONFIG_C=y\n# CONFIG_D is not set\nCONFIG_AB=y\n";
        assert_eq!(
            lost(fragment, config),
            ["CONFIG_B=\"x\"", "# CONFIG_C is not set"]
        );
        assert!(lost("CONFIG_A=y\n# CONFIG_E is not set\n", config).is_empty());
    }

    #[test]
    fn no_candidate_is_none() {
        assert_eq!(candidate("x:\n  Candidate: 6.12-1\n").as_deref(), Some("6.12-1"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
    }
}
