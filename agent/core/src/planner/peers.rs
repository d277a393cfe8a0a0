//! The peers of one transfer: what each holds, owes and delivers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;

use super::{FIRST_ANSWER, PEER_STALL, STALLS_ALLOWED, Source};
use crate::{Deadline, PeerId, SegmentRange, SegmentSet};

/// The bytes that may be asked of a peer before any has come: enough to see its rate, little
/// enough to lose nothing when it is slow.
const FIRST_WINDOW_BYTES: u64 = 2 << 20;

/// Requests in flight cover this much of a peer's measured rate, so that it never waits for the
/// next request (LAN round trips are below 1 ms, scheduling on a busy machine below 50 ms).
const WINDOW_TIME_MS: u64 = 300;

/// The bounds of that window: the lower keeps a slow peer useful, the upper bounds what is lost
/// with a peer.
const WINDOW_BYTES: std::ops::RangeInclusive<u64> = (512 << 10)..=(48 << 20);

/// Adjacent segments of about so many bytes go into one request.
const REQUEST_BYTES: u64 = 1 << 20;

/// A rate is measured over at least so long.
const RATE_WINDOW: Duration = Duration::from_millis(100);

/// In the end game an idle peer takes over what another would need longer than this for, and more
/// than twice as long as itself.
const TAKEOVER_AFTER: Duration = Duration::from_millis(200);

/// Slower than this no peer keeps the origin waiting, even before the origin was measured: a tenth
/// of the slowest line that offices still have (1 Mbit/s).
const SLOWEST_BYTES_PER_SEC: u64 = 12_500;

/// A peer that rests no longer than this is waited for rather than replaced by the origin.
const SHORT_REST: Duration = Duration::from_secs(1);

/// A peer that refuses more often than this in a row is not waited for.
const REFUSALS_ALLOWED: u32 = 4;

/// Delivering for so long makes a stall forgotten: every machine pauses now and then.
const STALL_FORGIVEN: Duration = Duration::from_secs(10);

/// Why a peer was dropped from a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It sent bytes that are not the segment.
    Lied,
    /// It owed segments and sent none, again and again.
    Stalled,
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: BTreeMap<PeerId, Peer>,
    dropped: BTreeSet<PeerId>,
    /// How often each went away without having delivered anything.
    vain_visits: BTreeMap<PeerId, u32>,
}

#[derive(Debug)]
struct Peer {
    have: SegmentSet,
    /// Segments asked for and not yet come, with their lengths in bytes.
    owed: BTreeMap<SegmentIndex, u32>,
    owed_bytes: u64,
    rate: Rate,
    /// The last time it delivered, or began to owe.
    progress: Instant,
    stalls: u32,
    last_stall: Option<Instant>,
    /// Times it was busy since it last delivered.
    refusals: u32,
    /// Whether anything ever came from it.
    delivered: bool,
    /// Not to be asked before.
    rests_until: Option<Instant>,
}

/// Bytes per second, measured over windows of [`RATE_WINDOW`] and smoothed.
#[derive(Debug)]
struct Rate {
    since: Instant,
    bytes: u64,
    bytes_per_sec: Option<u64>,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            bytes_per_sec: None,
        }
    }

    /// Idle time before a request says nothing of a peer's rate.
    fn restart(&mut self, now: Instant) {
        self.since = now;
        self.bytes = 0;
    }

    fn count(&mut self, now: Instant, bytes: u32) {
        self.bytes += u64::from(bytes);
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < RATE_WINDOW {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let measured = self.bytes.saturating_mul(1_000_000) / micros;
        let smoothed = self
            .bytes_per_sec
            .map_or(measured, |old| old / 2 + measured / 2);
        self.bytes_per_sec = Some(smoothed);
        self.restart(now);
    }
}

