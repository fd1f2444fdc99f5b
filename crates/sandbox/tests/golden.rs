//! Saved state of every released version stays readable (C-09): one file each in `golden/`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{ExecId, ExitStatus, HostProcess, State};
use bulkhead_sandbox::saved::{SavedError, VERSION};
use bulkhead_sandbox::{Command, SavedSandbox};
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::{key as key_of, *};

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("state-v{version}.json"))
}

/// Whether everything in `old` is in `new`, at the same place and of the same value.
fn kept(old: &Value, new: &Value, at: &str) -> Result<(), String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.iter().try_for_each(|(key, value)| {
            let at = format!("{at}.{key}");
            kept(value, new.get(key).ok_or(format!("{at} is gone"))?, &at)
        }),
        // Sets, such as capabilities, have no order.
        (Value::Array(old), Value::Array(new)) if sorted(old).is_some() => {
            if sorted(old) == sorted(new) {
                Ok(())
            } else {
                Err(format!("{at} was {old:?} and is {new:?}"))
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => old
            .iter()
            .zip(new)
            .enumerate()
            .try_for_each(|(k, (old, new))| kept(old, new, &format!("{at}[{k}]"))),
        _ if old == new => Ok(()),
        _ => Err(format!("{at} was {old} and is {new}")),
    }
}

/// The texts of a list of nothing but texts, sorted.
fn sorted(list: &[Value]) -> Option<Vec<&str>> {
    let mut texts: Vec<&str> = list.iter().map(Value::as_str).collect::<Option<_>>()?;
    texts.sort_unstable();
    Some(texts)
}

/// C-09: every version up to this build's is readable, and written again it has lost nothing.
#[test]
fn c09_every_version_stays_readable() {
    for version in 1..=VERSION {
        let path = golden(version);
        let saved = SavedSandbox::read(&path).unwrap();
        assert_eq!(saved.version, version);
        let old: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let new = serde_json::to_value(&saved).unwrap();
        kept(&old, &new, "state").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let again = dir.path().join("state.json");
        saved.write(&again).unwrap();
        assert_eq!(SavedSandbox::read(&again).unwrap(), saved);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }
}

/// C-09: what version 1 says.
#[test]
fn c09_what_version_1_says() {
    let saved = SavedSandbox::read(&golden(1)).unwrap();
    assert_eq!(
        (saved.id.as_str(), saved.state, saved.next_stream),
        ("a", State::Running, 10)
    );
    let process = |pid| HostProcess { pid, start_time: 1 };
    assert_eq!(saved.processes["vmm"], process(1001));
    assert_eq!(saved.processes["fsd"], process(1000));
    let a = &saved.containers[&id("a")];
    assert_eq!((a.state, a.created_ns, a.shares.len()), (State::Running, 42, 2));
    assert_eq!(a.init.host, Some(process(500)));
    assert_eq!(
        (a.init.streams, a.init.guest_pid, a.init.exit),
        ((1, 2, 3), Some(17), None)
    );
    let exec = &a.execs[&ExecId::new("e").unwrap()];
    assert_eq!((exec.exit, exec.delivered), (Some(ExitStatus::Code(3)), true));
    let b = &saved.containers[&id("b")];
    assert_eq!(
        (b.state, b.init.exit),
        (State::Stopped, Some(ExitStatus::Signal(15)))
    );
    assert_eq!(b.plan.bundle, Path::new("/b"));
}

/// C-09: a fresh supervisor starts from version 1, here without a VM.
#[tokio::test]
async fn c09_version_1_is_taken_over() {
    let bench = Bench::new();
    let paths = bench.paths("a");
    std::fs::create_dir_all(&paths.dir).unwrap();
    std::fs::copy(golden(1), paths.state()).unwrap();
    let (handle, engine) = bench.successor("a").await;
    let snapshot = handle.snapshot();
    assert_eq!(snapshot.containers.len(), 2);
    assert_eq!(
        snapshot.containers[&id("b")].init.exit,
        Some(ExitStatus::Signal(15))
    );
    assert_eq!(snapshot.containers[&id("a")].state, State::Stopped);
    call(&handle, Command::Shutdown).await.unwrap();
    assert_eq!(engine.await.unwrap(), Vec::<String>::new());
    bench.assert_nothing_left("a", "version 1");
}

/// C-09: nothing, not readable, from a newer build: told apart.
#[test]
fn c09_what_is_not_readable_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    assert!(matches!(
        SavedSandbox::read(&path),
        Err(SavedError::Absent { .. })
    ));
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(SavedSandbox::read(&path), Err(SavedError::Io { .. })));
    std::fs::remove_dir(&path).unwrap();
    let newer = VERSION + 1;
    for (text, kind) in [
        (String::new(), "saved state"),
        ("{\"version\": \"1\"}".into(), "saved state"),
        ("{\"version\": 1}".into(), "saved state"),
        (format!("{{\"version\": {newer}}}"), "expected at most"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let error = SavedSandbox::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(kind) && error.contains(path.to_str().unwrap()),
            "{text}: {error}"
        );
    }
}

/// C-09: what is written today has everything its version's golden file has. With `BULKHEAD_WRITE_GOLDEN` set the
/// file is written first: do that when the version goes up, never for a released one.
#[tokio::test]
async fn c09_what_is_written_today() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    let exec = exec_key("a", "e");
    let _ear = attach(&handle, exec.clone(), 600).await.unwrap();
    let process = Box::new(bulkhead_model::oci::Process::default());
    let key = exec.clone();
    call(&handle, Command::Exec { key, process }).await.unwrap();
    bench.guest.exit(exec.clone(), ExitStatus::Code(3));
    call(&handle, Command::Wait { key: exec }).await.unwrap();
    create(&handle, "b", false).await.unwrap();
    call(&handle, Command::Start { id: id("b") }).await.unwrap();
    bench.guest.exit(key_of("b"), ExitStatus::Signal(15));
    call(&handle, Command::Wait { key: key_of("b") }).await.unwrap();
    let text = std::fs::read(bench.paths("a").state()).unwrap();
    call(&handle, Command::Shutdown).await.unwrap();

    let today: Value = serde_json::from_slice(&text).unwrap();
    let path = golden(VERSION);
    if std::env::var_os("BULKHEAD_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&today).unwrap() + "\n").unwrap();
    }
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kept(&file, &today, "state").unwrap();
}
