//! The data port on the host: takes frames apart, hands them to the streams' tasks.
//!
//! ```text
//!  data port ─▶ reader task ─▶ queue of output 2 ─▶ task ─▶ sink
//!            ◀─ writer lock ◀─ acks of output 2 ◀──┘
//!            ◀───────────────── task of input 1 ◀─ source
//! ```
//!
//! Owns: the table of streams of one connection. The reader never waits for a stream: the window bounds each
//! queue. Never: survives its connection (the `StreamStore` does). Called by `client`.

use super::greeting::Greeted;
use super::input::{self, InputState};
use super::mark::Mark;
use super::output::{self, Piece};
use super::source::Source;
use super::stdio_fd::{Direction, StdioFd};
use super::store::StreamStore;
use crate::StreamId;
use crate::decoder::{Decoder, Frame};
use crate::frame::{Header, Kind, MAX_PAYLOAD_BYTES, WINDOW_BYTES};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// What a guest may have under way beyond the window: it reads whole frames.
const SLACK_BYTES: u64 = 2 * MAX_PAYLOAD_BYTES as u64;
/// No stream gets this far; sums with it do not overflow.
const MAX_OFFSET: u64 = 1 << 62;
/// A guest that talks of more inputs nobody connected is not listened to.
const EARLY_STREAMS: usize = 1024;

/// Everything the tasks of one connection share.
#[derive(Debug)]
pub(super) struct DataPort {
    pub(super) epoch: u64,
    pub(super) store: Arc<StreamStore>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    streams: Mutex<Streams>,
    tasks: Mutex<JoinSet<()>>,
    runtime: Handle,
    gone: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Default)]
struct Streams {
    outputs: HashMap<StreamId, Incoming>,
    inputs: HashMap<StreamId, Arc<InputState>>,
    marks: HashMap<StreamId, Arc<Mark>>,
    /// What the guest said of inputs that are not connected yet; at most [`EARLY_STREAMS`].
    early: HashMap<StreamId, Early>,
    /// The guest has named all inputs it knows.
    synced: bool,
    /// The connection is over: nothing is connected any more.
    over: bool,
}

#[derive(Debug, Clone, Copy)]
enum Early {
    Resume(u64),
    Closed,
}

/// The dispatcher's side of an output.
#[derive(Debug)]
struct Incoming {
    queue: UnboundedSender<Piece>,
    expected: u64,
    /// Something has come in this connection.
    begun: bool,
    mark: Arc<Mark>,
    stop: Arc<Notify>,
}

impl DataPort {
    /// Starts serving a greeted port on the current runtime.
    pub(super) fn start(
        greeted: Greeted,
        epoch: u64,
        store: Arc<StreamStore>,
        gone: Arc<watch::Sender<bool>>,
    ) -> Arc<Self> {
        let port = Arc::new(Self {
            epoch,
            store,
            writer: tokio::sync::Mutex::new(greeted.writer),
            streams: Mutex::new(Streams::default()),
            tasks: Mutex::new(JoinSet::new()),
            runtime: Handle::current(),
            gone,
        });
        let serving = Arc::clone(&port);
        port.spawn(async move { serving.serve(greeted.reader, greeted.decoder).await });
        port
    }