impl Peer {
    fn window_bytes(&self) -> u64 {
        let Some(rate) = self.rate.bytes_per_sec else {
            return FIRST_WINDOW_BYTES;
        };
        (rate / 1000 * WINDOW_TIME_MS).clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end())
    }

    fn delivered(&mut self, now: Instant) {
        self.delivered = true;
        self.refusals = 0;
        if self
            .last_stall
            .is_some_and(|last| now > last + STALL_FORGIVEN)
        {
            self.stalls = 0;
            self.last_stall = None;
        }
    }

    /// Whether waiting for it beats asking the origin, which gives this rate or twice as much.
    fn is_worth_waiting_for(&self, now: Instant, bytes_per_sec: u64) -> bool {
        let soon = self
            .rests_until
            .is_none_or(|until| until <= now + SHORT_REST);
        let floor = bytes_per_sec.max(SLOWEST_BYTES_PER_SEC);
        let fast = self.rate.bytes_per_sec.is_none_or(|rate| rate >= floor);
        soon && fast && self.refusals <= REFUSALS_ALLOWED
    }

    /// When it has stalled, if it owes anything.
    fn patience_ends(&self) -> Instant {
        self.progress
            + if self.delivered {
                PEER_STALL
            } else {
                FIRST_ANSWER
            }
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn has_room(&self, now: Instant) -> bool {
        !self.rests(now) && self.owed_bytes < self.window_bytes()
    }

    /// How long it will need for what it owes; of a peer not measured yet, how long it has kept
    /// us waiting.
    fn time_to_finish(&self, now: Instant) -> Duration {
        match self.rate.bytes_per_sec {
            Some(rate) => Duration::from_millis(self.owed_bytes.saturating_mul(1000) / rate.max(1)),
            None => now.saturating_duration_since(self.progress),
        }
    }

    fn owe(&mut self, now: Instant, index: SegmentIndex, length: u32) {
        if self.owed.is_empty() {
            self.progress = now;
            self.rate.restart(now);
        }
        if self.owed.insert(index, length).is_none() {
            self.owed_bytes += u64::from(length);
        }
    }

    /// Whether it was owed.
    fn settle(&mut self, index: SegmentIndex) -> bool {
        let length = self.owed.remove(&index);
        self.owed_bytes -= u64::from(length.unwrap_or(0));
        length.is_some()
    }

    fn forgive_all(&mut self) -> Vec<SegmentIndex> {
        self.owed_bytes = 0;
        std::mem::take(&mut self.owed).into_keys().collect()
    }
}

impl Peers {
    pub(super) fn join(&mut self, now: Instant, id: PeerId, have: SegmentSet) {
        if self.dropped.contains(&id) {
            return;
        }
        let peer = Peer {
            have,
            owed: BTreeMap::new(),
            owed_bytes: 0,
            rate: Rate::new(now),
            progress: now,
            stalls: 0,
            last_stall: None,
            refusals: 0,
            delivered: false,
            rests_until: None,
        };
        self.peers.insert(id, peer);
    }

