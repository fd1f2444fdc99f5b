//! The client: commands out, answers and events in.
//!
//! ```text
//!  execute ─► queue ─► writer task ─► socket ─► reader task ─► the waiting execute
//!                                                  └────────► events (broadcast)
//! ```
//!
//! Owns: ids, deadlines, the count of answers. Never: retries. A caller that goes
//! away in the middle of a command leaves the stream intact, because only the writer task writes.

use super::error::QmpError;
use super::message::QmpEvent;
use super::pending::{Entry, Pending};
use super::reader::Reader;
use super::writer::{Request, write_all};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Events kept for a slow listener; one that falls behind is told so by its receiver.
const EVENT_BACKLOG: usize = 256;

/// A connection to QEMU's machine protocol.
#[derive(Debug)]
pub struct QmpClient {
    queue: mpsc::UnboundedSender<Request>,
    pending: Arc<Pending>,
    events: broadcast::Sender<QmpEvent>,
    closed: watch::Receiver<bool>,
    next_id: AtomicU64,
    answered: Arc<AtomicU64>,
    tasks: [JoinHandle<()>; 2],
}

impl QmpClient {
    /// Takes a connected socket, waits for QEMU's greeting and leaves negotiation mode. QEMU greets every
    /// new connection, so this is also how a running VM is taken over.
    ///
    /// # Errors
    /// [`QmpError::Closed`] when QEMU ends, [`QmpError::Deadline`] when it does not greet or answer within
    /// `deadline` (another client holds the socket), [`QmpError::Socket`] for an unusable descriptor. Must be called in a tokio runtime.
    pub async fn connect(socket: OwnedFd, deadline: Duration) -> Result<Self, QmpError> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true).map_err(QmpError::Socket)?;
        let (read, write) = UnixStream::from_std(socket)
            .map_err(QmpError::Socket)?
            .into_split();
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
        let answered = Arc::new(AtomicU64::new(0));
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let (closed_tx, closed) = watch::channel(false);
        let (greeted_tx, greeted) = oneshot::channel();
        let (queue, requests) = mpsc::unbounded_channel();
        let reader = Reader {
            pending: Arc::clone(&pending),
            answered: Arc::clone(&answered),
            events: events.clone(),
            greeted: Some(greeted_tx),
        };
        let reading = tokio::spawn(async move {
            reader.run(read).await;
            let _ = closed_tx.send(true);
        });
        let writing = tokio::spawn(write_all(write, requests, Arc::clone(&pending)));
        let client = Self {
            queue,
            pending,
            events,
            closed,
            next_id: AtomicU64::new(1),
            answered,
            tasks: [reading, writing],
        };
        let command = "greeting";
        match tokio::time::timeout(deadline, greeted).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(QmpError::Closed { command }),
            Err(_) => return Err(QmpError::Deadline { command, deadline }),
        }
        client
            .execute("qmp_capabilities", Value::Null, Vec::new(), deadline)
            .await?;
        Ok(client)
    }

    /// Runs one command. `arguments` is an object or `Null`; `fds` travel with it (SCM_RIGHTS) for `getfd`
    /// and `add-fd`.
    ///
    /// # Errors
    /// [`QmpError::Refused`], [`QmpError::Deadline`] or [`QmpError::Closed`].
    pub async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        fds: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        match self.pending.lock().as_mut() {
            Some(waiting) => waiting.insert(id, tx),
            None => return Err(QmpError::Closed { command }),
        };
        // Forgets the command also when the caller gives up on this future.
        let _entry = Entry {
            id,
            pending: &self.pending,
        };
        let mut value = json!({"execute": command, "id": id});
        if !arguments.is_null() {
            value["arguments"] = arguments;
        }
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        tracing::trace!(command, id, "qmp");
        if self.queue.send(Request { id, line, fds }).is_err() {
            return Err(QmpError::Closed { command });
        }
        match tokio::time::timeout(deadline, rx).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(refusal))) => Err(QmpError::Refused { command, refusal }),
            Ok(Err(_)) => Err(QmpError::Closed { command }),
            Err(_) => Err(QmpError::Deadline { command, deadline }),
        }
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    /// Commands answered so far, refusals included.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        // An error means the reader is gone without a word, which is an end as well.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }
}

