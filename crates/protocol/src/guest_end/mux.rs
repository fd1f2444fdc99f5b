//! The one thread between both devices and all pipes of the guest.
//!
//! ```text
//!   wait for an edge ─▶ commands ─▶ control in ─▶ data in ─▶ pipes out ─▶ frames out ─▶ pipes in ─▶ again
//!        ▲ nothing is ready                                                                  │
//!        └───────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Edge-triggered epoll on non-blocking descriptors: a virtio-serial port whose host end is closed reports a
//! hang-up for as long as it lasts, and an edge when a host comes back. Every pass does a bounded piece of work
//! for each stream, so that none starves another, and looks at the control port first.
//!
//! Owns: all stream state; nobody else changes it. Never: blocks on anything but epoll. Started by `Endpoint`.

use super::control::{ControlOut, ControlStream, lock};
use super::input::{Input, Notice};
use super::output::Output;
use super::port::{PortRead, PortReader, PortWriter};
use crate::StreamId;
use crate::api::agent::Hello;
use crate::decoder::Frame;
use crate::frame::{Header, Kind};
use protobuf::Message;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const WAKE: u64 = 1 << 32;
const CONTROL: u64 = 2 << 32;
const DATA: u64 = 3 << 32;
const OUTPUT: u64 = 4 << 32;
const INPUT: u64 = 5 << 32;
/// Frames or reads of one port per pass.
const BURST: usize = 32;

/// What the agent asks of the thread.
#[derive(Debug)]
pub(super) enum Command {
    Output(StreamId, OwnedFd, bool),
    Input(StreamId, OwnedFd),
    Drain(StreamId, SyncSender<u64>),
    Finish(StreamId),
    /// The endpoint is gone.
    Stop,
}

/// The agent's way to the thread.
#[derive(Debug)]
pub(super) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    event: OwnedFd,
    rung: AtomicBool,
}

impl Mailbox {
    pub(super) fn new(event: OwnedFd) -> Self {
        Self {
            commands: Mutex::new(Vec::new()),
            event,
            rung: AtomicBool::new(false),
        }
    }

    pub(super) fn post(&self, command: Command) {
        self.lock().push(command);
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Fails only when the counter is at its limit, and then the thread is awake anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn take(&self) -> Vec<Command> {
        // The event's counter is never read: with edges every write wakes.
        self.rung.store(false, Ordering::Release);
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// State of the thread.
#[derive(Debug)]
pub(super) struct Mux {
    epoll: OwnedFd,
    mailbox: Arc<Mailbox>,
    hello: Vec<u8>,
    control_in: PortReader,
    control_out: Arc<Mutex<ControlOut>>,
    /// To the ttrpc server: new connections.
    accepted: UnboundedSender<ControlStream>,
    /// The current connection and how many bytes it was given.
    connection: Option<(UnboundedSender<Vec<u8>>, u64)>,
    data_in: PortReader,
    data_out: PortWriter,
    epoch: Option<u64>,
    outputs: BTreeMap<StreamId, Output>,
    inputs: BTreeMap<StreamId, Input>,
    /// Resumes and closes that came before the agent connected the stream.
    early: BTreeMap<StreamId, Early>,
    /// The stream that sent last: the next one is first.
    turn: StreamId,
    stopped: bool,
}

#[derive(Debug, Clone, Copy)]
enum Early {
    Resume(u64),
    Close,
}

/// What [`Mux::new`] is given.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) epoll: OwnedFd,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) control: Arc<OwnedFd>,
    pub(super) data: Arc<OwnedFd>,
    pub(super) accepted: UnboundedSender<ControlStream>,
}

impl Mux {
    pub(super) fn new(parts: Parts, hello: &Hello) -> Result<Self, std::io::Error> {
        let edge = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&parts.epoll, &parts.control, EventData::new_u64(CONTROL), edge)?;
        epoll::add(&parts.epoll, &parts.data, EventData::new_u64(DATA), edge)?;
        epoll::add(
            &parts.epoll,
            &parts.mailbox.event,
            EventData::new_u64(WAKE),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self {
            epoll: parts.epoll,
            mailbox: parts.mailbox,
            hello: hello.write_to_bytes().map_err(std::io::Error::other)?,
            control_in: PortReader::new(Arc::clone(&parts.control)),
            control_out: Arc::new(Mutex::new(ControlOut::new(PortWriter::new(parts.control)))),
            accepted: parts.accepted,
            connection: None,
            data_in: PortReader::new(Arc::clone(&parts.data)),
            data_out: PortWriter::new(parts.data),
            epoch: None,
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            early: BTreeMap::new(),
            turn: 0,
            stopped: false,
        })
    }

    /// Runs until epoll itself fails or the endpoint is gone.
    pub(super) fn run(mut self) -> Result<(), std::io::Error> {
        let mut events = Vec::with_capacity(32);
        while !self.stopped {
            let at_once = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let timeout = self.busy().then_some(&at_once);
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.edge(event.data.u64(), event.flags);
            }
            for command in self.mailbox.take() {
                self.command(command);
            }
            self.read_control();
            self.read_data();
            self.read_outputs();
            self.send_frames();
            self.write_inputs();
            self.data_out.flush();
        }
        Ok(())
    }

