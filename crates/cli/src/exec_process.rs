//! The OCI process of an `exec`: from flags on top of the container's own process, or from a file.
//!
//! Owns: merging as runc does: environment is added (a later value of a name wins), everything else
//! replaces. Never: starting it. Called by the `exec` verb.

use bulkhead_model::{Failure, FailureKind, oci};
use clap::Args;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Flags that describe the process.
#[derive(Debug, Default, Args)]
pub(crate) struct ProcessFlags {
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Set an environment variable; may be given more than once
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give the process a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// User and group to run as
    #[arg(long, short, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Additional group; may be given more than once
    #[arg(long, short = 'g', value_name = "GID", allow_hyphen_values = true)]
    pub(crate) additional_gids: Vec<String>,
    /// File with the process as JSON; the other flags and the command are not used then
    #[arg(long, short, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// The process may not gain privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Add a capability; may be given more than once
    #[arg(long, short, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::InvalidArgument, message)
}

/// Builds the process; `own` is the container's process, `command` the words after the id. Returns what was
/// tolerated, one line each.
///
/// # Errors
/// `InvalidArgument` naming the flag, its value and what was expected.
pub(crate) fn build(
    flags: &ProcessFlags,
    own: &oci::Process,
    command: &[String],
) -> Result<(oci::Process, Vec<String>), Failure> {
    let mut warnings = Vec::new();
    let mut process = match &flags.process {
        Some(path) => from_file(path)?,
        None => merged(flags, own, command, &mut warnings)?,
    };
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(bad("process args cannot be empty: expected a command".to_owned()));
    }
    if !process.cwd().is_absolute() {
        return Err(bad(format!(
            "cwd {:?} is not usable: expected an absolute path",
            process.cwd()
        )));
    }
    let env = last_wins(process.env().clone().unwrap_or_default())?;
    process.set_env(Some(env));
    Ok((process, warnings))
}

/// The process of a container, from its bundle's config.json as runc does.
///
/// # Errors
/// A config.json that is not there any more or cannot be read.
pub(crate) fn own(bundle: &Path) -> Result<oci::Process, Failure> {
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).map_err(|e| bad(format!("reading {}: {e}", path.display())))?;
    let spec: oci::Spec =
        serde_json::from_slice(&text).map_err(|e| bad(format!("{}: {e}", path.display())))?;
    spec.process()
        .clone()
        .ok_or_else(|| bad(format!("{}: no process: expected one", path.display())))
}

fn from_file(path: &Path) -> Result<oci::Process, Failure> {
    let text =
        std::fs::read(path).map_err(|e| bad(format!("reading the process {}: {e}", path.display())))?;
    // The user is optional in runc's files.
    let mut value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| bad(format!("the process {}: {e}", path.display())))?;
    if let Some(members) = value.as_object_mut() {
        members
            .entry("user")
            .or_insert_with(|| serde_json::json!({"uid": 0, "gid": 0}));
    }
    serde_json::from_value(value).map_err(|e| bad(format!("the process {}: {e}", path.display())))
}

fn merged(
    flags: &ProcessFlags,
    own: &oci::Process,
    command: &[String],
    warnings: &mut Vec<String>,
) -> Result<oci::Process, Failure> {
    let mut process = own.clone();
    process.set_args(Some(command.to_vec()));
    process.set_command_line(None);
    process.set_terminal(Some(flags.tty));
    if !flags.tty {
        process.set_console_size(None);
    }
    if let Some(cwd) = &flags.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = &flags.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &flags.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if flags.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(flags.env.iter().cloned());
    process.set_env(Some(env));
    if !flags.cap.is_empty() {
        process.set_capabilities(Some(more_capabilities(
            process.capabilities().as_ref(),
            &flags.cap,
            warnings,
        )));
    }
    set_user(flags, &mut process)?;
    Ok(process)
}

