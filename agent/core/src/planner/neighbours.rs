//! Which members of the branch are asked to let this one join, and when again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IteratorRandom;

use super::{Deadline, JoinFailure};
use crate::PeerId;

/// Peers that are joined or asked at one time: in random graphs of ten thousand with so many a segment is four
/// steps from anybody, and a machine keeps few connections.
pub const MAX_NEIGHBOURS: usize = 24;

/// A member that does not hold the content is asked again after so long: it may be fetching it.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// The shortest time between two questions to one member.
const REFRESH: Duration = Duration::from_millis(500);

/// The same after the very first one, if a steward says that it takes part: all who start together ask the origin at the same
/// moment, and whoever hears from it first asks the others before they have.
const FIRST_REFRESH: Duration = Duration::from_millis(50);

/// Peers that stewards named and that are kept in mind; and members of the branch that are, so that each of ten
/// thousand need not keep all.
const MAX_KNOWN: usize = 256;

/// Peers of which more is known than their name. When they are as many, those that rest are forgotten: a steward
/// may name without end.
const MAX_REMEMBERED: usize = 1024;

#[derive(Debug)]
pub(super) struct Neighbours {
    peers: BTreeMap<PeerId, State>,
    /// How many are joined or asked.
    active: usize,
    /// How many of the branch's members were asked for the first time and have not answered.
    first_asked: usize,
    /// Members that a steward named.
    known: BTreeSet<PeerId>,
    /// How many stewards have named so far, some more than once.
    named: usize,
    /// Some of the branch's other members, drawn by chance; all, where they are few.
    members: Vec<PeerId>,
    /// How many others the branch has.
    others: usize,
    /// Whether somebody may be there to be asked.
    look: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asked {
        first: bool,
    },
    Joined,
    Rests {
        until: Instant,
        asked_at: Instant,
        /// Whether it was asked once only.
        once: bool,
    },
    Dropped,
}

