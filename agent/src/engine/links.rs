//! The peers of one download: who was asked to join, who has, and what they send.
//!
//! Segments go straight to the writer's queue; everything else comes out of [`Links::next`]. When
//! the queue is full, peers are not read from: QUIC's flow control then holds them back. Decides
//! nothing: whom to join, and when again, is the planner's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use branchline_core::planner::{DropReason, JoinFailure};
use branchline_core::wire::Standing;
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_discovery::Membership;
use branchline_exchange::{
    Download, DownloadSpec, EventSink, Exchange, HaveUpdate, JoinError, PeerEvent, PeerEventKind,
    PeerFailure, PeerSession,
};
use branchline_hashing::{ContentKey, SegmentIndex};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::engine::writer::Arrivals;

/// Words of peers that wait for the planner.
const WORD_QUEUE: usize = 256;

/// What a peer did, but for sending a segment.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// It holds these.
    Joined { peer: PeerId, have: SegmentSet },
    /// One that was asked does not take part.
    NotJoined { peer: PeerId, failure: JoinFailure },
    /// It holds these by now.
    Have { peer: PeerId, have: SegmentSet },
    /// It has come to hold these.
    HaveMore { peer: PeerId, more: SegmentSet },
    /// It does not hold this.
    Absent { peer: PeerId, index: SegmentIndex },
    /// It will not send these now.
    Busy {
        peer: PeerId,
        range: SegmentRange,
        retry_after: Duration,
    },
    /// It broke the protocol.
    Lied { peer: PeerId },
    /// Its session has ended.
    Left { peer: PeerId },
}

/// See the module's text.
pub(crate) struct Links<'a> {
    exchange: Option<&'a Exchange>,
    key: ContentKey,
    /// Not to be joined: they sent wrong bytes before.
    shut_out: BTreeSet<PeerId>,
    /// Those of them that were to be joined.
    refused: VecDeque<PeerId>,
    spec: DownloadSpec,
    peers: BTreeMap<PeerId, Link>,
    tasks: JoinSet<TaskEnd>,
    words: mpsc::Receiver<PeerEvent>,
    to_me: mpsc::Sender<(PeerId, HaveUpdate)>,
    updates: mpsc::Receiver<(PeerId, HaveUpdate)>,
}

enum Link {
    Asking,
    Joined {
        session: PeerSession,
        download: Download,
        /// Held, and heard in [`Links::next`].
        _watch: Watch,
    },
    /// Cut off.
    Dropped,
}

/// The task that hears what a peer holds; dropping it ends the watch.
struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum TaskEnd {
    Join {
        peer: PeerId,
        result: Result<PeerSession, JoinError>,
    },
    Watch {
        peer: PeerId,
        failure: Option<PeerFailure>,
    },
}

impl<'a> Links<'a> {
    /// Links for a content whose segments have these `lengths`; without an exchange there are none.
    pub(crate) fn new(
        exchange: Option<&'a Exchange>,
        key: ContentKey,
        shut_out: BTreeSet<PeerId>,
        lengths: &Arc<[u32]>,
        arrivals: Arrivals,
    ) -> Self {
        let (rest, words) = mpsc::channel(WORD_QUEUE);
        let (to_me, updates) = mpsc::channel(WORD_QUEUE);
        let table = Arc::clone(lengths);
        let spec = DownloadSpec {
            segments: u32::try_from(lengths.len()).unwrap_or(u32::MAX),
            lengths: Arc::new(move |index| table.get(index.0 as usize).copied()),
            events: EventSink::Apart {
                segments: arrivals,
                rest,
            },
            streams: None,
        };
        Self {
            exchange,
            key,
            shut_out,
            refused: VecDeque::new(),
            spec,
            peers: BTreeMap::new(),
            tasks: JoinSet::new(),
            words,
            to_me,
            updates,
        }
    }

    /// Asks a member to let this agent join. One that has gone meanwhile is not reached.
    pub(crate) fn join(&mut self, members: &Membership, peer: PeerId) {
        if self.shut_out.contains(&peer) {
            return self.refused.push_back(peer);
        }
        let Some(exchange) = self.exchange else {
            return;
        };
        let join = exchange.join(peer, members.exchange_addresses(&peer), self.key);
        self.peers.insert(peer, Link::Asking);
        self.tasks.spawn(async move {
            let result = join.await;
            TaskEnd::Join { peer, result }
        });
    }

    /// How many have joined.
    pub(crate) fn joined(&self) -> u32 {
        let joined = self
            .peers
            .values()
            .filter(|link| matches!(link, Link::Joined { .. }));
        u32::try_from(joined.count()).unwrap_or(u32::MAX)
    }

    /// Asks a peer for segments.
    pub(crate) fn request(&mut self, peer: PeerId, range: SegmentRange) {
        if let Some(Link::Joined { download, .. }) = self.peers.get(&peer)
            && let Err(error) = download.request(range)
        {
            // Its last event is on the way, and tells the planner.
            tracing::debug!(%peer, %range, %error, "a request was not taken");
        }
    }

    /// Takes back what has not been asked of the peer yet.
    pub(crate) fn cancel(&mut self, peer: PeerId, range: SegmentRange) {
        if let Some(Link::Joined { download, .. }) = self.peers.get(&peer) {
            download.cancel(range);
        }
    }

