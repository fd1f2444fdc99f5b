//! Operator verbs and the form of messages.

use bulkhead_e2e::{Lab, Runtime};
use serde_json::Value;

on_both! {
    /// `spec` writes a config.json that runs.
    fn spec(lab) {
        let bundle = lab.bundle();
        std::fs::remove_file(bundle.dir().join("config.json")).unwrap();
        let _ = lab.call(&["spec", "--bundle", bundle.arg()]).run().ok();
        let text = std::fs::read(bundle.dir().join("config.json")).unwrap();
        let spec: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(spec["root"]["path"], "rootfs");
        assert_eq!(spec["process"]["args"][0], "sh");
        // In use: it is not overwritten.
        let _ = lab.call(&["spec", "--bundle", bundle.arg()]).run().fails(&["config.json"]);
    }
}

on_both! {
    /// `features` is JSON with the OCI versions.
    fn features(lab) {
        let features = lab.quick(&["features"]).ok().json();
        assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string());
        assert!(features["linux"]["namespaces"].as_array().is_some_and(|all| !all.is_empty()));
        assert!(features["mountOptions"].as_array().is_some_and(|all| all.len() > 10));
    }
}

on_both! {
    /// Errors in the log file: one JSON line with level and msg.
    fn json_log(lab) {
        let log = lab.dir().join("log.json");
        let arguments = ["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nosuch"];
        let _ = lab.quick(&arguments).exits(1);
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!(lines[0]["level"], "error");
        assert!(lines[0]["msg"].as_str().unwrap().contains("does not exist"), "{text}");
        assert!(lines[0]["time"].is_string());
    }
}

#[test]
#[ignore = "needs a VM"]
fn inspect_and_logs_of_a_live_sandbox() {
    let lab = Lab::new();
    let bundle = lab.bundle().script("exec sleep 600");
    let id = lab.id();
    let debug = lab.dir().join("debug.toml");
    // A boot: what goes on from a template has had its console's output before.
    let text = std::fs::read_to_string(lab.cold_config()).unwrap();
    std::fs::write(
        &debug,
        text.replacen("[hypervisor]\n", "[hypervisor]\nenable_debug = true\n", 1),
    )
    .unwrap();
    let options = ["--config", debug.to_str().unwrap()];
    // Options after the id are accepted too.
    let arguments = ["run", &id, "--bundle", bundle.arg(), "--detach"];
    let _ = lab.call_with(&options, &arguments).run().ok();
    let tree = lab.quick(&["inspect", &id]).ok().json();
    for role in ["supervisor", "vmm", "fsd", "stub"] {
        let found = tree["processes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["role"] == role);
        let process = found.unwrap_or_else(|| panic!("no {role}: {:#}", tree["processes"]));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process["pid"])).unwrap();
        let started = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap();
        assert_eq!(process["start_time"].to_string(), started, "{role}");
    }
    for key in ["state", "plan", "sockets", "mounts", "cgroups", "devices"] {
        assert!(!tree[key].is_null(), "no {key}");
    }
    let log = lab.quick(&["logs", &id]).ok().text();
    let stamps: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(stamps.len() > 3 && stamps.is_sorted(), "{log}");
    // With debugging on, the guest's kernel speaks on the console.
    assert!(log.contains("Linux version"), "no console in: {log}");
    lab.delete(&id);
}

#[test]
#[ignore = "needs root"]
fn version_and_help() {
    let lab = Lab::new();
    let version = lab.quick(&["--version"]).ok().text();
    assert!(
        version.starts_with("bulkhead version ") && version.contains("\nspec: 1."),
        "{version}"
    );
    let help = lab.quick(&["--help"]).ok().text();
    for verb in [
        "create", "start", "state", "kill", "delete", "run", "exec", "ps", "list", "pause", "resume",
        "update", "events", "spec", "features", "doctor", "inspect", "logs", "timeline", "gc", "guest",
        "config",
    ] {
        assert!(help.contains(&format!("  {verb}")), "{verb} is not in: {help}");
    }
}

#[test]
#[ignore = "needs root"]
fn guest_show_and_doctor() {
    let lab = Lab::new();
    let guest = Lab::config().parent().unwrap().to_str().unwrap().to_owned();
    let shown = lab
        .quick(&["guest", "show", "--out", &guest, "--format", "json"])
        .ok()
        .json();
    assert_eq!(shown["kernel"]["sha256"].as_str().map(str::len), Some(64));
    assert!(
        shown["modules"]
            .as_array()
            .is_some_and(|all| all.contains(&Value::from("overlay")))
    );
    let doctor = lab.quick(&["doctor", "--json"]).ok().json();
    assert_eq!(doctor["ok"], true, "{doctor:#}");
    assert!(
        matches!(doctor["accelerator"]["kind"].as_str(), Some("kvm" | "tcg")),
        "{doctor:#}"
    );
    assert!(
        doctor["accelerator"]["why"]
            .as_str()
            .is_some_and(|why| !why.is_empty())
    );
    assert_eq!(doctor["kernel"]["release"], shown["release"]);
}
