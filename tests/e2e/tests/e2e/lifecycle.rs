//! create, state, start, kill, delete, list, ps, pause, resume, update, events.

use bulkhead_e2e::{Lab, Runtime, VERB, until};

on_both! {
    /// C-01, C-10 to C-15: the states a container goes through, and what each allows.
    fn from_create_to_delete(lab) {
        let bundle = lab.bundle().script("echo started > /started; exec sleep 600");
        let id = lab.id();
        lab.create(&bundle, &id);
        let state = lab.state(&id);
        assert_eq!(state["id"], id.as_str());
        assert_eq!(state["status"], "created");
        assert_eq!(state["bundle"], bundle.arg());
        assert!(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), "{state}");
        let pid = state["pid"].as_i64().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(!bundle.rootfs().join("started").exists(), "it ran before start");

        // The id is taken, and not to be deleted without force.
        let _ = lab.call(&["create", "--bundle", bundle.arg(), &id]).run().fails(&["already"]);

        let _ = lab.quick(&["start", &id]).ok();
        assert_eq!(lab.status(&id), "running");
        until("the program ran", VERB, || bundle.rootfs().join("started").exists());
        let _ = lab.quick(&["start", &id]).fails(&[]);
        let _ = lab.quick(&["delete", &id]).fails(&["running"]);
        assert_eq!(lab.status(&id), "running");

        let _ = lab.quick(&["kill", &id, "9"]).ok();
        until("stopped", VERB, || lab.status(&id) == "stopped");
        let _ = lab.quick(&["kill", &id, "TERM"]).fails(&[]);
        let _ = lab.quick(&["delete", &id]).ok();
        let _ = lab.quick(&["state", &id]).fails(&["does not exist"]);
        let _ = lab.quick(&["delete", &id]).fails(&["does not exist"]);
        // With force there is nothing to complain about.
        let _ = lab.quick(&["delete", "--force", &id]).ok();
    }
}

on_both! {
    /// A created container that never ran can be killed and deleted.
    fn created_and_never_started(lab) {
        let bundle = lab.bundle();
        let id = lab.id();
        lab.create(&bundle, &id);
        let _ = lab.quick(&["delete", "--force", &id]).ok();
        lab.create(&bundle, &id);
        let _ = lab.quick(&["kill", &id, "KILL"]).ok();
        until("stopped", VERB, || lab.status(&id) == "stopped");
        let _ = lab.quick(&["delete", &id]).ok();
    }
}

on_both! {
    /// Signals by name, by number and with the prefix; the program may handle them.
    fn signals(lab) {
        let script = "trap 'echo usr1 >> /log' USR1; trap 'echo term >> /log; exit 3' TERM; \
            echo ready > /log; while :; do sleep 0.1; done";
        let bundle = lab.bundle().script(script);
        let id = lab.id();
        lab.run_detached(&bundle, &id);
        let log = || std::fs::read_to_string(bundle.rootfs().join("log")).unwrap_or_default();
        until("the trap is set", VERB, || log().contains("ready"));
        for (count, name) in ["USR1", "SIGUSR1", "10", "usr1"].iter().enumerate() {
            let _ = lab.quick(&["kill", &id, name]).ok();
            until("USR1 arrived", VERB, || log().matches("usr1").count() == count + 1);
        }
        let _ = lab.quick(&["kill", &id, "NOSUCH"]).fails(&["NOSUCH"]);
        let _ = lab.quick(&["kill", &id]).ok();
        until("stopped by the default signal", VERB, || lab.status(&id) == "stopped");
        assert!(log().contains("term"));
        let _ = lab.quick(&["delete", &id]).ok();
    }
}

on_both! {
    /// list and ps.
    fn list_and_ps(lab) {
        let bundle = lab.bundle().script("sleep 601 & exec sleep 602");
        let id = lab.id();
        lab.run_detached(&bundle, &id);
        let list = lab.quick(&["list", "--format", "json"]).ok().json();
        assert_eq!(list[0]["id"], id.as_str());
        assert_eq!(list[0]["status"], "running");
        assert_eq!(list[0]["bundle"], bundle.arg());
        assert_eq!(lab.quick(&["list", "-q"]).ok().text(), format!("{id}\n"));
        let table = lab.quick(&["list"]).ok().text();
        assert!(table.starts_with("ID") && table.contains(&id) && table.contains("running"), "{table}");
        until("both sleep", VERB, || {
            let table = lab.quick(&["ps", &id]).ok().text();
            table.contains("sleep 601") && table.contains("sleep 602")
        });
        let pids = lab.quick(&["ps", "--format", "json", &id]).ok().json();
        let pids = pids.as_array().unwrap();
        assert!(pids.contains(&lab.state(&id)["pid"]), "{pids:?}");
        lab.delete(&id);
        assert_eq!(lab.quick(&["list", "-q"]).ok().text(), "");
    }
}

on_both! {
    /// C-21: a paused container does not run, its state says so, exec is refused.
    fn pause_and_resume(lab) {
        let bundle = lab.bundle().script("n=0; while :; do n=$((n+1)); echo $n > /count; sleep 0.05; done");
        let id = lab.id();
        lab.run_detached(&bundle, &id);
        let count = || std::fs::read_to_string(bundle.rootfs().join("count")).unwrap_or_default();
        until("it counts", VERB, || !count().is_empty());
        let _ = lab.quick(&["pause", &id]).ok();
        assert_eq!(lab.status(&id), "paused");
        let _ = lab.quick(&["pause", &id]).fails(&[]);
        let _ = lab.quick(&["exec", &id, "true"]).fails(&["paused"]);
        let before = count();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert_eq!(count(), before, "it went on counting while paused");
        let _ = lab.quick(&["resume", &id]).ok();
        assert_eq!(lab.status(&id), "running");
        until("it counts on", VERB, || count() != before);
        let _ = lab.quick(&["resume", &id]).fails(&[]);
        lab.delete(&id);
    }
}

on_both! {
    /// C-19: statistics in runc's form.
    fn events_stats(lab) {
        let bundle = lab.bundle().script("sleep 600");
        let id = lab.id();
        lab.run_detached(&bundle, &id);
        let stats = lab.quick(&["events", "--stats", &id]).ok().json();
        assert_eq!(stats["type"], "stats");
        assert_eq!(stats["id"], id.as_str());
        let data = &stats["data"];
        assert!(data["cpu"]["usage"]["total"].as_u64().is_some_and(|n| n > 0), "{stats}");
        assert!(data["memory"]["usage"]["usage"].as_u64().is_some_and(|n| n > 0), "{stats}");
        assert!(data["pids"]["current"].as_u64().is_some_and(|n| n >= 1), "{stats}");
        lab.delete(&id);
    }
}

/// C-20: limits change in the guest.
#[test]
#[ignore = "needs a VM"]
fn update_changes_the_guests_limits() {
    let lab = Lab::new();
    let bundle = lab.bundle().script("sleep 600");
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    let _ = lab
        .quick(&["update", "--memory", "67108864", "--pids-limit", "77", &id])
        .ok();
    let stats = lab.quick(&["events", "--stats", &id]).ok().json();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 67_108_864);
    assert_eq!(stats["data"]["pids"]["limit"], 77);
    let resources = lab.dir().join("resources.json");
    std::fs::write(&resources, r#"{"pids": {"limit": 55}}"#).unwrap();
    let _ = lab
        .quick(&["update", "--resources", resources.to_str().unwrap(), &id])
        .ok();
    let stats = lab.quick(&["events", "--stats", &id]).ok().json();
    assert_eq!(stats["data"]["pids"]["limit"], 55);
    lab.delete(&id);
}
