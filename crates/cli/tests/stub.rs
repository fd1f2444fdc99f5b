//! The stub against a fake supervisor: its namespaces as an engine enters them, streams, signals, terminal.
//! All of these need root (new namespaces) and no VM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test helpers outside of test functions"
)]

mod lab;

use bulkhead_host::{process, pty};
use bulkhead_model::{ExitStatus, Failure, FailureKind};
use bulkhead_sandbox::{Command, Notice, Reply, StdioSet};
use bulkhead_shim::Message;
use bulkhead_shim::stub::{self, Stdio, StubError};
use lab::*;
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
#[ignore = "needs root"]
fn an_engine_that_enters_the_stub_sees_the_container() {
    let bundle = Bundle::new();
    let (stub, _supervisor) = start(&bundle, bundle.request(no_streams()));
    assert_eq!(stub.refusals, Vec::<String>::new());
    let me = i32::try_from(std::process::id()).unwrap();
    for name in ALL {
        assert_ne!(namespace(stub.process().pid, name), namespace(me, name), "{name}");
    }
    assert_eq!(says(&stub, &["cat", "/etc/name"]), "container");
    assert_eq!(says(&stub, &["cat", "/vol/file"]), "volume");
    assert_eq!(says(&stub, &["hostname"]), "inside");
    assert_eq!(
        says(&stub, &["ls", "/"]),
        "bin\ndev\netc\nproc\nro\nsys\ntmp\nvol"
    );
    drop(stub);
    bundle.assert_no_processes();
}

