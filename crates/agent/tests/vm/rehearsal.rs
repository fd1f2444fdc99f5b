//! The container that a template's guest makes for itself.

use crate::containers::kind;
use crate::machine::{Machine, container, identity, key, spec};
use bulkhead_model::{ExitStatus, FailureKind};
use bulkhead_protocol::{Guest, GuestError, GuestStdio};
use serde_json::json;
use std::io::{BufRead, BufReader};

/// A container that shows the guest's own view: its processes, and where it is among cgroups.
fn looking_out(script: &str) -> serde_json::Value {
    let mut spec = spec(&["sh", "-c", script]);
    // To look at process 1, whose root is the guest's.
    for set in ["bounding", "effective", "permitted"] {
        let capabilities = spec["process"]["capabilities"][set].as_array_mut().unwrap();
        capabilities.push(json!("CAP_SYS_PTRACE"));
    }
    spec["linux"]["namespaces"] = json!([{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_rehearsal_leaves_a_cgroup_for_the_first_container_and_nothing_else() {
    let machine = Machine::boot().await;
    machine.ok(machine.guest.rehearse().await);
    match machine.guest.processes(&container("rehearsal")).await {
        Err(GuestError::Refused {
            kind: FailureKind::NotFound,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }

    let script = "cat /proc/self/cgroup; cd /proc/1/root; ls -d sys/fs/cgroup/bulkhead/*/ run/bulkhead/* proc/1/task/*; \
                  cat sys/fs/cgroup/bulkhead/@first/memory.events; cat /proc/[0-9]*/comm; \
                  mknod /tmp/disk b 254 0; cat /tmp/disk > /dev/null && echo read";
    let (exit, stdout, stderr) = machine.run("one", &looking_out(script)).await;
    assert_eq!(
        exit.status,
        ExitStatus::Code(1),
        "the disk is the VM's: {stdout}{stderr}"
    );
    assert!(!exit.settled, "a machine with a disk may have something to flush");
    let lines: Vec<&str> = stdout.lines().collect();
    let groups: Vec<&str> = lines
        .iter()
        .filter(|line| line.contains("cgroup/"))
        .copied()
        .collect();
    assert_eq!(lines[0], "0::/bulkhead/@first", "{stdout}{stderr}");
    assert_eq!(groups, ["sys/fs/cgroup/bulkhead/@first/"], "{stdout}{stderr}");
    assert!(lines.contains(&"oom_kill 0"), "{stdout}{stderr}");
    assert!(
        !stdout.contains("rehearsal") && !lines.contains(&"exit"),
        "{stdout}"
    );
    // A process in a pid namespace of its own waited for a container that wants one: not for this.
    let agents = lines.iter().filter(|name| **name == "init").count();
    assert_eq!(agents, 2, "the agent and its server: {stdout}");
    // Beside its own four, for calls that come one right after the other.
    let threads = lines
        .iter()
        .filter(|line| line.starts_with("proc/1/task/"))
        .count();
    assert!(threads >= 7, "{stdout}");
    assert!(!lines.contains(&"read"), "{stdout}");

    // What was set aside is gone: the next ones have their own, with the same rules.
    let script = "cat /proc/self/cgroup; cd /proc/1/root/sys/fs/cgroup/bulkhead; ls -d */; \
                  mknod /tmp/disk b 254 0; cat /tmp/disk > /dev/null && echo read";
    for id in ["rehearsal", "two"] {
        let (exit, stdout, stderr) = machine.run(id, &looking_out(script)).await;
        assert_eq!(exit.status, ExitStatus::Code(1), "{stdout}{stderr}");
        assert_eq!(stdout, format!("0::/bulkhead/{id}\n{id}/\n"), "{stderr}");
    }
}

/// It has what is its sandbox's although it was there before: the mounts, the host name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn the_first_container_is_the_process_that_waited_for_it() {
    let machine = Machine::bare().await;
    machine.ok(machine.guest.rehearse().await);
    machine.ok(machine.guest.configure(identity()).await);
    let script = "hostname; cat /proc/self/cgroup; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'; \
                  grep -c run/bulkhead /proc/mounts; sleep 1000";
    let mut first = spec(&["sh", "-c", script]);
    first.as_object_mut().unwrap().remove("hostname");
    let pipe = std::io::pipe().unwrap();
    let stdio = GuestStdio {
        stdout: machine.stream(),
        ..GuestStdio::default()
    };
    machine.guest.connect_output(stdio.stdout, pipe.1.into()).unwrap();
    machine.ok(machine.create_started("first", &first, stdio).await);
    let lines = tokio::task::spawn_blocking(|| {
        let lines = BufReader::new(pipe.0).lines().take(5);
        lines.map(Result::unwrap).collect::<Vec<_>>()
    });
    // The shell, `ls` and `grep`.
    assert_eq!(lines.await.unwrap(), ["guesthost", "0::/", "sh", "3", "0"]);

    // Of the agent's program are left the agent and the server that makes processes: nobody waits any more.
    let script = "cat /proc/[0-9]*/comm";
    let (_, stdout, stderr) = machine.run("second", &looking_out(script)).await;
    let left = stdout.lines().filter(|name| *name == "init").count();
    assert!(stdout.contains("sleep") && left == 2, "{stdout}{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_create_that_starts_is_both_or_nothing() {
    let machine = Machine::boot().await;
    let (stdio, output) = machine.collect();
    machine.ok(machine.create_started("c1", &spec(&["echo", "ran"]), stdio).await);
    let exit = machine.end(&key("c1", None)).await;
    assert_eq!(exit.status, ExitStatus::Code(0));
    assert_eq!(output.stdout.join().unwrap(), "ran\n");
    assert!(machine.guest.start_container(&container("c1")).await.is_err());
    machine.ok(machine.guest.remove_container(&container("c1")).await);

    let mut failing = spec(&["true"]);
    failing["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]});
    let (stdio, _output) = machine.collect();
    let (why, message) = kind(machine.create_started("c1", &failing, stdio).await);
    assert_eq!(why, FailureKind::InvalidArgument, "{message}");
    // Nothing is left of it: neither its name nor its cgroup is in the way.
    let (exit, stdout, _) = machine.run("c1", &spec(&["echo", "again"])).await;
    assert_eq!((exit.status, stdout.as_str()), (ExitStatus::Code(0), "again\n"));
}
