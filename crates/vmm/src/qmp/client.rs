//! The client: commands out, answers and events in.
//!
//! ```text
//!  execute ─► queue ─► writer task ─► socket ─► reader task ─► the waiting execute
//!                                                  └────────► events (broadcast)
//! ```
//!
//! Owns: ids, deadlines, descriptor passing, the count of answers. Never: retries. A caller that goes
//! away in the middle of a command leaves the stream intact, because only the writer task writes.

use super::message::{Message, QmpEvent, Refusal};
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Longest line taken from QEMU, in bytes; `query-qmp-schema`, the longest answer, has 170,000.
const MAX_LINE_BYTES: usize = 4 << 20;
/// Events kept for a slow listener; one that falls behind is told so by its receiver.
const EVENT_BACKLOG: usize = 256;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU said no.
    #[error("{command}: {}: {}", refusal.class, refusal.description)]
    Refused {
        /// The command.
        command: &'static str,
        /// Class and words.
        refusal: Refusal,
    },
    /// No answer in time; whether the command was done is not known.
    #[error("{command} was not answered within {} s", deadline.as_secs())]
    Deadline {
        /// The command.
        command: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// The connection ended, which it does when the VMM ends.
    #[error("the machine-protocol connection ended during {command}")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// The descriptor is not a usable socket.
    #[error("the machine-protocol socket")]
    Socket(#[source] io::Error),
}

type Answer = Result<Value, Refusal>;

#[derive(Debug)]
struct Request {
    id: u64,
    line: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// Commands that wait for their answer, by id; `None` once the connection ended.
#[derive(Debug)]
struct Pending(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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

struct Entry<'a> {
    id: u64,
    pending: &'a Pending,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.pending.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

struct Reader {
    pending: Arc<Pending>,
    answered: Arc<AtomicU64>,
    events: broadcast::Sender<QmpEvent>,
    greeted: Option<oneshot::Sender<()>>,
}

impl Reader {
    async fn run(mut self, mut socket: OwnedReadHalf) {
        let mut buffer = Vec::with_capacity(4096);
        // Bytes at the front of the buffer known to hold no line end.
        let mut scanned = 0;
        loop {
            match socket.read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "reading the machine protocol");
                    break;
                }
            }
            let mut start = 0;
            while let Some(length) = buffer[scanned..].iter().position(|b| *b == b'\n') {
                let end = scanned + length;
                self.line(&buffer[start..end]);
                start = end + 1;
                scanned = start;
            }
            buffer.drain(..start);
            scanned = buffer.len();
            if buffer.len() > MAX_LINE_BYTES {
                tracing::warn!(
                    limit = MAX_LINE_BYTES,
                    "a machine-protocol line is too long: closing"
                );
                break;
            }
        }
        // The writer holds the socket too; this ends it and tells the other side.
        let _ = nix::sys::socket::shutdown(socket.as_ref().as_raw_fd(), Shutdown::Both);
        // Dropping the senders wakes everyone who waits.
        self.pending.lock().take();
    }

    fn line(&mut self, line: &[u8]) {
        let (id, answer) = match Message::parse(line) {
            Message::Greeting => {
                if let Some(greeted) = self.greeted.take() {
                    let _ = greeted.send(());
                }
                return;
            }
            Message::Event(event) => {
                tracing::trace!(event = event.name, data = %event.data, "qmp");
                // No listener is fine.
                let _ = self.events.send(event);
                return;
            }
            Message::Garbage => {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    let head = String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
                    tracing::warn!(line = head, "not a machine-protocol message: ignored");
                }
                return;
            }
            Message::Done { id, value } => (id, Ok(value)),
            Message::Refused { id, refusal } => (id, Err(refusal)),
        };
        let waiting = self.pending.lock().as_mut().and_then(|all| all.remove(&id));
        match waiting {
            Some(waiting) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                let _ = waiting.send(answer);
            }
            None => tracing::debug!(id, "an answer nobody waits for"),
        }
    }
}

async fn write_all(
    socket: tokio::net::unix::OwnedWriteHalf,
    mut requests: mpsc::UnboundedReceiver<Request>,
    pending: Arc<Pending>,
) {
    while let Some(request) = requests.recv().await {
        if let Err(error) = write_one(socket.as_ref(), &request).await {
            tracing::debug!(%error, "writing the machine protocol");
            if let Some(waiting) = pending.lock().as_mut() {
                waiting.remove(&request.id);
            }
            // A half-written line cannot be taken back: the reader sees the end and wakes the others.
            return;
        }
    }
}

async fn write_one(socket: &UnixStream, request: &Request) -> io::Result<()> {
    let fds: Vec<_> = request.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut sent = 0;
    while sent < request.line.len() {
        // The descriptors go with the first byte.
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if sent == 0 && !fds.is_empty() {
            &rights
        } else {
            &[]
        };
        let send = || {
            let data = [IoSlice::new(&request.line[sent..])];
            sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)
                .map_err(io::Error::from)
        };
        sent += socket.async_io(Interest::WRITABLE, send).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
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
            let mut data = [io::IoSliceMut::new(&mut bytes)];
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
