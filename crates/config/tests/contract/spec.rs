//! Bad config.json: each error names file, key, value and what was expected.

use crate::support::*;
use bulkhead_config::{Config, PlanError};
use bulkhead_model::{ContainerId, FailureKind};
use serde_json::{Value, json};
use std::path::Path;

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut spec = spec();
    change(&mut spec);
    let text = refusal(&Config::default(), &spec);
    says(&text, &["/bundle/config.json"]);
    text
}

fn raw(text: &[u8]) -> PlanError {
    let id = ContainerId::new("c1").unwrap();
    bulkhead_config::plan_with(
        &Files::default(),
        Path::new("/bundle"),
        text,
        &id,
        &Config::default(),
        &host(),
    )
    .unwrap_err()
}

/// Found by fuzzing: a key with a line end in it made two lines of the message.
#[test]
fn o07_a_message_is_one_line_whatever_the_keys() {
    let odd = "a\nb\r\u{1b}[31m";
    let many = [
        refused(|spec| spec["annotations"] = json!({odd: {"bounding": ["CAP_KILL"]}})),
        refusal_of(&format!("io.katacontainers.config.agent.{odd}")),
        refusal_of(&format!("io.katacontainers.config.hypervisor.{odd}")),
        Config::parse(
            Path::new("f.toml"),
            "\"a\\nb\" = 1\n[hypervisor]\n\"c\\nd\" = 2\n",
        )
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; "),
    ];
    for text in many {
        assert!(!text.contains(char::is_control), "{text:?}");
        assert!(text.contains("a\\nb"), "{text:?}");
    }
}

fn refusal_of(annotation: &str) -> String {
    let mut spec = spec();
    spec["annotations"] = json!({annotation: "x"});
    refusal(&Config::default(), &spec)
}

#[test]
fn the_least_spec_is_accepted() {
    let plans = plans(&Config::default(), &spec()).unwrap();
    assert!(plans.warnings.is_empty(), "{:?}", plans.warnings);
}

#[test]
fn not_json_says_where() {
    let error = raw(b"{\n  \"ociVersion\": nope\n}").to_string();
    says(&error, &["/bundle/config.json:2:", "not JSON"]);
    says(&raw(b"").to_string(), &["not JSON", "EOF"]);
    says(&raw(b"\xff\xfe").to_string(), &["not JSON"]);
    says(&raw(b"[]").to_string(), &["is []", "expected a JSON object"]);
    says(
        &raw(&b"[".repeat(100_000)).to_string(),
        &["not JSON", "recursion"],
    );
    assert_eq!(raw(b"").kind(), FailureKind::InvalidArgument);
}

/// O-02: a spec without process, root or linux names the section.
#[test]
fn o02_missing_sections_are_named() {
    for section in ["process", "root", "linux"] {
        let text = refused(|s| {
            s.as_object_mut().unwrap().remove(section);
        });
        says(&text, &[&format!("{section} is missing"), "expected"]);
        // null means absent.
        let text = refused(|s| s[section] = Value::Null);
        says(&text, &[&format!("{section} is missing")]);
        let text = refused(|s| s[section] = json!("text"));
        says(&text, &[&format!("{section} is \"text\""), "expected an object"]);
    }
    for (section, key) in [("process", "args"), ("process", "cwd"), ("root", "path")] {
        let text = refused(|s| {
            s[section].as_object_mut().unwrap().remove(key);
        });
        says(&text, &[&format!("{section}.{key} is missing")]);
    }
}

#[test]
fn versions() {
    for good in ["1.0.0", "1.0.2-dev", "1.1.0+x", "1.2", "1.3.0-rc.1"] {
        let mut spec = spec();
        spec["ociVersion"] = json!(good);
        plans(&Config::default(), &spec).unwrap_or_else(|e| panic!("{good}: {e}"));
    }
    for bad in ["", "1", "1.", "2.0.0", "0.9.0", "1.x", "1.0.0.0", "one"] {
        let text = refused(|s| s["ociVersion"] = json!(bad));
        says(
            &text,
            &[&format!("ociVersion is {bad:?}"), "expected a version 1.x"],
        );
    }
    says(&refused(|s| s["ociVersion"] = json!(1)), &["ociVersion is 1:"]);
    let text = refused(|s| {
        s.as_object_mut().unwrap().remove("ociVersion");
    });
    says(&text, &["ociVersion is missing"]);
}