fn set_user(flags: &ProcessFlags, process: &mut oci::Process) -> Result<(), Failure> {
    let number = |flag: &str, text: &str| {
        text.parse::<u32>().map_err(|_| {
            bad(format!(
                "--{flag} {text:?} is not usable: expected a number from 0 to 4294967295"
            ))
        })
    };
    let mut user = process.user().clone();
    if let Some(text) = flags.user.as_deref().filter(|text| !text.is_empty()) {
        let (uid, gid) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
        user.set_uid(number("user", uid)?);
        if let Some(gid) = gid {
            user.set_gid(number("user", gid)?);
        }
    }
    if !flags.additional_gids.is_empty() {
        let mut all = user.additional_gids().clone().unwrap_or_default();
        for text in flags.additional_gids.iter().flat_map(|text| text.split(',')) {
            all.push(number("additional-gids", text)?);
        }
        user.set_additional_gids(Some(all));
    }
    process.set_user(user);
    Ok(())
}

/// Adds to the bounding, effective, permitted and ambient sets, as runc does. What is no capability is
/// skipped with a warning, as with runc.
fn more_capabilities(
    now: Option<&oci::LinuxCapabilities>,
    names: &[String],
    warnings: &mut Vec<String>,
) -> oci::LinuxCapabilities {
    let mut added = oci::Capabilities::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        match oci::Capability::from_str(upper.strip_prefix("CAP_").unwrap_or(&upper)) {
            Ok(capability) => {
                added.insert(capability);
            }
            Err(_) => warnings.push(format!("ignoring unknown capability {name:?}")),
        }
    }
    let none = oci::Capabilities::new();
    let with = |set: Option<&oci::Capabilities>| -> oci::Capabilities {
        set.unwrap_or(&none).union(&added).copied().collect()
    };
    let mut all = now.cloned().unwrap_or_else(no_capabilities);
    all.set_bounding(Some(with(all.bounding().as_ref())));
    all.set_effective(Some(with(all.effective().as_ref())));
    all.set_permitted(Some(with(all.permitted().as_ref())));
    all.set_ambient(Some(with(all.ambient().as_ref())));
    all
}

/// The crate's default is Docker's usual set; a process without capabilities has none.
fn no_capabilities() -> oci::LinuxCapabilities {
    let mut none = oci::LinuxCapabilities::default();
    none.set_bounding(None)
        .set_effective(None)
        .set_inheritable(None)
        .set_permitted(None)
        .set_ambient(None);
    none
}

