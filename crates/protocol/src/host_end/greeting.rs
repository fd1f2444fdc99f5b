//! The first words on a port: the host's Hello with a new epoch, the guest's answer.
//!
//! Owns: the handshake and its deadline. Never: retries or polls: a guest that boots reads the Hello when it comes
//! up. Called by `client` for each port.

use crate::api::agent::{Hello, HostHello};
use crate::decoder::Decoder;
use crate::frame::{Header, Kind, PADDING_BYTES};
use crate::{GuestError, PROTOCOL_VERSION};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub(super) const CALL: &str = "hello";

/// A port after its handshake.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) reader: OwnedReadHalf,
    pub(super) writer: OwnedWriteHalf,
    /// Has the epoch, and what came behind the Hello.
    pub(super) decoder: Decoder,
    pub(super) hello: Hello,
}

/// Says hello on `stream` and waits for the answer. `padding` goes first when somebody talked to this guest before.
pub(super) async fn greet(stream: UnixStream, epoch: u64, padding: bool) -> Result<Greeted, GuestError> {
    let (mut reader, mut writer) = stream.into_split();
    let words = words(epoch, padding)?;
    let say = async {
        writer.write_all(&words).await.map_err(|_| gone())?;
        std::future::pending::<Result<(), GuestError>>().await
    };
    let listen = async {
        let mut decoder = Decoder::new();
        loop {
            let count = reader.read(decoder.space()).await.map_err(|_| gone())?;
            if count == 0 {
                return Err(gone());
            }
            decoder.filled(count);
            while let Some(frame) = decoder.pull() {
                if frame.kind == Kind::Hello && frame.epoch == epoch {
                    let hello = check(frame.payload)?;
                    decoder.set_epoch(Some(epoch));
                    return Ok((decoder, hello));
                }
            }
        }
    };
    // Both at once: a guest in mid-sentence is heard out while it is being greeted.
    let (decoder, hello) = tokio::select! {
        heard = listen => heard?,
        said = say => {
            said?;
            return Err(gone());
        }
    };
    Ok(Greeted {
        reader,
        writer,
        decoder,
        hello,
    })
}

fn words(epoch: u64, padding: bool) -> Result<Vec<u8>, GuestError> {
    let mut words = vec![0; if padding { PADDING_BYTES } else { 0 }];
    let hello = HostHello {
        protocol_version: PROTOCOL_VERSION,
        ..Default::default()
    };
    let header = Header {
        kind: Kind::Hello,
        stream: 0,
        epoch,
        offset: 0,
    };
    let payload = hello.write_to_bytes().map_err(|error| GuestError::Protocol {
        what: format!("hello cannot be encoded: {error}"),
    })?;
    header.append(&payload, &mut words);
    Ok(words)
}

fn check(payload: &[u8]) -> Result<Hello, GuestError> {
    let hello = Hello::parse_from_bytes(payload).map_err(|error| GuestError::Protocol {
        what: format!("its hello cannot be read: {error}"),
    })?;
    if hello.protocol_version == PROTOCOL_VERSION {
        return Ok(hello);
    }
    Err(GuestError::Protocol {
        what: format!(
            "its version is {}, expected {PROTOCOL_VERSION}: build the guest again with this bulkhead",
            hello.protocol_version
        ),
    })
}

const fn gone() -> GuestError {
    GuestError::Gone { call: CALL }
}
