//! `exec`: further processes of a running container.

use bulkhead_e2e::{Lab, Runtime, VERB, until};
use serde_json::json;
use std::fs::File;

on_both! {
    /// C-16: status, streams, environment, directory, user; from flags and from a process file.
    fn exec_in_all_its_forms(lab) {
        let bundle = lab.bundle().script("exec sleep 600").with(|config| {
            config["process"]["env"] = json!(["PATH=/bin", "BASE=1"]);
        });
        let id = lab.id();
        lab.run_detached(&bundle, &id);

        let _ = lab.call(&["exec", &id, "sh", "-c", "exit 9"]).run().exits(9);
        let _ = lab.call(&["exec", &id, "sh", "-c", "kill -KILL $$"]).run().exits(137);

        let bytes: Vec<u8> = (0..=255u8).cycle().take(100_000).collect();
        let input = lab.dir().join("input");
        std::fs::write(&input, &bytes).unwrap();
        let outcome = lab
            .call(&["exec", &id, "sh", "-c", "cat; printf err >&2"])
            .stdin(File::open(&input).unwrap())
            .run()
            .ok();
        assert!(outcome.stdout == bytes, "{} bytes came back", outcome.stdout.len());
        assert_eq!(outcome.errors(), "err");

        let outcome = lab
            .call(&[
                "exec", "--env", "ADDED=2", "--cwd", "/tmp", "--user", "1000:1000", &id, "sh", "-c",
                "echo $BASE $ADDED $(pwd) $(id -u):$(id -g) $(hostname); ps | grep -c '[s]leep 600'",
            ])
            .run()
            .ok();
        assert_eq!(outcome.text(), "1 2 /tmp 1000:1000 inside\n1\n");

        let process = lab.dir().join("process.json");
        let text = json!({
            "args": ["sh", "-c", "echo from file $X; exit 4"], "cwd": "/", "env": ["PATH=/bin", "X=y"],
            "user": {"uid": 0, "gid": 0}
        });
        std::fs::write(&process, text.to_string()).unwrap();
        let outcome = lab.call(&["exec", "--process", process.to_str().unwrap(), &id]).run().exits(4);
        assert_eq!(outcome.text(), "from file y\n");

        let pid_file = lab.dir().join("pid");
        let arguments = ["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), &id, "sleep", "700"];
        let _ = lab.call(&arguments).run().ok();
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        until("the detached process is there", VERB, || {
            lab.quick(&["ps", &id]).ok().text().contains("sleep 700")
        });
        lab.delete(&id);
        until("it went with its container", VERB, || {
            !std::path::Path::new(&format!("/proc/{pid}")).exists()
        });
    }
}

/// Programs that cannot be run give 127 and 126, and the container lives on.
#[test]
#[ignore = "needs a VM"]
fn programs_that_cannot_be_run() {
    let lab = Lab::new();
    let bundle = lab.bundle().script("exec sleep 600").file("plain", "text");
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    let _ = lab
        .call(&["exec", &id, "nosuch"])
        .run()
        .exits(127)
        .fails(&["nosuch", "executable file not found in $PATH"]);
    let _ = lab
        .call(&["exec", &id, "/nosuch"])
        .run()
        .exits(127)
        .fails(&["/nosuch"]);
    let _ = lab
        .call(&["exec", &id, "/plain"])
        .run()
        .exits(126)
        .fails(&["/plain", "permission denied"]);
    let _ = lab
        .call(&["exec", "--cwd", "/nosuch", &id, "true"])
        .run()
        .fails(&["/nosuch"]);
    let _ = lab.call(&["exec", &id, "true"]).run().ok();
    lab.delete(&id);
    let _ = lab.call(&["exec", &id, "true"]).run().exits(255).fails(&[&id]);
}