#[test]
fn wrong_types_name_key_value_and_expected() {
    type Change = fn(&mut Value);
    let cases: [(Change, &[&str]); 10] = [
        (
            |s| s["process"]["args"] = json!("sh"),
            &["process.args", "\"sh\"", "sequence"],
        ),
        (
            |s| s["process"]["args"] = json!(["sh", 5]),
            &["process.args[1] is 5", "expected a string"],
        ),
        (
            |s| s["process"]["terminal"] = json!("yes"),
            &["process.terminal is \"yes\"", "a boolean"],
        ),
        (
            |s| s["process"]["user"]["uid"] = json!(-1),
            &["process.user.uid is -1", "expected u32"],
        ),
        (
            |s| s["process"]["user"]["uid"] = json!(4_294_967_296_u64),
            &["process.user.uid is 4294967296", "u32"],
        ),
        (
            |s| s["root"]["readonly"] = json!(1),
            &["root.readonly is 1", "a boolean"],
        ),
        (
            |s| s["mounts"] = json!({}),
            &["mounts is {}", "expected a sequence"],
        ),
        (
            |s| s["mounts"] = json!([{"source": "/a"}]),
            &["mounts[0]", "destination"],
        ),
        (
            |s| s["linux"]["namespaces"] = json!([{"type": "pod"}]),
            &["linux.namespaces[0].type is \"pod\"", "expected one of"],
        ),
        (
            |s| s["linux"]["resources"] = json!({"memory": {"limit": "1g"}}),
            &["linux.resources.memory.limit is \"1g\"", "expected i64"],
        ),
    ];
    for (change, parts) in cases {
        let text = refused(change);
        says(&text, parts);
    }
}

#[test]
fn process_limits() {
    says(
        &refused(|s| s["process"]["args"] = json!([])),
        &["process.args is []", "program"],
    );
    says(
        &refused(|s| s["process"]["cwd"] = json!("work")),
        &["process.cwd is \"work\"", "absolute path"],
    );
    says(
        &refused(|s| s["process"]["env"] = json!(["A=1", "B=\u{0}"])),
        &["process.env[1]", "NUL"],
    );
    says(
        &refused(|s| s["process"]["env"] = json!([format!("A={}", "x".repeat(1 << 20))])),
        &["process.env[0] is 1048578 bytes long", "at most 131071"],
    );
    // A megabyte in pieces is no problem.
    let mut spec = spec();
    spec["process"]["env"] = (0..100).map(|i| format!("V{i}={}", "x".repeat(10_000))).collect();
    plans(&Config::default(), &spec).unwrap();
}

#[test]
fn root_must_be_a_directory_that_exists() {
    says(
        &refused(|s| s["root"]["path"] = json!("nowhere")),
        &[
            "root.path is \"nowhere\"",
            "existing directory",
            "/bundle/nowhere",
        ],
    );
    says(
        &refused(|s| s["root"]["path"] = json!("")),
        &["root.path is \"\""],
    );
    let mut spec = spec();
    spec["root"]["path"] = json!("/file");
    let error = plans_on(&Files::with(&["/file"]), &host(), &Config::default(), &spec).unwrap_err();
    says(&error.to_string(), &["root.path is \"/file\"", "a directory"]);
}