/// Each name once, at the place where it came first, with the value that came last.
fn last_wins(entries: Vec<String>) -> Result<Vec<String>, Failure> {
    let mut kept: Vec<String> = Vec::with_capacity(entries.len());
    let mut at = std::collections::HashMap::new();
    for entry in entries {
        let Some((name, _)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(bad(format!(
                "invalid environment variable: {entry:?}: expected NAME=VALUE"
            )));
        };
        let name = name.to_owned();
        match at.get(&name) {
            Some(&index) => {
                if let Some(slot) = kept.get_mut::<usize>(index) {
                    *slot = entry;
                }
            }
            None => {
                at.insert(name, kept.len());
                kept.push(entry);
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> oci::Process {
        serde_json::from_value(serde_json::json!({
            "terminal": true, "user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["sh"],
            "env": ["PATH=/bin", "TERM=xterm"], "cwd": "/", "noNewPrivileges": false,
            "capabilities": {"bounding": ["CAP_KILL"], "effective": [], "permitted": [], "ambient": []},
        }))
        .unwrap()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn without_flags_only_the_command_and_the_terminal_change() {
        let (got, warnings) = build(&ProcessFlags::default(), &process(), &words("ls -l")).unwrap();
        let mut want = process();
        want.set_args(Some(words("ls -l"))).set_terminal(Some(false));
        assert_eq!(got, want);
        assert!(warnings.is_empty());
    }

    #[test]
    fn every_flag_has_its_effect() {
        let flags = ProcessFlags {
            cwd: Some("/tmp".into()),
            env: vec!["A=1".into(), "TERM=dumb".into(), "A=2=3".into()],
            tty: true,
            user: Some("5:6".into()),
            additional_gids: vec!["7".into(), "8".into()],
            process: None,
            process_label: Some("label".into()),
            apparmor: Some("profile".into()),
            no_new_privs: true,
            cap: vec!["CAP_SYS_ADMIN".into(), "net_raw".into(), "FOO".into()],
        };
        let (got, warnings) = build(&flags, &process(), &words("id")).unwrap();
        let value = serde_json::to_value(&got).unwrap();
        assert_eq!(value["cwd"], "/tmp");
        assert_eq!(
            value["env"],
            serde_json::json!(["PATH=/bin", "TERM=dumb", "A=2=3"])
        );
        assert_eq!(value["terminal"], true);
        assert_eq!(
            value["user"],
            serde_json::json!({"uid": 5, "gid": 6, "additionalGids": [3, 7, 8]})
        );
        assert_eq!(value["selinuxLabel"], "label");
        assert_eq!(value["apparmorProfile"], "profile");
        assert_eq!(value["noNewPrivileges"], true);
        let names = |set: &str| -> Vec<String> {
            let mut all: Vec<String> = serde_json::from_value(value["capabilities"][set].clone()).unwrap();
            all.sort();
            all
        };
        assert_eq!(names("bounding"), ["CAP_KILL", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
        assert_eq!(names("ambient"), ["CAP_NET_RAW", "CAP_SYS_ADMIN"]);
        assert_eq!(warnings, ["ignoring unknown capability \"FOO\""]);
    }

    #[test]
    fn capabilities_of_a_process_that_has_none() {
        let mut bare = process();
        bare.set_capabilities(None);
        let flags = ProcessFlags {
            cap: vec!["CAP_CHOWN".into()],
            ..ProcessFlags::default()
        };
        let (got, _) = build(&flags, &bare, &words("id")).unwrap();
        let value = serde_json::to_value(got.capabilities()).unwrap();
        assert_eq!(value["permitted"], serde_json::json!(["CAP_CHOWN"]));
        assert_eq!(value.get("inheritable"), None);
    }

    #[test]
    fn a_bad_value_is_named() {
        let user = |text: &str| ProcessFlags {
            user: Some(text.into()),
            ..ProcessFlags::default()
        };
        let gid = ProcessFlags {
            additional_gids: vec!["-1".into()],
            ..ProcessFlags::default()
        };
        let env = ProcessFlags {
            env: vec!["FOO".into()],
            ..ProcessFlags::default()
        };
        let cwd = ProcessFlags {
            cwd: Some("relative".into()),
            ..ProcessFlags::default()
        };
        for (flags, named) in [
            (user("abc"), "\"abc\""),
            (user("1:x"), "\"x\""),
            (gid, "\"-1\""),
            (env, "\"FOO\""),
            (cwd, "\"relative\""),
        ] {
            let failure = build(&flags, &process(), &words("id")).unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
        }
        assert!(build(&ProcessFlags::default(), &process(), &[]).is_err());
    }

    #[test]
    fn a_process_file_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process.json");
        std::fs::write(&path, r#"{"args":["id"],"cwd":"/tmp","env":["A=1","A=2"]}"#).unwrap();
        let flags = ProcessFlags {
            process: Some(path.clone()),
            ..ProcessFlags::default()
        };
        let (got, _) = build(&flags, &process(), &[]).unwrap();
        assert_eq!(got.args().as_ref().unwrap(), &["id"]);
        assert_eq!(got.env().as_ref().unwrap(), &["A=2"]);
        assert_eq!(got.user().uid(), 0);
        std::fs::write(&path, "{").unwrap();
        let failure = build(&flags, &process(), &[]).unwrap_err();
        assert!(failure.message.contains("process.json"), "{failure}");
    }
}
