//! Whom multicast named, and when to dial each. Pure: time and randomness come in.
//!
//! Anybody on the link can announce anything, so this table is bounded, and a peer in it is dialled
//! with backoff until its announcement expires, however often it is repeated.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use branchline_core::PeerId;
use branchline_core::backoff::Backoff;

/// Twice as many as there can be members. When full, newly announced peers are ignored until
/// others expire.
pub(crate) const MAX_CANDIDATES: usize = 2048;
/// Waits between dials of a peer that does not answer; an announcement lasts 150 s, after which
/// there is nothing left to dial.
const REDIAL: Backoff = Backoff {
    min: Duration::from_millis(500),
    max: Duration::from_secs(15),
};
/// Of two agents that hear each other the one with the smaller key dials at once and the other this
/// much later, if it still has to: one connection instead of two. A handshake on a LAN takes a few
/// milliseconds; both ways fit into the promised two seconds.
const COURTESY: Duration = Duration::from_millis(400);

#[derive(Debug)]
pub(crate) struct Candidates {
    own: PeerId,
    known: BTreeMap<PeerId, Candidate>,
}

#[derive(Debug)]
struct Candidate {
    addresses: Vec<SocketAddr>,
    expires: Instant,
    attempt: u32,
    dial: Dial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    At(Instant),
    UnderWay,
    Connected,
}

impl Candidates {
    pub(crate) fn new(own: PeerId) -> Self {
        Self {
            own,
            known: BTreeMap::new(),
        }
    }

    /// `peer` was announced. A peer that is connected but moved to another port has restarted, and
    /// is dialled anew.
    pub(crate) fn handle_here(
        &mut self,
        now: Instant,
        peer: PeerId,
        addresses: Vec<SocketAddr>,
        expires: Instant,
        is_connected: bool,
    ) {
        let courteous = if self.own < peer { now } else { now + COURTESY };
        let Some(known) = self.known.get_mut(&peer) else {
            if self.known.len() < MAX_CANDIDATES {
                let dial = if is_connected {
                    Dial::Connected
                } else {
                    Dial::At(courteous)
                };
                self.known.insert(
                    peer,
                    Candidate {
                        addresses,
                        expires,
                        attempt: 0,
                        dial,
                    },
                );
            }
            return;
        };
        let moved = !known
            .addresses
            .iter()
            .any(|old| addresses.iter().any(|a| a.port() == old.port()));
        // An address family at a time is announced, so a port that stays keeps the other addresses.
        if moved {
            known.addresses = addresses;
        } else {
            add_bounded(&mut known.addresses, addresses);
        }
        known.expires = known.expires.max(expires);
        if moved && known.dial != Dial::UnderWay {
            known.dial = Dial::At(courteous);
        }
    }

    /// `peer`, or somebody in its name, said goodbye: it is not dialled again.
    pub(crate) fn handle_gone(&mut self, peer: PeerId) {
        self.known.remove(&peer);
    }

    pub(crate) fn handle_connected(&mut self, peer: PeerId) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.dial = Dial::Connected;
        }
    }

    /// It answered the greeting: the next trouble starts with short waits again.
    pub(crate) fn handle_greeted(&mut self, peer: PeerId) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.attempt = 0;
        }
    }

    /// The dial failed, or the last connection to it is gone.
    pub(crate) fn handle_lost(&mut self, now: Instant, peer: PeerId, random: u64) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.dial = Dial::At(now + REDIAL.delay(known.attempt, random));
            known.attempt = known.attempt.saturating_add(1);
        }
    }

    /// Up to `limit` peers to dial now; they count as under way until told otherwise.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        limit: usize,
    ) -> Vec<(PeerId, Vec<SocketAddr>)> {
        self.known
            .retain(|_, known| known.expires > now || known.dial == Dial::UnderWay);
        let is_due = |known: &Candidate| matches!(known.dial, Dial::At(at) if at <= now);
        let due = self
            .known
            .iter_mut()
            .filter(|(_, known)| is_due(known))
            .take(limit);
        let taken = due.map(|(peer, known)| {
            known.dial = Dial::UnderWay;
            (*peer, known.addresses.clone())
        });
        taken.collect()
    }

    /// When the next dial is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let due = self.known.values().filter_map(|known| match known.dial {
            Dial::At(at) => Some(at),
            Dial::UnderWay | Dial::Connected => None,
        });
        due.min()
    }

    /// What multicast says of `peer`'s addresses; empty when it says nothing.
    pub(crate) fn addresses(&self, peer: &PeerId) -> &[SocketAddr] {
        self.known.get(peer).map_or(&[], |known| &known.addresses)
    }
}

