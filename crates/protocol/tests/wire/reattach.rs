//! C-09: a supervisor that is killed and replaced loses no byte of any stream.

use crate::fixture::{FakeAgent, SOON, Wire, blocking, hello, numbered, pipe};
use bulkhead_protocol::api::agent::HostHello;
use bulkhead_protocol::decoder::Decoder;
use bulkhead_protocol::frame::{Header, Kind};
use bulkhead_protocol::guest_end::Endpoint;
use bulkhead_protocol::{Guest, PROTOCOL_VERSION, StreamStore};
use protobuf::Message;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const LINES: usize = 400_000;
const LINE_BYTES: usize = 10;

/// Times between kills, in microseconds: any moment must do.
const MOMENTS: [u64; 10] = [0, 50, 300, 1_000, 3_000, 7_000, 150, 20_000, 700, 11_000];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_survives_ten_kills() {
    let directory = tempfile::tempdir().unwrap();
    let wire = Wire::new().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    wire.guest.output(2, guest_read).unwrap();
    let writer = std::thread::spawn(move || File::from(guest_write).write_all(&numbered(0, LINES)));
    let reader = blocking(move || {
        let mut bytes = Vec::new();
        File::from(user_read).read_to_end(&mut bytes).map(|_| bytes)
    });
    let kills = async {
        for (round, moment) in MOMENTS.iter().enumerate() {
            let store = StreamStore::open(directory.path()).unwrap();
            let client = wire.attach(store, round > 0).await.unwrap();
            client.connect_output(2, user_write.try_clone().unwrap()).unwrap();
            tokio::time::sleep(Duration::from_micros(*moment)).await;
            client.close().await;
            drop(client);
        }
        let store = StreamStore::open(directory.path()).unwrap();
        let client = wire.attach(store, true).await.unwrap();
        client.connect_output(2, user_write).unwrap();
        timeout(SOON, client.stream_ended(2)).await.unwrap();
        client.delivered(2, (LINES * LINE_BYTES) as u64).await.unwrap();
    };
    let (bytes, ()) = tokio::join!(reader, kills);
    writer.join().unwrap().unwrap();
    let bytes = bytes.unwrap();
    assert_eq!(bytes.len(), LINES * LINE_BYTES);
    assert!(bytes == numbered(0, LINES), "every byte once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_survives_ten_kills() {
    let directory = tempfile::tempdir().unwrap();
    let wire = Wire::new().await;
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    wire.guest.input(1, guest_write).unwrap();
    let writer = std::thread::spawn(move || File::from(user_write).write_all(&numbered(0, LINES)));
    let reader = blocking(move || {
        let mut bytes = Vec::new();
        File::from(guest_read).read_to_end(&mut bytes).map(|_| bytes)
    });
    let kills = async {
        for (round, moment) in MOMENTS.iter().enumerate() {
            let store = StreamStore::open(directory.path()).unwrap();
            let client = wire.attach(store, round > 0).await.unwrap();
            client.connect_input(1, user_read.try_clone().unwrap()).unwrap();
            tokio::time::sleep(Duration::from_micros(*moment)).await;
            client.close().await;
            drop(client);
        }
        let store = StreamStore::open(directory.path()).unwrap();
        let client = wire.attach(store, true).await.unwrap();
        client.connect_input(1, user_read).unwrap();
        timeout(SOON, client.stream_ended(1)).await.unwrap();
    };
    let (bytes, ()) = tokio::join!(reader, kills);
    writer.join().unwrap().unwrap();
    assert!(bytes.unwrap() == numbered(0, LINES), "every byte once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_stream_stays_ended_for_the_next_supervisor() {
    let directory = tempfile::tempdir().unwrap();
    let wire = Wire::new().await;
    let client = wire
        .attach(StreamStore::open(directory.path()).unwrap(), false)
        .await
        .unwrap();
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_output(2, user_write).unwrap();
    wire.guest.output(2, guest_read).unwrap();
    File::from(guest_write).write_all(b"all").unwrap();
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    client.close().await;
    drop(client);
    let client = wire
        .attach(StreamStore::open(directory.path()).unwrap(), true)
        .await
        .unwrap();
    timeout(SOON, client.stream_ended(2)).await.unwrap();
    timeout(SOON, client.delivered(2, 3)).await.unwrap().unwrap();
    let (_, other) = pipe();
    client.connect_output(2, other).unwrap();
    let mut bytes = Vec::new();
    let bytes = blocking(move || File::from(user_read).read_to_end(&mut bytes).map(|_| bytes))
        .await
        .unwrap();
    assert_eq!(bytes, b"all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_closed_while_nobody_was_attached_is_closed_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let wire = Wire::new().await;
    let client = wire
        .attach(StreamStore::open(directory.path()).unwrap(), false)
        .await
        .unwrap();
    let (guest_read, guest_write) = pipe();
    let (user_read, user_write) = pipe();
    client.connect_input(1, user_read.try_clone().unwrap()).unwrap();
    wire.guest.input(1, guest_write).unwrap();
    let mut user = File::from(user_write);
    user.write_all(b"x").unwrap();
    let guest_read = blocking(move || {
        let mut guest = File::from(guest_read);
        guest.read_exact(&mut [0; 1]).map(|()| guest)
    })
    .await
    .unwrap();
    client.close().await;
    drop(client);
    drop(guest_read);
    // The guest's thread has seen the closed pipe once it answers the next question.
    assert_eq!(wire.guest.drain(9), 0);
    let client = wire
        .attach(StreamStore::open(directory.path()).unwrap(), true)
        .await
        .unwrap();
    client.connect_input(1, user_read).unwrap();
    timeout(SOON, client.stream_ended(1)).await.unwrap();
    assert!(user.write_all(b"y").is_err(), "EPIPE");
}

/// The payload of the next frame of a kind.
fn next(host: &mut StdStream, decoder: &mut Decoder, wanted: Kind) -> Vec<u8> {
    loop {
        while let Some(frame) = decoder.pull() {
            if frame.kind == wanted {
                return frame.payload.to_vec();
            }
        }
        let count = host.read(decoder.space()).unwrap();
        assert!(count > 0, "the guest hung up");
        decoder.filled(count);
    }
}

/// Linux tells of a virtio-serial host that went away on another path than its bytes: the end of one connection may
/// be seen when the Hello of the next was read. It ends nothing then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_end_of_the_last_connection_does_not_end_this_one() {
    let (control, _far) = StdStream::pair().unwrap();
    let (device, mut host) = StdStream::pair().unwrap();
    let guest = Endpoint::new(control.into(), device.into(), hello()).unwrap();
    guest.serve(Arc::new(FakeAgent::default())).await.unwrap();
    let (read, write) = pipe();
    guest.output(1, read).unwrap();
    blocking(move || {
        let say = |kind, stream| Header {
            kind,
            stream,
            epoch: 7,
            offset: 0,
        };
        let greeting = HostHello {
            protocol_version: PROTOCOL_VERSION,
            ..Default::default()
        };
        let mut words = Vec::new();
        say(Kind::Hello, 0).append(&greeting.write_to_bytes().unwrap(), &mut words);
        say(Kind::Resume, 1).append(&[], &mut words);
        host.write_all(&words).unwrap();
        let mut decoder = Decoder::new();
        decoder.set_epoch(Some(7));
        next(&mut host, &mut decoder, Kind::Synced);
        host.shutdown(Shutdown::Write).unwrap();
        // Two rounds of the port thread: it has read the end by then.
        for _ in 0..2 {
            let _ = guest.drain(1);
        }
        rustix::io::write(&write, b"late").unwrap();
        host.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(next(&mut host, &mut decoder, Kind::Data), b"late");
    })
    .await;
}