#[test]
#[ignore = "needs root"]
fn the_hosts_files_and_processes_are_out_of_reach_from_the_stubs_namespaces() {
    let bundle = Bundle::new();
    let (stub, _supervisor) = start(&bundle, bundle.request(no_streams()));
    assert_eq!(says(&stub, &["ls", "/sys"]), "", "no sysfs of the host");
    let devices = says(&stub, &["ls", "/dev"]);
    assert!(
        devices.contains("null") && !devices.contains("kvm") && !devices.contains("sd"),
        "{devices}"
    );
    // Not every kernel has all of them.
    for masked in ["/proc/meminfo", "/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        if Path::new(masked).exists() {
            assert_eq!(says(&stub, &["wc", "-c", masked]), format!("0 {masked}"));
        }
    }
    // Files: not by name, not by what /proc says of processes, not among the mounts.
    let secret = bundle.path("secret");
    let secret = secret.to_str().unwrap();
    for path in [
        secret,
        &format!("/proc/1/root{secret}"),
        &format!("/proc/1/cwd{secret}"),
        &format!("/../../..{secret}"),
        "/etc/passwd",
    ] {
        assert!(!inside(&stub, &["cat", path]).status.success(), "{path}");
    }
    let mounts = says(&stub, &["cat", "/proc/1/mountinfo"]);
    for line in mounts.lines() {
        let target = line.split(' ').nth(4).unwrap();
        let known = ["/", "/proc", "/dev", "/vol", "/ro", "/tmp"].contains(&target);
        assert!(known || target.starts_with("/proc/"), "{mounts}");
    }
    // Processes: the stub is pid 1, and there is nobody but it and the visitor.
    let pids = says(&stub, &["sh", "-c", "cd /proc; echo [0-9]*"]);
    assert_eq!(pids.split(' ').next(), Some("1"));
    assert!(pids.split(' ').count() <= 3, "{pids}");
    let me = std::process::id().to_string();
    assert!(!inside(&stub, &["kill", "-0", &me]).status.success());
    // Its open descriptors lead to sockets, signals and /dev/null only.
    let links = says(
        &stub,
        &["sh", "-c", "for f in /proc/1/fd/*; do readlink $f; done"],
    );
    for link in links.lines() {
        assert!(
            ["/dev/null", "socket:", "anon_inode:"]
                .iter()
                .any(|good| link.starts_with(good)),
            "{links}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn the_view_leaves_the_containers_files_and_the_hosts_mounts_as_they_were() {
    let bundle = Bundle::new();
    let seen = || {
        let output = std::process::Command::new("find")
            .arg(bundle.path("rootfs"))
            .output()
            .unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mine = mounts.matches(bundle.path("").to_str().unwrap()).count();
        (String::from_utf8(output.stdout).unwrap(), mine)
    };
    let before = seen();
    let (stub, _supervisor) = start(&bundle, bundle.request(no_streams()));
    assert_eq!(seen(), before);
    assert!(
        !inside(&stub, &["ls", "/not/there"]).status.success(),
        "no target, no mount"
    );
    drop(stub);
    assert_eq!(seen(), before);
}

#[test]
#[ignore = "needs root"]
fn read_only_is_read_only_and_tmpfs_is_its_own() {
    let bundle = Bundle::new();
    let plan = bundle.plan(|spec| spec["root"]["readonly"] = json!(true));
    let (stub, _supervisor) = start(&bundle, bundle.request_of(&plan, no_streams()));
    for (path, writable) in [
        ("/x", false),
        ("/ro/x", false),
        ("/vol/x", true),
        ("/tmp/x", true),
    ] {
        assert_eq!(
            inside(&stub, &["touch", path]).status.success(),
            writable,
            "{path}"
        );
    }
    assert!(bundle.path("volume/x").exists() && !bundle.path("rootfs/tmp/x").exists());
}

#[test]
#[ignore = "needs root"]
fn a_volume_behind_a_link_out_of_the_root_stays_inside() {
    let bundle = Bundle::new();
    std::fs::create_dir(bundle.path("outside")).unwrap();
    std::os::unix::fs::symlink(bundle.path("outside"), bundle.path("rootfs/link")).unwrap();
    let plan = bundle.plan(|spec| {
        spec["mounts"] =
            json!([{ "destination": "/link", "type": "bind", "source": "volume", "options": ["rbind"] }]);
    });
    let (stub, _supervisor) = start(&bundle, bundle.request_of(&plan, no_streams()));
    // The link leads nowhere inside of the root, so there is no target.
    assert!(!says(&stub, &["cat", "/proc/1/mountinfo"]).contains("outside"));
    assert!(!inside(&stub, &["ls", "/link/file"]).status.success());
}

#[test]
#[ignore = "needs root"]
fn it_exits_with_the_status_of_its_process() {
    let bundle = Bundle::new();
    for (status, code) in [
        (ExitStatus::Code(0), 0),
        (ExitStatus::Code(7), 7),
        (ExitStatus::Signal(9), 137),
    ] {
        let (stub, mut supervisor) = start(&bundle, bundle.request(no_streams()));
        supervisor.notice(Notice::Exited { status });
        assert_eq!(stub.wait(LONG).unwrap(), Some(code));
    }
    bundle.assert_no_processes();
}

#[test]
#[ignore = "needs root"]
fn attach_names_the_process_and_brings_the_streams_that_are_there() {
    let bundle = Bundle::new();
    let (read, write) = pipe();
    let stdio = Stdio::Streams {
        stdin: None,
        stdout: Some(write),
        stderr: None,
    };
    let (stub, mut supervisor) = start(&bundle, bundle.request(stdio));
    let Command::Attach {
        key,
        stub: process,
        stdio,
        size,
    } = &supervisor.attach
    else {
        panic!("{:?}", supervisor.attach)
    };
    assert_eq!(
        (key.to_string().as_str(), *process, *size),
        ("c", stub.process(), None)
    );
    let only_stdout = StdioSet {
        stdout: true,
        ..StdioSet::default()
    };
    assert_eq!(*stdio, only_stdout);
    File::from(supervisor.fds.remove(0)).write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    File::from(read).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
#[ignore = "needs root"]
fn an_ended_stream_is_end_of_file_for_the_reader_and_a_broken_pipe_for_the_writer() {
    let bundle = Bundle::new();
    let (stdin, writer) = pipe();
    let (reader, stdout) = pipe();
    let (errors, stderr) = pipe();
    let stdio = Stdio::Streams {
        stdin: Some(stdin),
        stdout: Some(stdout),
        stderr: Some(stderr),
    };
    let (stub, mut supervisor) = start(&bundle, bundle.request(stdio));
    supervisor.fds.clear();
    supervisor.notice(Notice::StreamEnded { stream: 1 });
    assert_eq!(File::from(reader).read(&mut [0; 1]).unwrap(), 0);
    // The others are still held: a supervisor that comes later can have them again.
    let mut fds = [nix::poll::PollFd::new(
        errors.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    assert_eq!(nix::poll::poll(&mut fds, 0_u8).unwrap(), 0);
    supervisor.notice(Notice::StreamEnded { stream: 0 });
    let mut hang_up = [nix::poll::PollFd::new(
        writer.as_fd(),
        nix::poll::PollFlags::empty(),
    )];
    assert_eq!(nix::poll::poll(&mut hang_up, 60_000_u16).unwrap(), 1);
    let error = File::from(writer).write(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    supervisor.notice(exited(0));
    assert_eq!(stub.wait(LONG).unwrap(), Some(0));
}

#[test]
#[ignore = "needs root"]
fn signals_are_forwarded_one_by_one() {
    let bundle = Bundle::new();
    let (stub, mut supervisor) = start(&bundle, bundle.request(no_streams()));
    // A real-time signal as well; SIGCHLD and SIGWINCH (there is no terminal) are not forwarded.
    for signal in [17, 28, 15, 2, 1, 3, 10, 12, 18, 37] {
        stub.signal(signal).unwrap();
        if matches!(signal, 17 | 28) {
            continue;
        }
        match supervisor.hear() {
            Some(Command::Signal {
                key,
                signal: heard,
                all,
            }) => {
                assert_eq!((key.to_string().as_str(), heard, all), ("c", signal, false));
            }
            other => panic!("{other:?}"),
        }
        supervisor.tell(&Message::Ok(Reply::Done));
    }
    supervisor.notice(exited(3));
    assert_eq!(stub.wait(LONG).unwrap(), Some(3));
}

#[test]
#[ignore = "needs root"]
fn a_terminal_is_raw_controlling_and_followed_in_size_and_its_end_is_a_hang_up() {
    let bundle = Bundle::new();
    let pair = pty::open().unwrap();
    let resize = |columns, rows| {
        pty::set_window_size(pair.master.as_fd(), pty::WindowSize { columns, rows }).unwrap();
    };
    resize(80, 25);
    let slave = pair.slave.try_clone().unwrap();
    let (stub, mut supervisor) = start(&bundle, bundle.request(Stdio::Terminal(slave)));
    let Command::Attach { stdio, size, .. } = &supervisor.attach else {
        panic!("{:?}", supervisor.attach)
    };
    let only_terminal = StdioSet {
        terminal: true,
        ..StdioSet::default()
    };
    assert_eq!(
        (*stdio, *size, supervisor.fds.len()),
        (only_terminal, Some((80, 25)), 1)
    );
    let settings = nix::sys::termios::tcgetattr(&pair.slave).unwrap();
    assert!(
        !settings
            .local_flags
            .contains(nix::sys::termios::LocalFlags::ICANON),
        "raw"
    );
    // Session and terminal number (fields 6 and 7): leader of its own, with this terminal.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", stub.process().pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[3], stub.process().pid.to_string());
    let terminal = nix::sys::stat::fstat(&pair.slave).unwrap().st_rdev;
    assert_eq!(fields[4], terminal.to_string());

    resize(132, 50);
    match supervisor.hear() {
        Some(Command::Resize { columns, rows, .. }) => assert_eq!((columns, rows), (132, 50)),
        other => panic!("{other:?}"),
    }
    drop(pair.master);
    match supervisor.hear() {
        Some(Command::Signal {
            signal: 1,
            all: false,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    supervisor.notice(Notice::Exited {
        status: ExitStatus::Signal(1),
    });
    assert_eq!(stub.wait(LONG).unwrap(), Some(129));
}

/// KiB of the program's code that a process has mapped.
fn code_kib(pid: i32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = smaps.lines();
    let _ = lines.find(|line| line.contains(" r-xp ") && line.ends_with("/bulkhead"));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().trim_end_matches(" kB").parse().unwrap()
}

/// It comes up with megabytes of code and waits with next to none; what it needs comes back.
#[test]
#[ignore = "needs root"]
fn one_that_waits_keeps_little_of_its_program_in_memory() {
    let bundle = Bundle::new();
    let (stub, mut supervisor) = start(&bundle, bundle.request(no_streams()));
    let pid = stub.process().pid;
    let end = Instant::now() + LONG;
    while code_kib(pid) > 2048 {
        assert!(Instant::now() < end, "{} KiB of its code", code_kib(pid));
        std::thread::sleep(Duration::from_millis(10));
    }
    stub.signal(10).unwrap();
    let heard = supervisor.hear();
    assert!(
        matches!(heard, Some(Command::Signal { signal: 10, .. })),
        "{heard:?}"
    );
    assert!(code_kib(pid) > 2048, "the test looks at the wrong mapping");
    supervisor.notice(exited(0));
    assert_eq!(stub.wait(LONG).unwrap(), Some(0));
}

#[test]
#[ignore = "needs root"]
fn a_killed_stub_ends_its_connection() {
    let bundle = Bundle::new();
    let (stub, mut supervisor) = start(&bundle, bundle.request(no_streams()));
    stub.signal(9).unwrap();
    assert_eq!(stub.wait(LONG).unwrap(), Some(137));
    assert!(supervisor.hear().is_none());
}

#[test]
#[ignore = "needs root"]
fn a_stub_without_a_supervisor_says_so_and_reports_to_the_next_one() {
    let bundle = Bundle::new();
    let log = bundle.path("log");
    let mut request = bundle.request(no_streams());
    let file = File::options().append(true).create(true).open(&log).unwrap();
    request.log = Some(file.into());
    let successors =
        bulkhead_sandbox::layout::stub_socket(request.control_socket.parent().unwrap(), &request.key);
    let (stub, supervisor) = start(&bundle, request);
    let first = supervisor.attach.clone();
    drop(supervisor);
    let mut next = Supervisor::succeed(&successors);
    assert_eq!(next.attach, first, "a fresh supervisor is told the same");
    next.notice(exited(4));
    assert_eq!(stub.wait(LONG).unwrap(), Some(4));
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert!(line["msg"].as_str().unwrap().contains("supervisor"), "{line}");
    assert_eq!(line["process"], "c");
}

#[test]
#[ignore = "needs root"]
fn an_exec_stub_lives_in_the_containers_namespaces_and_ends_alone() {
    let bundle = Bundle::new();
    let (container, mut first) = start(&bundle, bundle.request(no_streams()));
    let (exec, mut second) = start(&bundle, bundle.exec_request(&container, "e1"));
    for name in ALL {
        assert_eq!(
            namespace(exec.process().pid, name),
            namespace(container.process().pid, name),
            "{name}"
        );
    }
    let Command::Attach { key, .. } = &second.attach else {
        panic!("{:?}", second.attach)
    };
    assert_eq!(key.to_string(), "c/e1");
    assert_eq!(says(&exec, &["cat", "/etc/name"]), "container");
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", exec.process().pid)).unwrap();
    assert_eq!(cwd, Path::new("/"));
    second.notice(exited(5));
    assert_eq!(exec.wait(LONG).unwrap(), Some(5));
    first.notice(exited(6));
    assert_eq!(container.wait(LONG).unwrap(), Some(6));
}

#[test]
#[ignore = "needs root"]
fn an_exec_into_a_container_whose_stub_is_gone_is_refused() {
    let bundle = Bundle::new();
    let (container, mut supervisor) = start(&bundle, bundle.request(no_streams()));
    supervisor.notice(exited(0));
    container.wait(LONG).unwrap();
    let _listener = bundle.listen();
    let error = stub::spawn(bundle.exec_request(&container, "e")).unwrap_err();
    assert!(matches!(error, StubError::Join(_)), "{error:?}");
    assert_eq!(error.to_failure().kind, FailureKind::FailedPrecondition);
    bundle.assert_no_processes();
}

#[test]
#[ignore = "needs root"]
fn a_stub_that_cannot_begin_is_an_error_and_leaves_nothing() {
    let bundle = Bundle::new();
    let error = stub::spawn(bundle.request(no_streams())).unwrap_err();
    assert!(
        matches!(&error, StubError::Connect { path, .. } if *path == bundle.path("ctl")),
        "{error:?}"
    );

    let _listener = bundle.listen();
    let mut plan = bundle.plan(|_| {});
    plan.rootfs.path = bundle.path("gone");
    let error = stub::spawn(bundle.request_of(&plan, no_streams())).unwrap_err();
    assert!(error.to_string().contains("/gone"), "{error}");

    let plan = bundle.plan(|spec| {
        spec["linux"]["namespaces"] = json!([{ "type": "network", "path": "/etc/passwd" }]);
    });
    let error = stub::spawn(bundle.request_of(&plan, no_streams())).unwrap_err();
    assert_eq!(error.to_failure().kind, FailureKind::InvalidArgument);
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
    bundle.assert_no_processes();
}

#[test]
#[ignore = "needs root"]
fn a_supervisor_that_refuses_is_heard_and_nothing_is_left() {
    let bundle = Bundle::new();
    let no = Failure::new(FailureKind::FailedPrecondition, "not now");
    let supervisor = Supervisor::start(&bundle, Message::Err(no.clone()));
    match stub::spawn(bundle.request(no_streams())) {
        Err(StubError::Refused(failure)) => assert_eq!(failure, no),
        other => panic!("{other:?}"),
    }
    supervisor.join().unwrap();
    bundle.assert_no_processes();
}

#[test]
#[ignore = "needs root"]
fn it_joins_the_network_namespace_it_is_given() {
    let bundle = Bundle::new();
    let netns = bulkhead_host::netns::Netns::new().unwrap();
    let path = bundle.path("netns");
    netns.pin(&path).unwrap();
    let plan = bundle.plan(|spec| {
        spec["linux"]["namespaces"] = json!([{ "type": "network", "path": path }]);
    });
    let (stub, _supervisor) = start(&bundle, bundle.request_of(&plan, no_streams()));
    let seen = namespace(stub.process().pid, "net");
    drop(stub);
    bulkhead_host::netns::unpin(&path).unwrap();
    assert_eq!(seen, netns.identity().unwrap());
}

#[test]
#[ignore = "needs root"]
fn a_stub_that_is_let_go_outlives_its_handle_and_ten_thousand_mounts_are_no_obstacle() {
    let bundle = Bundle::new();
    let plan = bundle.plan(|spec| {
        let mount = json!({ "destination": "/vol", "type": "bind", "source": "volume", "options": ["bind"] });
        spec["mounts"] = json!(vec![mount; 10_000]);
    });
    let (stub, mut supervisor) = start(&bundle, bundle.request_of(&plan, no_streams()));
    assert_eq!(says(&stub, &["cat", "/vol/file"]), "volume");
    let process = stub.leave();
    assert!(process::alive(process.pid, process.start_time).unwrap());
    supervisor.notice(exited(0));
    assert!(process::wait_gone(process.pid, process.start_time, LONG).unwrap());
}
