//! The supervisor's socket, server side.
//!
//! ```text
//!  accept ─► one task a connection: read command (+ descriptors) ─► Handle::call ─► answer
//!                 Attach ─► notices flow to the stub until its connection ends
//!                 end of file during a create ─► the create is called off
//! ```
//!
//! Owns: framing and connections. Never: what a command does. Called by the supervisor.

use crate::client::{MAX_MESSAGE_BYTES, Message};
use bulkhead_host::deadline::Deadline;
use bulkhead_model::{ContainerId, Failure, FailureKind, HostProcess, ProcessKey};
use bulkhead_sandbox::{Command, Handle, Luggage, Notice};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most descriptors that come with one message: stdin, stdout, stderr.
const MAX_FDS: usize = 3;

/// How long a client may take to send the rest of a message it began.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(60);

/// How long connections may take to write their last words when the sandbox is gone.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(5);

/// Serves connections until `gone`; then lets each write what it has to say.
/// `known` are connections to stubs that outlived an earlier supervisor.
pub async fn serve(listener: UnixListener, known: Vec<UnixStream>, handle: Handle, gone: CancellationToken) {
    let mut connections = JoinSet::new();
    for stream in known {
        let (handle, gone) = (handle.clone(), gone.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, handle, gone).await {
                tracing::debug!(%error, "a connection to a stub ended");
            }
        });
    }
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = gone.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (handle, gone) = (handle.clone(), gone.clone());
                connections.spawn(async move {
                    if let Err(error) = connection(stream, handle, gone).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors: existing connections end and free some.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    // A client that does not read its answer does not hold the supervisor up.
    let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, all).await;
}

/// Whose stub is at the other end.
struct Stub {
    key: ProcessKey,
    process: HostProcess,
}

async fn connection(mut stream: UnixStream, handle: Handle, gone: CancellationToken) -> io::Result<()> {
    let (notices, mut told) = mpsc::unbounded_channel::<Notice>();
    let mut stub: Option<Stub> = None;
    let result = loop {
        let message = tokio::select! {
            message = read_message(&mut stream) => message,
            Some(notice) = told.recv() => {
                if let Err(error) = write_message(&mut stream, &Message::Notice(notice)).await {
                    break Err(error);
                }
                continue;
            }
            () = gone.cancelled() => {
                while let Ok(notice) = told.try_recv() {
                    write_message(&mut stream, &Message::Notice(notice)).await?;
                }
                return Ok(());
            }
        };
        let (body, fds) = match message {
            Ok(Some(message)) => message,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let answer = match serde_json::from_slice::<Command>(&body) {
            Err(error) => Message::Err(Failure::new(
                FailureKind::InvalidArgument,
                format!("not a command: {error}: expected what bulkhead of the same version sends"),
            )),
            // Nobody waits for an answer.
            Ok(command @ Command::Tell { .. }) => {
                let _ = handle.call(command, Luggage::default()).await;
                continue;
            }
            Ok(command) => {
                if let Command::Attach {
                    key, stub: process, ..
                } = &command
                {
                    stub = Some(Stub {
                        key: key.clone(),
                        process: *process,
                    });
                }
                let subject = create_subject(&command);
                let luggage = Luggage {
                    fds,
                    notices: stub.as_ref().map(|_| notices.clone()),
                    attachment: None,
                };
                let call = handle.call(command, luggage);
                tokio::pin!(call);
                let result = tokio::select! {
                    result = &mut call => result,
                    () = closed(&stream) => {
                        if let Some(id) = subject {
                            handle.call_off(Some(id));
                        }
                        call.await
                    }
                };
                match result {
                    Ok(reply) => Message::Ok(reply),
                    Err(failure) => Message::Err(failure),
                }
            }
        };
        if let Err(error) = write_message(&mut stream, &answer).await {
            break Err(error);
        }
    };
    if let Some(Stub { key, process }) = stub {
        handle.stub_gone(key, process);
    }
    result
}

fn create_subject(command: &Command) -> Option<ContainerId> {
    match command {
        Command::Create { plan } | Command::Run { plan } => Some(plan.id.clone()),
        _ => None,
    }
}

/// Resolves when the other side has closed. Clients do not send ahead, so readable without data is the end.
async fn closed(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let peeked = stream.try_io(Interest::READABLE, || {
            let mut byte = [0_u8; 1];
            nix::sys::socket::recv(
                stream.as_raw_fd(),
                &mut byte,
                nix::sys::socket::MsgFlags::MSG_PEEK,
            )
            .map_err(io::Error::from)
        });
        match peeked {
            Ok(0) => return,
            // A client that did send ahead is served in turn; its end shows when the answer is written.
            Ok(_) => std::future::pending::<()>().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// One message; `None` at the end of the connection. Cancel-safe until its first byte has come.
async fn read_message(stream: &mut UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut head = [0_u8; 4];
    let (count, fds) = loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || {
            bulkhead_host::fdpass::receive(
                stream.as_fd(),
                &mut head,
                MAX_FDS,
                Deadline::after(Duration::ZERO),
            )
            .map_err(|error| match error {
                bulkhead_host::fdpass::PassError::Deadline => io::ErrorKind::WouldBlock.into(),
                other => io::Error::other(other),
            })
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => break other?,
        }
    };
    if count == 0 {
        return Ok(None);
    }
    let rest = async {
        stream.read_exact(&mut head[count..]).await?;
        let length = u32::from_le_bytes(head);
        if length > MAX_MESSAGE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {length} bytes: expected at most {MAX_MESSAGE_BYTES}"),
            ));
        }
        // Grown as data comes: an announced length alone costs nothing.
        let mut body = Vec::new();
        let got = (&mut *stream)
            .take(u64::from(length))
            .read_to_end(&mut body)
            .await?;
        if got != length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(body)
    };
    let body = tokio::time::timeout(MESSAGE_DEADLINE, rest)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Some((body, fds)))
}

async fn write_message(stream: &mut UnixStream, message: &Message) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    tokio::time::timeout(MESSAGE_DEADLINE, stream.write_all(&bytes))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
