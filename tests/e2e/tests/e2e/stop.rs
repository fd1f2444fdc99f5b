//! Rollback, start, stop and delete on a real VM (C-11 to C-15): who goes takes everything along, who stays stays.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::mounts::{in_pod, inside};
use bulkhead_e2e::{Bundle, Lab, VERB, until};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::time::Duration;

/// What the supervisor has mounted of a container, and what is left of it in the share.
fn traces(lab: &Lab, pod: &str, id: &str) -> Vec<String> {
    let supervisor = lab.pid_of(pod, "supervisor");
    let table = std::fs::read_to_string(format!("/proc/{supervisor}/mountinfo")).unwrap();
    let mut found: Vec<String> = table
        .lines()
        .filter(|line| line.contains(id))
        .map(str::to_owned)
        .collect();
    let tree = lab.quick(&["inspect", pod]).ok().json();
    let share = tree["paths"]["share"].as_str().unwrap().to_owned();
    for entry in std::fs::read_dir(share).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        found.extend(name.contains(id).then_some(name));
    }
    found
}

fn member(lab: &Lab, pod: &str) -> Bundle {
    let data = lab.dir().join("data");
    std::fs::create_dir_all(&data).unwrap();
    in_pod(lab.bundle().script("exec sleep 600"), "container", pod).with(|config| {
        let bind = json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind"]});
        config["mounts"].as_array_mut().unwrap().push(bind);
        config["linux"]["resources"] = json!({"cpu": {"quota": 100_000, "period": 100_000}});
    })
}

fn pod(lab: &Lab) -> String {
    let pod = lab.id();
    lab.run_detached(
        &in_pod(lab.bundle().script("exec sleep 600"), "sandbox", &pod),
        &pod,
    );
    pod
}

