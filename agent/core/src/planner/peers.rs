//! The peers of one transfer: what each holds, owes and delivers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;
use rand::rngs::Xoshiro256PlusPlus;

use super::choice::{Availability, Open, REQUEST_BYTES, choose, first_range};
use super::peer::{ABSENTS_ALLOWED, Peer, Rate, Silence};
use super::{PEER_STALL, STALLS_ALLOWED, Source};
use crate::swarm::Blocks;
use crate::{Deadline, PeerId, SegmentRange, SegmentSet};

/// In the end game an idle peer takes over what another would need longer than this for, and more
/// than twice as long as itself.
const TAKEOVER_AFTER: Duration = Duration::from_millis(200);

/// A peer that turns out slow keeps what it owes up to so many windows, if that does not take too long.
const WINDOWS_OWED: u64 = 4;

/// Why a peer was dropped from a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It sent bytes that are not the segment.
    Lied,
    /// It owed segments and sent none, again and again.
    Stalled,
}

#[derive(Debug)]
pub(super) struct Peers {
    peers: BTreeMap<PeerId, Peer>,
    dropped: BTreeSet<PeerId>,
    /// How often each went away that owed something and had delivered nothing.
    vain_visits: BTreeMap<PeerId, u32>,
    /// How many peers owe each segment.
    owed_by: Vec<u8>,
    availability: Availability,
    /// How long one may owe and deliver nothing.
    silence: Silence,
    /// What those that are worth waiting for hold, as it was then.
    held: Option<(Instant, SegmentSet)>,
}

/// What peers hold between them is gathered anew after so long, for rates change; and whenever
/// somebody comes, goes or holds more.
const HELD_LASTS: Duration = Duration::from_millis(50);

impl Peers {
    pub(super) fn new(blocks: Blocks, silence: Silence) -> Self {
        Self {
            peers: BTreeMap::new(),
            dropped: BTreeSet::new(),
            vain_visits: BTreeMap::new(),
            owed_by: vec![0; blocks.segments() as usize],
            availability: Availability::new(blocks),
            silence,
            held: None,
        }
    }

    /// `false` when it was dropped before.
    pub(super) fn join(&mut self, now: Instant, id: PeerId, have: SegmentSet) -> bool {
        if self.dropped.contains(&id) || have.size() as usize != self.owed_by.len() {
            return false;
        }
        self.availability.add(&have);
        self.held = None;
        let peer = Peer {
            have,
            owed: BTreeMap::new(),
            owed_bytes: 0,
            given_bytes: 0,
            rate: Rate::new(now),
            progress: now,
            settled: now,
            stalls: 0,
            last_stall: None,
            refusals: 0,
            absents: 0,
            taken_over: 0,
            delivered: false,
            rests_until: None,
            exhausted: false,
        };
        self.peers.insert(id, peer);
        true
    }

    /// A new session in place of the old one: what the old one owed.
    pub(super) fn remove_for_rejoin(&mut self, id: PeerId) -> Vec<SegmentIndex> {
        if self.peers.contains_key(&id) {
            self.remove(id)
        } else {
            Vec::new()
        }
    }

    pub(super) fn owe_anything(&self) -> bool {
        self.peers.values().any(|peer| !peer.owed.is_empty())
    }

    /// Whether it holds more than it had said before.
    pub(super) fn update_have(&mut self, id: PeerId, have: SegmentSet) -> bool {
        if have.size() as usize != self.owed_by.len() {
            return false;
        }
        let mut grew = false;
        if let Some(peer) = self.peers.get_mut(&id) {
            grew = have.first_not_in(&peer.have).is_some();
            self.availability.remove(&peer.have);
            self.availability.add(&have);
            peer.have = have;
            peer.exhausted = false;
            self.held = None;
        }
        grew
    }

    /// Whether it holds more than it had said before.
    pub(super) fn extend_have(
        &mut self,
        id: PeerId,
        more: impl IntoIterator<Item = SegmentRange>,
    ) -> bool {
        let size = u32::try_from(self.owed_by.len()).unwrap_or(u32::MAX);
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        let mut grew = false;
        let within = |range: &SegmentRange| range.end() <= size;
        for index in more
            .into_iter()
            .filter(within)
            .flat_map(|range| range.iter())
        {
            if peer.have.insert(index) {
                self.availability.add_one(index, peer.have.is_full());
                peer.exhausted = false;
                // What another holds already changes nothing in what all hold together.
                self.held = self.held.take().filter(|(_, held)| held.contains(index));
                grew = true;
            }
        }
        grew
    }

    /// Something is open again: any peer may hold it.
    pub(super) fn reopened(&mut self) {
        for peer in self.peers.values_mut() {
            peer.exhausted = false;
        }
    }

