//! What this agent gives to others: the contents it downloads, and those its store holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use branchline_core::SegmentSet;
use branchline_exchange::{ContentSource, ServedContent};
use branchline_hashing::{ContentKey, Manifest, SegmentIndex, SwarmId, VerifiedSegment};
use branchline_store::{Store, Trust};
use bytes::Bytes;
use tokio::sync::watch;

use crate::engine::content::{Done, LocalContent};
use crate::engine::provisional::ProvisionalContent;

/// Finds contents by swarm: downloads first, then the store.
pub(crate) struct Shelf {
    store: Store,
    /// Downloads that run, and those whose segments are on their way into the store. Held for
    /// moments only.
    local: RwLock<BTreeMap<SwarmId, Local>>,
    /// Contents of the store that were asked for a moment ago, the newest last. Held for moments
    /// only, never while one is looked up.
    recent: Mutex<Vec<Arc<StoredContent>>>,
}

/// A content that grows in a file of this machine.
#[derive(Debug, Clone)]
pub(crate) enum Local {
    Described(Arc<LocalContent>),
    Provisional(Arc<ProvisionalContent>),
}

impl Local {
    fn key(&self) -> ContentKey {
        match self {
            Self::Described(content) => content.key,
            Self::Provisional(content) => content.key,
        }
    }

    fn is_shared(&self) -> bool {
        match self {
            Self::Described(content) => content.is_shared(),
            Self::Provisional(_) => true,
        }
    }

    fn done(&self) -> &Done {
        match self {
            Self::Described(content) => &content.done,
            Self::Provisional(content) => &content.done,
        }
    }

    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.done(), other.done())
    }

    fn served(self) -> Arc<dyn ServedContent> {
        match self {
            Self::Described(content) => content,
            Self::Provisional(content) => content,
        }
    }
}

/// A download opens several streams within a second, and each asks what is here; looking that up
/// takes some 2 microseconds a segment.
const LOOKUP_LASTS: Duration = Duration::from_secs(5);

/// Remembered at a time, besides the newest: at 44 bytes a segment, 6 MiB. The segments of a file of
/// 5 GiB.
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
    pub(crate) fn put(self: &Arc<Self>, content: Local) -> OnShelf {
        let swarm = content.key().swarm_id();
        self.write().insert(swarm, content.clone());
        OnShelf {
            shelf: Arc::clone(self),
            swarm,
            content,
        }
    }

    /// A content of this machine that is not, or not wholly, in the store yet.
    pub(crate) fn find(&self, key: ContentKey) -> Option<Arc<LocalContent>> {
        match self.local(&key.swarm_id())? {
            Local::Described(content) => Some(content),
            Local::Provisional(_) => None,
        }
    }

    /// How many segments of a content are there by now that is not, or not wholly, in the store yet.
    pub(crate) fn segments_of(&self, key: ContentKey) -> Option<u32> {
        Some(self.local(&key.swarm_id())?.done().segments().len())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<SwarmId, Local>> {
        self.local.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self, swarm: &SwarmId) -> Option<Local> {
        self.local
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(swarm)
            .cloned()
    }

    /// A download that others may have.
    fn shared(&self, swarm: &SwarmId) -> Option<Local> {
        self.local(swarm).filter(Local::is_shared)
    }

    /// A content of the store, looked up once for the several streams of a download: they join one
    /// after the other.
    fn stored(&self, swarm: &SwarmId) -> Option<Arc<StoredContent>> {
        if let Some(known) = self.recent(swarm) {
            return Some(known);
        }
        let content = Arc::new(self.look_up(swarm)?);
        self.remember(&content);
        Some(content)
    }

    fn recent(&self, swarm: &SwarmId) -> Option<Arc<StoredContent>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|content| content.looked_up.elapsed() < LOOKUP_LASTS);
        let known = recent.iter().find(|content| content.swarm == *swarm);
        known.cloned()
    }

    /// In place of the oldest, as far as room is needed.
    fn remember(&self, content: &Arc<StoredContent>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|older| older.swarm != content.swarm);
        let mut room = LOOKUP_SEGMENTS_KEPT;
        let kept = recent.iter().rev().take_while(|older| {
            let left = room.checked_sub(older.manifest.segment_count());
            room = left.unwrap_or(0);
            left.is_some()
        });
        let forgotten = recent.len() - kept.count();
        recent.drain(..forgotten);
        recent.push(Arc::clone(content));
    }

    fn look_up(&self, swarm: &SwarmId) -> Option<StoredContent> {
        let record = self.store.content_by_swarm(swarm).ok()??;
        if !may_be_given(record.trust) {
            return None;
        }
        let manifest = Manifest::decode(&record.manifest).ok()?;
        let store = self.store.clone();
        let have = present_in_store(&store, &manifest);
        Some(StoredContent {
            swarm: *swarm,
            manifest,
            have,
            store,
            looked_up: Instant::now(),
        })
    }
}

/// What only the origin vouches for is never given to others: nobody could check it.
pub(crate) fn may_be_given(trust: Trust) -> bool {
    match trust {
        Trust::Manifest | Trust::Digest => true,
        Trust::Branch | Trust::Origin => false,
    }
}

