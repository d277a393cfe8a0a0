//! Who is there to be told of: members that can serve, drawn by chance.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::index;

use crate::PeerId;

/// Members are told of those that are there when they come: without a bound the first of a thousand, which are also
/// those that fetch, would be named a hundred times. Twice the neighbours of one member leaves the choice to chance.
const NAMED_OFTEN: u32 = 48;

/// Peers that can be drawn from, in constant time each.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// And how often each was named.
    peers: Vec<(PeerId, u32)>,
    places: BTreeMap<PeerId, usize>,
}

impl Roster {
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Whether it was new.
    pub(super) fn add(&mut self, peer: PeerId) -> bool {
        let new = !self.places.contains_key(&peer);
        if new {
            self.places.insert(peer, self.peers.len());
            self.peers.push((peer, 0));
        }
        new
    }

    pub(super) fn remove(&mut self, peer: PeerId) {
        if let Some(place) = self.places.remove(&peer) {
            self.peers.swap_remove(place);
            if let Some((moved, _)) = self.peers.get(place) {
                self.places.insert(*moved, place);
            }
        }
    }

    /// It was named once more.
    pub(super) fn name(&mut self, peer: PeerId) {
        if let Some(place) = self.places.get(&peer) {
            self.peers[*place].1 += 1;
        }
    }

    /// Up to `count` of them, `but` not among them; those that were named often only where there are not enough others.
    pub(super) fn draw(&self, rng: &mut impl Rng, count: usize, but: PeerId) -> Vec<PeerId> {
        // One more, in case `but` is drawn.
        let drawn = index::sample(rng, self.peers.len(), (2 * count + 1).min(self.peers.len()));
        let others = drawn.into_iter().map(|place| self.peers[place]);
        let mut others: Vec<(PeerId, u32)> = others.filter(|(peer, _)| *peer != but).collect();
        others.sort_by_key(|(_, named)| *named / NAMED_OFTEN);
        others
            .into_iter()
            .map(|(peer, _)| peer)
            .take(count)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    #[test]
    fn of_a_thousand_who_come_one_after_another_none_is_named_much_more_often_than_others() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut roster = Roster::default();
        for number in 0..1000_u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let peer = PeerId::from_public_key(key);
            roster.add(peer);
            for named in roster.draw(&mut rng, 24, peer) {
                roster.name(named);
            }
        }
        let most = roster.peers.iter().map(|(_, named)| *named).max();
        assert!(most <= Some(NAMED_OFTEN), "{most:?}");
    }
}
