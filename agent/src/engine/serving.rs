//! What this agent gives to others: the contents it downloads, and those its store holds.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use branchline_core::SegmentSet;
use branchline_exchange::{ContentSource, ServedContent};
use branchline_hashing::{ContentKey, Manifest, SegmentIndex, SwarmId, VerifiedSegment};
use branchline_store::{Store, Trust};
use bytes::Bytes;

use crate::engine::content::LocalContent;

/// Finds contents by swarm: downloads first, then the store.
pub(crate) struct Shelf {
    store: Store,
    /// Downloads that run, and those whose segments are on their way into the store. Held for
    /// moments only.
    local: RwLock<BTreeMap<SwarmId, Arc<LocalContent>>>,
}

impl Shelf {
    pub(crate) fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            local: RwLock::default(),
        })
    }

    /// Serves `content` as long as the value lives.
    pub(crate) fn put(self: &Arc<Self>, content: Arc<LocalContent>) -> OnShelf {
        let swarm = content.key.swarm_id();
        self.write().insert(swarm, Arc::clone(&content));
        OnShelf {
            shelf: Arc::clone(self),
            swarm,
            content,
        }
    }

    /// A content of this machine that is not, or not wholly, in the store yet.
    pub(crate) fn find(&self, key: ContentKey) -> Option<Arc<LocalContent>> {
        self.local(&key.swarm_id())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<SwarmId, Arc<LocalContent>>> {
        self.local.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self, swarm: &SwarmId) -> Option<Arc<LocalContent>> {
        self.local
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(swarm)
            .cloned()
    }

    /// What only the origin vouches for is never given to others: nobody could check it.
    fn stored(&self, swarm: &SwarmId) -> Option<StoredContent> {
        let record = self.store.content_by_swarm(swarm).ok()??;
        match record.trust {
            Trust::Manifest | Trust::Digest => {}
            Trust::Branch | Trust::Origin => return None,
        }
        let manifest = Manifest::decode(&record.manifest).ok()?;
        let store = self.store.clone();
        Some(StoredContent {
            key: record.key,
            manifest,
            encoded: record.manifest,
            store,
        })
    }
}

/// Keeps a content on the shelf.
pub(crate) struct OnShelf {
    shelf: Arc<Shelf>,
    swarm: SwarmId,
    content: Arc<LocalContent>,
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        let mut local = self.shelf.write();
        // Another download of the same content may have taken the place.
        if local
            .get(&self.swarm)
            .is_some_and(|there| Arc::ptr_eq(there, &self.content))
        {
            local.remove(&self.swarm);
        }
    }
}

impl ContentSource for Shelf {
    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>> {
        if let Some(local) = self.local(swarm).filter(|local| local.is_shared()) {
            return Some(local);
        }
        Some(Arc::new(self.stored(swarm)?))
    }
}

impl ServedContent for LocalContent {
    fn key(&self) -> ContentKey {
        self.key
    }

    fn have(&self) -> SegmentSet {
        self.done()
    }

    fn manifest(&self) -> Option<Bytes> {
        Some(self.encoded_manifest())
    }

    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        self.read_verified(index)
    }
}

/// A content whose segments are in the store.
struct StoredContent {
    key: ContentKey,
    manifest: Manifest,
    encoded: Bytes,
    store: Store,
}

impl ServedContent for StoredContent {
    fn key(&self) -> ContentKey {
        self.key
    }

    fn have(&self) -> SegmentSet {
        present_in_store(&self.store, &self.manifest)
    }

    fn manifest(&self) -> Option<Bytes> {
        Some(self.encoded.clone())
    }

    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        let segment = self.manifest.segment(index)?;
        let read = self.store.read(segment.hash);
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "reading from the store failed");
            None
        })
    }
}

/// Segments looked up in the index at a time: 36 KiB of hashes.
const LOOKUP_SEGMENTS: usize = 1024;

/// The segments of `manifest` that the store holds. Blocks.
pub(crate) fn present_in_store(store: &Store, manifest: &Manifest) -> SegmentSet {
    let mut present = SegmentSet::empty(manifest.segment_count());
    let segments: Vec<_> = manifest.segments().map(|s| (s.index, s.hash)).collect();
    for part in segments.chunks(LOOKUP_SEGMENTS) {
        let hashes: Vec<_> = part.iter().map(|(_, hash)| *hash).collect();
        match store.contains(&hashes) {
            Ok(found) => {
                let here = part.iter().zip(found).filter(|(_, here)| *here);
                here.for_each(|((index, _), _)| {
                    present.insert(*index);
                });
            }
            Err(error) => tracing::warn!(%error, "the store's index cannot be asked"),
        }
    }
    present
}