/// C-10, C-11: a create that fails, at whatever step of it, leaves nothing of the container on the host or in the
/// guest; its neighbour goes on, and the same id works then.
#[test]
#[ignore = "needs a VM"]
fn c10_c11_a_failed_create_is_rolled_back() {
    let lab = Lab::new();
    let pod = pod(&lab);
    let second = lab.id();
    let data = lab.dir().join("data");
    let cases: [(&str, Value, &[&str]); 6] = [
        (
            "/mounts/5",
            json!({"destination": "/loop/x", "type": "bind", "source": data, "options": ["bind"]}),
            &["loop"],
        ),
        ("/process/args", json!(["nosuch"]), &["nosuch"]),
        (
            "/mounts/5",
            json!({"destination": "/absent", "type": "bind", "source": lab.dir().join("absent"), "options": ["bind"]}),
            &["absent"],
        ),
        (
            "/mounts/4",
            json!({"destination": "/x", "type": "nosuchfs", "source": "x"}),
            &["nosuchfs"],
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": 134_217_728}, "pids": {"limit": 5}, "cpu": {"quota": 5, "period": 5}}),
            &["cpu"],
        ),
        ("/linux/sysctl", json!({"net.no.such": "1"}), &["net.no.such"]),
    ];
    for (place, value, words) in cases {
        let bundle = member(&lab, &pod);
        symlink("loop", bundle.rootfs().join("loop")).unwrap();
        let bundle = bundle.with(|config| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            let parent = config.pointer_mut(parent).unwrap();
            match parent.as_array_mut() {
                Some(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
                None => parent[key] = value.clone(),
            }
        });
        eprintln!("case {place} = {value}");
        let _ = lab
            .call(&["create", "--bundle", bundle.arg(), &second])
            .run()
            .fails(words);
        assert_eq!(traces(&lab, &pod, &second), Vec::<String>::new(), "{place}");
        let _ = lab.quick(&["state", &second]).fails(&["does not exist"]);
        let listed = inside(&lab, &pod, "nproc");
        assert_eq!(listed, "1", "its vCPU went again: {place}");
        assert_eq!(lab.status(&pod), "running");
    }
    // A link of the image that leads out of it leads to the same place inside.
    let bundle = member(&lab, &pod).with(|config| {
        let out = json!({"destination": "/out/escaped", "type": "bind", "source": data, "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(out);
    });
    symlink(
        format!("../../../../../..{}", lab.dir().display()),
        bundle.rootfs().join("out"),
    )
    .unwrap();
    std::fs::create_dir_all(bundle.rootfs().join(lab.dir().strip_prefix("/").unwrap())).unwrap();
    lab.run_detached(&bundle, &second);
    assert!(!lab.dir().join("escaped").exists());
    assert_eq!(
        inside(&lab, &second, "echo up > /data/x; cat /out/escaped/x"),
        "up"
    );
    assert!(traces(&lab, &pod, &second).len() >= 2);
    lab.delete(&second);
    lab.delete(&pod);
}

/// C-12, C-13, C-15: who may be started and deleted when; a container that goes by force takes its processes, its
/// files and its vCPU along, and says so in order.
#[test]
#[ignore = "needs a VM"]
fn c12_c13_c15_start_stop_delete() {
    let lab = Lab::new();
    let pod = pod(&lab);
    let second = lab.id();
    // C-15: what was only created can be deleted.
    lab.create(&member(&lab, &pod), &second);
    assert_eq!(lab.status(&second), "created");
    let _ = lab.quick(&["delete", &second]).ok();
    assert_eq!(traces(&lab, &pod, &second), Vec::<String>::new());
    // C-12: what died before its start cannot be started.
    lab.create(&member(&lab, &pod), &second);
    let _ = lab.quick(&["kill", &second, "KILL"]).ok();
    until("it is stopped", VERB, || lab.status(&second) == "stopped");
    let _ = lab.quick(&["start", &second]).fails(&["stopped"]);
    let _ = lab.quick(&["delete", &second]).ok();
    // C-13, C-15: what runs goes by force only.
    lab.run_detached(&member(&lab, &pod), &second);
    assert_eq!(inside(&lab, &pod, "nproc"), "2");
    let _ = lab.quick(&["start", &second]).fails(&["running"]);
    let _ = lab.quick(&["delete", &second]).fails(&["not stopped", "running"]);
    assert_eq!(lab.status(&second), "running");
    let stub = lab.state(&second)["pid"].as_i64().unwrap();
    lab.delete(&second);
    assert_eq!(traces(&lab, &pod, &second), Vec::<String>::new());
    assert_eq!(inside(&lab, &pod, "nproc"), "1");
    until("its stub has ended", VERB, || {
        !std::path::Path::new(&format!("/proc/{stub}/root")).exists()
    });
    // The guest has forgotten it: the same id works.
    lab.run_detached(&member(&lab, &pod), &second);
    lab.delete(&second);
    lab.delete(&pod);
}

/// C-14: a container that ends by itself when asked to keeps its status; one that does not is killed after its time.
/// Both are stopped then, hold nothing, and no process stands for them.
#[test]
#[ignore = "needs a VM"]
fn c14_stop_with_patience() {
    let lab = Lab::new();
    let pod = pod(&lab);
    let second = lab.id();
    let exit = |lab: &Lab| {
        let tree = lab.quick(&["inspect", &second]).ok().json();
        tree["containers"][&second]["init"]["exit"].clone()
    };
    let out = lab.dir().join("said");
    let cases: [(&str, &str, Value); 2] = [
        (
            "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done",
            "600s",
            json!({"code": 7}),
        ),
        (
            "trap '' TERM; echo up; while :; do sleep 0.1; done",
            "200ms",
            json!({"signal": 9}),
        ),
    ];
    for (script, patience, status) in cases {
        let bundle = member(&lab, &pod).script(script);
        let _ = lab
            .call(&["run", "--detach", "--bundle", bundle.arg(), &second])
            .stdout(std::fs::File::create(&out).unwrap())
            .run()
            .ok();
        let said = || std::fs::read_to_string(&out).unwrap();
        until("it is up", VERB, || said().contains("up"));
        let stub = lab.state(&second)["pid"].as_i64().unwrap();
        let stopped = lab.call(&["stop", "--time", patience, &second]).run().ok();
        assert!(
            stopped.elapsed < Duration::from_secs(100),
            "{:?}",
            stopped.elapsed
        );
        assert_eq!(lab.status(&second), "stopped");
        assert_eq!(exit(&lab), status);
        assert_eq!(
            said().contains("bye"),
            status == json!({"code": 7}),
            "its last words"
        );
        assert!(!std::path::Path::new(&format!("/proc/{stub}/root")).exists());
        assert_eq!(traces(&lab, &pod, &second), Vec::<String>::new());
        assert_eq!(inside(&lab, &pod, "nproc"), "1");
        // Once more is nothing; then it can be deleted.
        let _ = lab.quick(&["stop", &second]).ok();
        let _ = lab.quick(&["delete", &second]).ok();
    }
    let _ = lab
        .quick(&["stop", "--time", "soon", &pod])
        .fails(&["soon", "such as 5s"]);
    let _ = lab.quick(&["stop", &second]).fails(&[&second, "does not exist"]);
    lab.delete(&pod);
}