fn add_bounded(addresses: &mut Vec<SocketAddr>, more: Vec<SocketAddr>) {
    for address in more {
        if !addresses.contains(&address) && addresses.len() < crate::peers::MAX_ADDRESSES {
            addresses.push(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: Duration = Duration::from_secs(150);

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn at(port: u16) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, 1], port))]
    }

    #[test]
    fn the_smaller_key_dials_at_once_and_the_larger_one_later() {
        let now = Instant::now();
        let mut candidates = Candidates::new(peer(5));
        candidates.handle_here(now, peer(9), at(1), now + VALID, false);
        candidates.handle_here(now, peer(2), at(2), now + VALID, false);
        assert_eq!(candidates.take_due(now, 9), [(peer(9), at(1))]);
        assert_eq!(candidates.deadline(), Some(now + COURTESY));
        candidates.handle_connected(peer(2));
        assert_eq!(candidates.deadline(), None);
    }

    #[test]
    fn repeating_an_announcement_does_not_shorten_the_waits() {
        let now = Instant::now();
        let mut candidates = Candidates::new(peer(1));
        candidates.handle_here(now, peer(2), at(1), now + VALID, false);
        for _ in 0..5 {
            let due = candidates.deadline().expect("a dial");
            assert_eq!(candidates.take_due(due, 9).len(), 1);
            candidates.handle_lost(due, peer(2), u64::MAX);
            let wait = candidates.deadline().expect("a dial");
            candidates.handle_here(due, peer(2), at(1), due + VALID, false);
            assert_eq!(candidates.deadline(), Some(wait));
            assert!(wait >= due + REDIAL.min);
        }
    }

    #[test]
    fn a_connected_peer_on_another_port_is_dialled_anew() {
        let now = Instant::now();
        let mut candidates = Candidates::new(peer(1));
        candidates.handle_here(now, peer(2), at(1), now + VALID, true);
        candidates.handle_here(now, peer(2), at(1), now + VALID, true);
        assert_eq!(candidates.take_due(now, 9), []);
        candidates.handle_here(now, peer(2), at(7), now + VALID, true);
        assert_eq!(candidates.take_due(now, 9), [(peer(2), at(7))]);
    }

    #[test]
    fn what_expired_or_said_goodbye_is_dialled_no_more() {
        let now = Instant::now();
        let mut candidates = Candidates::new(peer(1));
        candidates.handle_here(now, peer(2), at(1), now + VALID, true);
        candidates.handle_here(now, peer(3), at(1), now + VALID, true);
        candidates.handle_gone(peer(3));
        candidates.handle_lost(now, peer(3), 0);
        candidates.handle_lost(now, peer(2), 0);
        assert_eq!(candidates.take_due(now + VALID, 9), []);
        assert_eq!(candidates.deadline(), None);
    }

    #[test]
    fn a_flood_of_names_stays_within_the_bound() {
        let now = Instant::now();
        let mut candidates = Candidates::new(peer(0));
        for n in 0..=u16::MAX {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            candidates.handle_here(now, PeerId::from_public_key(key), at(n), now + VALID, false);
        }
        assert_eq!(candidates.known.len(), MAX_CANDIDATES);
        assert_eq!(candidates.take_due(now + COURTESY, 32).len(), 32);
    }
}
