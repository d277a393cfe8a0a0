//! The configured peers, and when to dial each. Pure: time and randomness come in.
//!
//! Their identity is not known beforehand; whoever proves one at the address and greets is the peer.

use std::time::{Duration, Instant};

use branchline_core::PeerId;
use branchline_core::backoff::Backoff;

use crate::config::StaticPeer;

/// Waits between attempts. A machine that is off for the weekend costs one packet a minute.
const REDIAL: Backoff = Backoff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(60),
};

#[derive(Debug)]
pub(crate) struct Statics {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: StaticPeer,
    attempt: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting {
        until: Instant,
    },
    /// Its name is being looked up, or it is being dialled.
    UnderWay,
    Connected(PeerId),
}

/// Which configured peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StaticIndex(usize);

impl Statics {
    pub(crate) fn new(peers: Vec<StaticPeer>, now: Instant) -> Self {
        let entry = |peer| Entry {
            peer,
            attempt: 0,
            state: State::Waiting { until: now },
        };
        Self {
            entries: peers.into_iter().map(entry).collect(),
        }
    }

    /// Up to `limit` peers to look up and dial now, each with the number of the attempt; those that
    /// failed least first, so that a long list of machines that are off hides none that is on.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        limit: usize,
    ) -> Vec<(StaticIndex, StaticPeer, u32)> {
        let mut due: Vec<_> = self.due(now).collect();
        due.sort_unstable();
        let mut taken = Vec::new();
        for (attempt, _, index) in due.into_iter().take(limit) {
            if let Some(entry) = self.entries.get_mut(index.0) {
                entry.state = State::UnderWay;
                taken.push((index, entry.peer.clone(), attempt));
            }
        }
        taken
    }

    fn due(&self, now: Instant) -> impl Iterator<Item = (u32, Instant, StaticIndex)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(move |(index, entry)| match entry.state {
            State::Waiting { until } if until <= now => {
                Some((entry.attempt, until, StaticIndex(index)))
            }
            State::Waiting { .. } | State::UnderWay | State::Connected(_) => None,
        })
    }

    /// The next time one is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self.entries.iter().filter_map(|entry| match entry.state {
            State::Waiting { until } => Some(until),
            State::UnderWay | State::Connected(_) => None,
        });
        waiting.min()
    }

    pub(crate) fn peer(&self, index: StaticIndex) -> Option<&StaticPeer> {
        self.entries.get(index.0).map(|entry| &entry.peer)
    }

    /// No answer at its address, or nobody's address. `random` is uniform over all values.
    pub(crate) fn handle_failed(&mut self, now: Instant, index: StaticIndex, random: u64) {
        if let Some(entry) = self.entries.get_mut(index.0) {
            entry.retry(now, random);
        }
    }

    /// Its address is this agent's own: configurations shared by all machines of a branch name each
    /// of them. Looked at again rarely, for DNS may change.
    pub(crate) fn handle_is_self(&mut self, now: Instant, index: StaticIndex) {
        if let Some(entry) = self.entries.get_mut(index.0) {
            entry.state = State::Waiting {
                until: now + REDIAL.max,
            };
        }
    }

    pub(crate) fn handle_connected(&mut self, index: StaticIndex, peer: PeerId) {
        if let Some(entry) = self.entries.get_mut(index.0) {
            entry.state = State::Connected(peer);
        }
    }

    /// It answered the greeting: the next trouble starts with short waits again.
    pub(crate) fn handle_greeted(&mut self, peer: PeerId) {
        let connected = self
            .entries
            .iter_mut()
            .filter(|e| e.state == State::Connected(peer));
        connected.for_each(|entry| entry.attempt = 0);
    }

    /// The last connection to `peer` is gone.
    pub(crate) fn handle_lost(&mut self, now: Instant, peer: PeerId, random: u64) {
        let connected = self
            .entries
            .iter_mut()
            .filter(|e| e.state == State::Connected(peer));
        connected.for_each(|entry| entry.retry(now, random));
    }

    /// Whether `peer` is at a configured address.
    pub(crate) fn has(&self, peer: PeerId) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.state == State::Connected(peer))
    }
}

impl Entry {
    fn retry(&mut self, now: Instant, random: u64) {
        self.state = State::Waiting {
            until: now + REDIAL.delay(self.attempt, random),
        };
        self.attempt = self.attempt.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statics(now: Instant) -> Statics {
        let peers = ["10.0.0.1:1", "10.0.0.2:1"].map(|text| text.parse().expect("a peer"));
        Statics::new(peers.to_vec(), now)
    }

    #[test]
    fn each_is_dialled_at_once_and_again_after_it_was_lost() {
        let now = Instant::now();
        let peer = PeerId::from_public_key([1; 32]);
        let mut statics = statics(now);
        let due = statics.take_due(now, 9);
        assert_eq!(due.len(), 2);
        assert_eq!(statics.deadline(), None);
        statics.handle_connected(due[0].0, peer);
        assert!(statics.has(peer));
        statics.handle_lost(now, peer, 0);
        assert!(!statics.has(peer));
        assert_eq!(statics.deadline(), Some(now + REDIAL.min));
    }

    #[test]
    fn waits_grow_until_a_greeting_succeeds() {
        let now = Instant::now();
        let peer = PeerId::from_public_key([1; 32]);
        let mut statics = statics(now);
        let index = statics.take_due(now, 1)[0].0;
        let mut longest = now;
        for _ in 0..20 {
            statics.take_due(now + REDIAL.max, 1);
            statics.handle_failed(now, index, u64::MAX / 2);
            let State::Waiting { until } = statics.entries[0].state else {
                panic!("not waiting")
            };
            longest = longest.max(until);
            assert!(until <= now + REDIAL.max);
        }
        assert!(longest > now + REDIAL.max / 8);
        statics.handle_connected(index, peer);
        statics.handle_greeted(peer);
        assert_eq!(statics.entries[0].attempt, 0);
    }

    #[test]
    fn machines_that_are_off_do_not_hide_one_that_is_on() {
        let now = Instant::now();
        let many = (1..=99).map(|n| format!("10.0.0.{n}:1").parse().expect("a peer"));
        let mut statics = Statics::new(many.collect(), now);
        let mut seen = std::collections::BTreeSet::new();
        // Four at a time, each of them in vain and due again long before the next round.
        for round in 0..25 {
            let at = now + REDIAL.max * round;
            for (index, _, _) in statics.take_due(at, 4) {
                seen.insert(index);
                statics.handle_failed(at, index, 0);
            }
        }
        assert_eq!(seen.len(), 99);
    }

    #[test]
    fn ones_own_address_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut statics = statics(now);
        let due = statics.take_due(now, 9);
        due.iter()
            .for_each(|(index, _, _)| statics.handle_is_self(now, *index));
        assert_eq!(statics.deadline(), Some(now + REDIAL.max));
    }
}
