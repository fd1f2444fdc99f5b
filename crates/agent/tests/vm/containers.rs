//! Containers and their processes.

use crate::machine::{Machine, container, key, process, spec};
use bulkhead_model::{ExitStatus, FailureKind};
use bulkhead_protocol::{Guest, GuestError, GuestStdio};
use serde_json::json;
use std::io::{BufRead, Read, Write};

pub(crate) fn kind(result: Result<i32, GuestError>) -> (FailureKind, String) {
    match result {
        Err(GuestError::Refused { kind, message }) => (kind, message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_container_runs_and_its_status_and_output_come_back() {
    let machine = Machine::boot().await;
    assert!(!machine.guest.hello().kernel_release.is_empty());
    let script = "echo out; echo err >&2; hostname; exit 7";
    let (exit, stdout, stderr) = machine.run("c1", &spec(&["sh", "-c", script])).await;
    assert_eq!(exit.status, ExitStatus::Code(7));
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\nbox\n", "err\n"));
    // A stream that the host has all of may be forgotten by then, and is 0.
    assert!(matches!(exit.stdout_offset, 0 | 8) && matches!(exit.stderr_offset, 0 | 4));
    assert!(!exit.out_of_memory);
    // The id is free again.
    let (exit, ..) = machine
        .run("c1", &spec(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]))
        .await;
    assert_eq!(exit.status, ExitStatus::Code(137));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_program_that_cannot_run_is_refused_at_create_and_nothing_is_left() {
    let machine = Machine::boot().await;
    let none = GuestStdio::default();
    let (missing, message) = kind(machine.create("c1", &spec(&["nonesuch"]), none).await);
    assert_eq!(missing, FailureKind::ProgramNotFound);
    assert_eq!(message, "exec: \"nonesuch\": executable file not found in $PATH");
    let (missing, message) = kind(machine.create("c1", &spec(&["/no/such"]), none).await);
    assert_eq!(missing, FailureKind::ProgramNotFound);
    assert_eq!(
        message,
        "exec: \"/no/such\": stat /no/such: no such file or directory"
    );
    let (plain, message) = kind(machine.create("c1", &spec(&["/etc/plain"]), none).await);
    assert_eq!(plain, FailureKind::ProgramNotExecutable);
    assert_eq!(message, "exec: \"/etc/plain\": permission denied");
    let (bad, _) = kind(machine.create("c1", &json!({"ociVersion": 5}), none).await);
    assert_eq!(bad, FailureKind::InvalidArgument);
    let (exit, stdout, _) = machine.run("c1", &spec(&["ls", "/sys/fs/cgroup"])).await;
    assert_eq!(exit.status, ExitStatus::Code(0));
    assert!(stdout.contains("memory.max"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn an_exec_is_in_the_container_with_the_attributes_asked_for() {
    let machine = Machine::boot().await;
    let mut spec = spec(&["sleep", "1000"]);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    });
    let (own, _) = machine.collect();
    machine.ok(machine.create("c1", &spec, own).await);
    machine.ok(machine.guest.start_container(&container("c1")).await);

    let script = "hostname; pwd; id -u; id -g; id -G; echo $COLOR $HOME; umask; ulimit -n; echo $$; \
                  grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; mkdir /tmp/x; cat /proc/1/comm; cat /proc/self/cgroup";
    let mut wanted = process(&["sh", "-c", script]);
    wanted["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7], "umask": 0o027});
    wanted["cwd"] = json!("/tmp");
    wanted["env"] = json!(["PATH=/bin", "COLOR=red"]);
    wanted["noNewPrivileges"] = json!(true);
    wanted["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    wanted["capabilities"] = json!({"bounding": [], "effective": [], "permitted": []});
    let (exit, stdout, stderr) = machine.exec("c1", "e1", &wanted).await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(exit.status, ExitStatus::Code(0), "{stdout}{stderr}");
    assert_eq!(
        lines[..8],
        [
            "box",
            "/tmp",
            "1000",
            "1000",
            "1000 7",
            "red /home/alice",
            "0027",
            "77"
        ],
        "{stdout}"
    );
    assert_eq!(
        lines[9..],
        [
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "sleep",
            "0::/"
        ],
        "{stdout}"
    );
    assert!(
        stderr.contains("mkdir"),
        "the container's filter must hold for execs: {stderr}"
    );

    // Seccomp without no-new-privileges, as root.
    let (_, _, stderr) = machine.exec("c1", "e2", &process(&["mkdir", "/tmp/x"])).await;
    assert!(stderr.contains("Function not implemented"), "{stderr}");

    let run = |args: &[&str]| serde_json::to_vec(&process(args)).unwrap();
    let missing = machine
        .guest
        .exec(&key("c1", Some("e3")), run(&["nonesuch"]), GuestStdio::default())
        .await;
    assert_eq!(kind(missing).0, FailureKind::ProgramNotFound);
    let plain = machine
        .guest
        .exec(
            &key("c1", Some("e3")),
            run(&["/etc/plain"]),
            GuestStdio::default(),
        )
        .await;
    assert_eq!(kind(plain).0, FailureKind::ProgramNotExecutable);
    let nowhere = machine
        .guest
        .exec(&key("no", Some("e3")), run(&["true"]), GuestStdio::default())
        .await;
    assert_eq!(kind(nowhere).0, FailureKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn terminals_have_a_name_a_size_and_a_signal() {
    let machine = Machine::boot().await;
    for exec in [false, true] {
        let stdio = GuestStdio {
            stdin: machine.stream(),
            stdout: machine.stream(),
            stderr: 0,
            terminal: true,
            columns: 80,
            rows: 25,
        };
        let (mut output, writer) = std::io::pipe().unwrap();
        let (reader, mut input) = std::io::pipe().unwrap();
        machine.guest.connect_output(stdio.stdout, writer.into()).unwrap();
        machine.guest.connect_input(stdio.stdin, reader.into()).unwrap();
        let shell = [
            "sh",
            "-c",
            "trap 'stty size' WINCH; tty; stty size; until [ \"$x\" = two ]; do read x; done; echo got $x",
        ];
        let name = if exec { "c2" } else { "c1" };
        let waited = if exec {
            machine.sleeper(name).await;
            let waited = key(name, Some("e"));
            machine.ok(machine
                .guest
                .exec(&waited, serde_json::to_vec(&process(&shell)).unwrap(), stdio)
                .await);
            waited
        } else {
            machine.ok(machine.create(name, &spec(&shell), stdio).await);
            machine.ok(machine.guest.start_container(&container(name)).await);
            key(name, None)
        };
        let mut seen = String::new();
        let mut until = |wanted: &str| {
            let mut buffer = [0; 256];
            while !seen.contains(wanted) {
                let count = output.read(&mut buffer).unwrap();
                assert!(count > 0, "the terminal ended: {seen:?}");
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        until("/dev/pts/0");
        until("25 80");
        machine.ok(machine.guest.resize(&waited, 132, 43).await);
        input.write_all(b"one\n").unwrap();
        until("43 132");
        input.write_all(b"two\n").unwrap();
        until("got two");
        let exit = machine.ok(machine.guest.wait(&waited).await);
        assert_eq!(exit.status, ExitStatus::Code(0));
        machine.ok(machine.guest.remove_container(&container(name)).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn input_reaches_the_process_and_its_end_too() {
    let machine = Machine::boot().await;
    let (mut stdio, output) = machine.collect();
    stdio.stdin = machine.stream();
    let (reader, mut input) = std::io::pipe().unwrap();
    machine.guest.connect_input(stdio.stdin, reader.into()).unwrap();
    machine.ok(machine
        .create(
            "c1",
            &spec(&["sh", "-c", "wc -c; echo done > /dev/stderr"]),
            stdio,
        )
        .await);
    machine.ok(machine.guest.start_container(&container("c1")).await);
    let block = vec![b'x'; 1 << 20];
    for _ in 0..4 {
        input.write_all(&block).unwrap();
    }
    drop(input);
    let exit = machine.ok(machine.guest.wait(&key("c1", None)).await);
    assert_eq!(exit.status, ExitStatus::Code(0));
    assert_eq!(output.stdout.join().unwrap().trim(), "4194304");
    assert_eq!(output.stderr.join().unwrap(), "done\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn c17_signals_freezing_and_the_list_of_processes() {
    let machine = Machine::boot().await;
    let guest = &machine.guest;
    let trap = "trap 'echo term; exit 3' TERM; sleep 1000 & echo ready; wait";
    let stdio = GuestStdio {
        stdout: machine.stream(),
        ..GuestStdio::default()
    };
    let (output, writer) = std::io::pipe().unwrap();
    guest.connect_output(stdio.stdout, writer.into()).unwrap();
    machine.ok(machine.create("c1", &spec(&["sh", "-c", trap]), stdio).await);
    machine.ok(guest.start_container(&container("c1")).await);
    let mut lines = std::io::BufReader::new(output).lines();
    // From here on the shell handles the signal.
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let second = key("c1", Some("e1"));
    let mut sleeping = process(&["sleep", "77"]);
    sleeping["user"] = json!({"uid": 1000, "gid": 1000});
    let pid = machine.ok(guest
        .exec(
            &second,
            serde_json::to_vec(&sleeping).unwrap(),
            GuestStdio::default(),
        )
        .await);

    let processes = machine.ok(guest.processes(&container("c1")).await);
    let found = processes.iter().find(|process| process.pid == pid).unwrap();
    assert_eq!(
        (found.command.as_str(), found.user.as_str()),
        ("sleep 77", "alice")
    );
    assert_eq!(found.exec.as_deref(), Some("e1"));

    machine.ok(guest.signal(&second, 15, false).await);
    assert_eq!(
        machine.ok(guest.wait(&second).await).status,
        ExitStatus::Signal(15)
    );
    machine.ok(guest.signal(&second, 15, false).await);

    machine.ok(guest.pause(&container("c1")).await);
    machine.ok(guest.signal(&key("c1", None), 15, true).await);
    let first = key("c1", None);
    let ended = tokio::time::timeout(std::time::Duration::from_millis(500), guest.wait(&first)).await;
    assert!(ended.is_err(), "a frozen process does not handle a signal");
    machine.ok(guest.resume(&container("c1")).await);
    let exit = machine.ok(guest.wait(&first).await);
    assert_eq!(exit.status, ExitStatus::Code(3));
    machine.ok(guest.remove_container(&container("c1")).await);
    machine.ok(guest.remove_container(&container("c1")).await);
    assert_eq!(lines.next().unwrap().unwrap(), "term");

    machine.sleeper("c2").await;
    machine.ok(guest.signal(&key("c2", None), 9, true).await);
    assert_eq!(
        machine.ok(guest.wait(&key("c2", None)).await).status,
        ExitStatus::Signal(9)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn c06_c20_limits_are_set_changed_and_counted() {
    let machine = Machine::boot().await;
    let guest = &machine.guest;
    let mut spec = spec(&["sleep", "1000"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "reservation": 1 << 20});
    spec["linux"]["resources"]["cpu"] =
        json!({"shares": 512, "quota": 50000, "period": 100_000, "cpus": "0"});
    spec["linux"]["resources"]["pids"] = json!({"limit": 20});
    machine.ok(machine.create("c1", &spec, GuestStdio::default()).await);
    machine.ok(guest.start_container(&container("c1")).await);
    let show = process(&[
        "sh",
        "-c",
        "cd /sys/fs/cgroup; cat memory.max memory.low cpu.weight cpu.max cpuset.cpus pids.max",
    ]);
    let (_, stdout, _) = machine.exec("c1", "e1", &show).await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines, ["67108864", "1048576", "20", "50000 100000", "0", "20"]);

    let change = json!({"memory": {"limit": 96 << 20}, "pids": {"limit": 30}});
    machine.ok(guest
        .update(&container("c1"), serde_json::to_vec(&change).unwrap())
        .await);
    let (_, stdout, _) = machine.exec("c1", "e2", &show).await;
    assert!(
        stdout.starts_with("100663296\n") && stdout.ends_with("30\n"),
        "{stdout}"
    );

    let stats = machine.ok(guest.stats(&container("c1")).await).cgroup_stats;
    assert_eq!(stats.memory_stats.usage.limit, 96 << 20);
    assert!(stats.memory_stats.usage.usage > 0 && stats.cpu_stats.cpu_usage.total_usage > 0);
    assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (1, 30));

    let bad = guest
        .update(&container("c1"), br#"{"memory": {"limit": -7}}"#.to_vec())
        .await;
    assert!(
        matches!(
            bad,
            Err(GuestError::Refused {
                kind: FailureKind::InvalidArgument,
                ..
            })
        ),
        "{bad:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_kill_for_want_of_memory_is_told() {
    let machine = Machine::boot().await;
    let mut spec = spec(&["sh", "-c", "tail /dev/zero"]);
    spec["linux"]["resources"]["memory"] = json!({"limit": 20 << 20, "swap": 20 << 20});
    let (exit, ..) = machine.run("c1", &spec).await;
    assert_eq!(exit.status, ExitStatus::Signal(9));
    assert!(exit.out_of_memory);
    let events = machine.ok(machine.guest.next_events(0).await);
    let told = bulkhead_protocol::GuestEvent::OutOfMemory {
        kills: 1,
        container: "c1".to_owned(),
    };
    assert!(events.iter().any(|(_, event)| *event == told), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn the_vms_disk_and_ports_are_out_of_reach() {
    let machine = Machine::boot().await;
    let script = "cat /dev/null && echo x > /dev/null && echo null; \
                  major=$(grep virtblk /proc/devices | cut -d' ' -f1); mknod /tmp/d b $major 0 && echo made; \
                  head -c1 /tmp/d >/dev/null && echo DISK; \
                  port=$(grep virtio-portsdev /proc/devices | cut -d' ' -f1); mknod /tmp/p c $port 1; echo x > /tmp/p && echo PORT; rm -f /tmp/d /tmp/p; true";
    for rules in [
        json!([{"allow": false, "access": "rwm"}]),
        json!([{"allow": true, "access": "rwm"}]),
    ] {
        let mut spec = spec(&["sh", "-c", script]);
        spec["linux"]["resources"]["devices"] = rules;
        let (exit, stdout, stderr) = machine.run("c1", &spec).await;
        assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
        assert_eq!(stdout, "null\nmade\n", "{stderr}");
        assert!(stderr.contains("Operation not permitted"), "{stderr}");
    }
}
