//! C-09 with a real SIGKILL: the supervisor is a process of its own, killed at any instruction.
//!
//! The supervisor is this test binary again, running [`supervisor`] alone.

use crate::fixture::{SOON, Wire, blocking, numbered, pipe};
use bulkhead_model::{ContainerId, ProcessKey};
use bulkhead_protocol::{Attachment, Client, Guest, StreamStore};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const DIRECTORY: &str = "BULKHEAD_TEST_SUPERVISOR";
const LINES: usize = 1_500_000;
/// One read or write is at most this long; so may a repetition be.
const REPEAT_BYTES: usize = 64 * 1024;
/// Milliseconds a supervisor lives, once it is connected or, every third, from its start.
const LIVES: [u64; 10] = [2, 0, 20, 1, 7, 40, 15, 3, 60, 30];

/// Not a test by itself: the process that gets killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisor() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let socket = |name: &str| UnixStream::connect(directory.join(name)).unwrap().into();
    let client = Client::connect(Attachment {
        control: socket("control"),
        data: socket("data"),
        store: Arc::new(StreamStore::open(&directory.join("store")).unwrap()),
        reattach: true,
        deadline: SOON,
    })
    .await
    .unwrap();
    let sink = OpenOptions::new()
        .append(true)
        .open(directory.join("sink"))
        .unwrap();
    client.connect_output(2, sink.into()).unwrap();
    // For writing too: opening never waits for the user, and the stream ends when the guest closes it.
    let source = OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join("source"))
        .unwrap();
    client.connect_input(1, source.into()).unwrap();
    let key = ProcessKey {
        container: ContainerId::new("c1").unwrap(),
        exec: None,
    };
    // Tells the test that everything is connected.
    client.signal(&key, 1, false).await.unwrap();
    client.stream_ended(2).await;
    client.stream_ended(1).await;
}

/// Killed when dropped.
fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::supervisor"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_supervisor_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::create_dir(path.join("store")).unwrap();
    File::create(path.join("sink")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path.join("source"),
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    let mut source = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path.join("source"))
        .unwrap();
    let wire = Wire::new().await;
    wire.listen(path);
    let (output_read, output_write) = pipe();
    let (input_read, input_write) = pipe();
    wire.guest.output(2, output_read).unwrap();
    wire.guest.input(1, input_write).unwrap();
    let expected = Arc::new(numbered(0, LINES));

    let bytes = Arc::clone(&expected);
    let guest = std::thread::spawn(move || File::from(output_write).write_all(&bytes));
    let bytes = Arc::clone(&expected);
    let user = std::thread::spawn(move || source.write_all(&bytes).map(|()| source));
    let last = expected[expected.len() - 10..].to_vec();
    let process = blocking(move || until(File::from(input_read), &last));
    let mut reached = BTreeSet::new();
    let kills = async {
        for (round, life) in LIVES.into_iter().enumerate() {
            let mut supervisor = start(path);
            if round % 3 != 2 {
                timeout(SOON, wire.agent.signalled.notified()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(life)).await;
            supervisor.kill().await.unwrap();
            let size = std::fs::metadata(path.join("sink")).unwrap().len();
            reached.insert(size);
        }
        // Some of them were killed while bytes were under way.
        assert!(reached.len() > 2, "{reached:?}");
        start(path)
    };
    let (received, mut supervisor) = tokio::join!(process, kills);
    guest.join().unwrap().unwrap();
    drop(user.join().unwrap().unwrap());
    // Both streams have ended then, and it ends by itself.
    let status = timeout(SOON, supervisor.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    let sent = std::fs::read(path.join("sink")).unwrap();
    println!("reached {reached:?}");
    println!(
        "repeated: {} B out, {} B in",
        sent.len() - expected.len(),
        received.len() - expected.len()
    );
    assert_eq!(repeats(&sent, &expected), Ok(()), "output");
    assert_eq!(repeats(&received, &expected), Ok(()), "input");
}

/// Reads until `last` has come.
fn until(mut from: File, last: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65536];
    while !bytes.ends_with(last) {
        match from.read(&mut buffer).unwrap() {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    bytes
}

/// Whether `got` is `expected`, but for at most one short repetition per kill. Says where it is not.
fn repeats(got: &[u8], expected: &[u8]) -> Result<(), String> {
    let mut at = 0;
    let mut place = 0;
    let mut jumps = 0;
    while at < got.len() {
        let same = got[at..]
            .iter()
            .zip(&expected[place..])
            .take_while(|(a, b)| a == b)
            .count();
        at += same;
        place += same;
        if at == got.len() {
            break;
        }
        jumps += 1;
        // Ten bytes are one number: unique wherever the cut is.
        let window = place.saturating_sub(REPEAT_BYTES);
        let sample = &got[at..got.len().min(at + 20)];
        let back = expected[window..]
            .windows(sample.len())
            .take(REPEAT_BYTES)
            .position(|w| w == sample);
        place = match back {
            Some(back) if window + back < place => window + back,
            _ => return Err(format!("byte {at} of {} is not what comes at {place}", got.len())),
        };
    }
    match (place == expected.len(), jumps <= LIVES.len()) {
        (true, true) => Ok(()),
        (complete, _) => Err(format!("complete: {complete}, repetitions: {jumps}")),
    }
}

#[test]
fn the_check_can_fail() {
    let expected = numbered(0, 1000);
    let with = |cut: usize, from: usize| [&expected[..cut], &expected[from..]].concat();
    assert_eq!(repeats(&expected, &expected), Ok(()));
    assert_eq!(repeats(&with(5003, 4001), &expected), Ok(()));
    assert!(
        repeats(&with(5003, 5004), &expected).is_err(),
        "a byte is missing"
    );
    assert!(
        repeats(&expected[..9999], &expected).is_err(),
        "the end is missing"
    );
}
