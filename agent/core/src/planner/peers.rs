//! The peers of one transfer: what each holds, owes and delivers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;
use rand::rngs::Xoshiro256PlusPlus;

use super::choice::{Availability, Open, REQUEST_BYTES, choose, first_range};
use super::peer::{Peer, Rate};
use super::{PEER_STALL, STALLS_ALLOWED, Source};
use crate::swarm::Blocks;
use crate::{Deadline, PeerId, SegmentRange, SegmentSet};

/// In the end game an idle peer takes over what another would need longer than this for, and more
/// than twice as long as itself.
const TAKEOVER_AFTER: Duration = Duration::from_millis(200);

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
    /// How often each went away without having delivered anything.
    vain_visits: BTreeMap<PeerId, u32>,
    /// How many peers owe each segment.
    owed_by: Vec<u8>,
    availability: Availability,
    /// How long one that has not delivered yet may owe.
    first_answer: Duration,
    /// What those that are worth waiting for hold, as it was then.
    held: Option<(Instant, SegmentSet)>,
}

/// What peers hold between them is gathered anew after so long, for rates change; and whenever
/// somebody comes, goes or holds more.
const HELD_LASTS: Duration = Duration::from_millis(50);

impl Peers {
    pub(super) fn new(blocks: Blocks, first_answer: Duration) -> Self {
        Self {
            peers: BTreeMap::new(),
            dropped: BTreeSet::new(),
            vain_visits: BTreeMap::new(),
            owed_by: vec![0; blocks.segments() as usize],
            availability: Availability::new(blocks),
            first_answer,
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
            rate: Rate::new(now),
            progress: now,
            stalls: 0,
            last_stall: None,
            refusals: 0,
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

    pub(super) fn update_have(&mut self, id: PeerId, have: SegmentSet) {
        if have.size() as usize != self.owed_by.len() {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            self.availability.remove(&peer.have);
            self.availability.add(&have);
            peer.have = have;
            peer.exhausted = false;
            self.held = None;
        }
    }

    pub(super) fn extend_have(&mut self, id: PeerId, more: impl IntoIterator<Item = SegmentRange>) {
        let size = u32::try_from(self.owed_by.len()).unwrap_or(u32::MAX);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
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
            }
        }
    }

    /// Something is open again: any peer may hold it.
    pub(super) fn reopened(&mut self) {
        for peer in self.peers.values_mut() {
            peer.exhausted = false;
        }
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
        }
    }

    pub(super) fn arrived(&mut self, now: Instant, id: PeerId, index: SegmentIndex, length: u32) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.settle(index) {
            disown(&mut self.owed_by, index);
        }
        peer.progress = now;
        peer.delivered(now);
        peer.rate.count(now, length);
    }

    /// Whether it was owed.
    pub(super) fn absent(&mut self, now: Instant, id: PeerId, index: SegmentIndex) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        let was_full = peer.have.is_full();
        if peer.have.remove(index) {
            self.availability.remove_one(index, was_full);
            self.held = None;
        }
        peer.progress = now;
        let owed = peer.settle(index);
        if owed {
            disown(&mut self.owed_by, index);
        }
        owed
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
        if !peer.delivered {
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
        let late =
            |peer: &Peer| !peer.owed.is_empty() && now >= peer.patience_ends(self.first_answer);
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
                at: peer.patience_ends(self.first_answer),
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
                (
                    Reverse(peer.rate.bytes_per_sec.unwrap_or(u64::MAX)),
                    peer.owed_bytes,
                    **id,
                )
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
