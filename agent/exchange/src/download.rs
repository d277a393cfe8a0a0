//! Fetching one content's segments from one peer over several streams.
//!
//! Requests wait in one queue; each stream takes the next when it has room, so a stream that is
//! slow keeps little waiting. Segments leave through the caller's bounded channel: when that is
//! full the streams are not read, and QUIC's flow control stops the peer.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use branchline_core::wire::{
    MAX_REQUEST_SEGMENTS, MAX_SEGMENT_BYTES, RequesterMessage, ResponderMessage,
};
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_hashing::{ContentKey, SegmentIndex};
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError as TaskError, JoinSet};

use crate::error::{Misbehaviour, PeerFailure};
use crate::hub::{HubHandle, Link};
use crate::session::{self, JoinedStream};
use crate::sink::EventSink;

/// Streams to one peer: what quinn's figures were taken with (7 Gbit/s at MTU 1452). A packet lost on
/// one holds back that one only.
const DEFAULT_STREAMS: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

/// A request travels in pieces of about this size, so that all streams get some of it.
const PIECE_BYTES: u64 = 1 << 20;

/// A stream asks for more while less than this is on its way.
const PIPELINE_BYTES: u64 = 2 << 20;

/// Pieces that may wait: 4 GiB of 1 MiB pieces.
const MAX_WAITING_PIECES: usize = 4096;

/// The length of each segment, by the manifest.
pub type SegmentLengths = Arc<dyn Fn(SegmentIndex) -> Option<u32> + Send + Sync>;

/// What to fetch and where to put it.
#[derive(Clone)]
pub struct DownloadSpec {
    /// How many segments the manifest has.
    pub segments: u32,
    /// The length of each.
    pub lengths: SegmentLengths,
    /// Where events go.
    pub events: EventSink,
    /// How many streams; `None` for the measured default.
    pub streams: Option<NonZeroUsize>,
}

/// Something that came from a peer.
#[derive(Debug, Clone)]
pub struct PeerEvent {
    /// Which.
    pub peer: PeerId,
    /// What.
    pub kind: PeerEventKind,
}

/// What came.
#[derive(Debug, Clone)]
pub enum PeerEventKind {
    /// What the peer has; first of all events.
    Have(SegmentSet),
    /// A segment that was asked for, of the length the manifest says. Not verified.
    Segment {
        /// Which.
        index: SegmentIndex,
        /// Its bytes.
        bytes: Bytes,
    },
    /// The peer does not have it (any more).
    Absent(SegmentIndex),
    /// The peer has too much to do: ask again for these, later or elsewhere.
    Busy {
        /// What will not come.
        range: SegmentRange,
        /// When to try again, by its own word.
        retry_after: Duration,
    },
    /// Nothing more comes: the last event. What was asked and has not come will not come.
    Failed(PeerFailure),
}

/// A request that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefused {
    /// Past the manifest's end, or longer than a segment can be.
    #[error("the manifest has no segment {index} that could travel")]
    NoSuchSegment {
        /// Which.
        index: SegmentIndex,
    },
    /// More is waiting than makes sense: wait for events.
    #[error("too many requests are waiting for this peer")]
    TooMany,
    /// The download has failed; its last event says why.
    #[error("the download from this peer has ended")]
    Ended,
}

/// A download from one peer. Dropping it cancels what has not come.
pub struct Download {
    queue: Arc<Queue>,
    /// Dropping it stops the streams.
    _cancel: oneshot::Sender<()>,
}

impl Download {
    /// Asks for segments; they come as events, in no particular order.
    ///
    /// # Errors
    /// [`RequestRefused`]; then nothing of `range` was asked.
    pub fn request(&self, range: SegmentRange) -> Result<(), RequestRefused> {
        let pieces = pieces(range, &self.queue.lengths)?;
        let mut state = self.queue.lock();
        if state.ended {
            return Err(RequestRefused::Ended);
        }
        if state.waiting.len() + pieces.len() > MAX_WAITING_PIECES {
            return Err(RequestRefused::TooMany);
        }
        state.waiting.extend(pieces);
        drop(state);
        self.queue.wake.notify_waiters();
        Ok(())
    }

    /// Takes back what of `range` no stream has asked the peer for yet. The rest still comes.
    pub fn cancel(&self, range: SegmentRange) {
        let mut state = self.queue.lock();
        let waiting = std::mem::take(&mut state.waiting);
        let lengths = &self.queue.lengths;
        let kept = waiting
            .into_iter()
            .flat_map(|piece| piece.without(range, lengths));
        state.waiting.extend(kept);
    }
}