    /// A segment may be asked for now: of whoever holds it.
    pub(super) fn released(&mut self, index: SegmentIndex) {
        for peer in self.peers.values_mut() {
            peer.exhausted &= !peer.have.contains(index);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// How long a peer needs to send so much at its measured rate; nothing before it is measured.
    pub(super) fn time_for(&self, id: PeerId, bytes: u32) -> Duration {
        let rate = self.peers.get(&id).and_then(|peer| peer.rate.bytes_per_sec);
        rate.map_or(Duration::ZERO, |rate| {
            Duration::from_micros(u64::from(bytes) * 1_000_000 / rate.max(1))
        })
    }

    pub(super) fn holds(&self, id: PeerId, index: SegmentIndex) -> bool {
        self.peers
            .get(&id)
            .is_some_and(|peer| peer.have.contains(index))
    }

    pub(super) fn owes(&self, index: SegmentIndex) -> bool {
        self.asked(index) > 0
    }

    /// Nobody owes anything and nobody rests.
    pub(super) fn is_idle(&self) -> bool {
        self.peers
            .values()
            .all(|peer| peer.owed.is_empty() && peer.rests_until.is_none())
    }

    /// What the peers that are worth waiting for hold between them.
    pub(super) fn held(&mut self, now: Instant, bytes_per_sec: u64) -> &SegmentSet {
        let fresh = |(at, _): &(Instant, SegmentSet)| now < *at + HELD_LASTS;
        if !self.held.as_ref().is_some_and(fresh) {
            let size = u32::try_from(self.owed_by.len()).unwrap_or(u32::MAX);
            let mut held = SegmentSet::empty(size);
            let worth = |peer: &&Peer| peer.is_worth_waiting_for(now, bytes_per_sec);
            for peer in self.peers.values().filter(worth) {
                held.unite(&peer.have);
            }
            self.held = Some((now, held));
        }
        let (_, held) = self.held.as_ref().expect("gathered above");
        held
    }

    /// Silence so far is not theirs.
    pub(super) fn excuse(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.progress = now;
            peer.settled = now;
        }
    }

    pub(super) fn arrived(&mut self, now: Instant, id: PeerId, index: SegmentIndex, length: u32) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.settle(index) {
            disown(&mut self.owed_by, index);
            peer.settled = now;
        }
        peer.progress = now;
        peer.given_bytes += u64::from(length);
        peer.delivered(now);
        peer.rate.count(now, length);
    }

