//! Counts where bytes came from, for the user, for `status` and for the agent's totals.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use branchline_core::PeerId;
use branchline_core::planner::Source;
use tokio::sync::mpsc;

use crate::api::{ByteCounts, Progress};
use crate::engine::Word;
use crate::engine::provisional::Sources;

/// What moved since the agent started. Counters only: nothing is decided by them.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    from_origin: AtomicU64,
    from_peers: AtomicU64,
    from_store: AtomicU64,
    by_peer: Mutex<BTreeMap<PeerId, u64>>,
}

/// Peers counted by name; what others give counts in the total only.
const MAX_COUNTED_PEERS: usize = 4096;

impl Totals {
    /// What came from each peer.
    pub(crate) fn by_peer(&self) -> BTreeMap<PeerId, u64> {
        self.by_peer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn add_from_peer(&self, peer: PeerId, bytes: u64) {
        self.from_peers.fetch_add(bytes, Ordering::Relaxed);
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if by_peer.len() < MAX_COUNTED_PEERS || by_peer.contains_key(&peer) {
            *by_peer.entry(peer).or_default() += bytes;
        }
    }

    pub(crate) fn counts(&self, to_peers: u64) -> ByteCounts {
        ByteCounts {
            from_origin: self.from_origin.load(Ordering::Relaxed),
            from_peers: self.from_peers.load(Ordering::Relaxed),
            from_store: self.from_store.load(Ordering::Relaxed),
            to_peers,
        }
    }
}

/// Counts one download.
pub(crate) struct Meter {
    progress: Progress,
    totals: Arc<Totals>,
    words: mpsc::Sender<Word>,
    shown: Box<dyn Fn(&Progress) + Send>,
    notices: Vec<String>,
    /// Bytes done at the last report.
    reported: u64,
}

impl Meter {
    /// `shown` is called with each progress, for `status`.
    pub(crate) fn new(
        totals: Arc<Totals>,
        words: mpsc::Sender<Word>,
        shown: impl Fn(&Progress) + Send + 'static,
    ) -> Self {
        let shown = Box::new(shown);
        Self {
            progress: Progress::default(),
            totals,
            words,
            shown,
            notices: Vec::new(),
            reported: 0,
        }
    }

    /// The file's length is known, and counting begins.
    pub(crate) fn start(&mut self, bytes: Option<u64>) {
        self.progress = Progress {
            bytes,
            ..Progress::default()
        };
    }

    /// Verified bytes are in place.
    pub(crate) fn count(&mut self, source: Source, bytes: u32) {
        let bytes = u64::from(bytes);
        match source {
            Source::Origin => {
                self.progress.from_origin += bytes;
                self.totals.from_origin.fetch_add(bytes, Ordering::Relaxed);
            }
            Source::Peer(peer) => {
                self.progress.from_peers += bytes;
                self.totals.add_from_peer(peer, bytes);
            }
        }
    }

    /// Verified bytes were there already.
    pub(crate) fn count_local(&mut self, bytes: u64) {
        self.progress.from_store += bytes;
        self.totals.from_store.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes were thrown away or came from elsewhere than it was counted: where those come from that are
    /// in place now. The totals count what moved, and stay.
    pub(crate) fn recount(&mut self, sources: Sources) {
        self.progress.from_origin = sources.origin_bytes;
        self.progress.from_peers = sources.peers_bytes;
        self.progress.from_store = sources.local_bytes;
    }

    /// Tells how far it is, and what it waits for if nothing has come since it last did.
    pub(crate) fn report(&mut self, peers: u32, waiting_for: &str) {
        let done = self.progress.bytes_done();
        let waits = std::mem::replace(&mut self.reported, done) == done;
        self.progress.peers = peers;
        self.progress.waiting_for = waits.then(|| waiting_for.to_owned());
        (self.shown)(&self.progress);
        // A listener that is slow misses a step of the progress bar and nothing else.
        let _ = self.words.try_send(Word::Progress(self.progress.clone()));
    }

    /// Tells the user a line.
    pub(crate) async fn notice(&mut self, text: String) {
        tracing::info!("{text}");
        self.notices.push(text.clone());
        // Whoever waits for the download notices that nobody listens.
        let _ = self.words.send(Word::Notice(text)).await;
    }

    /// Where the bytes came from so far.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the user was told.
    pub(crate) fn notices(&self) -> &[String] {
        &self.notices
    }
}
