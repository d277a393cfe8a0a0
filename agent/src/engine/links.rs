//! The peers of one download: who was asked to join, who has, and what they send.
//!
//! Segments go straight to the writer's queue; everything else comes out of [`Links::next`]. When
//! the queue is full, peers are not read from: QUIC's flow control then holds them back. Decides
//! nothing about segments; it only keeps asking members whether they hold the content by now.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use branchline_core::planner::DropReason;
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_discovery::{Member, Membership};
use branchline_exchange::{
    Download, DownloadSpec, EventSink, Exchange, JoinError, PeerEvent, PeerEventKind, PeerFailure,
    PeerSession,
};
use branchline_hashing::{ContentKey, SegmentIndex};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::engine::writer::Arrivals;

/// Members asked for one content. More would cost a small office nothing and a large one a burst
/// of connections.
const MAX_ASKED: usize = 64;

/// Words of peers that wait for the planner.
const WORD_QUEUE: usize = 256;

/// A member that does not hold the content is asked again after so long: it may be fetching it.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// A peer that holds only a part is asked what it has by now after so long.
const REFRESH: Duration = Duration::from_millis(500);

/// What a peer did, but for sending a segment.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// It holds these.
    Joined { peer: PeerId, have: SegmentSet },
    /// One that was asked for the first time does not take part.
    NotJoined,
    /// It holds these by now.
    Have { peer: PeerId, have: SegmentSet },
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
    spec: DownloadSpec,
    peers: BTreeMap<PeerId, Link>,
    /// Members as they were last seen, to ask them again.
    members: BTreeMap<PeerId, Member>,
    tasks: JoinSet<TaskEnd>,
    words: mpsc::Receiver<PeerEvent>,
}

enum Link {
    /// Asked, or waiting to be asked again. `first`: the planner waits for the answer.
    Asking { first: bool },
    Joined {
        session: PeerSession,
        download: Download,
        holds_all: bool,
        /// What it has is being asked.
        asked: bool,
    },
    /// Cut off: not to be asked again.
    Dropped,
}

enum TaskEnd {
    Join {
        peer: PeerId,
        result: Result<PeerSession, JoinError>,
    },
    Have {
        peer: PeerId,
        result: Result<SegmentSet, PeerFailure>,
    },
}

