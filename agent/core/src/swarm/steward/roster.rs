//! Who is there to be told of: members that can serve, drawn by chance.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::index;

use crate::PeerId;

/// Peers that can be drawn from, in constant time each.
#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: Vec<PeerId>,
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
            self.peers.push(peer);
        }
        new
    }

    pub(super) fn remove(&mut self, peer: PeerId) {
        if let Some(place) = self.places.remove(&peer) {
            self.peers.swap_remove(place);
            if let Some(moved) = self.peers.get(place) {
                self.places.insert(*moved, place);
            }
        }
    }

    /// Up to `count` of them, `but` not among them.
    pub(super) fn draw(&self, rng: &mut impl Rng, count: usize, but: PeerId) -> Vec<PeerId> {
        // One more, in case `but` is drawn.
        let drawn = index::sample(rng, self.peers.len(), (count + 1).min(self.peers.len()));
        let others = drawn.into_iter().map(|place| self.peers[place]);
        others.filter(|peer| *peer != but).take(count).collect()
    }
}