impl Neighbours {
    /// None yet, in the branch of these `members`, this agent among them or not.
    pub(super) fn new(
        members: &BTreeSet<PeerId>,
        me: PeerId,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Self {
        let mut neighbours = Self {
            peers: BTreeMap::new(),
            active: 0,
            first_asked: 0,
            known: BTreeSet::new(),
            named: 0,
            members: Vec::new(),
            others: 0,
            look: true,
        };
        neighbours.set_members(members, me, rng);
        neighbours
    }

    pub(super) fn set_members(
        &mut self,
        members: &BTreeSet<PeerId>,
        me: PeerId,
        rng: &mut Xoshiro256PlusPlus,
    ) {
        let gone = |state: &State| matches!(state, State::Rests { .. });
        self.peers
            .retain(|peer, state| members.contains(peer) || !gone(state));
        let others = || members.iter().filter(|member| **member != me);
        self.others = others().count();
        self.members = others().copied().sample(rng, MAX_KNOWN);
        self.look = true;
    }

    /// A steward named it. One that did not take part when it was asked does by now.
    pub(super) fn named(&mut self, peer: PeerId) {
        self.named += 1;
        if self.known.len() < MAX_KNOWN {
            self.known.insert(peer);
        }
        // But not at once: stewards that name it again and again make nobody dial it without end.
        if let Some(State::Rests {
            until,
            asked_at,
            once,
        }) = self.peers.get_mut(&peer)
        {
            *until = (*until).min(*asked_at + refresh(*once));
        }
        self.look = true;
    }

    /// Whether members that were asked first have not answered.
    pub(super) fn awaits_first(&self) -> bool {
        self.first_asked > 0
    }

    pub(super) fn is_asking(&self) -> bool {
        self.peers
            .values()
            .any(|state| matches!(state, State::Asked { .. }))
    }

    /// Whether the branch is so small that all its members can be asked.
    pub(super) fn branch_is_small(&self) -> bool {
        self.others <= MAX_NEIGHBOURS
    }

    /// How many members the swarm has, about: a steward that named fewer than a member can have
    /// named all; else the branch's number bounds it.
    pub(super) fn swarm_size(&self) -> usize {
        let others = if self.named < MAX_NEIGHBOURS {
            self.named
        } else {
            self.others
        };
        others + 1
    }

    /// The next member to be asked: one that a steward named, else, if all members may be asked, any.
    pub(super) fn next(
        &mut self,
        now: Instant,
        rng: &mut Xoshiro256PlusPlus,
        any_member: bool,
    ) -> Option<PeerId> {
        if !self.look || self.active >= MAX_NEIGHBOURS {
            return None;
        }
        if self.peers.len() >= MAX_REMEMBERED {
            self.peers
                .retain(|_, state| !matches!(state, State::Rests { .. }));
        }
        let able = |peer: &&PeerId| match self.peers.get(*peer) {
            None => true,
            Some(State::Rests { until, .. }) => *until <= now,
            Some(State::Asked { .. } | State::Joined | State::Dropped) => false,
        };
        let mut able_peers: Vec<PeerId> = self.known.iter().filter(able).copied().collect();
        if able_peers.is_empty() && any_member {
            able_peers = self.members.iter().filter(able).copied().collect();
        }
        if able_peers.is_empty() {
            self.look = false;
            return None;
        }
        let peer = able_peers[rng.random_range(0..able_peers.len())];
        let first = !self.peers.contains_key(&peer);
        self.first_asked += usize::from(first);
        self.active += 1;
        self.peers.insert(peer, State::Asked { first });
        Some(peer)
    }

    /// Whether it may take part: not one that was dropped.
    pub(super) fn joined(&mut self, peer: PeerId) -> bool {
        let dropped = self.peers.get(&peer) == Some(&State::Dropped);
        if !dropped {
            self.replace(peer, State::Joined);
        }
        !dropped
    }

    pub(super) fn not_joined(&mut self, now: Instant, peer: PeerId, failure: JoinFailure) {
        let once = self.peers.get(&peer) == Some(&State::Asked { first: true });
        let rests = |time| State::Rests {
            until: now + time,
            asked_at: now,
            once,
        };
        let was_named = self.known.remove(&peer);
        let state = match failure {
            JoinFailure::Absent if was_named && once => {
                self.known.insert(peer);
                rests(refresh(once))
            }
            JoinFailure::Absent => rests(ASK_AGAIN),
            JoinFailure::Busy { retry_after } => rests(retry_after.clamp(REFRESH, ASK_AGAIN * 4)),
            JoinFailure::Misbehaved => State::Dropped,
        };
        self.replace(peer, state);
        self.look = true;
    }

    pub(super) fn left(&mut self, now: Instant, peer: PeerId) {
        if self.peers.get(&peer) != Some(&State::Dropped) {
            self.not_joined(now, peer, JoinFailure::Absent);
        }
    }

    pub(super) fn dropped(&mut self, peer: PeerId) {
        self.replace(peer, State::Dropped);
        self.known.remove(&peer);
        self.look = true;
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        let woken = |state: &State| matches!(state, State::Rests { until, .. } if *until <= now);
        self.look |= self.active < MAX_NEIGHBOURS && self.peers.values().any(woken);
    }

    pub(super) fn next_deadline(&self, now: Instant) -> Option<Deadline> {
        if self.active >= MAX_NEIGHBOURS {
            return None;
        }
        let rests = self.peers.values().filter_map(|state| match state {
            State::Rests { until, .. } if *until > now => Some(*until),
            State::Rests { .. } | State::Asked { .. } | State::Joined | State::Dropped => None,
        });
        rests.min().map(|at| Deadline {
            at,
            waiting_for: "a member that may hold it by then",
        })
    }

    fn replace(&mut self, peer: PeerId, state: State) -> Option<State> {
        let active = |state: &State| matches!(state, State::Asked { .. } | State::Joined);
        let was = self.peers.insert(peer, state);
        self.active -= usize::from(was.as_ref().is_some_and(active));
        self.active += usize::from(active(&state));
        self.first_asked -= usize::from(was == Some(State::Asked { first: true }));
        was
    }
}

/// The shortest time until one is asked again that a steward has named.
fn refresh(once: bool) -> Duration {
    if once { FIRST_REFRESH } else { REFRESH }
}
