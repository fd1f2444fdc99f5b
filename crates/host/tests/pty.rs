//! Pseudo-terminals against the real kernel. No root needed.
#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use bulkhead_host::deadline::Deadline;
use bulkhead_host::fdpass;
use bulkhead_host::process::{Exit, Spawn};
use bulkhead_host::pty::{self, RawMode, Relay, RelayEvent, WindowSize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
}

#[test]
fn a_pair_carries_bytes_and_a_window_size() {
    let pair = pty::open().unwrap();
    assert!(pair.path.starts_with("/dev/pts"));
    RawMode::set(pair.slave.as_fd()).unwrap();
    let size = WindowSize {
        columns: 101,
        rows: 33,
    };
    pty::set_window_size(pair.master.as_fd(), size).unwrap();
    assert_eq!(pty::window_size(pair.slave.as_fd()).unwrap(), size);
    let (mut master, mut slave) = (File::from(pair.master), File::from(pair.slave));
    // Raw: no newline translation, no echo.
    slave.write_all(b"a\nb").unwrap();
    let mut bytes = [0; 3];
    master.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"a\nb");
}

#[test]
fn raw_mode_ends_with_its_guard() {
    let pair = pty::open().unwrap();
    let settings = || nix::sys::termios::tcgetattr(&pair.slave).unwrap().local_flags;
    let before = settings();
    let raw = RawMode::enter(pair.slave.as_fd()).unwrap();
    assert_ne!(settings(), before);
    drop(raw);
    assert_eq!(settings(), before);
    let (read, _write) = pipe();
    assert!(RawMode::enter(read.as_fd()).is_err(), "a pipe has no modes");
    assert!(!pty::is_terminal(read.as_fd()) && pty::is_terminal(pair.slave.as_fd()));
}

#[test]
fn k_04_the_master_arrives_at_the_console_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let pair = pty::open().unwrap();
    pty::send_to_console_socket(&path, &pair.master, LONG).unwrap();
    drop(pair.master);
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let (n, mut fds) = fdpass::receive(stream.as_fd(), &mut name, 1, Deadline::after(LONG)).unwrap();
    assert_eq!(&name[..n], b"/dev/ptmx");
    let size = WindowSize { columns: 7, rows: 5 };
    let master = fds.remove(0);
    pty::set_window_size(master.as_fd(), size).unwrap();
    assert_eq!(pty::window_size(pair.slave.as_fd()).unwrap(), size);
}

#[test]
fn k_04_a_bad_console_socket_is_an_error_that_names_it() {
    let pair = pty::open().unwrap();
    let path = std::path::Path::new("/no/such/console.sock");
    let error = pty::send_to_console_socket(path, &pair.master, LONG).unwrap_err();
    assert!(error.to_string().contains("/no/such/console.sock"), "{error}");
}

/// A shell on a slave, and a relay between pipes and its master.
fn relay_shell(script: &str, input: &[u8]) -> (String, Exit) {
    let pair = pty::open().unwrap();
    RawMode::set(pair.slave.as_fd()).unwrap();
    let again = || pair.slave.try_clone().unwrap();
    let started = Spawn::new("/bin/sh")
        .args(["-c", script])
        .fd(again(), 0)
        .fd(again(), 1)
        .fd(again(), 2)
        .new_session()
        .spawn()
        .unwrap();
    drop(pair.slave);
    let (keys, typist) = pipe();
    let (screen, output) = pipe();
    let mut typist = File::from(typist);
    typist.write_all(input).unwrap();
    let mut text = String::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut text = String::new();
            File::from(screen).read_to_string(&mut text).unwrap();
            text
        });
        let mut relay = Relay::new(keys.as_fd(), output.as_fd(), pair.master).unwrap();
        assert_eq!(relay.run(&[], Deadline::after(LONG)).unwrap(), RelayEvent::HungUp);
        drop(output);
        text = reader.join().unwrap();
    });
    (text, started.child.wait(LONG).unwrap().unwrap())
}

#[test]
fn a_relay_carries_both_ways_until_the_slave_hangs_up() {
    let (text, exit) = relay_shell("read -r line; echo \"got $line\"; exit 3", b"hello\n");
    assert_eq!((text.as_str(), exit), ("got hello\n", Exit::Code(3)));
}

#[test]
fn a_relay_delivers_everything_that_was_written_before_the_hang_up() {
    let (text, _) = relay_shell(
        "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done",
        b"",
    );
    assert_eq!(text.lines().count(), 20000);
    assert!(text.ends_with("line-19999\n"));
}

#[test]
fn a_relay_tells_of_a_watched_descriptor_and_goes_on() {
    let pair = pty::open().unwrap();
    let (keys, _typist) = pipe();
    let (_screen, output) = pipe();
    let (bell, ringer) = pipe();
    let mut relay = Relay::new(keys.as_fd(), output.as_fd(), pair.master).unwrap();
    let soon = Deadline::after(Duration::from_millis(20));
    assert_eq!(relay.run(&[bell.as_fd()], soon).unwrap(), RelayEvent::Deadline);
    drop(ringer);
    let event = relay.run(&[bell.as_fd()], Deadline::after(LONG)).unwrap();
    assert_eq!(event, RelayEvent::Watched(0));
    drop(pair.slave);
    assert_eq!(relay.run(&[], Deadline::after(LONG)).unwrap(), RelayEvent::HungUp);
}

#[test]
fn a_relay_ends_though_nobody_reads_its_output() {
    let pair = pty::open().unwrap();
    let (keys, _typist) = pipe();
    let (screen, output) = pipe();
    drop(screen);
    let mut relay = Relay::new(keys.as_fd(), output.as_fd(), pair.master).unwrap();
    File::from(pair.slave).write_all(b"lost").unwrap();
    assert_eq!(relay.run(&[], Deadline::after(LONG)).unwrap(), RelayEvent::HungUp);
}
