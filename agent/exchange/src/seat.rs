//! Where other agents' steward streams come in: who enlists, reports, announces and leaves.
//!
//! The exchange decides nothing here: it keeps streams few, sees to their order and passes on what
//! they say. Of one member, or of one announcer, events come in the order of its stream, and
//! the last one of a stream before the first one of the stream that takes its place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use branchline_core::PeerId;
use branchline_core::swarm::{Answer, Enlist, Report};
use branchline_hashing::SwarmId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::options::ExchangeOptions;

/// Events that wait for the steward. While so many do, steward streams are read no further: QUIC
/// holds back who is at their other ends, and nothing is lost. The longest, an announcement, has 32 KiB.
const EVENT_QUEUE: usize = 64;

/// What other agents say to this one as a steward, or as one that knows who holds what.
#[derive(Debug)]
pub enum SeatEvent {
    /// A member's first word. As long as it has not left, no other member is this peer in this swarm.
    Enlisted {
        /// Who.
        peer: PeerId,
        /// What it says; its parts fit together.
        enlist: Enlist,
        /// Takes the answers to it. When it is full the member does not take what it is sent; when
        /// it is dropped the stream ends, and the member goes elsewhere.
        answers: mpsc::Sender<Answer>,
    },
    /// What has changed at a member.
    Reported {
        /// Who.
        peer: PeerId,
        /// Where.
        swarm: SwarmId,
        /// What. It speaks of as many blocks as the member's first word.
        report: Report,
    },
    /// A member's stream has ended, for whatever reason.
    Left {
        /// Who.
        peer: PeerId,
        /// Which swarm.
        swarm: SwarmId,
    },
    /// A peer holds these contents completely and gives them to others. The first one of a peer may
    /// be empty.
    Announced {
        /// Who.
        peer: PeerId,
        /// Which.
        swarms: Vec<SwarmId>,
    },
    /// A peer no longer does.
    Withdrawn {
        /// Who.
        peer: PeerId,
        /// Which.
        swarms: Vec<SwarmId>,
    },
    /// A peer's announcements have ended: all it announced is withdrawn.
    Silent {
        /// Who.
        peer: PeerId,
    },
}

/// What an exchange hands the words of members and announcers to.
pub struct StewardSeat {
    queue: mpsc::UnboundedSender<Queued>,
    slots: Arc<Semaphore>,
}

impl StewardSeat {
    /// For [`Exchange::start_with_seat`](crate::Exchange::start_with_seat), and what comes out of it.
    pub fn new() -> (Self, SeatEvents) {
        // Bounded all the same: an event takes a slot, but for the last one of a stream, which
        // must not be lost where nobody can wait. Streams are bounded.
        let (queue, events) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(EVENT_QUEUE));
        let seat = Self {
            queue,
            slots: Arc::clone(&slots),
        };
        (seat, SeatEvents { events, slots })
    }
}

/// The events of a [`StewardSeat`]. When it is dropped, no more steward streams are accepted, and those
/// there are end with the next word on them.
pub struct SeatEvents {
    events: mpsc::UnboundedReceiver<Queued>,
    slots: Arc<Semaphore>,
}

impl SeatEvents {
    /// The next one; `None` when the exchange has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<SeatEvent> {
        Some(self.events.recv().await?.event)
    }
}

impl Drop for SeatEvents {
    fn drop(&mut self) {
        self.slots.close();
    }
}

struct Queued {
    event: SeatEvent,
    _slot: Option<OwnedSemaphorePermit>,
}

/// Which stream: a peer has one for each swarm it enlists in, and one for all it announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamName {
    pub(crate) peer: PeerId,
    /// `None` for announcements.
    pub(crate) swarm: Option<SwarmId>,
}

/// Why a stream gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// This peer, or all together, have enough.
    TooMany,
    /// Nobody here is a steward (any more).
    NoSteward,
}

/// Nothing more of this stream is taken: another has its place, or nobody is the steward any more.
#[derive(Debug)]
pub(crate) struct NotTaken;

/// The steward streams of all connections. Locked for moments, on the exchange's thread only.
pub(crate) struct Seat {
    queue: mpsc::UnboundedSender<Queued>,
    slots: Arc<Semaphore>,
    max_streams: usize,
    max_streams_per_peer: usize,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    taken: BTreeMap<StreamName, Holder>,
    streams_so_far: u64,
}

struct Holder {
    number: u64,
    /// Dropping it tells the stream that another has its place.
    _place: oneshot::Sender<()>,
}

impl Seat {
    pub(crate) fn new(seat: StewardSeat, options: &ExchangeOptions) -> Arc<Self> {
        Arc::new(Self {
            queue: seat.queue,
            slots: seat.slots,
            max_streams: options.max_steward_streams,
            max_streams_per_peer: options.max_steward_streams_per_peer,
            places: Mutex::default(),
        })
    }

    /// Gives a stream its place, from an older one of the same name if need be: a member that dials
    /// anew comes before its old connection has timed out. `first` is told. Waits for the steward.
    pub(crate) async fn seat(
        self: &Arc<Self>,
        name: StreamName,
        first: SeatEvent,
    ) -> Result<Seated, Refused> {
        let slots = Arc::clone(&self.slots);
        let slot = slots.acquire_owned().await;
        let slot = slot.map_err(|_| Refused::NoSteward)?;
        let mut places = self.lock();
        if !places.taken.contains_key(&name) && self.is_full(&places, name.peer) {
            return Err(Refused::TooMany);
        }
        places.streams_so_far += 1;
        let number = places.streams_so_far;
        let (place, replaced) = oneshot::channel();
        let holder = Holder {
            number,
            _place: place,
        };
        if places.taken.insert(name, holder).is_some() {
            self.queue(name.last_event(), None);
        }
        self.queue(first, Some(slot));
        drop(places);
        let seat = Arc::clone(self);
        Ok(Seated {
            seat,
            name,
            number,
            replaced,
        })
    }