impl<'a> Links<'a> {
    /// Links for a content whose segments have these `lengths`; without an exchange there are none.
    pub(crate) fn new(
        exchange: Option<&'a Exchange>,
        key: ContentKey,
        lengths: &Arc<[u32]>,
        arrivals: Arrivals,
    ) -> Self {
        let (rest, words) = mpsc::channel(WORD_QUEUE);
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
            spec,
            peers: BTreeMap::new(),
            members: BTreeMap::new(),
            tasks: JoinSet::new(),
            words,
        }
    }

    /// Asks members that were not asked yet; says how many.
    pub(crate) fn update(&mut self, members: &Membership) -> u32 {
        let Some(exchange) = self.exchange else {
            return 0;
        };
        let mut asked = 0;
        self.members
            .retain(|peer, _| members.member(peer).is_some());
        for (peer, member) in members.members() {
            self.members.insert(*peer, member.clone());
            if self.peers.len() < MAX_ASKED && !self.peers.contains_key(peer) {
                self.peers.insert(*peer, Link::Asking { first: true });
                self.tasks
                    .spawn(ask(exchange, member, self.key, Duration::ZERO));
                asked += 1;
            }
        }
        asked
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

    /// Ends the session with a peer, for good.
    pub(crate) fn drop_peer(&mut self, peer: PeerId, reason: DropReason) {
        if let Some(Link::Joined { session, .. }) = self.peers.insert(peer, Link::Dropped)
            && reason == DropReason::Lied
        {
            session.cut_off("a segment was not what the manifest says");
        }
    }

    /// The next thing a peer did. Cancel-safe. Never ends.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        loop {
            let event = tokio::select! {
                Some(word) = self.words.recv() => self.word(word),
                Some(Ok(end)) = self.tasks.join_next() => self.task_ended(end),
                else => std::future::pending().await,
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn word(&mut self, word: PeerEvent) -> Option<LinkEvent> {
        let peer = word.peer;
        match word.kind {
            // Segments went to the writer.
            PeerEventKind::Segment { .. } => None,
            PeerEventKind::Have(have) => self.holds(peer, have),
            PeerEventKind::Absent(index) => Some(LinkEvent::Absent { peer, index }),
            PeerEventKind::Busy { range, retry_after } => Some(LinkEvent::Busy {
                peer,
                range,
                retry_after,
            }),
            PeerEventKind::Failed(failure) => self.failed(peer, &failure),
        }
    }

    fn holds(&mut self, peer: PeerId, have: SegmentSet) -> Option<LinkEvent> {
        let Some(Link::Joined { holds_all, .. }) = self.peers.get_mut(&peer) else {
            return None;
        };
        if *holds_all {
            return None;
        }
        *holds_all = have.is_full();
        self.refresh(peer);
        Some(LinkEvent::Have { peer, have })
    }

    /// Asks a peer that holds only a part what it has, a little later; one question at a time.
    fn refresh(&mut self, peer: PeerId) {
        if let Some(Link::Joined {
            session,
            holds_all: false,
            asked,
            ..
        }) = self.peers.get_mut(&peer)
            && !std::mem::replace(asked, true)
        {
            self.tasks
                .spawn(refresh(session.clone(), self.spec.segments));
        }
    }

    fn failed(&mut self, peer: PeerId, failure: &PeerFailure) -> Option<LinkEvent> {
        if !matches!(self.peers.get(&peer), Some(Link::Joined { .. })) {
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
                self.ask_after(peer, ASK_AGAIN);
                Some(LinkEvent::Left { peer })
            }
        }
    }

    fn task_ended(&mut self, end: TaskEnd) -> Option<LinkEvent> {
        match end {
            TaskEnd::Join { peer, result } => self.join_ended(peer, result),
            TaskEnd::Have { peer, result } => {
                if let Some(Link::Joined { asked, .. }) = self.peers.get_mut(&peer) {
                    *asked = false;
                }
                match result {
                    Ok(have) => self.holds(peer, have),
                    Err(error) => {
                        tracing::debug!(%peer, %error, "a peer did not say what it has");
                        self.refresh(peer);
                        None
                    }
                }
            }
        }
    }

    fn join_ended(
        &mut self,
        peer: PeerId,
        result: Result<PeerSession, JoinError>,
    ) -> Option<LinkEvent> {
        let Some(Link::Asking { first }) = self.peers.get(&peer) else {
            return None;
        };
        let first = *first;
        let joined = result.and_then(|session| {
            let have = session.have(self.spec.segments)?;
            Ok((session, have))
        });
        match joined {
            Ok((session, have)) => {
                let download = session.download(self.spec.clone());
                let link = Link::Joined {
                    session,
                    download,
                    holds_all: have.is_full(),
                    asked: false,
                };
                self.peers.insert(peer, link);
                Some(LinkEvent::Joined { peer, have })
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a member does not take part");
                self.ask_again(peer, &error);
                first.then_some(LinkEvent::NotJoined)
            }
        }
    }

    fn ask_again(&mut self, peer: PeerId, error: &JoinError) {
        let wait = match error {
            JoinError::Peer(PeerFailure::Busy { retry_after }) => (*retry_after).max(REFRESH),
            JoinError::Peer(PeerFailure::Misbehaved(_)) => {
                self.peers.insert(peer, Link::Dropped);
                return;
            }
            JoinError::Peer(_) | JoinError::Dial(_) => ASK_AGAIN,
        };
        match self.next_unasked(peer) {
            // In a branch with more members than are asked at a time, another has its turn.
            Some(next) => {
                self.peers.remove(&peer);
                self.ask_after(next, REFRESH);
            }
            None => self.ask_after(peer, wait),
        }
    }

    /// The member after `peer`, in a circle, that is not asked now.
    fn next_unasked(&self, peer: PeerId) -> Option<PeerId> {
        let after = self
            .members
            .range((Bound::Excluded(peer), Bound::Unbounded));
        let mut circle = after.chain(self.members.range(..peer)).map(|(id, _)| *id);
        circle.find(|id| !self.peers.contains_key(id))
    }

    /// A member that went away meanwhile is not asked; when it comes back it is new.
    fn ask_after(&mut self, peer: PeerId, wait: Duration) {
        match (self.exchange, self.members.get(&peer)) {
            (Some(exchange), Some(member)) => {
                self.tasks.spawn(ask(exchange, member, self.key, wait));
                self.peers.insert(peer, Link::Asking { first: false });
            }
            _ => {
                self.peers.remove(&peer);
            }
        }
    }
}

/// Asks a member to let this agent join, after a wait.
fn ask(
    exchange: &Exchange,
    member: &Member,
    key: ContentKey,
    after: Duration,
) -> impl Future<Output = TaskEnd> + Send + use<> {
    let peer = member.peer_id;
    let join = exchange.join(peer, member.exchange_addresses.clone(), key);
    async move {
        tokio::time::sleep(after).await;
        TaskEnd::Join {
            peer,
            result: join.await,
        }
    }
}

async fn refresh(session: PeerSession, segments: u32) -> TaskEnd {
    tokio::time::sleep(REFRESH).await;
    TaskEnd::Have {
        peer: session.peer(),
        result: session.ask_have(segments).await,
    }
}
