//! What an exchange serves, as its owner implements it.

use std::sync::Arc;
use std::time::Duration;

use branchline_core::planner::TELL_EVERY;
use branchline_core::repair::Claim;
use branchline_core::wire::Standing;
use branchline_core::{SegmentRange, SegmentSet};
use branchline_hashing::{ContentKey, ProvisionalSegment, SegmentIndex, SwarmId, VerifiedSegment};
use bytes::Bytes;
use tokio::sync::watch;

/// Finds contents by their swarm. Called on reader threads only; may block.
pub trait ContentSource: Send + Sync + 'static {
    /// The key of `swarm`'s content, if there is something of it to serve. Asked for everybody who
    /// names a swarm, before the proof: one cheap look-up, whose time is to depend on nothing that
    /// a stranger must not learn.
    fn key(&self, swarm: &SwarmId) -> Option<ContentKey>;

    /// The content of `swarm`, if there is something of it to serve. Asked only for those who have
    /// proved that they know its key: may read files.
    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>>;
}

/// One content that is served. Called on reader threads, where it may block, unless said otherwise.
pub trait ServedContent: Send + Sync + 'static {
    /// How far what is read may be believed: the same for as long as the value lives. Every requester is
    /// told when it joins. Must not block.
    fn standing(&self) -> Standing {
        Standing::Proved
    }

    /// Which segments can be read now.
    fn have(&self) -> SegmentSet;

    /// Changes whenever [`Self::have`] has grown, for those who watch it; `None` where it never will.
    /// When its sender is dropped, watchers are told that no more will come. Called on the exchange's own
    /// thread: must not block.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// The least time between two words of what [`Self::have`] has grown by, as it is now. Called on the
    /// exchange's own thread: must not block.
    fn tell_every(&self) -> Duration {
        TELL_EVERY
    }

    /// The manifest as published, head and body; `None` where the content came without one.
    fn manifest(&self) -> Option<Bytes>;

    /// The length of a segment by the manifest, there or not; `None` past the end. Called on the
    /// exchange's own thread: must not block.
    fn length(&self, index: SegmentIndex) -> Option<u32>;

    /// Reads and verifies one segment; `None` when it is not, or no longer, there.
    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment>;

    /// Reads one segment of a content that stands as [`Standing::Provisional`], which is asked for this
    /// instead of [`Self::read`]; `None` when it is not there as it came.
    fn read_provisional(&self, index: SegmentIndex) -> Option<ProvisionalSegment> {
        let _ = index;
        None
    }

    /// Which bytes are here for each segment of `range`, and whence.
    fn claims(&self, range: SegmentRange) -> Vec<Option<Claim>> {
        vec![None; range.count() as usize]
    }
}