/// Keeps a content on the shelf.
pub(crate) struct OnShelf {
    shelf: Arc<Shelf>,
    swarm: SwarmId,
    content: Local,
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        self.content.done().end_growth();
        let mut local = self.shelf.write();
        // Another download of the same content may have taken the place.
        if local
            .get(&self.swarm)
            .is_some_and(|there| there.is(&self.content))
        {
            local.remove(&self.swarm);
        }
    }
}

impl ContentSource for Shelf {
    fn key(&self, swarm: &SwarmId) -> Option<ContentKey> {
        if let Some(local) = self.shared(swarm) {
            return Some(local.key());
        }
        let (key, trust) = self.store.key_of_swarm(swarm).ok()??;
        may_be_given(trust).then_some(key)
    }

    fn content(&self, swarm: &SwarmId) -> Option<Arc<dyn ServedContent>> {
        if let Some(local) = self.shared(swarm) {
            return Some(local.served());
        }
        let stored: Arc<dyn ServedContent> = self.stored(swarm)?;
        Some(stored)
    }
}

impl ServedContent for LocalContent {
    fn have(&self) -> SegmentSet {
        self.done.segments()
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.done.growth()
    }

    fn tell_every(&self) -> Duration {
        self.done.tell_every()
    }

    fn manifest(&self) -> Option<Bytes> {
        Some(self.encoded_manifest())
    }

    fn length(&self, index: SegmentIndex) -> Option<u32> {
        Some(self.manifest.segment(index)?.length)
    }

    fn read(&self, index: SegmentIndex) -> Option<VerifiedSegment> {
        self.read_verified(index)
    }
}

/// A content whose segments are in the store.
struct StoredContent {
    swarm: SwarmId,
    manifest: Manifest,
    have: SegmentSet,
    store: Store,
    looked_up: Instant,
}

impl ServedContent for StoredContent {
    fn have(&self) -> SegmentSet {
        self.have.clone()
    }

    fn manifest(&self) -> Option<Bytes> {
        Some(self.manifest.encode().into())
    }

    fn length(&self, index: SegmentIndex) -> Option<u32> {
        Some(self.manifest.segment(index)?.length)
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

#[cfg(test)]
mod tests {
    use branchline_hashing::{ManifestBuilder, SegmentHash, SegmentingParameters, Sha256Digest};
    use branchline_store::{ContentRecord, StoreOptions};

    use super::*;

    /// A content of `segments` segments in the store, none of which is there.
    fn put(store: &Store, segments: u32, trust: Trust) -> SwarmId {
        let parameters = SegmentingParameters::FIXED;
        let mut table = ManifestBuilder::new(parameters);
        for _ in 0..segments {
            let pushed = table.push(parameters.max(), SegmentHash::of(b"the same"));
            pushed.expect("a valid length");
        }
        let sha256 = Sha256Digest::from_bytes([1; 32]);
        let manifest = table.finish(sha256).expect("a manifest");
        let key = manifest.content_key();
        let record = ContentRecord {
            key,
            manifest: manifest.encode().into(),
            url: String::new(),
            file_name: String::new(),
            trust,
            length: manifest.file_length(),
            stored_at: 1,
            last_used: 1,
        };
        store.put_content(&record).expect("put");
        key.swarm_id()
    }

    fn shelf() -> (tempfile::TempDir, Arc<Shelf>) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path(), StoreOptions::new(1 << 20)).expect("a store");
        (folder, Shelf::new(store))
    }

    #[test]
    fn what_others_cannot_check_has_neither_key_nor_content() {
        let (_folder, shelf) = shelf();
        let kinds = [Trust::Manifest, Trust::Digest, Trust::Branch, Trust::Origin];
        for (trust, segments) in kinds.into_iter().zip(1..) {
            let swarm = put(&shelf.store, segments, trust);
            let given = matches!(trust, Trust::Manifest | Trust::Digest);
            let key = shelf.key(&swarm);
            assert_eq!(key.map(|key| key.swarm_id()), given.then_some(swarm));
            assert_eq!(shelf.content(&swarm).is_some(), given, "{trust}");
        }
        let nobodys = ContentKey::from_bytes([9; 32]).swarm_id();
        assert_eq!(shelf.key(&nobodys), None);
    }

    #[test]
    fn the_newest_is_remembered_however_long_and_the_oldest_make_room() {
        let (_folder, shelf) = shelf();
        let long = put(&shelf.store, LOOKUP_SEGMENTS_KEPT + 1, Trust::Manifest);
        let short = [1, 2].map(|segments| put(&shelf.store, segments, Trust::Manifest));
        shelf.stored(&short[0]).expect("there");
        shelf.stored(&long).expect("there");
        assert!(shelf.recent(&long).is_some());
        assert!(shelf.recent(&short[0]).is_some());
        shelf.stored(&short[1]).expect("there");
        assert!(shelf.recent(&long).is_none());
        assert!(shelf.recent(&short[1]).is_some());
    }
}
