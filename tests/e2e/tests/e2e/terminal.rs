//! Terminals: `run -t` in the foreground, console sockets, resize, hang-up.

use bulkhead_e2e::{Lab, Lines, Runtime, VERB};
use bulkhead_host::deadline::{Deadline, readable};
use bulkhead_host::fdpass;
use bulkhead_host::pty::{self, WindowSize};
use serde_json::json;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// The size once there is one: runc sets it after the program has started.
const SIZE: &str = "until stty size 2>/dev/null | grep -q '^[1-9]'; do sleep 0.1; done; stty size";

fn size(columns: u16, rows: u16) -> WindowSize {
    WindowSize { columns, rows }
}

on_both! {
    /// Inside there is a terminal: `tty` names it, its size follows ours, input is echoed.
    fn in_the_foreground(lab) {
        let pair = pty::open().unwrap();
        pty::set_window_size(pair.master.as_fd(), size(91, 33)).unwrap();
        let script = format!(
            "tty; {SIZE}; read line; echo \"got $line\"; stty size; test -t 0 && test -t 1 && test -t 2; exit $?"
        );
        let bundle = lab.bundle().script(&script).with(|config| config["process"]["terminal"] = json!(true));
        let running = lab
            .call(&["run", "--bundle", bundle.arg(), &lab.id()])
            .terminal(&pair.slave)
            .start();
        let mut lines = Lines::of(File::from(pair.master.try_clone().unwrap()));
        lines.expect("/dev/pts/", VERB);
        lines.expect("33 91", VERB);
        pty::set_window_size(pair.master.as_fd(), size(120, 50)).unwrap();
        running.signal(nix::sys::signal::Signal::SIGWINCH);
        // The size arrives on its own way: give it a moment before the line that asks for it.
        std::thread::sleep(std::time::Duration::from_millis(1000));
        File::from(pair.master.try_clone().unwrap()).write_all(b"hello\n").unwrap();
        lines.expect("got hello", VERB);
        lines.expect("50 120", VERB);
        let _ = running.wait().ok();
    }
}

/// Receives the terminal an engine gets over its console socket.
fn console(listener: &UnixListener) -> OwnedFd {
    assert!(
        readable(listener.as_fd(), Deadline::after(VERB)).unwrap(),
        "nobody sent a terminal"
    );
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = [0; 256];
    let (_, fds) = fdpass::receive(stream.as_fd(), &mut buffer, 1, Deadline::after(VERB)).unwrap();
    fds.into_iter().next().expect("a descriptor with the message")
}

on_both! {
    /// K-04: `--console-socket` gets the master; resizing it reaches the container.
    fn over_a_console_socket(lab) {
        let socket = lab.dir().join("console");
        let listener = UnixListener::bind(&socket).unwrap();
        let script = "tty; while read line; do stty size; done";
        let bundle = lab.bundle().script(script).with(|config| config["process"]["terminal"] = json!(true));
        let id = lab.id();
        let arguments = ["create", "--bundle", bundle.arg(), "--console-socket", socket.to_str().unwrap(), &id];
        let creating = lab.call(&arguments).start();
        let master = console(&listener);
        let _ = creating.wait().ok();
        pty::set_window_size(master.as_fd(), size(77, 22)).unwrap();
        let mut lines = Lines::of(File::from(master.try_clone().unwrap()));
        let _ = lab.quick(&["start", &id]).ok();
        lines.expect("/dev/pts/", VERB);
        std::thread::sleep(std::time::Duration::from_millis(1000));
        let mut keyboard = File::from(master.try_clone().unwrap());
        keyboard.write_all(b"\n").unwrap();
        lines.expect("22 77", VERB);
        // Control-D ends the shell's input, and with it the container.
        keyboard.write_all(b"\x04").unwrap();
        bulkhead_e2e::until("stopped", VERB, || lab.status(&id) == "stopped");
        let _ = lab.quick(&["delete", &id]).ok();
    }
}

on_both! {
    /// A terminal that goes away hangs up the container's session.
    fn hang_up(lab) {
        let socket = lab.dir().join("console");
        let listener = UnixListener::bind(&socket).unwrap();
        let script = "trap 'echo hup > /hup; exit 0' HUP; echo ready; while :; do sleep 0.1; done";
        let bundle = lab.bundle().script(script).with(|config| config["process"]["terminal"] = json!(true));
        let id = lab.id();
        let arguments = ["run", "-d", "--bundle", bundle.arg(), "--console-socket", socket.to_str().unwrap(), &id];
        let creating = lab.call(&arguments).start();
        let master = console(&listener);
        let _ = creating.wait().ok();
        let (read, mut write) = std::io::pipe().unwrap();
        let mut reader = File::from(master.try_clone().unwrap());
        let copier = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let count = std::io::Read::read(&mut reader, &mut buffer).unwrap();
            write.write_all(&buffer[..count]).unwrap();
        });
        Lines::of(read).expect("ready", VERB);
        copier.join().unwrap();
        drop(master);
        bulkhead_e2e::until("hung up", VERB, || bundle.rootfs().join("hup").exists());
        bulkhead_e2e::until("stopped", VERB, || lab.status(&id) == "stopped");
        let _ = lab.quick(&["delete", &id]).ok();
    }
}

on_both! {
    /// `exec -t` in a container without a terminal.
    fn exec_with_a_terminal(lab) {
        let bundle = lab.bundle().script("exec sleep 600");
        let id = lab.id();
        lab.run_detached(&bundle, &id);
        let pair = pty::open().unwrap();
        pty::set_window_size(pair.master.as_fd(), size(64, 17)).unwrap();
        let running = lab
            .call(&["exec", "-t", &id, "sh", "-c", &format!("tty; {SIZE}; exit 12")])
            .terminal(&pair.slave)
            .start();
        let mut lines = Lines::of(File::from(pair.master.try_clone().unwrap()));
        lines.expect("/dev/pts/", VERB);
        lines.expect("17 64", VERB);
        let _ = running.wait().exits(12);
        lab.delete(&id);
    }
}
