//! Starting, waiting for and finding processes, against the real kernel. No root needed.
#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use bulkhead_host::process::{self, Exit, Namespace, Spawn, SpawnError, Started};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (File::from(read), write)
}

fn sh(script: &str) -> Spawn {
    Spawn::new("/bin/sh").arg("-c").arg(script)
}

fn output(spawn: Spawn) -> String {
    let (mut read, write) = pipe();
    let started = spawn.fd(write, 1).spawn().unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(started.child.wait(LONG).unwrap(), Some(Exit::Code(0)), "{text}");
    text
}

fn kill(started: &Started) {
    assert_eq!(started.child.kill_and_wait(LONG).unwrap(), Some(Exit::Signal(9)));
}

#[test]
fn an_exit_status_and_a_signal_come_back_and_stay() {
    let child = sh("exit 7").spawn().unwrap().child;
    assert_eq!(child.wait(LONG).unwrap(), Some(Exit::Code(7)));
    assert_eq!(child.try_wait().unwrap(), Some(Exit::Code(7)));
    let child = sh("kill -TERM $$").spawn().unwrap().child;
    assert_eq!(child.wait(LONG).unwrap(), Some(Exit::Signal(15)));
    child.signal(15).unwrap();
}

#[test]
fn a_running_process_outlasts_a_short_wait_and_dies_of_a_kill() {
    let started = sh("exec sleep 600").spawn().unwrap();
    assert_eq!(started.child.wait(Duration::from_millis(20)).unwrap(), None);
    assert!(process::alive(started.child.pid(), started.child.start_time()).unwrap());
    kill(&started);
    assert!(!process::alive(started.child.pid(), started.child.start_time()).unwrap());
}

