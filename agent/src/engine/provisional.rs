//! A content of which only the whole file's digest is known, while it comes.
//!
//! Whatever is there may be wrong until the whole has matched: it is given to those only who were
//! told so ([`Standing::Provisional`]), and the store takes none of it. For each segment it is remembered
//! which bytes came, and from whom.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use branchline_core::planner::Source;
use branchline_core::repair::{Claim, Held, Provenance};
use branchline_core::wire::Standing;
use branchline_core::{PeerId, SegmentRange, SegmentSet};
use branchline_exchange::ServedContent;
use branchline_hashing::{
    ContentKey, FixedSegments, Manifest, ManifestBuilder, ManifestError, ProvisionalSegment,
    SegmentHash, SegmentIndex, SegmentingParameters, Sha256Digest, VerifiedSegment,
};
use bytes::Bytes;
use tokio::sync::watch;

use crate::engine::content::Done;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct ProvisionalContent {
    /// What it is shared as.
    pub(crate) key: ContentKey,
    pub(crate) segments: FixedSegments,
    pub(crate) done: Done,
    /// Of each segment that is done. Written by the one transfer; held for moments.
    held: RwLock<Vec<Option<Held>>>,
    file: File,
}

impl ProvisionalContent {
    /// A content that grows in `file`, of which nothing is there.
    pub(crate) fn new(key: ContentKey, segments: FixedSegments, file: File) -> Self {
        Self {
            key,
            segments,
            done: Done::new(SegmentSet::empty(segments.count())),
            held: RwLock::new(vec![None; segments.count() as usize]),
            file,
        }
    }

    /// What of it came from the origin itself, to be shared as `key`. `file` is the same.
    pub(crate) fn first_hand(&self, key: ContentKey, file: File) -> Self {
        let first_hand = Self::new(key, self.segments, file);
        for segment in self.segments.iter() {
            if let Some(held) = self.held(segment.index)
                && held.from == Provenance::Origin
            {
                first_hand.mark(segment.index, held.hash, held.from);
            }
        }
        first_hand
    }

    /// A segment with this hash has been written; whether none was there before.
    pub(crate) fn mark(&self, index: SegmentIndex, hash: SegmentHash, from: Provenance) -> bool {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = held.get_mut(index.0 as usize) {
            *place = Some(Held { hash, from });
        }
        drop(held);
        self.done.insert(index)
    }

    /// A segment is to come anew, and is given to nobody meanwhile; what was there.
    pub(crate) fn doubt(&self, index: SegmentIndex) -> Option<Held> {
        self.done.remove(index).then(|| self.held(index))?
    }

    /// What is there of a segment.
    pub(crate) fn held(&self, index: SegmentIndex) -> Option<Held> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.get(index.0 as usize).copied().flatten()
    }

    /// The table of what is there; `None` before all is.
    pub(crate) fn table(&self, sha256: Sha256Digest) -> Option<Result<Manifest, ManifestError>> {
        let mut table = ManifestBuilder::new(SegmentingParameters::FIXED);
        for segment in self.segments.iter() {
            let held = self.held(segment.index)?;
            if let Err(error) = table.push(segment.length, held.hash) {
                return Some(Err(error));
            }
        }
        Some(table.finish(sha256))
    }

    /// Where the bytes of `segments` came from.
    pub(crate) fn sources_of(&self, segments: &SegmentSet) -> Sources {
        let mut sources = Sources::default();
        let segments = segments
            .iter()
            .filter_map(|index| self.segments.segment(index));
        for segment in segments {
            let bytes = match self.held(segment.index).map(|held| held.from) {
                Some(Provenance::Origin) => &mut sources.origin_bytes,
                Some(Provenance::Peer(_)) => &mut sources.peers_bytes,
                Some(Provenance::Unknown) | None => &mut sources.local_bytes,
            };
            *bytes += u64::from(segment.length);
        }
        sources
    }

    fn claim(&self, index: SegmentIndex) -> Option<Claim> {
        let Held { hash, from } = self.held(index).filter(|_| self.done.contains(index))?;
        let first_hand = from == Provenance::Origin;
        Some(Claim { hash, first_hand })
    }
}

/// Where bytes came from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sources {
    pub(crate) origin_bytes: u64,
    pub(crate) peers_bytes: u64,
    pub(crate) local_bytes: u64,
}

