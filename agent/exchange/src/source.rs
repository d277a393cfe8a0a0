//! What an exchange serves, as its owner implements it.

use std::sync::Arc;

use branchline_core::SegmentSet;
use branchline_hashing::{ContentKey, SegmentIndex, SwarmId, VerifiedSegment};
use bytes::Bytes;

/// Finds contents by their swarm. Called on reader threads only; may block.
pub trait ContentSource: Send + Sync + 'static {
    /// The content of `swarm`, if there is something of it to serve.
    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>>;
}

/// One content that is served. Called on reader threads only; may block.
pub trait ServedContent: Send + Sync + 'static {
    /// Its key.
    fn key(&self) -> ContentKey;

    /// Which segments can be read now.
    fn have(&self) -> SegmentSet;

    /// The manifest as published, head and body; `None` where the content came without one.
    fn manifest(&self) -> Option<Bytes>;

    /// Reads and verifies one segment; `None` when it is not, or no longer, there.
    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment>;
}
