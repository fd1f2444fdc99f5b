//! Where a stream is, for those who wait for it.
//!
//! Owns: one published value per stream. Never: moves bytes. Written by `output` and `input`, read by `client`.

use tokio::sync::watch;

/// Progress of one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that reached the sink.
    pub(super) delivered: u64,
    /// Nothing more will come, and the descriptor is closed.
    pub(super) ended: bool,
    /// A task publishes here, and will say so when the connection ends.
    pub(super) served: bool,
    /// The connection ended first.
    pub(super) abandoned: bool,
}

/// The published progress of one stream.
#[derive(Debug)]
pub(super) struct Mark(watch::Sender<Progress>);

impl Mark {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Progress::default()))
    }

    pub(super) fn deliver(&self, offset: u64) {
        self.0.send_modify(|progress| progress.delivered = offset);
    }

    pub(super) fn end(&self) {
        self.0.send_modify(|progress| progress.ended = true);
    }

    pub(super) fn abandon(&self) {
        self.0.send_modify(|progress| progress.abandoned = true);
    }

    /// Says that a task will publish from here on.
    pub(super) fn serve(&self) {
        self.0.send_modify(|progress| progress.served = true);
    }

    pub(super) fn now(&self) -> Progress {
        *self.0.borrow()
    }

    /// Waits until `enough` holds or the stream is ended or abandoned.
    pub(super) async fn wait(&self, enough: impl Fn(&Progress) -> bool) -> Progress {
        let mut watcher = self.0.subscribe();
        let result = watcher.wait_for(|p| p.ended || p.abandoned || enough(p)).await;
        // An error needs every sender gone, and `self` is one.
        result.map_or_else(|_| self.now(), |progress| *progress)
    }
}