    /// Whether a pass would do something without a new edge.
    fn busy(&self) -> bool {
        self.control_in.readable
            || self.data_in.readable
            || (self.data_out.writable && self.data_out.waiting_bytes() > 0)
            || self
                .outputs
                .values()
                .any(|o| o.can_read() || (self.data_out.writable && self.epoch.is_some() && o.can_send()))
            || self.inputs.values().any(Input::can_write)
    }

    fn edge(&mut self, token: u64, flags: EventFlags) {
        let stream = (token & 0xffff_ffff) as StreamId;
        let reading =
            flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR);
        match token & !0xffff_ffff {
            CONTROL => {
                self.control_in.readable |= reading;
                if flags.contains(EventFlags::OUT) {
                    lock(&self.control_out).flush();
                }
            }
            DATA => {
                self.data_in.readable |= reading;
                self.data_out.writable |= flags.contains(EventFlags::OUT);
            }
            OUTPUT => {
                if let Some(output) = self.outputs.get_mut(&stream) {
                    output.woken(flags.intersects(EventFlags::HUP | EventFlags::ERR));
                }
            }
            INPUT => {
                if let Some(input) = self.inputs.get_mut(&stream) {
                    input.writable = true;
                    // The reader of a pipe or the last slave of a terminal is gone: say so before the host sends
                    // more.
                    if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
                        input.finish();
                    }
                }
            }
            _ => {}
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Output(stream, source, terminal) => {
                let mut output = Output::new(source, terminal);
                if let Some(source) = output.source() {
                    self.watch(source, OUTPUT | u64::from(stream), EventFlags::IN);
                }
                match self.early.remove(&stream) {
                    Some(Early::Resume(offset)) if self.epoch.is_some() => output.resume(offset),
                    Some(Early::Close) => return,
                    _ => {}
                }
                self.outputs.insert(stream, output);
            }
            Command::Input(stream, sink) => {
                let input = Input::new(sink);
                if let Some(sink) = input.sink() {
                    self.watch(sink, INPUT | u64::from(stream), EventFlags::OUT);
                }
                self.inputs.insert(stream, input);
            }
            Command::Drain(stream, answer) => {
                let offset = self.outputs.get_mut(&stream).map_or(0, Output::drain);
                // The asker may have been dropped; then nobody wants to know.
                let _ = answer.try_send(offset);
            }
            Command::Stop => self.stopped = true,
            Command::Finish(stream) => {
                if let Some(output) = self.outputs.get_mut(&stream) {
                    output.finish();
                }
                if let Some(input) = self.inputs.get_mut(&stream) {
                    input.finish();
                }
            }
        }
    }

    fn watch(&self, fd: &OwnedFd, token: u64, direction: EventFlags) {
        // EPERM: a regular file or /dev/null, which are always ready; streams start out as ready.
        let _ = epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token),
            direction | EventFlags::ET,
        );
    }

    fn read_control(&mut self) {
        for _ in 0..BURST {
            if !self.control_in.readable {
                return;
            }
            match self.control_in.read() {
                PortRead::Bytes => self.control_frames(),
                // The end of a connection ends nothing: the kernel tells it apart from the bytes, and may tell it when
                // the next connection's Hello was read. That Hello is what begins anew.
                PortRead::Empty => return,
            }
        }
    }

    fn control_frames(&mut self) {
        while let Some(frame) = self.control_in.decoder.pull() {
            match frame.kind {
                Kind::Hello => {
                    let epoch = frame.epoch;
                    self.control_in.decoder.set_epoch(Some(epoch));
                    self.open_control(epoch);
                }
                Kind::Rpc => {
                    let Some((incoming, given)) = &mut self.connection else {
                        continue;
                    };
                    let intact = frame.offset == *given;
                    *given += frame.payload.len() as u64;
                    if !intact || incoming.send(frame.payload.to_vec()).is_err() {
                        let epoch = frame.epoch;
                        self.connection = None;
                        let mut out = lock(&self.control_out);
                        out.port.queue(&header(Kind::Close, 0, epoch, 0), &[]);
                        out.port.flush();
                        out.epoch = None;
                    }
                }
                _ => {}
            }
        }
    }

    fn open_control(&mut self, epoch: u64) {
        let (incoming, receiver) = unbounded_channel();
        self.connection = Some((incoming, 0));
        {
            let mut out = lock(&self.control_out);
            out.restart(Some(epoch));
            out.port.queue(&header(Kind::Hello, 0, epoch, 0), &self.hello);
            out.flush();
        }
        let stream = ControlStream::new(epoch, receiver, Arc::clone(&self.control_out));
        // Fails only when the server is gone, and the endpoint with it.
        let _ = self.accepted.send(stream);
    }

    fn read_data(&mut self) {
        for _ in 0..BURST {
            if !self.data_in.readable {
                return;
            }
            match self.data_in.read() {
                PortRead::Bytes => self.data_frames(),
                PortRead::Empty => return,
            }
        }
    }

    fn data_frames(&mut self) {
        // Taken out so that frames may borrow it while streams change.
        let mut decoder = std::mem::take(&mut self.data_in.decoder);
        while let Some(frame) = decoder.pull() {
            if frame.kind == Kind::Hello {
                let epoch = frame.epoch;
                decoder.set_epoch(Some(epoch));
                self.open_data(epoch);
            } else {
                self.data_frame(&frame);
            }
        }
        self.data_in.decoder = decoder;
    }

    fn data_frame(&mut self, frame: &Frame<'_>) {
        let stream = frame.stream;
        match frame.kind {
            Kind::Resume => match self.outputs.get_mut(&stream) {
                Some(output) => output.resume(frame.offset),
                None => {
                    self.early.insert(stream, Early::Resume(frame.offset));
                }
            },
            Kind::Ack => {
                if let Some(output) = self.outputs.get_mut(&stream) {
                    output.acknowledge(frame.offset);
                }
            }
            Kind::Close => {
                if self.outputs.remove(&stream).is_none() && self.early.contains_key(&stream) {
                    self.early.insert(stream, Early::Close);
                }
            }
            Kind::Data => {
                if let Some(input) = self.inputs.get_mut(&stream) {
                    input.receive(frame.offset, frame.payload);
                }
            }
            Kind::Eof => {
                if let Some(input) = self.inputs.get_mut(&stream) {
                    input.receive_eof(frame.offset);
                }
            }
            Kind::Hello | Kind::Rpc | Kind::Synced => {}
        }
    }

    fn end_epoch(&mut self) {
        self.epoch = None;
        self.early.retain(|_, early| matches!(early, Early::Close));
        self.data_out.discard();
        for output in self.outputs.values_mut() {
            output.suspend();
        }
    }

    fn open_data(&mut self, epoch: u64) {
        self.end_epoch();
        self.epoch = Some(epoch);
        self.data_out
            .queue(&header(Kind::Hello, 0, epoch, 0), &self.hello);
        for (stream, input) in &mut self.inputs {
            input.restart();
            if let Some(notice) = input.notice() {
                self.data_out.queue(&notice_header(notice, *stream, epoch), &[]);
            }
        }
        self.data_out.queue(&header(Kind::Synced, 0, epoch, 0), &[]);
        self.data_out.writable = true;
        self.data_out.flush();
    }

    fn read_outputs(&mut self) {
        for output in self.outputs.values_mut() {
            if output.can_read() {
                output.read_once();
            }
        }
    }

    /// Each stream's turn, as long as the device takes all of it.
    fn send_frames(&mut self) {
        let Some(epoch) = self.epoch else { return };
        for _ in 0..BURST {
            if !self.data_out.writable || self.data_out.waiting_bytes() > 0 {
                return;
            }
            let after = self.outputs.range(self.turn.wrapping_add(1)..);
            let ready = |entry: &(&StreamId, &Output)| entry.1.can_send();
            let found = after
                .chain(self.outputs.iter())
                .find(ready)
                .map(|(stream, _)| *stream);
            let Some(stream) = found else { return };
            self.turn = stream;
            if let Some(output) = self.outputs.get_mut(&stream) {
                output.send(stream, epoch, &mut self.data_out);
            }
        }
    }

    fn write_inputs(&mut self) {
        let epoch = self.epoch;
        self.inputs.retain(|stream, input| {
            input.pump();
            let Some(epoch) = epoch else { return true };
            let Some(notice) = input.notice() else { return true };
            self.data_out.queue(&notice_header(notice, *stream, epoch), &[]);
            notice != Notice::Close
        });
    }
}

const fn header(kind: Kind, stream: StreamId, epoch: u64, offset: u64) -> Header {
    Header {
        kind,
        stream,
        epoch,
        offset,
    }
}

const fn notice_header(notice: Notice, stream: StreamId, epoch: u64) -> Header {
    match notice {
        Notice::Resume(offset) => header(Kind::Resume, stream, epoch, offset),
        Notice::Ack(offset) => header(Kind::Ack, stream, epoch, offset),
        Notice::Close => header(Kind::Close, stream, epoch, 0),
    }
}