    /// Takes back all that was asked of a peer, by ending its streams and opening others.
    pub(crate) fn interrupt(&mut self, peer: PeerId) {
        if let Some(Link::Joined {
            session, download, ..
        }) = self.peers.get_mut(&peer)
        {
            *download = session.download(self.spec.clone());
        }
    }

    /// Ends the session with a peer.
    pub(crate) fn drop_peer(&mut self, peer: PeerId, reason: DropReason) {
        if let Some(Link::Joined { session, .. }) = self.peers.insert(peer, Link::Dropped)
            && reason == DropReason::Lied
            // It said that it could not know; and other downloads may use the connection.
            && session.standing() == Standing::Proved
        {
            session.cut_off("a segment was not what the manifest says");
        }
    }

    /// The next thing a peer did. Cancel-safe. Never ends.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        if let Some(peer) = self.refused.pop_front() {
            let failure = JoinFailure::Misbehaved;
            return LinkEvent::NotJoined { peer, failure };
        }
        loop {
            let event = tokio::select! {
                Some(word) = self.words.recv() => self.word(word),
                Some((peer, update)) = self.updates.recv() => self.update(peer, update),
                // An error is a watch that was ended, or a panic, which has said so.
                Some(end) = self.tasks.join_next() => {
                    end.ok().and_then(|end| self.task_ended(end))
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn word(&mut self, word: PeerEvent) -> Option<LinkEvent> {
        let peer = word.peer;
        match word.kind {
            // Segments went to the writer, and what it has is watched.
            PeerEventKind::Segment { .. } | PeerEventKind::Have(_) => None,
            PeerEventKind::Absent(index) => Some(LinkEvent::Absent { peer, index }),
            PeerEventKind::Busy { range, retry_after } => Some(LinkEvent::Busy {
                peer,
                range,
                retry_after,
            }),
            PeerEventKind::Failed(failure) => self.failed(peer, &failure),
        }
    }

    fn is_joined(&self, peer: PeerId) -> bool {
        matches!(self.peers.get(&peer), Some(Link::Joined { .. }))
    }

    fn update(&mut self, peer: PeerId, update: HaveUpdate) -> Option<LinkEvent> {
        if !self.is_joined(peer) {
            return None;
        }
        Some(match update {
            HaveUpdate::All(have) => LinkEvent::Have { peer, have },
            HaveUpdate::More(more) => LinkEvent::HaveMore { peer, more },
        })
    }

    fn failed(&mut self, peer: PeerId, failure: &PeerFailure) -> Option<LinkEvent> {
        if !self.is_joined(peer) {
            return None;
        }
        tracing::debug!(%peer, %failure, "a session with a peer has ended");
        match failure {
            PeerFailure::Misbehaved(_) => Some(LinkEvent::Lied { peer }),
            PeerFailure::Unknown
            | PeerFailure::Busy { .. }
            | PeerFailure::Lost { .. }
            | PeerFailure::TimedOut { .. }
            | PeerFailure::Stopped => {
                self.peers.remove(&peer);
                Some(LinkEvent::Left { peer })
            }
        }
    }

    fn task_ended(&mut self, end: TaskEnd) -> Option<LinkEvent> {
        match end {
            TaskEnd::Join { peer, result } => self.join_ended(peer, result),
            TaskEnd::Watch { peer, failure } => self.failed(peer, &failure?),
        }
    }

    fn join_ended(
        &mut self,
        peer: PeerId,
        result: Result<PeerSession, JoinError>,
    ) -> Option<LinkEvent> {
        let Some(Link::Asking) = self.peers.get(&peer) else {
            return None;
        };
        let joined = result.and_then(|session| {
            let have = session.have(self.spec.segments)?;
            Ok((session, have))
        });
        match joined {
            Ok((session, have)) => {
                let download = session.download(self.spec.clone());
                let watch = self.watch(&session);
                let link = Link::Joined {
                    session,
                    download,
                    _watch: watch,
                };
                self.peers.insert(peer, link);
                Some(LinkEvent::Joined { peer, have })
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a member does not take part");
                self.peers.remove(&peer);
                let failure = failure_of(&error);
                Some(LinkEvent::NotJoined { peer, failure })
            }
        }
    }

    /// Hears from now on what a peer comes to hold.
    fn watch(&mut self, session: &PeerSession) -> Watch {
        let (peer, updates) = (session.peer(), self.to_me.clone());
        let mut watch = session.watch(self.spec.segments);
        Watch(self.tasks.spawn(async move {
            let failure = loop {
                match watch.next().await {
                    Ok(Some(update)) => {
                        if updates.send((peer, update)).await.is_err() {
                            break None;
                        }
                    }
                    Ok(None) => break None,
                    Err(failure) => break Some(failure),
                }
            };
            TaskEnd::Watch { peer, failure }
        }))
    }
}

fn failure_of(error: &JoinError) -> JoinFailure {
    match error {
        JoinError::Peer(PeerFailure::Busy { retry_after }) => JoinFailure::Busy {
            retry_after: *retry_after,
        },
        JoinError::Peer(PeerFailure::Misbehaved(_)) => JoinFailure::Misbehaved,
        JoinError::Peer(
            PeerFailure::Unknown
            | PeerFailure::Lost { .. }
            | PeerFailure::TimedOut { .. }
            | PeerFailure::Stopped,
        )
        | JoinError::Dial(_) => JoinFailure::Absent,
    }
}
