//! Single containers by `ctr`.

use bulkhead_containerd::{Daemon, Engine, Place};
use bulkhead_e2e::{Lines, Running, VERB, until};
use serde_json::Value;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

on_both! {
    /// Output, exit status, standard input to its end, a program that is not there.
    fn to_its_end(engine) {
        let daemon = Daemon::start(engine);
        let outcome = daemon.run(&["--rm"], &daemon.id(), &["sh", "-c", "echo out; echo err >&2; exit 7"]).run();
        assert_eq!(outcome.status, 7, "{}", outcome.errors());
        assert_eq!((outcome.text().as_str(), outcome.errors().as_str()), ("out\n", "err\n"));
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let running = daemon.run(&["--rm"], &daemon.id(), &["sh", "-c", "cat; echo end"]).stdin(read).start();
        let text = "x".repeat(300_000);
        let mut write = std::fs::File::from(write);
        write.write_all(text.as_bytes()).unwrap();
        drop(write);
        let got = running.wait().ok();
        assert_eq!(got.text(), format!("{text}end\n"));
        let failed = daemon.run(&["--rm"], &daemon.id(), &["/no/such/program"]).run();
        failed.fails(&["no such file or directory"]);
    }
}

/// `ctr events`, which listens already, and its lines.
fn listen(daemon: &Daemon) -> (Running, Lines) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let events = daemon
        .ctr(&["events"])
        .stdout(write)
        .within(Duration::from_secs(600))
        .start();
    let mut lines = Lines::of(std::fs::File::from(read));
    // The subscription is there when an event comes through.
    until("ctr listens", VERB, || {
        let _ = daemon
            .ctr(&["namespaces", "label", daemon.place.token(), "a=b"])
            .run()
            .ok();
        lines.is_there("/namespaces/update")
    });
    (events, lines)
}

on_both! {
    /// A container that wants more memory than it may have: its process is killed, and that is told.
    fn out_of_memory(engine) {
        let daemon = Daemon::start(engine);
        let (events, mut lines) = listen(&daemon);
        let id = daemon.id();
        let limit = ["-d", "--memory-limit", "33554432"];
        let _ = daemon.run(&limit, &id, &["sleep", "1000"]).run().ok();
        assert_eq!(daemon.exec(&id, "greedy", &["tail", "/dev/zero"]).run().status, 137);
        let line = lines.expect("/tasks/oom", VERB);
        assert!(line.contains(&id), "{line}");
        assert_eq!(daemon.status(&id), "RUNNING");
        daemon.remove(&id);
        events.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

on_both! {
    /// One container through its life: exec, signals, pause, update, statistics, processes, events in order.
    fn through_its_life(engine) {
        let daemon = Daemon::start(engine);
        let (events, mut lines) = listen(&daemon);
        let id = daemon.sleeper();
        assert_eq!(daemon.status(&id), "RUNNING");
        let out = daemon.exec(&id, "e1", &["sh", "-c", "echo hi; exit 3"]).run();
        assert_eq!((out.status, out.text().as_str()), (3, "hi\n"));
        let (input, feed) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let running = daemon.exec(&id, "e2", &["wc", "-c"]).stdin(input).start();
        std::fs::File::from(feed).write_all(&[7; 70_000]).unwrap();
        assert_eq!(running.wait().ok().text().trim(), "70000");
        let _ = daemon.ctr(&["task", "pause", &id]).run().ok();
        assert_eq!(daemon.status(&id), "PAUSED");
        let _ = daemon.ctr(&["task", "resume", &id]).run().ok();
        assert_eq!(daemon.status(&id), "RUNNING");
        let metrics = daemon.ctr(&["task", "metrics", "--format", "json", &id]).run().ok().text();
        assert!(metrics.contains("\"usage\"") && metrics.contains("pids"), "{metrics}");
        let background = daemon.exec(&id, "bg", &["sleep", "1000"]).start();
        until("the exec is listed", VERB, || {
            daemon.ctr(&["task", "ps", &id]).run().ok().text().contains("bg")
        });
        let _ = daemon.ctr(&["task", "kill", "--exec-id", "bg", "--signal", "15", &id]).run().ok();
        assert_eq!(background.wait().status, 143);
        if engine == Engine::Bulkhead {
            a_create_is_in_the_timeline(daemon.place.token(), &id);
        }
        daemon.remove(&id);
        let expected = [
            "/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
            "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/paused", "/tasks/resumed",
            "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exit", "/tasks/delete",
        ];
        let mut got: Vec<String> = Vec::new();
        while got.last().is_none_or(|topic| topic != "/tasks/delete") {
            let line = lines.expect("/tasks/", VERB);
            let topic = line.split_whitespace().find(|word| word.starts_with("/tasks/"));
            got.push(topic.unwrap_or_default().to_owned());
        }
        assert_eq!(got, expected);
        events.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

/// What the shim did before the sandbox was asked is in its timeline.
#[track_caller]
fn a_create_is_in_the_timeline(namespace: &str, id: &str) {
    let path = Place::root(namespace)
        .join("sandboxes")
        .join(id)
        .join("timeline.json");
    let timeline: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let operations = timeline["operations"].as_array().unwrap();
    let create = operations.iter().find(|one| one["name"] == "create").unwrap();
    let spans = create["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().filter_map(|span| span["name"].as_str()).collect();
    for name in ["start the shim", "start the stub", "clone, mounts, pivot"] {
        assert!(names.contains(&name), "no {name:?} in {create:#}");
    }
}

on_both! {
    /// A terminal: its size, a line in, a line out, its end.
    fn with_a_terminal(engine) {
        let daemon = Daemon::start(engine);
        let terminal = nix::pty::openpty(None, None).unwrap();
        let (master, slave): (OwnedFd, OwnedFd) = (terminal.master, terminal.slave);
        let running = daemon
            .run(&["--rm", "-t"], &daemon.id(), &["sh", "-c", "tty && read x && echo got-$x"])
            .terminal(&slave)
            .start();
        drop(slave);
        let mut lines = Lines::of(std::fs::File::from(master.try_clone().unwrap()));
        lines.expect("/dev/", VERB);
        std::fs::File::from(master).write_all(b"word\n").unwrap();
        lines.expect("got-word", VERB);
        let _ = running.wait().ok();
    }
}

/// A root file system that only bind mounts, several of them, make up; and what it wrote stays where it belongs.
#[test]
#[ignore = "needs a VM"]
fn what_a_container_writes_is_in_its_snapshot_only() {
    let daemon = Daemon::start(Engine::Bulkhead);
    let id = daemon.id();
    let _ = daemon
        .run(&["-d"], &id, &["sh", "-c", "echo kept >/file; sleep 1000"])
        .run()
        .ok();
    until("the file is there", VERB, || {
        daemon.exec(&id, "look", &["cat", "/file"]).run().text() == "kept\n"
    });
    // Nothing of it is mounted where others could see it.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&id), "{table}");
    daemon.remove(&id);
}
