//! Handshake, calls, deadlines, the end of a connection.

use crate::fixture::{SOON, Wire, hello};
use bulkhead_model::{ContainerId, ExitStatus, FailureKind, ProcessKey};
use bulkhead_protocol::api::agent::Hello;
use bulkhead_protocol::{Attachment, Client, Guest, GuestError, GuestIdentity, GuestStdio, StreamStore};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

fn key() -> ProcessKey {
    ProcessKey {
        container: ContainerId::new("c1").unwrap(),
        exec: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_and_counted() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    assert_eq!(client.hello().kernel_release, "6.12.0-test");
    client.configure(GuestIdentity::default()).await.unwrap();
    // What the guest did comes with the answer, once.
    let steps = client.take_steps().unwrap();
    assert_eq!((steps.received_ns, steps.answered_ns), (5, 8));
    let [step] = &steps.steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!((step.name.as_str(), step.begin_ns, step.end_ns), ("mount", 6, 7));
    assert_eq!(client.take_steps(), None);
    let refused = client
        .exec(&key(), vec![], GuestStdio::default())
        .await
        .unwrap_err();
    assert!(matches!(
        refused,
        GuestError::Refused {
            kind: FailureKind::ProgramNotFound,
            ..
        }
    ));
    wire.agent.exited.notify_one();
    let exit = client.wait(&key()).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Signal(9));
    assert_eq!(exit.stdout_offset, 3);
    assert_eq!(client.calls(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_crosses_in_many_frames() {
    let wire = Wire::new().await;
    let client = wire.client().await;
    let identity = GuestIdentity {
        entropy: vec![7; 3 << 20],
        ..Default::default()
    };
    client.configure(identity).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_of_another_version_is_named() {
    let old = Hello {
        protocol_version: 77,
        ..hello()
    };
    let error = Wire::with_hello(old)
        .await
        .attach(StreamStore::memory(), false)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("version is 77, expected 1"), "{error}");
}

fn half_open() -> (Attachment, UnixStream, UnixStream) {
    let (control, control_far) = UnixStream::pair().unwrap();
    let (data, data_far) = UnixStream::pair().unwrap();
    let attachment = Attachment {
        control: control.into(),
        data: data.into(),
        store: Arc::new(StreamStore::memory()),
        reattach: true,
        deadline: Duration::from_millis(100),
    };
    (attachment, control_far, data_far)
}

#[tokio::test]
async fn a_silent_guest_meets_the_deadline() {
    let (attachment, _control, _data) = half_open();
    let error = Client::connect(attachment).await.unwrap_err();
    assert!(
        matches!(error, GuestError::Deadline { call: "hello", .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_vmm_that_ends_during_hello_is_noticed_at_once() {
    let (mut attachment, control, data) = half_open();
    attachment.deadline = Duration::from_secs(3600);
    drop((control, data));
    let error = tokio::time::timeout(SOON, Client::connect(attachment))
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, GuestError::Gone { call: "hello" }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_waits_ends_with_the_connection() {
    let wire = Wire::new().await;
    let client = Arc::new(wire.client().await);
    let waiting = client.clone();
    let wait = tokio::spawn(async move { waiting.wait(&key()).await });
    let waiting = client.clone();
    let delivered = tokio::spawn(async move { waiting.delivered(9, 1).await });
    let waiting = client.clone();
    let ended = tokio::spawn(async move { waiting.stream_ended(9).await });
    client.signal(&key(), 1, false).await.unwrap();
    drop(wire);
    let gone = tokio::time::timeout(SOON, client.gone()).await;
    assert!(gone.is_ok());
    let wait = tokio::time::timeout(SOON, wait).await.unwrap().unwrap();
    assert!(matches!(wait, Err(GuestError::Gone { call: "wait" })), "{wait:?}");
    let delivered = tokio::time::timeout(SOON, delivered).await.unwrap().unwrap();
    assert!(matches!(delivered, Err(GuestError::Gone { .. })), "{delivered:?}");
    tokio::time::timeout(SOON, ended).await.unwrap().unwrap();
    let late = client.signal(&key(), 1, false).await.unwrap_err();
    assert!(matches!(late, GuestError::Gone { call: "signal" }), "{late}");
}