    fn is_full(&self, places: &Places, peer: PeerId) -> bool {
        let first = StreamName { peer, swarm: None };
        let of_peer = places.taken.range(first..);
        let of_peer = of_peer.take_while(|(name, _)| name.peer == peer);
        places.taken.len() >= self.max_streams || of_peer.count() >= self.max_streams_per_peer
    }

    fn queue(&self, event: SeatEvent, slot: Option<OwnedSemaphorePermit>) {
        // It fails only when nobody is the steward any more.
        let _nobody = self.queue.send(Queued { event, _slot: slot });
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamName {
    fn last_event(self) -> SeatEvent {
        let peer = self.peer;
        match self.swarm {
            Some(swarm) => SeatEvent::Left { peer, swarm },
            None => SeatEvent::Silent { peer },
        }
    }
}

/// A stream's place. Dropping it tells the steward that the stream has ended.
pub(crate) struct Seated {
    seat: Arc<Seat>,
    name: StreamName,
    number: u64,
    replaced: oneshot::Receiver<()>,
}

impl Seated {
    /// Waits for the steward. Not cancel-safe: a dropped call loses the event.
    pub(crate) async fn tell(&self, event: SeatEvent) -> Result<(), NotTaken> {
        let slots = Arc::clone(&self.seat.slots);
        let slot = slots.acquire_owned().await.map_err(|_| NotTaken)?;
        let places = self.seat.lock();
        let holder = places.taken.get(&self.name);
        // After its last event a stream has no other.
        if holder.is_none_or(|holder| holder.number != self.number) {
            return Err(NotTaken);
        }
        self.seat.queue(event, Some(slot));
        Ok(())
    }

    /// Ends when another stream has taken the place. Cancel-safe.
    pub(crate) async fn replaced(&mut self) {
        let _always_dropped = (&mut self.replaced).await;
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut places = self.seat.lock();
        if let Entry::Occupied(holder) = places.taken.entry(self.name)
            && holder.get().number == self.number
        {
            holder.remove();
            self.seat.queue(self.name.last_event(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    fn seat() -> (Arc<Seat>, SeatEvents) {
        let (seat, events) = StewardSeat::new();
        (Seat::new(seat, &ExchangeOptions::default()), events)
    }

    /// What a peer announces by.
    fn name(peer: u8) -> StreamName {
        StreamName {
            peer: PeerId::from_public_key([peer; 32]),
            swarm: None,
        }
    }

    fn word(of: StreamName) -> SeatEvent {
        SeatEvent::Announced {
            peer: of.peer,
            swarms: Vec::new(),
        }
    }

    async fn take(seat: &Arc<Seat>, name: StreamName) -> Seated {
        let seated = seat.seat(name, word(name)).await;
        seated.unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    async fn waits(future: impl Future) -> bool {
        let mut future = pin!(future);
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending()))
            .await
    }

    #[tokio::test]
    async fn streams_wait_for_the_steward_but_their_ends_do_not() {
        let (seat, mut events) = seat();
        let mut seated = Vec::new();
        for peer in 0..64 {
            seated.push(take(&seat, name(peer)).await);
        }
        assert!(waits(seat.seat(name(64), word(name(64)))).await);
        assert!(waits(seated[0].tell(word(name(0)))).await);
        drop(seated);
        for _ in 0..64 {
            let event = events.next().await;
            assert!(matches!(event, Some(SeatEvent::Announced { .. })));
        }
        for _ in 0..64 {
            let event = events.next().await;
            assert!(matches!(event, Some(SeatEvent::Silent { .. })));
        }
        let _now = take(&seat, name(64)).await;
    }

    #[tokio::test]
    async fn a_stream_whose_place_is_taken_says_nothing_after_its_end() {
        let (seat, mut events) = seat();
        let mut old = take(&seat, name(1)).await;
        assert!(waits(old.replaced()).await);
        let new = take(&seat, name(1)).await;
        assert!(!waits(old.replaced()).await);
        assert!(old.tell(word(name(1))).await.is_err());
        drop(old);
        new.tell(word(name(1))).await.expect("it has the place");
        drop(new);
        drop(seat);
        let mut come = String::new();
        while let Some(event) = events.next().await {
            come.push(match event {
                SeatEvent::Announced { .. } => 'a',
                SeatEvent::Silent { .. } => 's',
                other @ (SeatEvent::Enlisted { .. }
                | SeatEvent::Reported { .. }
                | SeatEvent::Left { .. }
                | SeatEvent::Withdrawn { .. }) => panic!("{other:?} came"),
            });
        }
        assert_eq!(come, "asaas");
    }

    #[tokio::test]
    async fn who_waits_for_a_steward_that_goes_is_refused() {
        let (seat, events) = seat();
        let seated = take(&seat, name(1)).await;
        drop(events);
        let refused = seat.seat(name(2), word(name(2))).await.err();
        assert_eq!(refused, Some(Refused::NoSteward));
        assert!(seated.tell(word(name(1))).await.is_err());
    }
}
