//! Events to containerd, over its ttrpc socket.
//!
//! ```text
//!  publish ─► queue ─► one at a time, in order ─► Forward
//!                          └─ containerd away: connected again, until it takes the event or the deadline passes
//! ```
//!
//! Owns: order and the connection. Never: decides what is an event. Called by the services' tasks.

use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// containerd answers from memory; this is for one that is starting again.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long an event is offered to a containerd that is away.
const OFFER_DEADLINE: Duration = Duration::from_secs(60);

/// Between two offers.
const RETRY: Duration = Duration::from_millis(200);

/// Header by which containerd's ttrpc services know the namespace.
const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";

enum Item {
    Event(Box<Envelope>),
    Flushed(oneshot::Sender<()>),
}

/// Sends events; dropped, what is queued is still sent.
#[derive(Debug)]
pub(super) struct Publisher {
    queue: mpsc::UnboundedSender<Item>,
    namespace: String,
}

impl Publisher {
    /// To the socket `address`, with or without `unix://`; empty for nobody. Needs a tokio runtime.
    pub(super) fn new(address: &str, namespace: &str) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        let address = match address {
            "" => None,
            path if path.contains("://") => Some(path.to_owned()),
            path => Some(format!("unix://{path}")),
        };
        tokio::spawn(forward(items, address, namespace.to_owned()));
        Self {
            queue,
            namespace: namespace.to_owned(),
        }
    }

    /// Queues an event under its topic.
    pub(super) fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(%error, topic, "encoding an event");
                return;
            }
        };
        let event = Any {
            type_url: M::descriptor().full_name().to_owned(),
            value,
            ..Any::default()
        };
        let envelope = Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event).into(),
            ..Envelope::default()
        };
        // The other end lives as long as the runtime.
        let _ = self.queue.send(Item::Event(Box::new(envelope)));
    }

    /// Waits until everything queued so far was sent or given up.
    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Item::Flushed(done)).is_ok() {
            let _ = flushed.await;
        }
    }
}

async fn forward(mut items: mpsc::UnboundedReceiver<Item>, address: Option<String>, namespace: String) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        let envelope = match item {
            Item::Event(envelope) => *envelope,
            Item::Flushed(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let Some(address) = &address else { continue };
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..ForwardRequest::default()
        };
        let end = Instant::now() + OFFER_DEADLINE;
        while let Err(error) = offer(&mut client, address, &namespace, &request).await {
            client = None;
            if Instant::now() > end {
                tracing::error!(%error, topic, "an event was not taken");
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn offer(
    client: &mut Option<EventsClient>,
    address: &str,
    namespace: &str,
    request: &ForwardRequest,
) -> containerd_shim_protos::ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    let mut call = context::with_duration(CALL_DEADLINE);
    call.set(NAMESPACE_HEADER.to_owned(), vec![namespace.to_owned()]);
    client.forward(call, request).await.map(drop)
}