pub(crate) fn start(
    hub: &HubHandle,
    link: Arc<Link>,
    key: ContentKey,
    spec: DownloadSpec,
) -> Download {
    let queue = Arc::new(Queue {
        state: Mutex::default(),
        wake: Notify::new(),
        lengths: Arc::clone(&spec.lengths),
    });
    let (cancel, mut cancelled) = oneshot::channel::<()>();
    let untold = Untold {
        peer: link.peer,
        queue: Arc::clone(&queue),
        events: spec.events.clone(),
        told: false,
    };
    let run = Run {
        link,
        key,
        spec,
        queue: Arc::clone(&queue),
    };
    hub.start(async move {
        let mut untold = untold;
        tokio::select! {
            _ = &mut cancelled => {}
            () = run.finish() => {}
        }
        untold.told = true;
    });
    Download {
        queue,
        _cancel: cancel,
    }
}

/// What waits to be asked.
struct Queue {
    state: Mutex<QueueState>,
    wake: Notify,
    lengths: SegmentLengths,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Piece>,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    range: SegmentRange,
    bytes: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a download whose task is dropped before it could: one too many, one that broke, or one that
/// the exchange's end has caught.
struct Untold {
    peer: PeerId,
    queue: Arc<Queue>,
    events: EventSink,
    told: bool,
}

impl Drop for Untold {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        self.queue.lock().ended = true;
        let (peer, kind) = (self.peer, PeerEventKind::Failed(PeerFailure::Stopped));
        self.events.try_tell(PeerEvent { peer, kind });
    }
}

/// Cuts `range` into pieces of about [`PIECE_BYTES`], at least one segment each.
fn pieces(range: SegmentRange, lengths: &SegmentLengths) -> Result<Vec<Piece>, RequestRefused> {
    let mut pieces: Vec<Piece> = Vec::new();
    for index in range.iter() {
        let length = lengths(index)
            .filter(|length| *length <= MAX_SEGMENT_BYTES)
            .ok_or(RequestRefused::NoSuchSegment { index })?;
        let longer = pieces
            .last()
            .and_then(|piece| piece.extended(u64::from(length)));
        match (pieces.last_mut(), longer) {
            (Some(last), Some(longer)) => *last = longer,
            _ => pieces.push(Piece {
                range: SegmentRange::one(index),
                bytes: length.into(),
            }),
        }
    }
    Ok(pieces)
}

impl Piece {
    /// What is left of it without `taken`.
    fn without(self, taken: SegmentRange, lengths: &SegmentLengths) -> impl Iterator<Item = Self> {
        self.range.without(taken).map(|range| {
            let bytes = range
                .iter()
                .filter_map(|index| lengths(index))
                .map(u64::from)
                .sum();
            Self { range, bytes }
        })
    }

    fn extended(self, bytes: u64) -> Option<Self> {
        let count = self.range.count() + 1;
        let fits = self.bytes + bytes <= PIECE_BYTES && count <= MAX_REQUEST_SEGMENTS;
        let range = SegmentRange::new(self.range.first(), count).filter(|_| fits)?;
        Some(Self {
            range,
            bytes: self.bytes + bytes,
        })
    }
}

/// A download's task.
struct Run {
    link: Arc<Link>,
    key: ContentKey,
    spec: DownloadSpec,
    queue: Arc<Queue>,
}

impl Run {
    async fn finish(self) {
        let Err(failure) = self.run_streams().await else {
            return;
        };
        session::note_misbehaviour(&self.link, &failure);
        self.queue.lock().ended = true;
        let _nobody_listens = self.tell(PeerEventKind::Failed(failure)).await;
    }

    /// Ends with the first stream that fails, or well when nobody listens any more.
    async fn run_streams(&self) -> Result<(), PeerFailure> {
        let first = JoinedStream::open(&self.link, &self.key).await?;
        let have = session::sized(&first.have, self.spec.segments)?;
        if self.tell(PeerEventKind::Have(have)).await.is_none() {
            return Ok(());
        }
        let (mut opening, mut streams) = (JoinSet::new(), JoinSet::new());
        streams.spawn(self.stream(first).run());
        for _ in 1..self.spec.streams.unwrap_or(DEFAULT_STREAMS).get() {
            let (link, key) = (Arc::clone(&self.link), self.key);
            opening.spawn(async move { JoinedStream::open(&link, &key).await });
        }
        loop {
            tokio::select! {
                Some(opened) = opening.join_next() => {
                    if let Some(joined) = usable(finished(opened))? {
                        streams.spawn(self.stream(joined).run());
                    }
                }
                Some(ended) = streams.join_next() => return finished(ended),
            }
        }
    }