    /// Connects an output to `sink`.
    pub(super) fn output(self: &Arc<Self>, stream: StreamId, sink: OwnedFd) -> io::Result<()> {
        let received = self.store.received(stream);
        let mark = self.mark(stream);
        mark.deliver(received.offset);
        if received.ended {
            self.send_soon(Kind::Close, stream, 0);
            mark.end();
            return Ok(());
        }
        let sink = {
            let _entered = self.runtime.enter();
            StdioFd::new(sink, Direction::Write)
        };
        let sink = match sink {
            Ok(sink) => sink,
            // A FIFO that nobody reads: like a sink that went away.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                output::refuse(self, stream, &mark, received.offset);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (queue, pieces) = unbounded_channel();
        let stop = Arc::new(Notify::new());
        {
            let mut streams = self.lock();
            if streams.over {
                mark.abandon();
                return Ok(());
            }
            if streams.outputs.contains_key(&stream) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            streams.outputs.insert(
                stream,
                Incoming {
                    queue,
                    expected: received.offset,
                    begun: false,
                    mark: Arc::clone(&mark),
                    stop: Arc::clone(&stop),
                },
            );
        }
        mark.serve();
        let port = Arc::clone(self);
        self.spawn(async move {
            if port
                .send(Kind::Resume, stream, received.offset, &[])
                .await
                .is_ok()
            {
                output::run(&port, stream, sink, pieces, &mark, &stop).await;
            } else {
                mark.abandon();
            }
            port.lock().outputs.remove(&stream);
        });
        Ok(())
    }

    /// Connects an input to `source`.
    pub(super) fn input(self: &Arc<Self>, stream: StreamId, source: OwnedFd) -> io::Result<()> {
        let mark = self.mark(stream);
        if self.store.received(stream).ended {
            mark.end();
            return Ok(());
        }
        let source = {
            let _entered = self.runtime.enter();
            Source::new(source, self.store.outlives())?
        };
        let state = Arc::new(InputState::new());
        {
            let mut streams = self.lock();
            if streams.over {
                mark.abandon();
                return Ok(());
            }
            if streams.inputs.contains_key(&stream) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            match streams.early.remove(&stream) {
                Some(Early::Resume(offset)) => state.resume(offset),
                Some(Early::Closed) => state.close(),
                // The guest knew it once and does not now: its process reads no more.
                None if streams.synced && self.store.was_granted(stream) => state.close(),
                None => {}
            }
            streams.inputs.insert(stream, Arc::clone(&state));
        }
        mark.serve();
        let port = Arc::clone(self);
        self.spawn(async move {
            input::run(&port, stream, source, &state, &mark).await;
            port.lock().inputs.remove(&stream);
        });
        Ok(())
    }

    /// Ends an input as if its source had ended.
    pub(super) fn end_input(&self, stream: StreamId) {
        if let Some(state) = self.lock().inputs.get(&stream) {
            state.end();
        }
    }

    /// Drops a stream in either direction: its process was never started, or nobody cares any more.
    pub(super) fn disconnect(self: &Arc<Self>, stream: StreamId) {
        let streams = self.lock();
        if let Some(incoming) = streams.outputs.get(&stream) {
            incoming.stop.notify_one();
        }
        if let Some(state) = streams.inputs.get(&stream) {
            state.close();
        }
    }

    /// The progress of a stream, made when nobody knew of it yet.
    pub(super) fn mark(&self, stream: StreamId) -> Arc<Mark> {
        let mut streams = self.lock();
        let over = streams.over;
        let known = streams.marks.get(&stream).map(Arc::clone);
        let mark = known.unwrap_or_else(|| {
            let mark = Arc::new(Mark::new());
            if self.store.received(stream).ended {
                mark.end();
            } else {
                streams.marks.insert(stream, Arc::clone(&mark));
            }
            mark
        });
        drop(streams);
        if over && !mark.now().served {
            mark.abandon();
        }
        mark
    }

    /// A stream has ended: the store remembers that, the table need not.
    pub(super) fn ended(&self, stream: StreamId, mark: &Mark) {
        mark.end();
        self.lock().marks.remove(&stream);
    }

    /// Writes one frame; whole frames are written in turn.
    pub(super) async fn send(
        &self,
        kind: Kind,
        stream: StreamId,
        offset: u64,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut frame = Vec::new();
        let header = Header {
            kind,
            stream,
            epoch: self.epoch,
            offset,
        };
        header.append(payload, &mut frame);
        let result = self.writer.lock().await.write_all(&frame).await;
        if result.is_err() {
            self.gone.send_replace(true);
        }
        result
    }

    /// [`DataPort::send`] from where nobody can wait.
    pub(super) fn send_soon(self: &Arc<Self>, kind: Kind, stream: StreamId, offset: u64) {
        let port = Arc::clone(self);
        // A failed write has told `gone`.
        self.spawn(async move { drop(port.send(kind, stream, offset, &[]).await) });
    }

    /// Writes an empty frame of each kind, in order, from where nobody can wait.
    pub(super) fn send_all_soon(self: &Arc<Self>, kinds: &'static [Kind], stream: StreamId, offset: u64) {
        let port = Arc::clone(self);
        self.spawn(async move {
            for kind in kinds {
                if port.send(*kind, stream, offset, &[]).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Ends every task at once, wherever it is between two system calls.
    pub(super) fn abort(&self) {
        self.lock_tasks().abort_all();
        self.abandon();
    }

    /// [`DataPort::abort`], and waits until the tasks are gone: nothing touches the store or a descriptor after.
    pub(super) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.lock_tasks());
        tasks.shutdown().await;
        self.abandon();
    }

    fn abandon(&self) {
        self.end_of_connection();
        for mark in self.lock().marks.values() {
            mark.abandon();
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.lock_tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }

    async fn serve(&self, reader: OwnedReadHalf, decoder: Decoder) {
        // Also when this task panics: nobody may wait for a dead connection.
        let _end = EndOfConnection(self);
        self.read_frames(reader, decoder).await;
    }

    async fn read_frames(&self, mut reader: OwnedReadHalf, mut decoder: Decoder) {
        let mut gone = self.gone.subscribe();
        loop {
            while let Some(frame) = decoder.pull() {
                if let Err(what) = self.dispatch(&frame) {
                    tracing::warn!(stream = frame.stream, what, "the guest broke the data protocol");
                    return;
                }
            }
            let space = decoder.space();
            let result = tokio::select! {
                result = reader.read(space) => result,
                _ = gone.wait_for(|gone| *gone) => Ok(0),
            };
            match result {
                Ok(0) | Err(_) => return,
                Ok(count) => decoder.filled(count),
            }
        }
    }

    /// What was received is still delivered; nothing new comes.
    fn end_of_connection(&self) {
        self.gone.send_replace(true);
        let mut streams = self.lock();
        streams.over = true;
        // Dropping the queues lets the tasks finish.
        streams.outputs.clear();
        for state in streams.inputs.values() {
            state.abandon();
        }
        // Streams with a task are abandoned by it, after its last delivery.
        for mark in streams.marks.values().filter(|mark| !mark.now().served) {
            mark.abandon();
        }
    }

    fn dispatch(&self, frame: &Frame<'_>) -> Result<(), &'static str> {
        let stream = frame.stream;
        if frame.offset > MAX_OFFSET {
            return Err("an offset is out of bounds");
        }
        let mut streams = self.lock();
        match frame.kind {
            Kind::Data => match streams.outputs.get_mut(&stream) {
                Some(incoming) => incoming.data(frame),
                None => Ok(()),
            },
            Kind::Eof => {
                if let Some(incoming) = streams.outputs.get(&stream) {
                    if frame.offset != incoming.expected {
                        return Err("a stream ends where its bytes do not");
                    }
                    // Fails only when the task is done with the stream already.
                    let _ = incoming.queue.send(Piece::Eof);
                }
                Ok(())
            }
            Kind::Resume => {
                match streams.inputs.get(&stream) {
                    Some(state) => state.resume(frame.offset),
                    None => streams.note(stream, Early::Resume(frame.offset)),
                }
                Ok(())
            }
            Kind::Ack => {
                if let Some(state) = streams.inputs.get(&stream) {
                    state.acknowledge(frame.offset);
                }
                Ok(())
            }
            Kind::Close => {
                match streams.inputs.get(&stream) {
                    Some(state) => state.close(),
                    None => streams.note(stream, Early::Closed),
                }
                Ok(())
            }
            Kind::Synced => {
                streams.synced = true;
                for (stream, state) in &streams.inputs {
                    if !state.is_granted() && self.store.was_granted(*stream) {
                        state.close();
                    }
                }
                Ok(())
            }
            Kind::Hello | Kind::Rpc => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct EndOfConnection<'a>(&'a DataPort);

impl Drop for EndOfConnection<'_> {
    fn drop(&mut self) {
        self.0.end_of_connection();
    }
}

impl Streams {
    fn note(&mut self, stream: StreamId, early: Early) {
        if self.early.len() < EARLY_STREAMS || self.early.contains_key(&stream) {
            self.early.insert(stream, early);
        }
    }
}

impl Incoming {
    fn data(&mut self, frame: &Frame<'_>) -> Result<(), &'static str> {
        let end = frame.offset + frame.payload.len() as u64;
        if frame.offset > self.expected {
            if self.begun {
                return Err("bytes of a stream are missing");
            }
            // Only when the store of the supervisor before was lost.
            tracing::warn!(
                stream = frame.stream,
                from = self.expected,
                to = frame.offset,
                "output is missing"
            );
            self.expected = frame.offset;
        }
        self.begun = true;
        if end <= self.expected {
            return Ok(());
        }
        if end - self.mark.now().delivered.min(end) > WINDOW_BYTES + SLACK_BYTES {
            return Err("more is under way on a stream than agreed");
        }
        let known = usize::try_from(self.expected - frame.offset).unwrap_or(frame.payload.len());
        let bytes = frame.payload[known..].to_vec();
        // Fails only when the sink is gone; the guest is being told.
        let _ = self.queue.send(Piece::Data {
            offset: self.expected,
            bytes,
        });
        self.expected = end;
        Ok(())
    }
}
