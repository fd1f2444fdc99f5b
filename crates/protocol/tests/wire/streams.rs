//! Bytes both ways: order, ends, flow control.

use crate::fixture::{SOON, Wire, blocking, numbered, pipe};
use bulkhead_protocol::Guest;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_arrives_with_its_end() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_output(2, user_write).unwrap();
    wire.guest.output(2, guest_read).unwrap();
    File::from(guest_write).write_all(b"one\ntwo\n").unwrap();
    let mut text = String::new();
    let text = blocking(move || File::from(user_read).read_to_string(&mut text).map(|_| text))
        .await
        .unwrap();
    assert_eq!(text, "one\ntwo\n");
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    client.delivered(2, 8).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_may_be_connected_by_either_end_first() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    wire.guest.output(2, guest_read).unwrap();
    File::from(guest_write).write_all(b"early").unwrap();
    // A round trip of the control port and the drain show that the guest has read it.
    assert_eq!(wire.guest.drain(2), 5);
    client.connect_output(2, user_write).unwrap();
    let mut bytes = Vec::new();
    let bytes = blocking(move || File::from(user_read).read_to_end(&mut bytes).map(|_| bytes))
        .await
        .unwrap();
    assert_eq!(bytes, b"early");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_is_half_closed() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_input(1, user_read).unwrap();
    wire.guest.input(1, guest_write).unwrap();
    let mut user = File::from(user_write);
    user.write_all(b"hello").unwrap();
    let mut guest = File::from(guest_read);
    let mut five = [0; 5];
    let (mut guest, five) = blocking(move || guest.read_exact(&mut five).map(|()| (guest, five)))
        .await
        .unwrap();
    assert_eq!(&five, b"hello");
    drop(user);
    let count = blocking(move || guest.read(&mut [0; 1])).await.unwrap();
    assert_eq!(count, 0, "end of file");
    timeout(SOON, client.stream_ended(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_input_ends_it_without_its_source() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_input(1, user_read).unwrap();
    wire.guest.input(1, guest_write).unwrap();
    client.close_input(1);
    let count = blocking(move || File::from(guest_read).read(&mut [0; 1]))
        .await
        .unwrap();
    assert_eq!(count, 0);
    timeout(SOON, client.stream_ended(1)).await.unwrap();
    let error = File::from(user_write).write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "the source is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_from_the_user_before_the_guest_asks() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (user_read, user_write) = pipe();
    let mine = user_read.try_clone().unwrap();
    client.connect_input(1, user_read).unwrap();
    File::from(user_write).write_all(b"keep").unwrap();
    client.disconnect(1);
    timeout(SOON, client.stream_ended(1)).await.unwrap();
    let mut text = String::new();
    let text = blocking(move || File::from(mine).read_to_string(&mut text).map(|_| text))
        .await
        .unwrap();
    assert_eq!(text, "keep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_breaks_the_guests_pipe() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_output(2, user_write).unwrap();
    wire.guest.output(2, guest_read).unwrap();
    drop(user_read);
    let error = blocking(move || {
        let mut guest = File::from(guest_write);
        loop {
            if let Err(error) = guest.write_all(&[0; 4096]) {
                return error;
            }
        }
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    client.delivered(2, u64::MAX).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_closes_stdin_breaks_the_users_pipe() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_input(1, user_read).unwrap();
    wire.guest.input(1, guest_write).unwrap();
    drop(guest_read);
    timeout(SOON, client.stream_ended(1)).await.unwrap();
    let error = File::from(user_write).write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_reader_stops_its_writer_and_nobody_else() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (stuck_read, stuck_write) = pipe();
    let (user_stuck, sink_stuck) = pipe();
    client.connect_output(2, sink_stuck).unwrap();
    wire.guest.output(2, stuck_read).unwrap();
    rustix::io::ioctl_fionbio(&stuck_write, true).unwrap();
    let mut stuck_write = File::from(stuck_write);
    // Nobody reads: pipe, window and pipe fill up, and then it blocks, after less than 1 MiB.
    let written = blocking(move || {
        let until = Instant::now() + Duration::from_secs(2);
        let mut written = 0;
        while Instant::now() < until {
            match stuck_write.write(&[1; 4096]) {
                Ok(count) => written += count,
                Err(_) => std::thread::yield_now(),
            }
        }
        written
    })
    .await;
    assert!(written > 256 * 1024 && written < MIB, "{written}");

    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_output(3, user_write).unwrap();
    wire.guest.output(3, guest_read).unwrap();
    let writer = blocking(move || File::from(guest_write).write_all(&vec![2; MIB]));
    let reader = blocking(move || File::from(user_read).read_to_end(&mut Vec::new()));
    let (wrote, read) = tokio::join!(writer, reader);
    wrote.unwrap();
    assert_eq!(read.unwrap(), MIB);
    let rest = blocking(move || {
        File::from(user_stuck)
            .take(written as u64)
            .read_to_end(&mut Vec::new())
    })
    .await;
    assert_eq!(rest.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_counts_what_was_written_before() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_output(2, user_write).unwrap();
    wire.guest.output(2, guest_read).unwrap();
    let mut guest = File::from(guest_write);
    for n in 1..200 {
        guest.write_all(b"twelve bytes").unwrap();
        assert_eq!(wire.guest.drain(2), 12 * n);
    }
    client.delivered(2, 12 * 199).await.unwrap();
    rustix::io::ioctl_fionbio(&user_read, true).unwrap();
    let mut bytes = vec![0; 12 * 199];
    File::from(user_read).read_exact(&mut bytes).unwrap();
    assert_eq!(wire.guest.drain(77), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_writes_keep_their_order() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_output(2, user_write).unwrap();
    wire.guest.output(2, guest_read).unwrap();
    let writer = blocking(move || {
        let mut guest = File::from(guest_write);
        for line in numbered(0, 20_000).chunks(10) {
            guest.write_all(line).unwrap();
        }
    });
    let reader = blocking(move || {
        let mut bytes = Vec::new();
        File::from(user_read).read_to_end(&mut bytes).map(|_| bytes)
    });
    let ((), bytes) = tokio::join!(writer, reader);
    assert!(bytes.unwrap() == numbered(0, 20_000));
}

/// 100 MiB each way at once: the hash is right, and calls stay fast meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_each_way_arrive_intact() {
    let size = 100 * MIB;
    let wire = Wire::new().await;
    let client = wire.client().await;
    let (guest_out_read, guest_out_write) = pipe();
    let (guest_in_read, guest_in_write) = pipe();
    let (user_out_read, user_out_write) = pipe();
    let (user_in_read, user_in_write) = pipe();
    client.connect_output(2, user_out_write).unwrap();
    client.connect_input(1, user_in_read).unwrap();
    wire.guest.output(2, guest_out_read).unwrap();
    wire.guest.input(1, guest_in_write).unwrap();
    let started = Instant::now();
    let writers =
        [guest_out_write, user_in_write].map(|end| std::thread::spawn(move || send(File::from(end), size)));
    let readers =
        [user_out_read, guest_in_read].map(|end| std::thread::spawn(move || receive(File::from(end))));
    let key = bulkhead_model::ProcessKey {
        container: bulkhead_model::ContainerId::new("c").unwrap(),
        exec: None,
    };
    let mut calls = 0;
    let mut slowest = Duration::ZERO;
    while readers.iter().any(|reader| !reader.is_finished()) {
        let asked = Instant::now();
        client.signal(&key, 1, false).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        calls += 1;
        assert!(started.elapsed() < 5 * SOON, "deadline");
    }
    let sent = writers.map(|writer| writer.join().unwrap());
    let received = readers.map(|reader| reader.join().unwrap());
    println!(
        "{:?} for 2 x 100 MiB; {calls} calls meanwhile, slowest {slowest:?}",
        started.elapsed()
    );
    assert_eq!(sent, received);
    assert!(calls > 10, "{calls}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

fn send(mut end: File, size: usize) -> Vec<u8> {
    let mut hash = Sha256::new();
    let block: Vec<u8> = (0..MIB).map(|n| (n * 7 + n / 251) as u8).collect();
    for n in 0..size / MIB {
        let start = n * 4001 % MIB;
        for part in [&block[start..], &block[..start]] {
            hash.update(part);
            end.write_all(part).unwrap();
        }
    }
    hash.finalize().to_vec()
}

fn receive(mut end: File) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 65536];
    loop {
        match end.read(&mut buffer).unwrap() {
            0 => return hash.finalize().to_vec(),
            count => hash.update(&buffer[..count]),
        }
    }
}