    fn stream(&self, joined: JoinedStream) -> Stream {
        Stream {
            link: Arc::clone(&self.link),
            joined,
            queue: Arc::clone(&self.queue),
            events: self.spec.events.clone(),
            expected: Expected::default(),
        }
    }

    async fn tell(&self, kind: PeerEventKind) -> Option<()> {
        let event = PeerEvent {
            peer: self.link.peer,
            kind,
        };
        self.spec.events.send(event).await.ok()
    }
}

/// One stream is enough: what keeps another from opening matters only when the peer misbehaved.
fn usable(opened: Result<JoinedStream, PeerFailure>) -> Result<Option<JoinedStream>, PeerFailure> {
    match opened {
        Ok(joined) => Ok(Some(joined)),
        Err(failure @ PeerFailure::Misbehaved(_)) => Err(failure),
        Err(failure) => {
            tracing::debug!(%failure, "a download goes on with fewer streams");
            Ok(None)
        }
    }
}

fn finished<T>(ended: Result<Result<T, PeerFailure>, TaskError>) -> Result<T, PeerFailure> {
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "a download's stream broke");
        Err(PeerFailure::Stopped)
    })
}

/// One stream of a download.
struct Stream {
    link: Arc<Link>,
    joined: JoinedStream,
    queue: Arc<Queue>,
    events: EventSink,
    expected: Expected,
}

