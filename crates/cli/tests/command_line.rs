//! The program as engines call it, as far as no sandbox is needed: exit statuses, messages, log formats, and
//! everything that is refused before anything is made (contract K-02).

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::process::{Command, Output};

/// A root of its own and the program on it.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bulkhead"))
            .arg("--root")
            .arg(self.path().join("root"))
            .args(words)
            .env_remove("BULKHEAD_CONFIG")
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    /// Status and the message on standard error; there is exactly one line.
    fn refused(&self, words: &[&str]) -> (i32, String) {
        let output = self.run(&[&["--log", "log", "--log-format", "json"], words].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{words:?}");
        (output.status.code().unwrap(), stderr.trim_end().to_owned())
    }

    fn bundle(&self, config: &str) -> String {
        let bundle = self.path().join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        std::fs::write(bundle.join("config.json"), config).unwrap();
        bundle.to_str().unwrap().to_owned()
    }

    fn nothing_left(&self) {
        let sandboxes = self.path().join("root/sandboxes");
        assert!(
            std::fs::read_dir(&sandboxes).map_or(true, |mut all| all.next().is_none()),
            "{} is not empty",
            sandboxes.display()
        );
    }
}

const GOOD: &str = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/"},
    "root":{"path":"rootfs"},"linux":{}}"#;

#[test]
fn version_and_help() {
    let fixture = Fixture::new();
    let version = fixture.run(&["--version"]);
    assert!(version.status.success());
    let text = String::from_utf8(version.stdout).unwrap();
    assert_eq!(
        text,
        format!("bulkhead version {}\nspec: 1.1.0\n", env!("CARGO_PKG_VERSION"))
    );
    for words in [&["--help"][..], &["run", "--help"], &[]] {
        let help = fixture.run(words);
        assert!(help.status.success(), "{words:?}");
        assert!(
            String::from_utf8(help.stdout).unwrap().contains("Usage:"),
            "{words:?}"
        );
    }
}

#[test]
fn usage_errors() {
    let fixture = Fixture::new();
    for (words, status, named) in [
        (&["bogus"][..], 3, "bogus"),
        (&["state"], 1, "CONTAINER-ID"),
        (&["create"], 1, "CONTAINER-ID"),
        (&["create", "--no-such", "x"], 1, "--no-such"),
        (&["list", "-f", "xml"], 1, "xml"),
        (&["kill", "x", "FOO"], 1, "\"FOO\""),
        (&["events", "--interval", "abc", "x"], 1, "\"abc\""),
        (&["checkpoint", "x", "--image-path", "y"], 1, "not supported"),
        (&["restore", "x"], 1, "not supported"),
        (
            &["exec", "--preserve-fds", "2", "x", "true"],
            255,
            "--preserve-fds 2",
        ),
        (&["--config", "/nonexistent.toml", "create", "x"], 1, "x"),
    ] {
        let (got, message) = fixture.refused(words);
        assert_eq!(got, status, "{words:?}: {message}");
        assert!(message.contains(named), "{words:?}: {message}");
    }
}

/// K-02: every verb on an unknown id says that it does not exist; only `delete --force` takes it.
#[test]
fn k02_unknown_ids() {
    let fixture = Fixture::new();
    for (words, status) in [
        (&["state", "nope"][..], 1),
        (&["start", "nope"], 1),
        (&["kill", "nope"], 1),
        (&["delete", "nope"], 1),
        (&["ps", "nope"], 1),
        (&["pause", "nope"], 1),
        (&["resume", "nope"], 1),
        (&["update", "nope", "--memory", "1G"], 1),
        (&["events", "nope"], 1),
        (&["inspect", "nope"], 1),
        (&["logs", "nope"], 1),
        (&["exec", "nope", "true"], 255),
    ] {
        let (got, message) = fixture.refused(words);
        assert_eq!(got, status, "{words:?}: {message}");
        assert!(
            message.ends_with("container nope does not exist"),
            "{words:?}: {message}"
        );
    }
    assert!(fixture.run(&["delete", "--force", "nope"]).status.success());
    assert_eq!(fixture.run(&["list", "-q"]).stdout, b"");
    assert_eq!(fixture.run(&["list", "--format", "json"]).stdout, b"[]\n");
}

/// K-02: id first, then id in use, then the bundle.
#[test]
fn k02_order_of_checks() {
    let fixture = Fixture::new();
    std::fs::create_dir_all(fixture.path().join("root/containers/used/used")).unwrap();
    let bad_bundle = ["-b", "/nonexistent/bundle"];
    for (id, named) in [
        ("", "id is empty"),
        ("a/b", "\"a/b\""),
        ("..", "\"..\""),
        ("used", "already in use"),
        ("new", "/nonexistent/bundle"),
    ] {
        let (status, message) = fixture.refused(&[&["create", id][..], &bad_bundle].concat());
        assert_eq!(status, 1);
        assert!(message.contains(named), "{id:?}: {message}");
        assert!(message.starts_with("bulkhead create failed: "), "{message}");
    }
    let long = "x".repeat(256);
    let (_, message) = fixture.refused(&["run", &long]);
    assert!(message.contains("256 bytes is too long"), "{message}");
    fixture.nothing_left();
}