#[test]
fn what_other_runtimes_tolerate_is_tolerated() {
    let mut spec = spec();
    spec["process"].as_object_mut().unwrap().remove("user");
    spec["process"]["capabilities"] = json!({"bounding": ["CAP_CHOWN", "CAP_FROM_THE_FUTURE"]});
    spec["hostname"] = Value::Null;
    spec["somethingNew"] = json!({"x": 1});
    let plans = plans(&Config::default(), &spec).unwrap();
    assert_eq!(plans.warnings.len(), 1);
    says(
        &plans.warnings[0],
        &["process.capabilities.bounding", "CAP_FROM_THE_FUTURE"],
    );
    says(
        &refused(|s| s["process"]["capabilities"] = json!({"bounding": [7]})),
        &["process.capabilities.bounding[0] is 7"],
    );
}

#[test]
fn seccomp_notification_is_refused_clearly() {
    for seccomp in [
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x.sock"}),
        json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}),
    ] {
        let mut spec = spec();
        spec["linux"]["seccomp"] = seccomp;
        let error = plans(&Config::default(), &spec).unwrap_err();
        assert_eq!(error.kind(), FailureKind::Unsupported);
        says(
            &error.to_string(),
            &["linux.seccomp", "not supported", "listener"],
        );
    }
}

#[test]
fn long_values_are_shortened() {
    let text = refused(|s| s["root"]["readonly"] = json!("x".repeat(1 << 20)));
    assert!(text.len() < 400, "{} bytes", text.len());
}

/// K-06: a hook has an absolute path and ends some time.
#[test]
fn k06_hooks() {
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        let with =
            |hook: Value| refused(|s| s["hooks"] = json!({kind: [{"path": "/ok", "timeout": 1}, hook]}));
        says(
            &with(json!({"path": "ls"})),
            &[&format!("hooks.{kind}[1].path is \"ls\""), "absolute path"],
        );
        says(
            &with(json!({"path": "/x", "timeout": 0})),
            &[&format!("hooks.{kind}[1].timeout is 0"), "above 0"],
        );
        says(&with(json!({"path": "/x", "timeout": -5})), &["timeout is -5"]);
        says(&with(json!({"args": []})), &[&format!("hooks.{kind}[1]"), "path"]);
    }
}

#[test]
fn names_fit_the_kernel() {
    for key in ["hostname", "domainname"] {
        let mut spec = spec();
        spec[key] = json!("x".repeat(64));
        plans(&Config::default(), &spec).unwrap();
        says(
            &refused(|s| s[key] = json!("x".repeat(65))),
            &[key, "at most 64 bytes"],
        );
    }
}

/// What an engine really writes: the shape of a config.json made by dockerd, shortened.
#[test]
fn an_engines_spec_is_accepted() {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SYS_CHROOT"
    ]);
    let spec = json!({
        "ociVersion": "1.1.0",
        "process": {
            "terminal": true,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["sh"], "env": ["PATH=/bin", "TERM=xterm"], "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "apparmorProfile": "docker-default", "oomScoreAdj": 0,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 18_446_744_073_709_551_615_u64, "soft": 1024}]
        },
        "root": {"path": "rootfs"},
        "hostname": "4f8b0a1c2d3e",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "size=67108864"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/docker/c/hosts", "options": ["rbind", "rprivate"]}
        ],
        "hooks": {"prestart": [{"path": "/proc/1/exe", "args": ["libnetwork-setkey", "-exec-root=/var/run/docker"]}]},
        "linux": {
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "resources": {
                "devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
                    {"allow": true, "type": "c", "major": null, "minor": null, "access": "m"}
                ],
                "memory": {"disableOOMKiller": false}, "cpu": {"shares": 0}, "pids": {"limit": 0},
                "blockIO": {"weight": 0}
            },
            "cgroupsPath": "/docker/4f8b0a1c2d3e",
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"}, {"type": "cgroup"}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["accept"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
                ]
            },
            "maskedPaths": ["/proc/asound"], "readonlyPaths": ["/proc/bus"]
        }
    });
    let (sandbox, container) = both(&Config::default(), &spec);
    assert!(container.terminal() && container.command.terminal);
    assert_eq!(sandbox.cgroups_path.as_deref(), Some("/docker/4f8b0a1c2d3e"));
    assert_eq!(sandbox.shm_bytes, 64 << 20);
    assert_eq!(container.share, bulkhead_model::Share::default());
}
