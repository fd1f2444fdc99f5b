//! Every kind of descriptor a user may hand over.

use crate::fixture::{SOON, Wire, blocking, pipe};
use bulkhead_protocol::Guest;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use tokio::time::timeout;

fn flags(fd: impl AsFd) -> OFlags {
    rustix::fs::fcntl_getfl(fd).unwrap()
}

/// Sends `text` from the guest into `sink` and waits for the end of the stream.
async fn through(sink: OwnedFd, text: &'static [u8]) {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    client.connect_output(2, sink).unwrap();
    wire.guest.output(2, guest_read).unwrap();
    blocking(move || File::from(guest_write).write_all(text))
        .await
        .unwrap();
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    client.delivered(2, text.len() as u64).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_written_where_its_position_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "before ").unwrap();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    through(file.into(), b"after").await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_null_swallows() {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    through(null.into(), &[0; 300_000]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_written_and_stays_blocking() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let keep = near.try_clone().unwrap();
    let reader = blocking(move || {
        let mut bytes = vec![0; 300_000];
        far.read_exact(&mut bytes).unwrap();
    });
    tokio::join!(through(near.into(), &[3; 300_000]), reader);
    assert!(!flags(&keep).contains(OFlags::NONBLOCK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_shared_with_the_user_stays_blocking() {
    let (read, write) = pipe();
    let keep = write.try_clone().unwrap();
    through(write, b"x").await;
    assert!(!flags(&keep).contains(OFlags::NONBLOCK));
    drop(keep);
    let mut bytes = Vec::new();
    File::from(read).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"x");
}

/// The write end of a FIFO whose reader went away before anything was written.
fn unread_fifo() -> OwnedFd {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RUSR, 0).unwrap();
    let open =
        |access| rustix::fs::open(&path, access | OFlags::NONBLOCK, rustix::fs::Mode::empty()).unwrap();
    let _read = open(OFlags::RDONLY);
    open(OFlags::WRONLY)
}

/// Returns once the guest's writer is told that nobody reads.
async fn writes_until_broken(guest_write: OwnedFd) {
    blocking(move || {
        let mut pipe = File::from(guest_write);
        while pipe.write_all(b"x").is_ok() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifo_nobody_reads_is_a_sink_that_is_gone() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    wire.guest.output(2, guest_read).unwrap();
    client.connect_output(2, unread_fifo()).unwrap();
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    writes_until_broken(guest_write).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifo_nobody_reads_is_gone_for_a_guest_that_connects_later() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    client.connect_output(2, unread_fifo()).unwrap();
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    // What is written on one port arrives in order: the close is there before this stream's bytes.
    let (other_read, other_write) = pipe();
    let (sink_read, sink_write) = pipe();
    client.connect_output(4, sink_write).unwrap();
    wire.guest.output(4, other_read).unwrap();
    blocking(move || File::from(other_write).write_all(b"y"))
        .await
        .unwrap();
    timeout(SOON, client.stream_ended(4)).await.unwrap();
    drop(sink_read);
    let (guest_read, guest_write) = pipe();
    wire.guest.output(2, guest_read).unwrap();
    writes_until_broken(guest_write).await;
}

fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(
        name,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let mut raw = rustix::termios::tcgetattr(&slave).unwrap();
    raw.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &raw).unwrap();
    (master, slave)
}

/// user's master ── user's slave ── wire ── guest's master ── guest's slave
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_at_both_ends() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (user_master, user_slave) = terminal();
    let (guest_master, guest_slave) = terminal();
    client.connect_input(1, user_slave.try_clone().unwrap()).unwrap();
    client.connect_output(2, user_slave.try_clone().unwrap()).unwrap();
    wire.guest.terminal(1, 2, guest_master).unwrap();
    let mut user = File::from(user_master);
    let mut guest = File::from(guest_slave);
    user.write_all(b"typed").unwrap();
    let guest = blocking(move || {
        let mut bytes = [0; 5];
        guest.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"typed");
        guest.write_all(b"shown").unwrap();
        guest
    })
    .await;
    assert_eq!(wire.guest.drain(2), 5);
    drop(guest);
    let user = blocking(move || {
        let mut bytes = [0; 5];
        user.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"shown");
        user
    })
    .await;
    // The last slave in the guest is closed: EIO there is the end of the output.
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    assert!(!flags(&user_slave).contains(OFlags::NONBLOCK));
    drop(user);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_comes_from_a_file_and_from_dev_null() {
    for (path, expected) in [
        ("/proc/self/mounts", std::fs::read("/proc/self/mounts").unwrap()),
        ("/dev/null", vec![]),
    ] {
        let wire = Wire::new().await;
        let client = wire.client().await;
        let (guest_read, guest_write) = pipe();
        client.connect_input(1, File::open(path).unwrap().into()).unwrap();
        wire.guest.input(1, guest_write).unwrap();
        let mut bytes = Vec::new();
        let bytes = blocking(move || File::from(guest_read).read_to_end(&mut bytes).map(|_| bytes))
            .await
            .unwrap();
        assert_eq!(bytes, expected, "{path}");
    }
}