impl Stream {
    async fn run(mut self) -> Result<(), PeerFailure> {
        let queue = Arc::clone(&self.queue);
        loop {
            // Registered before the queue is looked at: a piece that comes in between wakes too.
            let mut woken = std::pin::pin!(queue.wake.notified());
            woken.as_mut().enable();
            self.ask_for_more().await?;
            tokio::select! {
                () = woken, if self.expected.has_room() => {}
                // While something is owed the stream itself tells, after what has still arrived.
                lost = self.link.connection.closed(), if self.expected.is_empty() => {
                    return Err(PeerFailure::lost(&lost));
                }
                message = session::next_message(&mut self.joined.reader, "a request"),
                    if !self.expected.is_empty() =>
                {
                    let kind = self.handle_message(message?).await?;
                    let event = PeerEvent { peer: self.link.peer, kind };
                    if self.events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn ask_for_more(&mut self) -> Result<(), PeerFailure> {
        while self.expected.has_room() {
            let Some(piece) = self.queue.lock().waiting.pop_front() else {
                break;
            };
            self.expected.push(piece);
            let request = RequesterMessage::Request(piece.range);
            session::send_message(&mut self.joined.send, request).await?;
        }
        Ok(())
    }

    async fn handle_message(
        &mut self,
        message: ResponderMessage,
    ) -> Result<PeerEventKind, PeerFailure> {
        match message {
            ResponderMessage::Segment { index, length } => {
                let expected = self.expected.take(index, &self.queue.lengths)?;
                if length != expected {
                    let wrong = Misbehaviour::WrongLength {
                        index,
                        expected,
                        found: length,
                    };
                    return Err(wrong.into());
                }
                let body = self.joined.reader.body(expected as usize).await;
                let bytes = body.map_err(|error| session::failure(error, "a segment"))?;
                Ok(PeerEventKind::Segment { index, bytes })
            }
            ResponderMessage::Absent { index } => {
                self.expected.take(index, &self.queue.lengths)?;
                Ok(PeerEventKind::Absent(index))
            }
            ResponderMessage::RangeBusy { range, retry_after } => {
                self.expected.give_up(range)?;
                Ok(PeerEventKind::Busy { range, retry_after })
            }
            other @ (ResponderMessage::Joined { .. }
            | ResponderMessage::Unknown
            | ResponderMessage::Busy { .. }
            | ResponderMessage::Manifest { .. }
            | ResponderMessage::NoManifest
            | ResponderMessage::Have(_)
            | ResponderMessage::HaveMore(_)
            | ResponderMessage::Answer(_)
            | ResponderMessage::Hashes { .. }) => Err(session::out_of_place(&other)),
        }
    }
}

/// What the peer owes on one stream, in order.
#[derive(Default)]
struct Expected {
    pieces: VecDeque<Piece>,
    /// Segments of the first piece that have come.
    come: u32,
    /// Of all pieces that have not come completely.
    bytes: u64,
}

impl Expected {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn has_room(&self) -> bool {
        self.bytes < PIPELINE_BYTES && self.pieces.len() < MAX_REQUEST_SEGMENTS as usize
    }

    fn push(&mut self, piece: Piece) {
        self.bytes += piece.bytes;
        self.pieces.push_back(piece);
    }

    /// Strikes `found` off if it is next; its length by the manifest.
    fn take(&mut self, found: SegmentIndex, lengths: &SegmentLengths) -> Result<u32, PeerFailure> {
        let range = self.first()?;
        let expected = SegmentIndex(range.first().0 + self.come);
        if found != expected {
            return Err(Misbehaviour::WrongOrder { expected, found }.into());
        }
        self.come += 1;
        if self.come == range.count() {
            self.strike_first();
        }
        lengths(found).ok_or_else(|| {
            Misbehaviour::OutOfPlace {
                message: format!("segment {found} past the end"),
            }
            .into()
        })
    }

    /// Strikes the whole first request off if it is `found` and nothing of it has come.
    fn give_up(&mut self, found: SegmentRange) -> Result<(), PeerFailure> {
        if self.first()? != found || self.come != 0 {
            let message = format!("RangeBusy for {found}");
            return Err(Misbehaviour::OutOfPlace { message }.into());
        }
        self.strike_first();
        Ok(())
    }

    fn first(&self) -> Result<SegmentRange, PeerFailure> {
        let unasked = || Misbehaviour::OutOfPlace {
            message: "an answer to nothing".to_owned(),
        };
        Ok(self.pieces.front().ok_or_else(unasked)?.range)
    }

    fn strike_first(&mut self) {
        self.come = 0;
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(of: &'static [u32]) -> SegmentLengths {
        Arc::new(|index: SegmentIndex| of.get(index.0 as usize).copied())
    }

    fn range(first: u32, count: u32) -> SegmentRange {
        SegmentRange::new(SegmentIndex(first), count).expect("a range")
    }

    #[test]
    fn a_request_is_cut_at_about_a_mebibyte() {
        const K: u32 = 1024;
        let lengths = lengths(&[400 * K, 400 * K, 400 * K, 2048 * K, 10, 10]);
        let cut: Vec<_> = pieces(range(0, 6), &lengths)
            .expect("all exist")
            .iter()
            .map(|p| p.range)
            .collect();
        assert_eq!(cut, [range(0, 2), range(2, 1), range(3, 1), range(4, 2)]);
        let refused = pieces(range(4, 3), &lengths).map(|p| p.len());
        assert_eq!(
            refused,
            Err(RequestRefused::NoSuchSegment {
                index: SegmentIndex(6)
            })
        );
    }

    #[tokio::test]
    async fn a_download_whose_task_is_dropped_has_ended_and_says_so() {
        use tokio::sync::mpsc;

        let peer = PeerId::from_public_key([1; 32]);
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            wake: Notify::new(),
            lengths: lengths(&[5]),
        });
        let (segments, _arrivals) = mpsc::channel(1);
        let (rest, mut words) = mpsc::channel(1);
        let untold = Untold {
            peer,
            queue: Arc::clone(&queue),
            events: EventSink::Apart { segments, rest },
            told: false,
        };
        let (cancel, _cancelled) = oneshot::channel();
        let download = Download {
            queue,
            _cancel: cancel,
        };
        // A hub that takes no more: the task is dropped before it ever ran.
        let (commands, receiver) = mpsc::channel(1);
        drop(receiver);
        HubHandle::new(commands).start(async move { drop(untold) });
        let word = words.recv().await.expect("a last event");
        assert_eq!(word.peer, peer);
        assert!(matches!(
            word.kind,
            PeerEventKind::Failed(PeerFailure::Stopped)
        ));
        assert_eq!(download.request(range(0, 1)), Err(RequestRefused::Ended));
    }

    #[test]
    fn what_is_owed_is_taken_in_order_only() {
        let lengths = lengths(&[5, 6, 7, 8]);
        let mut expected = Expected::default();
        expected.push(Piece {
            range: range(1, 2),
            bytes: 13,
        });
        expected.push(Piece {
            range: range(0, 1),
            bytes: 5,
        });
        assert!(expected.take(SegmentIndex(2), &lengths).is_err());
        assert_eq!(expected.take(SegmentIndex(1), &lengths), Ok(6));
        assert!(
            expected.give_up(range(1, 2)).is_err(),
            "half of it has come"
        );
        assert_eq!(expected.take(SegmentIndex(2), &lengths), Ok(7));
        assert_eq!(expected.bytes, 5);
        assert!(expected.give_up(range(1, 2)).is_err(), "another request");
        assert!(expected.give_up(range(0, 1)).is_ok());
        assert!(expected.is_empty() && expected.bytes == 0);
        assert!(
            expected.take(SegmentIndex(3), &lengths).is_err(),
            "nothing is owed"
        );
    }
}