impl Drop for QmpClient {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::MsgFlags;
    use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream as StdStream;
    use std::thread::{JoinHandle, spawn};

    const SOON: Duration = Duration::from_secs(20);
    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    /// A QEMU that answers qmp_capabilities and then does as `script` says.
    fn qemu<T: Send + 'static>(
        script: impl FnOnce(&mut BufReader<StdStream>) -> T + Send + 'static,
    ) -> (OwnedFd, JoinHandle<T>) {
        let (ours, theirs) = StdStream::pair().unwrap();
        let thread = spawn(move || {
            let mut stream = BufReader::new(theirs);
            stream.get_mut().write_all(GREETING).unwrap();
            answer(&mut stream, "{}");
            script(&mut stream)
        });
        (ours.into(), thread)
    }

    fn read(stream: &mut BufReader<StdStream>) -> Value {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn answer(stream: &mut BufReader<StdStream>, value: &str) {
        let id = read(stream)["id"].clone();
        writeln!(stream.get_mut(), "{{\"return\": {value}, \"id\": {id}}}").unwrap();
    }

    #[tokio::test]
    async fn answers_come_back_by_id_whatever_their_order() {
        let (socket, thread) = qemu(|stream| {
            let (first, second) = (read(stream), read(stream));
            for command in [second, first] {
                writeln!(
                    stream.get_mut(),
                    "{{\"return\": {}, \"id\": {}}}",
                    command["execute"],
                    command["id"]
                )
                .unwrap();
            }
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        let (a, b) = tokio::join!(
            client.execute("query-a", Value::Null, Vec::new(), SOON),
            client.execute("query-b", json!({"x": 1}), Vec::new(), SOON)
        );
        assert_eq!((a.unwrap(), b.unwrap()), (json!("query-a"), json!("query-b")));
        assert_eq!(client.answered(), 3);
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn garbage_and_unknown_ids_disturb_nothing() {
        let (socket, thread) = qemu(|stream| {
            stream
                .get_mut()
                .write_all(b"\n\xff\xfe not json\n{\"return\": {}, \"id\": 4711}\n[1]\n{\"error\": {}}\n")
                .unwrap();
            answer(stream, "7");
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        assert_eq!(
            client
                .execute("query-a", Value::Null, Vec::new(), SOON)
                .await
                .unwrap(),
            json!(7)
        );
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_class() {
        let (socket, thread) = qemu(|stream| {
            let id = read(stream)["id"].clone();
            let line = format!(
                "{{\"id\": {id}, \"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"Device 'x' not found\"}}}}\n"
            );
            stream.get_mut().write_all(line.as_bytes()).unwrap();
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        match client
            .execute("device_del", json!({"id": "x"}), Vec::new(), SOON)
            .await
        {
            Err(QmpError::Refused {
                command: "device_del",
                refusal,
            }) => {
                assert_eq!(refusal.class, "DeviceNotFound");
            }
            other => panic!("{other:?}"),
        }
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn an_end_wakes_every_waiter_and_later_commands_fail_at_once() {
        let (socket, thread) = qemu(|stream| {
            let _ = (read(stream), read(stream));
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        let (a, b) = tokio::join!(
            client.execute("query-a", Value::Null, Vec::new(), SOON),
            client.execute("query-b", Value::Null, Vec::new(), SOON)
        );
        assert!(matches!(a, Err(QmpError::Closed { command: "query-a" })), "{a:?}");
        assert!(matches!(b, Err(QmpError::Closed { .. })), "{b:?}");
        client.closed().await;
        let late = client.execute("query-c", Value::Null, Vec::new(), SOON).await;
        assert!(matches!(late, Err(QmpError::Closed { .. })), "{late:?}");
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_silent_qemu_hits_the_deadline_and_the_stream_stays_usable() {
        let (socket, thread) = qemu(|stream| {
            let lost = read(stream);
            let id = read(stream)["id"].clone();
            // The late answer to the first command must not be taken for the second's.
            writeln!(
                stream.get_mut(),
                "{{\"return\": 1, \"id\": {}}}\n{{\"return\": 2, \"id\": {id}}}",
                lost["id"]
            )
            .unwrap();
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        let lost = client
            .execute("query-a", Value::Null, Vec::new(), Duration::from_millis(30))
            .await;
        assert!(matches!(lost, Err(QmpError::Deadline { .. })), "{lost:?}");
        assert_eq!(
            client
                .execute("query-b", Value::Null, Vec::new(), SOON)
                .await
                .unwrap(),
            json!(2)
        );
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn no_greeting_is_a_deadline_not_a_hang() {
        let (ours, _theirs) = StdStream::pair().unwrap();
        let error = QmpClient::connect(ours.into(), Duration::from_millis(30))
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                QmpError::Deadline {
                    command: "greeting",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection() {
        let (socket, thread) = qemu(|stream| {
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..6 {
                if stream.get_mut().write_all(&chunk).is_err() {
                    break;
                }
            }
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        tokio::time::timeout(SOON, client.closed()).await.unwrap();
        drop(client);
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn events_reach_every_listener() {
        let (socket, thread) = qemu(|stream| {
            let id = read(stream)["id"].clone();
            writeln!(
                stream.get_mut(),
                "{{\"event\": \"STOP\", \"data\": {{\"n\": 1}}}}\n{{\"return\": {{}}, \"id\": {id}}}"
            )
            .unwrap();
        });
        let client = QmpClient::connect(socket, SOON).await.unwrap();
        let (mut a, mut b) = (client.events(), client.events());
        client
            .execute("stop", Value::Null, Vec::new(), SOON)
            .await
            .unwrap();
        let expected = QmpEvent {
            name: "STOP".into(),
            data: json!({"n": 1}),
        };
        assert_eq!(
            (a.recv().await.unwrap(), b.recv().await.unwrap()),
            (expected.clone(), expected)
        );
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn descriptors_travel_with_their_command() {
        use nix::sys::socket::{ControlMessageOwned, recvmsg};
        let (ours, theirs) = StdStream::pair().unwrap();
        let thread = spawn(move || {
            let mut stream = BufReader::new(theirs);
            stream.get_mut().write_all(GREETING).unwrap();
            answer(&mut stream, "{}");
            let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
            let mut bytes = [0u8; 4096];
            let mut data = [IoSliceMut::new(&mut bytes)];
            let message = recvmsg::<()>(
                stream.get_ref().as_raw_fd(),
                &mut data,
                Some(&mut space),
                MsgFlags::empty(),
            )
            .unwrap();
            let received: Vec<i32> = message
                .cmsgs()
                .unwrap()
                .flat_map(|c| match c {
                    ControlMessageOwned::ScmRights(fds) => fds,
                    _ => Vec::new(),
                })
                .collect();
            let length = message.bytes;
            let command: Value = serde_json::from_slice(&bytes[..length]).unwrap();
            writeln!(
                stream.get_mut(),
                "{{\"return\": {{}}, \"id\": {}}}",
                command["id"]
            )
            .unwrap();
            assert_eq!(command["execute"], "getfd");
            // Reopened by path, so that no unsafe is needed to own it.
            let mut text = String::new();
            std::fs::File::open(format!("/proc/self/fd/{}", received[0]))
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            nix::unistd::close(received[0]).unwrap();
            (received.len(), text)
        });
        let client = QmpClient::connect(ours.into(), SOON).await.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        client
            .execute("getfd", json!({"fdname": "a"}), vec![file.into()], SOON)
            .await
            .unwrap();
        assert_eq!(thread.join().unwrap(), (1, "hello".into()));
    }
}