/// Says who sent wrong segments, and how many.
pub(crate) fn name_wrong(peer: PeerId, segments: u32) {
    tracing::warn!(%peer, segments, "a peer sent wrong bytes and is shut out");
}

/// Whence a segment came, as repairs know it.
pub(crate) fn provenance_of(source: Source) -> Provenance {
    match source {
        Source::Origin => Provenance::Origin,
        Source::Peer(peer) => Provenance::Peer(peer),
    }
}

impl ServedContent for ProvisionalContent {
    fn standing(&self) -> Standing {
        Standing::Provisional {
            file_bytes: self.segments.file_length(),
        }
    }

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
        None
    }

    fn length(&self, index: SegmentIndex) -> Option<u32> {
        Some(self.segments.segment(index)?.length)
    }

    /// Nothing here is verified.
    fn read(&self, _: SegmentIndex) -> Option<VerifiedSegment> {
        None
    }

    fn read_provisional(&self, index: SegmentIndex) -> Option<ProvisionalSegment> {
        let held = self.held(index).filter(|_| self.done.contains(index))?;
        let segment = self.segments.segment(index)?;
        let mut bytes = vec![0; segment.length as usize];
        self.file.read_exact_at(&mut bytes, segment.offset).ok()?;
        ProvisionalSegment::read_back(bytes.into(), held.hash).ok()
    }

    fn claims(&self, range: SegmentRange) -> Vec<Option<Claim>> {
        range.iter().map(|index| self.claim(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 2 * FixedSegments::LENGTH as usize;

    fn content() -> (ProvisionalContent, File) {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; BYTES], 0).expect("written");
        let handle = file.try_clone().expect("a second handle");
        let segments = FixedSegments::of(BYTES as u64).expect("a file");
        let key = ContentKey::from_bytes([1; 32]);
        (ProvisionalContent::new(key, segments, handle), file)
    }

    fn hash(fill: u8) -> SegmentHash {
        SegmentHash::of(&[fill; FixedSegments::LENGTH as usize])
    }

    #[test]
    fn what_came_is_given_as_provisional_and_never_as_verified() {
        let (content, file) = content();
        let index = SegmentIndex(1);
        assert!(content.read_provisional(index).is_none());
        assert!(content.mark(index, hash(7), Provenance::Origin));
        assert!(content.read(index).is_none());
        let given = content.read_provisional(index).expect("it came");
        assert_eq!(given.hash(), hash(7));
        file.write_all_at(&[8], BYTES as u64 - 1).expect("written");
        assert!(content.read_provisional(index).is_none(), "it has changed");
    }

    #[test]
    fn what_is_doubted_is_neither_given_nor_claimed_until_it_came_anew() {
        let (content, _file) = content();
        let peer = Provenance::Peer(PeerId::from_public_key([3; 32]));
        let both = SegmentRange::new(SegmentIndex(0), 2).expect("a range");
        content.mark(SegmentIndex(0), hash(7), peer);
        let claim = |first_hand| {
            Some(Claim {
                hash: hash(7),
                first_hand,
            })
        };
        assert_eq!(content.claims(both), [claim(false), None]);
        let (hash, from) = (hash(7), peer);
        assert_eq!(content.doubt(SegmentIndex(0)), Some(Held { hash, from }));
        assert_eq!(content.doubt(SegmentIndex(0)), None);
        assert_eq!(content.claims(both), [None, None]);
        assert!(content.read_provisional(SegmentIndex(0)).is_none());
        assert!(content.mark(SegmentIndex(0), hash, Provenance::Origin));
        assert_eq!(content.claims(both), [claim(true), None]);
        assert!(content.table(Sha256Digest::from_bytes([0; 32])).is_none());
    }

    #[test]
    fn sources_are_counted_and_what_came_from_the_origin_is_shared_anew() {
        let (content, file) = content();
        let sender = PeerId::from_public_key([3; 32]);
        content.mark(SegmentIndex(0), hash(9), Provenance::Peer(sender));
        content.mark(SegmentIndex(1), hash(7), Provenance::Origin);
        let sources = content.sources_of(&content.done.segments());
        let half = BYTES as u64 / 2;
        assert_eq!((sources.origin_bytes, sources.peers_bytes), (half, half));
        let anew = content.first_hand(content.key.in_repair(), file);
        assert_ne!(anew.key, content.key);
        let there: Vec<_> = anew.done.segments().iter().collect();
        assert_eq!(there, [SegmentIndex(1)]);
    }
}