#[test]
fn a_missing_program_is_not_found_and_one_without_permission_is_denied() {
    let kind = |program: &str| match Spawn::new(program).spawn() {
        Err(SpawnError::Program {
            source,
            program: named,
        }) => {
            assert_eq!(named.to_str(), Some(program));
            source.kind()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(kind("/no/such/program"), ErrorKind::NotFound);
    assert_eq!(kind("no-such-program-at-all"), ErrorKind::NotFound);
    assert_eq!(kind("/etc/passwd"), ErrorKind::PermissionDenied);
}

#[test]
fn nothing_is_inherited_but_what_was_given() {
    // A descriptor without close-on-exec: a plain fork and exec would pass it on.
    let (read, write) = nix::unistd::pipe().unwrap();
    let text = output(sh("ls /proc/self/fd; echo; /usr/bin/env"));
    drop((read, write));
    let (fds, env) = text.split_once("\n\n").unwrap();
    // The fourth is the directory ls reads.
    assert_eq!(fds.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert!(!env.contains("HOME=") && !env.contains("CARGO"), "{env}");
}

#[test]
fn descriptors_land_on_their_numbers_even_when_they_cross() {
    let (mut read_a, write_a) = pipe();
    let (mut read_b, write_b) = pipe();
    let (low, high) = (
        std::os::fd::AsRawFd::as_raw_fd(&write_a),
        std::os::fd::AsRawFd::as_raw_fd(&write_b),
    );
    // Each gets the number the other one has in this process.
    let started = sh(&format!("echo a >&{high}; echo b >&{low}"))
        .fd(write_a, high)
        .fd(write_b, low)
        .spawn()
        .unwrap();
    assert_eq!(started.child.wait(LONG).unwrap(), Some(Exit::Code(0)));
    let (mut a, mut b) = (String::new(), String::new());
    read_a.read_to_string(&mut a).unwrap();
    read_b.read_to_string(&mut b).unwrap();
    assert_eq!((a.as_str(), b.as_str()), ("a\n", "b\n"));
}

#[test]
fn a_number_given_twice_is_refused() {
    let (_read, write) = pipe();
    let again = write.try_clone().unwrap();
    let error = sh("true").fd(write, 5).fd(again, 5).spawn().unwrap_err();
    assert!(matches!(error, SpawnError::Number { number: 5 }), "{error}");
}

#[test]
fn a_zero_byte_is_refused_by_name() {
    let error = Spawn::new("/bin/true").arg("a\0b").spawn().unwrap_err();
    assert!(error.to_string().contains("argument \"a\\0b\""), "{error}");
}

#[test]
fn session_directory_limits_and_environment_are_as_asked() {
    let text = output(
        sh("ps -o sid= -p $$; echo $$; pwd; ulimit -n; echo $X")
            .new_session()
            .directory("/usr")
            .limit(libc::RLIMIT_NOFILE, 64, 64)
            .env("X", "y z")
            .env("PATH", "/usr/bin:/bin"),
    );
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[0], lines[1], "its own session");
    assert_eq!(lines[2..], ["/usr", "64", "y z"]);
}

#[test]
fn signals_start_out_default_and_unblocked() {
    let text = output(sh("grep -E 'Sig(Blk|Ign)' /proc/self/status"));
    let ignored_and_blocked: Vec<u64> = text
        .lines()
        .map(|line| u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap())
        .collect();
    assert_eq!(ignored_and_blocked, [0, 0]);
}

#[test]
fn a_cgroup_that_does_not_exist_is_reported_and_not_fatal() {
    let started = sh("exit 0")
        .cgroup("/sys/fs/cgroup/none/cgroup.procs")
        .spawn()
        .unwrap();
    assert_eq!(started.child.wait(LONG).unwrap(), Some(Exit::Code(0)));
    assert_eq!(started.cgroup_refusals.len(), 1);
    assert_eq!(started.cgroup_refusals[0].source.kind(), ErrorKind::NotFound);
}

#[test]
fn a_limit_that_cannot_be_raised_is_reported_and_not_fatal() {
    // Soft above hard is refused for everybody.
    let started = sh("exit 0").limit(libc::RLIMIT_CORE, 2, 1).spawn().unwrap();
    assert_eq!(started.child.wait(LONG).unwrap(), Some(Exit::Code(0)));
    assert_eq!(started.limit_refusals[0].0, libc::RLIMIT_CORE);
}

#[test]
fn marked_processes_are_found_by_value_only() {
    let mark = format!("host-test-{}", std::process::id());
    let started = sh("exec sleep 600").env(process::MARKER, &mark).spawn().unwrap();
    let other = sh("exec sleep 600")
        .env(process::MARKER, format!("{mark}x"))
        .spawn()
        .unwrap();
    let child = &started.child;
    assert_eq!(
        process::marked(Some(&mark)).unwrap(),
        [(child.pid(), child.start_time(), mark.clone())]
    );
    assert!(
        process::marked(None)
            .unwrap()
            .iter()
            .any(|found| found.0 == other.child.pid())
    );
    kill(&started);
    kill(&other);
    assert_eq!(process::marked(Some(&mark)).unwrap(), []);
}

#[test]
fn an_exact_signal_reaches_exactly_that_process() {
    let started = sh("exec sleep 600").spawn().unwrap();
    let (pid, at) = (started.child.pid(), started.child.start_time());
    assert!(!process::signal_exact(pid, at + 1, 15).unwrap());
    assert!(process::signal_exact(pid, at, 15).unwrap());
    assert_eq!(started.child.wait(LONG).unwrap(), Some(Exit::Signal(15)));
    assert!(!process::signal_exact(pid, at, 15).unwrap());
}

#[test]
fn many_threads_start_processes_at_once() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for code in 0..8 {
                    let child = sh(&format!("exit {code}")).spawn().unwrap().child;
                    assert_eq!(child.wait(LONG).unwrap(), Some(Exit::Code(code)));
                }
            });
        }
    });
}

#[test]
#[ignore = "needs root"]
fn new_namespaces_make_it_pid_1_and_a_second_process_can_join() {
    let (keep, hold) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let first = sh("read line")
        .fd(keep, 0)
        .unshare(Namespace::Pid)
        .unshare(Namespace::Ipc)
        .unshare(Namespace::Uts)
        .unshare(Namespace::Network)
        .spawn()
        .unwrap();
    let pid = first.child.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let inner = status.lines().find(|l| l.starts_with("NSpid")).unwrap();
    assert_eq!(inner.split_whitespace().last(), Some("1"));

    let pidfd = || process::open_exact(pid, first.child.start_time()).unwrap();
    let (mut read, write) = pipe();
    let second = sh("echo $$")
        .enter(Namespace::Pid, pidfd())
        .enter(Namespace::Uts, pidfd())
        .fd(write, 1)
        .spawn()
        .unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(second.child.wait(LONG).unwrap(), Some(Exit::Code(0)));
    assert_eq!(text.trim(), "2", "the second process of that pid namespace");

    File::from(hold).write_all(b"go\n").unwrap();
    assert_eq!(first.child.wait(LONG).unwrap(), Some(Exit::Code(0)));
}

#[test]
#[ignore = "needs root"]
fn an_executable_file_descriptor_runs_without_its_path() {
    let program = File::open("/bin/sh").unwrap();
    let text = output(Spawn::from_fd(program.into(), "shell").arg("-c").arg("echo $0"));
    assert_eq!(text.trim(), "shell");
}