    pub(super) fn update_have(&mut self, id: PeerId, have: SegmentSet) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.have = have;
        }
    }

    pub(super) fn holds(&self, id: PeerId, index: SegmentIndex) -> bool {
        self.peers
            .get(&id)
            .is_some_and(|peer| peer.have.contains(index))
    }

    pub(super) fn owes(&self, index: SegmentIndex) -> bool {
        self.peers
            .values()
            .any(|peer| peer.owed.contains_key(&index))
    }

    /// Nobody owes anything and nobody rests.
    pub(super) fn is_idle(&self) -> bool {
        self.peers
            .values()
            .all(|peer| peer.owed.is_empty() && peer.rests_until.is_none())
    }

    /// What the peers that are worth waiting for hold between them.
    pub(super) fn held(&self, now: Instant, size: u32, bytes_per_sec: u64) -> SegmentSet {
        let mut held = SegmentSet::empty(size);
        let worth = |peer: &&Peer| peer.is_worth_waiting_for(now, bytes_per_sec);
        for peer in self.peers.values().filter(worth) {
            held.unite(&peer.have);
        }
        held
    }

    /// Silence so far is not theirs.
    pub(super) fn excuse(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.progress = now;
        }
    }

    pub(super) fn arrived(&mut self, now: Instant, id: PeerId, index: SegmentIndex, length: u32) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.settle(index);
        peer.progress = now;
        peer.delivered(now);
        peer.rate.count(now, length);
    }

    /// Whether it was owed.
    pub(super) fn absent(&mut self, now: Instant, id: PeerId, index: SegmentIndex) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        peer.have.remove(index);
        peer.progress = now;
        peer.settle(index)
    }

    pub(super) fn busy(
        &mut self,
        now: Instant,
        id: PeerId,
        range: SegmentRange,
        retry_after: Duration,
    ) -> Vec<SegmentIndex> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Vec::new();
        };
        peer.rests_until = Some(now + retry_after.clamp(PEER_STALL / 10, PEER_STALL * 10));
        peer.progress = now;
        peer.refusals += 1;
        range.iter().filter(|index| peer.settle(*index)).collect()
    }

    /// It went away. One that comes and goes without delivering anything is not let in again.
    pub(super) fn remove(&mut self, id: PeerId) -> Vec<SegmentIndex> {
        let Some(mut peer) = self.peers.remove(&id) else {
            return Vec::new();
        };
        if !peer.delivered {
            let visits = self.vain_visits.entry(id).or_default();
            *visits += 1;
            if *visits >= STALLS_ALLOWED {
                self.dropped.insert(id);
            }
        }
        peer.forgive_all()
    }

    pub(super) fn drop_for(&mut self, id: PeerId) -> Vec<SegmentIndex> {
        self.dropped.insert(id);
        self.remove(id)
    }

    pub(super) fn stalled(&self, now: Instant) -> Vec<PeerId> {
        let late = |peer: &Peer| !peer.owed.is_empty() && now >= peer.patience_ends();
        self.peers
            .iter()
            .filter(|(_, peer)| late(peer))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Takes a stalled peer's requests away and lets it rest; `None` when it stalled too often.
    pub(super) fn stall(&mut self, now: Instant, id: PeerId) -> Option<Vec<SegmentIndex>> {
        let peer = self.peers.get_mut(&id)?;
        peer.stalls += 1;
        peer.last_stall = Some(now);
        if peer.stalls > STALLS_ALLOWED {
            return None;
        }
        peer.rate.bytes_per_sec = Some(0);
        peer.rests_until = Some(now + PEER_STALL * 2 * peer.stalls);
        Some(peer.forgive_all())
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        let stall = |peer: &Peer| {
            (!peer.owed.is_empty()).then(|| Deadline {
                at: peer.patience_ends(),
                waiting_for: "a peer that owes segments",
            })
        };
        let rest = |peer: &Peer| {
            let at = peer.rests_until?;
            Some(Deadline {
                at,
                waiting_for: "a peer that was busy or stalled",
            })
        };
        self.peers
            .values()
            .flat_map(|peer| [stall(peer), rest(peer)])
            .flatten()
            .min()
    }

    /// The next request for open segments: of the peers with room, the fastest; unmeasured ones
    /// come first, or they would never be measured.
    pub(super) fn next_request(
        &mut self,
        now: Instant,
        open: &SegmentSet,
        lengths: &[u32],
    ) -> Option<(PeerId, SegmentRange)> {
        self.wake(now);
        let mut able: Vec<_> = self.peers.iter().filter(|(_, p)| p.has_room(now)).collect();
        able.sort_by_key(|(id, peer)| {
            (
                Reverse(peer.rate.bytes_per_sec.unwrap_or(u64::MAX)),
                peer.owed_bytes,
                **id,
            )
        });
        let (id, range) = able
            .into_iter()
            .find_map(|(id, peer)| Some((*id, first_range(open, &peer.have, lengths)?)))?;
        self.charge(now, id, range, lengths);
        Some((id, range))
    }

    /// A request for segments that a much slower peer owes, for a peer with nothing to do.
    pub(super) fn next_takeover(
        &mut self,
        now: Instant,
        lengths: &[u32],
    ) -> Option<(PeerId, SegmentRange)> {
        let (slowest_id, slowest) = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.owed.is_empty())
            .max_by_key(|(_, peer)| peer.time_to_finish(now))?;
        let wait = slowest.time_to_finish(now);
        if wait < TAKEOVER_AFTER {
            return None;
        }
        let mut wanted = SegmentSet::empty(slowest.have.size());
        for index in slowest.owed.keys().filter(|index| self.asked(**index) == 1) {
            wanted.insert(*index);
        }
        let (id, range) = self
            .peers
            .iter()
            .filter(|(id, peer)| *id != slowest_id && peer.owed.is_empty() && !peer.rests(now))
            .filter(|(_, peer)| takes_less_than(slowest.owed_bytes, peer, wait / 2))
            .find_map(|(id, peer)| Some((*id, first_range(&wanted, &peer.have, lengths)?)))?;
        self.charge(now, id, range, lengths);
        Some((id, range))
    }

    /// The other peers that owe a segment which has come; they owe it no more.
    pub(super) fn also_asked(&mut self, source: Source, index: SegmentIndex) -> Vec<PeerId> {
        self.peers
            .iter_mut()
            .filter(|(id, _)| source != Source::Peer(**id))
            .filter(|(_, peer)| peer.owed.contains_key(&index))
            .map(|(id, peer)| {
                peer.settle(index);
                *id
            })
            .collect()
    }

    fn asked(&self, index: SegmentIndex) -> usize {
        self.peers
            .values()
            .filter(|peer| peer.owed.contains_key(&index))
            .count()
    }

    fn wake(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.rests_until = peer.rests_until.filter(|until| now < *until);
        }
    }

    fn charge(&mut self, now: Instant, id: PeerId, range: SegmentRange, lengths: &[u32]) {
        if let Some(peer) = self.peers.get_mut(&id) {
            for index in range.iter() {
                peer.owe(now, index, length_of(lengths, index));
            }
        }
    }
}

fn takes_less_than(bytes: u64, peer: &Peer, limit: Duration) -> bool {
    let Some(rate) = peer.rate.bytes_per_sec else {
        return true;
    };
    let millis = u128::from(bytes) * 1000 / u128::from(rate.max(1));
    millis < limit.as_millis()
}

fn length_of(lengths: &[u32], index: SegmentIndex) -> u32 {
    lengths.get(index.0 as usize).copied().unwrap_or(0)
}

/// The first run of segments that are in both sets, of about [`REQUEST_BYTES`].
fn first_range(wanted: &SegmentSet, have: &SegmentSet, lengths: &[u32]) -> Option<SegmentRange> {
    let first = wanted.first_also_in(have)?;
    let mut bytes = 0;
    let count = (first.0..)
        .map(SegmentIndex)
        .take_while(|index| wanted.contains(*index) && have.contains(*index))
        .take_while(|index| {
            let room = bytes < REQUEST_BYTES;
            bytes += u64::from(length_of(lengths, *index));
            room
        })
        .count();
    SegmentRange::new(first, u32::try_from(count).ok()?)
}