#[test]
fn bad_bundles() {
    let fixture = Fixture::new();
    let file = fixture.path().join("file");
    std::fs::write(&file, "").unwrap();
    let empty = fixture.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for (bundle, named) in [
        ("", "bundle"),
        ("/nonexistent/bundle", "/nonexistent/bundle"),
        (file.to_str().unwrap(), "file"),
        (empty.to_str().unwrap(), "config.json not found"),
    ] {
        for verb in ["create", "run"] {
            let (status, message) = fixture.refused(&[verb, "--bundle", bundle, "x"]);
            assert_eq!(status, 1);
            assert!(message.contains(named), "{verb} {bundle:?}: {message}");
        }
    }
    fixture.nothing_left();
}

#[test]
fn bad_config_json() {
    let fixture = Fixture::new();
    for (config, named) in [
        ("not json".to_owned(), "config.json"),
        ("{}".to_owned(), "ociVersion"),
        (GOOD.replace("1.0.2", "3.0.0"), "3.0.0"),
        (GOOD.replace(r#""args":["true"]"#, r#""args":5"#), "args"),
        (GOOD.replace(r#""process""#, r#""ignored""#), "process"),
        (GOOD.replace(r#""root""#, r#""ignored""#), "root"),
        (GOOD.replace("rootfs", "no-such-rootfs"), "no-such-rootfs"),
        (GOOD.replace(r#"["true"]"#, "[]"), "args"),
    ] {
        let bundle = fixture.bundle(&config);
        let (status, message) = fixture.refused(&["run", "-b", &bundle, "x"]);
        assert_eq!(status, 1, "{message}");
        assert!(message.contains(named), "{named}: {message}");
    }
    fixture.nothing_left();
}

/// K-04: a console that cannot be had is an error before anything is made.
#[test]
fn k04_bad_consoles() {
    let fixture = Fixture::new();
    let plain = fixture.bundle(GOOD);
    let (_, message) = fixture.refused(&["create", "-b", &plain, "--console-socket", "/nonexistent", "x"]);
    assert!(message.contains("console socket"), "{message}");
    let terminal = fixture.bundle(&GOOD.replace(r#""process":{"#, r#""process":{"terminal":true,"#));
    for (options, named) in [
        (&[][..], "without setting console socket"),
        (&["--console-socket", "/nonexistent"], "/nonexistent"),
        (&["--console", "/nonexistent"], "/nonexistent"),
    ] {
        let (status, message) = fixture.refused(&[&["create", "-b", &terminal, "x"], options].concat());
        assert_eq!(status, 1);
        assert!(message.contains(named), "{options:?}: {message}");
    }
    fixture.nothing_left();
}

#[test]
fn the_three_ways_a_message_takes() {
    let fixture = Fixture::new();
    let text = fixture.run(&["state", "nope"]);
    let line = String::from_utf8(text.stderr).unwrap();
    assert!(line.starts_with("time=\""), "{line}");
    assert!(
        line.ends_with("level=error msg=\"container nope does not exist\"\n"),
        "{line}"
    );
    let json = fixture.run(&["--log-format", "json", "state", "nope"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(value["level"], "error");
    assert_eq!(value["msg"], "container nope does not exist");
    for words in [["state", "nope"], ["kill", "--nonsense"]] {
        let output = fixture.run(&[&["--log=file", "--log-format=json"][..], &words].concat());
        assert!(!output.stderr.starts_with(b"{"));
    }
    let log = std::fs::read_to_string(fixture.path().join("file")).unwrap();
    let messages: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(messages.len(), 2, "{log}");
    assert!(messages.iter().all(|line| line["level"] == "error"), "{log}");
}

#[test]
fn spec_writes_once() {
    let fixture = Fixture::new();
    assert!(fixture.run(&["spec"]).status.success());
    let spec = std::fs::read_to_string(fixture.path().join("config.json")).unwrap();
    assert!(spec.starts_with("{\n\t\""), "{spec}");
    let (status, message) = fixture.refused(&["spec"]);
    assert_eq!(status, 1);
    assert!(message.contains("Remove it first"), "{message}");
    let (_, message) = fixture.refused(&["spec", "--rootless", "-b", "/nonexistent"]);
    assert!(message.contains("/nonexistent"), "{message}");
}

#[test]
fn gc_forgets_containers_whose_sandbox_is_gone() {
    let fixture = Fixture::new();
    let entry = fixture.path().join("root/containers/c/pod");
    std::fs::create_dir_all(&entry).unwrap();
    assert!(fixture.run(&["gc"]).status.success());
    assert!(!entry.exists());
}
