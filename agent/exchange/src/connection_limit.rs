//! How many connections one peer may have to this agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use branchline_core::PeerId;

/// One is enough for an honest peer; a second and third cover those that dial anew while the old
/// connection has not timed out yet.
const MAX_PER_PEER: usize = 4;

/// Counts connections by peer.
#[derive(Default)]
pub(crate) struct ConnectionLimit {
    open: Mutex<BTreeMap<PeerId, usize>>,
}

/// One counted connection, until it is dropped.
pub(crate) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    peer: PeerId,
}

impl ConnectionLimit {
    /// Counts another connection of `peer`; `None` when it has enough.
    pub(crate) fn admit(self: &Arc<Self>, peer: PeerId) -> Option<ConnectionPermit> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        (*count < MAX_PER_PEER).then(|| {
            *count += 1;
            ConnectionPermit {
                limit: Arc::clone(self),
                peer,
            }
        })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self
            .limit
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_its_permits_back_when_connections_end() {
        let limit = Arc::new(ConnectionLimit::default());
        let peer = PeerId::from_public_key([1; 32]);
        let mut permits: Vec<_> = (0..MAX_PER_PEER).map(|_| limit.admit(peer)).collect();
        assert!(permits.iter().all(Option::is_some));
        assert!(limit.admit(peer).is_none());
        assert!(limit.admit(PeerId::from_public_key([2; 32])).is_some());
        permits.pop();
        assert!(limit.admit(peer).is_some());
    }
}
