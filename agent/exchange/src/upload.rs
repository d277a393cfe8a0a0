//! What was served to whom.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use branchline_core::PeerId;

/// Peers counted by name; those that come later count in the total only.
const MAX_COUNTED_PEERS: usize = 4096;

/// Segment bytes served since the exchange started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadStats {
    /// To all peers.
    pub total_bytes: u64,
    /// To each of the first few thousand.
    pub bytes_by_peer: BTreeMap<PeerId, u64>,
    /// Requests being answered at this moment.
    pub active_uploads: usize,
}

/// Counts as segments are handed to QUIC.
#[derive(Default)]
pub(crate) struct UploadCounter {
    total_bytes: AtomicU64,
    by_peer: Mutex<BTreeMap<PeerId, u64>>,
}

impl UploadCounter {
    pub(crate) fn add(&self, peer: PeerId, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if by_peer.len() < MAX_COUNTED_PEERS || by_peer.contains_key(&peer) {
            *by_peer.entry(peer).or_default() += bytes;
        }
    }

    pub(crate) fn stats(&self, active_uploads: usize) -> UploadStats {
        UploadStats {
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            bytes_by_peer: self
                .by_peer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            active_uploads,
        }
    }
}