    /// Whether it was owed.
    pub(super) fn absent(&mut self, id: PeerId, index: SegmentIndex) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        let was_full = peer.have.is_full();
        if peer.have.remove(index) {
            self.availability.remove_one(index, was_full);
            self.held = None;
        }
        let owed = peer.settle(index);
        if owed {
            peer.absents = peer.absents.saturating_add(1);
            disown(&mut self.owed_by, index);
        }
        owed
    }

    /// Whether it says, again and again, that it holds what it then does not give.
    pub(super) fn is_boasting(&self, id: PeerId) -> bool {
        let peer = self.peers.get(&id);
        peer.is_some_and(|peer| peer.absents >= ABSENTS_ALLOWED)
    }

    /// Whether runs in flight at the origin are to end for this peer, if it holds them.
    pub(super) fn may_take_over(&self, now: Instant, id: PeerId, bytes_per_sec: u64) -> bool {
        let peer = self.peers.get(&id);
        peer.is_some_and(|peer| peer.may_take_over(now, bytes_per_sec))
    }

    /// A run in flight at the origin has ended for this peer.
    pub(super) fn has_taken_over(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.taken_over = peer.taken_over.saturating_add(1);
        }
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
        // What else it owes is no nearer: its progress stays as it was.
        peer.refused(now, retry_after);
        self.held = None;
        let freed: Vec<_> = range.iter().filter(|index| peer.settle(*index)).collect();
        freed
            .iter()
            .for_each(|index| disown(&mut self.owed_by, *index));
        freed
    }

    /// It went away. One that comes and goes without delivering anything is not let in again.
    pub(super) fn remove(&mut self, id: PeerId) -> Vec<SegmentIndex> {
        let Some(mut peer) = self.peers.remove(&id) else {
            return Vec::new();
        };
        self.availability.remove(&peer.have);
        self.held = None;
        if !peer.delivered && !peer.owed.is_empty() {
            let visits = self.vain_visits.entry(id).or_default();
            *visits += 1;
            if *visits >= STALLS_ALLOWED {
                self.dropped.insert(id);
            }
        }
        let freed = peer.forgive_all();
        freed
            .iter()
            .for_each(|index| disown(&mut self.owed_by, *index));
        freed
    }

    pub(super) fn drop_for(&mut self, id: PeerId) -> Vec<SegmentIndex> {
        self.dropped.insert(id);
        self.remove(id)
    }

    pub(super) fn stalled(&self, now: Instant) -> Vec<PeerId> {
        let late = |peer: &Peer| !peer.owed.is_empty() && now >= peer.patience_ends(self.silence);
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
        self.held = None;
        let freed = peer.forgive_all();
        freed
            .iter()
            .for_each(|index| disown(&mut self.owed_by, *index));
        Some(freed)
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        let stall = |peer: &Peer| {
            (!peer.owed.is_empty()).then(|| Deadline {
                at: peer.patience_ends(self.silence),
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
        open: &Open,
        lengths: &[u32],
        rng: &mut Xoshiro256PlusPlus,
    ) -> Option<(PeerId, SegmentRange)> {
        if open.is_empty() {
            return None;
        }
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        loop {
            let able = self.peers.iter_mut().filter(|(_, p)| p.has_room(now));
            let (id, peer) = able.min_by_key(|(id, peer)| {
                let asked = peer.given_bytes + peer.owed_bytes;
                (peer.rate.slowness(), asked, **id)
            })?;
            let most = peer.window_bytes().saturating_sub(peer.owed_bytes);
            match choose(
                open,
                &peer.have,
                &self.availability,
                peers,
                lengths,
                most,
                rng,
            ) {
                Some(range) => {
                    let id = *id;
                    self.charge(now, id, range, lengths);
                    return Some((id, range));
                }
                None => peer.exhausted = true,
            }
        }
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
            .find_map(|(id, peer)| {
                Some((
                    *id,
                    first_range(&wanted, &peer.have, lengths, REQUEST_BYTES)?,
                ))
            })?;
        self.charge(now, id, range, lengths);
        Some((id, range))
    }

    /// The other peers that owe a segment which has come; they owe it no more.
    pub(super) fn also_asked(&mut self, source: Source, index: SegmentIndex) -> Vec<PeerId> {
        if self.asked(index) == 0 {
            return Vec::new();
        }
        let others = self.peers.iter_mut();
        let others = others.filter(|(id, _)| source != Source::Peer(**id));
        let owed_by = &mut self.owed_by;
        others
            .filter_map(|(id, peer)| {
                let owed = peer.settle(index);
                if owed {
                    disown(owed_by, index);
                }
                owed.then_some(*id)
            })
            .collect()
    }

    fn asked(&self, index: SegmentIndex) -> u8 {
        self.owed_by.get(index.0 as usize).copied().unwrap_or(0)
    }

    /// Ends the rests that are over.
    pub(super) fn wake(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.rests_until = peer.rests_until.filter(|until| now < *until);
        }
    }

    /// Takes what a slow peer owes beyond its window away from it, where the origin, which gives `bytes_per_sec`,
    /// is more than twice as fast: what each owes no more.
    pub(super) fn shed(
        &mut self,
        now: Instant,
        bytes_per_sec: u64,
        longest: Duration,
    ) -> Vec<(PeerId, Vec<SegmentIndex>)> {
        let slow = |peer: &Peer| {
            peer.rate
                .bytes_per_sec
                .is_some_and(|r| r < bytes_per_sec / 2)
        };
        let owes_much = |peer: &Peer| {
            peer.owed_bytes > peer.window_bytes() * WINDOWS_OWED
                || (peer.owes_beyond_window() && peer.time_to_finish(now) > longest)
        };
        let mut shed = Vec::new();
        for (id, peer) in &mut self.peers {
            if !slow(peer) || !owes_much(peer) {
                continue;
            }
            let freed = peer.forgive_last();
            freed
                .iter()
                .for_each(|index| disown(&mut self.owed_by, *index));
            shed.push((*id, freed));
        }
        shed
    }

    fn charge(&mut self, now: Instant, id: PeerId, range: SegmentRange, lengths: &[u32]) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        for index in range.iter() {
            let length = lengths.get(index.0 as usize).copied().unwrap_or(0);
            if peer.owe(now, index, length)
                && let Some(owed_by) = self.owed_by.get_mut(index.0 as usize)
            {
                *owed_by += 1;
            }
        }
    }
}

/// One peer less owes the segment.
fn disown(owed_by: &mut [u8], index: SegmentIndex) {
    if let Some(owed_by) = owed_by.get_mut(index.0 as usize) {
        *owed_by -= 1;
    }
}

fn takes_less_than(bytes: u64, peer: &Peer, limit: Duration) -> bool {
    let Some(rate) = peer.rate.bytes_per_sec else {
        return true;
    };
    let millis = u128::from(bytes) * 1000 / u128::from(rate.max(1));
    millis < limit.as_millis()
}
