//! Where what comes from peers goes.

use branchline_core::planner::{Arrival, Source};
use tokio::sync::mpsc;

use crate::download::{PeerEvent, PeerEventKind};

/// Where the events of downloads go. While a channel is full, nothing more is read from the peer;
/// its capacity times the longest segment, plus one segment a stream, is the memory a download
/// holds.
#[derive(Debug, Clone)]
pub enum EventSink {
    /// All into one channel, in the order they came.
    Together(mpsc::Sender<PeerEvent>),
    /// Segments straight to whoever verifies and writes them, the rest to whoever plans. Measured:
    /// sorting them on a third thread costs 0.26 CPU-s/GB in wake-ups.
    Apart {
        /// Whoever verifies and writes.
        segments: mpsc::Sender<Arrival>,
        /// Whoever plans.
        rest: mpsc::Sender<PeerEvent>,
    },
}

/// Nobody listens any more.
#[derive(Debug)]
pub(crate) struct NobodyListens;

impl EventSink {
    /// Without waiting: lost where there is no room. For the words of a download that has no task.
    pub(crate) fn try_tell(&self, event: PeerEvent) {
        let (Self::Together(words) | Self::Apart { rest: words, .. }) = self;
        let _no_room = words.try_send(event);
    }

    /// Waits for room. Not cancel-safe: a dropped call loses the event.
    pub(crate) async fn send(&self, event: PeerEvent) -> Result<(), NobodyListens> {
        let sent = match self {
            Self::Together(all) => all.send(event).await.is_ok(),
            Self::Apart { segments, rest } => match event {
                PeerEvent {
                    peer,
                    kind: PeerEventKind::Segment { index, bytes },
                } => {
                    let source = Source::Peer(peer);
                    segments
                        .send(Arrival {
                            source,
                            index,
                            bytes,
                        })
                        .await
                        .is_ok()
                }
                other => rest.send(other).await.is_ok(),
            },
        };
        sent.then_some(()).ok_or(NobodyListens)
    }
}
