//! How much of something one peer may have at this agent at one time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use branchline_core::PeerId;

/// Counts places by peer.
pub(crate) struct PeerLimit {
    /// At least 1.
    max_per_peer: usize,
    taken: Mutex<BTreeMap<PeerId, usize>>,
}

/// One place, until it is dropped.
pub(crate) struct PeerPermit {
    limit: Arc<PeerLimit>,
    peer: PeerId,
}

impl PeerLimit {
    /// `max_per_peer` places for each peer, at least one.
    pub(crate) fn new(max_per_peer: usize) -> Arc<Self> {
        Arc::new(Self {
            max_per_peer: max_per_peer.max(1),
            taken: Mutex::default(),
        })
    }

    /// Another place for `peer`; `None` when it has enough.
    pub(crate) fn admit(self: &Arc<Self>, peer: PeerId) -> Option<PeerPermit> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer).or_default();
        (*count < self.max_per_peer).then(|| {
            *count += 1;
            PeerPermit {
                limit: Arc::clone(self),
                peer,
            }
        })
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        let taken = self.limit.taken.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_its_places_back_and_takes_none_of_another() {
        let limit = PeerLimit::new(4);
        let peer = PeerId::from_public_key([1; 32]);
        let mut permits: Vec<_> = (0..4).map(|_| limit.admit(peer)).collect();
        assert!(permits.iter().all(Option::is_some));
        assert!(limit.admit(peer).is_none());
        assert!(limit.admit(PeerId::from_public_key([2; 32])).is_some());
        permits.pop();
        assert!(limit.admit(peer).is_some());
    }
}
