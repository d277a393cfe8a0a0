//! What this agent gives to others: the contents it downloads, and those its store holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

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
    /// Contents of the store that were asked for a moment ago. Held while one is looked up: whoever
    /// else asks would only look up the same.
    recent: Mutex<Vec<Arc<StoredContent>>>,
}

/// A download opens several streams within a second, and each asks what is here; looking that up
/// takes some 2 microseconds a segment.
const LOOKUP_LASTS: Duration = Duration::from_secs(5);

/// Remembered at a time: at 44 bytes a segment, 6 MiB. The segments of a file of 5 GiB.
const LOOKUP_SEGMENTS_KEPT: u32 = 150_000;

impl Shelf {
    pub(crate) fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            local: RwLock::default(),
            recent: Mutex::default(),
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

    /// A content of the store, looked up once for the several streams of a download.
    fn stored(&self, swarm: &SwarmId) -> Option<Arc<StoredContent>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|content| content.looked_up.elapsed() < LOOKUP_LASTS);
        if let Some(known) = recent
            .iter()
            .find(|content| content.key.swarm_id() == *swarm)
        {
            return Some(Arc::clone(known));
        }
        let content = Arc::new(self.look_up(swarm)?);
        let segments = |content: &Arc<StoredContent>| content.manifest.segment_count();
        let kept: u32 = recent.iter().map(segments).sum();
        if kept.saturating_add(segments(&content)) <= LOOKUP_SEGMENTS_KEPT {
            recent.push(Arc::clone(&content));
        }
        Some(content)
    }

    /// What only the origin vouches for is never given to others: nobody could check it.
    fn look_up(&self, swarm: &SwarmId) -> Option<StoredContent> {
        let record = self.store.content_by_swarm(swarm).ok()??;
        match record.trust {
            Trust::Manifest | Trust::Digest => {}
            Trust::Branch | Trust::Origin => return None,
        }
        let manifest = Manifest::decode(&record.manifest).ok()?;
        let store = self.store.clone();
        let have = present_in_store(&store, &manifest);
        Some(StoredContent {
            key: record.key,
            manifest,
            have,
            store,
            looked_up: Instant::now(),
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
        let stored: Arc<dyn ServedContent> = self.stored(swarm)?;
        Some(stored)
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
    have: SegmentSet,
    store: Store,
    looked_up: Instant,
}

impl ServedContent for StoredContent {
    fn key(&self) -> ContentKey {
        self.key
    }

    fn have(&self) -> SegmentSet {
        self.have.clone()
    }

    fn manifest(&self) -> Option<Bytes> {
        Some(self.manifest.encode().into())
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
