//! Which segments of a file that turned out wrong are fetched again, and in which order.
//!
//! Of the file only the digest of the whole was known, and what came has another one: somebody sent wrong
//! bytes. What other members say they have shows where to look first; it is believed about nothing
//! else. First [`Repair::probes`] show who lies; then members share anew what only the origin can have told
//! them, without those who lied. If that is not enough, the caller fetches each [`Batch`] again and
//! looks at the digest after it.
//!
//! Invariants: what this machine had from the origin itself is never fetched again; nothing is
//! fetched again twice, so it ends; a peer is named only for bytes that the origin, or the digest in the
//! end, has shown to be wrong, and that it says it had from the origin itself. Where nobody says so, who
//! sent them to this machine is named.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use branchline_hashing::{FixedSegments, SegmentHash, SegmentIndex};

use crate::planner::{OriginPace, wait_for_others};
use crate::{PeerId, SegmentSet};

/// Which bytes a member says it has for a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Their hash.
    pub hash: SegmentHash,
    /// Whether it had them from the origin itself, and not from a peer.
    pub first_hand: bool,
}

/// Where this machine has a segment's bytes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provenance {
    /// The origin.
    Origin,
    /// This peer, which may have had them from another.
    Peer(PeerId),
    /// An interrupted download, which did not note it.
    Unknown,
}

/// A segment as it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The hash of its bytes.
    pub hash: SegmentHash,
    /// Where they came from.
    pub from: Provenance,
}

/// Segments to fetch again before the digest is looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Which.
    pub segments: SegmentSet,
    /// Whom they came from: not to be asked for them again.
    pub suspects: BTreeSet<PeerId>,
}

/// So much is fetched again at once, however small the file is: a look at the digest costs a LAN's
/// time for these bytes, and the WAN's round trips would show with less.
const FEW_BYTES: u64 = 8 << 20;

/// Of larger files this part: the digest is looked at so many times at most for each kind of suspicion.
const PARTS: u64 = 8;

/// Sources of which one segment each is fetched again to see who lies: few members look at many of a large
/// branch's together, and each costs the WAN a segment.
const PROBES: usize = 4;

/// How long to wait before the origin is asked again: each member another time, so that one repairs and
/// the others learn from it what is right; at most as long as others may bring nothing.
pub fn turn(seed: u64, pace: OriginPace, file_bytes: u64) -> Duration {
    let most = wait_for_others(pace, file_bytes, FixedSegments::LENGTH);
    let part = u32::try_from(seed % 1000).unwrap_or(0);
    most * part / 1000
}

/// A repair. See the module's text.
#[derive(Debug)]
pub struct Repair {
    segments: Vec<Suspect>,
    batch_bytes: u64,
    /// Segments that each peer sent wrong.
    wrong: BTreeMap<PeerId, u32>,
    /// Where segments began that turned out wrong.
    wrong_sources: BTreeSet<Provenance>,
    /// Sources of which one segment has been fetched again, to see.
    probed: BTreeSet<Provenance>,
}

#[derive(Debug)]
struct Suspect {
    /// As it was when the file turned out wrong.
    held: Held,
    bytes: u32,
    /// Its source has been named for it.
    blamed: bool,
    /// Fetched again, or from the origin to begin with.
    settled: bool,
    /// A member has other bytes.
    contested: bool,
    /// A member has other bytes, and from the origin itself.
    contradicted: bool,
    /// A member has the same from the origin itself, and is not the one they came from.
    backed: bool,
    /// The first of those who say that they had just these bytes from the origin itself.
    claimant: Option<PeerId>,
}

impl Suspect {
    /// Where the bytes began: who passed them on may have done so in good faith.
    fn source(&self) -> Provenance {
        self.claimant.map_or(self.held.from, Provenance::Peer)
    }
}

/// How likely a segment is wrong, the likeliest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Suspicion {
    Contradicted,
    Contested,
    FromAWrongSource,
    /// The first of a source: who sends wrong bytes seldom sends a right one.
    Probe,
    FromAnother,
}

impl Repair {
    /// For a file whose segments are these, each with its length in bytes.
    pub fn new(held: impl IntoIterator<Item = (Held, u32)>) -> Self {
        let suspect = |(held, bytes): (Held, u32)| Suspect {
            held,
            bytes,
            blamed: false,
            settled: held.from == Provenance::Origin,
            contested: false,
            contradicted: false,
            backed: false,
            claimant: None,
        };
        let segments: Vec<_> = held.into_iter().map(suspect).collect();
        let bytes: u64 = segments.iter().map(|s| u64::from(s.bytes)).sum();
        Self {
            segments,
            batch_bytes: FEW_BYTES.max(bytes / PARTS),
            wrong: BTreeMap::new(),
            wrong_sources: BTreeSet::new(),
            probed: BTreeSet::new(),
        }
    }

    /// What a member says it has of the segments from `first` on.
    pub fn handle_claims(&mut self, peer: PeerId, first: SegmentIndex, claims: &[Option<Claim>]) {
        let segments = self.segments.iter_mut().skip(first.0 as usize);
        for (segment, claim) in segments.zip(claims) {
            let Some(claim) = claim else { continue };
            if claim.hash == segment.held.hash {
                let from_it = segment.held.from == Provenance::Peer(peer);
                segment.backed |= claim.first_hand && !from_it;
                if claim.first_hand {
                    segment.claimant.get_or_insert(peer);
                }
            } else {
                segment.contested = true;
                segment.contradicted |= claim.first_hand;
            }
        }
    }

    /// What to fetch again next; `None` when there is nothing left that others brought.
    pub fn next_batch(&self) -> Option<Batch> {
        let of_sources = self.bytes_by_source();
        let mut probed = self.probed.clone();
        let mut order: Vec<_> = self
            .suspects()
            .map(|(index, segment)| {
                let source = segment.source();
                let mut suspicion = self.suspicion(segment);
                if suspicion == Suspicion::FromAnother && probed.insert(source) {
                    suspicion = Suspicion::Probe;
                }
                ((suspicion, of_sources.get(&source), source), index)
            })
            .collect();
        order.sort_unstable();
        let ((first, ..), _) = *order.first()?;
        let (mut segments, mut suspects) = (self.none(), BTreeSet::new());
        let mut bytes = 0;
        for (_, index) in order.iter().take_while(|((kind, ..), _)| *kind == first) {
            if bytes >= self.batch_bytes {
                break;
            }
            let segment = &self.segments[index.0 as usize];
            bytes += u64::from(segment.bytes);
            segments.insert(*index);
            for from in [segment.held.from, segment.source()] {
                if let Provenance::Peer(peer) = from {
                    suspects.insert(peer);
                }
            }
        }
        Some(Batch { segments, suspects })
    }

    /// Segments that show who lies: one of each of [`PROBES`] sources, those first that others contradict,
    /// then those of which most came. None when there is nothing that others brought.
    pub fn probes(&self) -> SegmentSet {
        let of_sources = self.bytes_by_source();
        let mut of_each = BTreeMap::new();
        for (index, segment) in self.suspects() {
            let (kind, source) = (self.suspicion(segment), segment.source());
            let best = of_each.entry(source).or_insert((kind, index));
            *best = (*best).min((kind, index));
        }
        let mut order: Vec<_> = of_each
            .into_iter()
            .map(|(source, (kind, index))| {
                let bytes = of_sources.get(&source).copied();
                (kind, std::cmp::Reverse(bytes), index)
            })
            .collect();
        order.sort_unstable();
        let mut probes = self.none();
        for (.., index) in order.into_iter().take(PROBES) {
            probes.insert(index);
        }
        probes
    }

    /// A segment was fetched again.
    pub fn handle_fetched(&mut self, index: SegmentIndex, now: Held) {
        let Some(segment) = self.segments.get_mut(index.0 as usize) else {
            return;
        };
        let source = segment.source();
        segment.settled = true;
        self.probed.insert(source);
        if segment.held.hash != now.hash && now.from == Provenance::Origin {
            self.wrong_sources.insert(source);
            self.blame(index);
        }
    }

    /// The whole matches now: these are the hashes of the right segments.
    pub fn handle_right(&mut self, hash_of: impl Fn(SegmentIndex) -> Option<SegmentHash>) {
        let wrong: Vec<_> = (0..)
            .map(SegmentIndex)
            .zip(&self.segments)
            .filter(|(index, segment)| {
                hash_of(*index).is_some_and(|hash| hash != segment.held.hash)
            })
            .map(|(index, _)| index)
            .collect();
        for index in wrong {
            self.blame(index);
        }
    }

    fn blame(&mut self, index: SegmentIndex) {
        let segment = self.segments.get_mut(index.0 as usize);
        if let Some(segment) = segment.filter(|segment| !segment.blamed)
            && let Provenance::Peer(peer) = segment.source()
        {
            segment.blamed = true;
            *self.wrong.entry(peer).or_default() += 1;
        }
    }

    fn none(&self) -> SegmentSet {
        SegmentSet::empty(u32::try_from(self.segments.len()).unwrap_or(u32::MAX))
    }

    /// The peers that wrong segments began with, and how many.
    pub fn wrong(&self) -> &BTreeMap<PeerId, u32> {
        &self.wrong
    }

    fn suspects(&self) -> impl Iterator<Item = (SegmentIndex, &Suspect)> {
        let indexed = (0..).map(SegmentIndex).zip(&self.segments);
        indexed.filter(|(_, segment)| !segment.settled)
    }

    fn bytes_by_source(&self) -> BTreeMap<Provenance, u64> {
        let mut bytes = BTreeMap::new();
        for (_, segment) in self.suspects() {
            *bytes.entry(segment.source()).or_default() += u64::from(segment.bytes);
        }
        bytes
    }

    fn suspicion(&self, segment: &Suspect) -> Suspicion {
        if segment.contradicted && !segment.backed {
            Suspicion::Contradicted
        } else if segment.contested {
            Suspicion::Contested
        } else if self.wrong_sources.contains(&segment.source()) {
            Suspicion::FromAWrongSource
        } else {
            Suspicion::FromAnother
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEGMENT_BYTES: u32 = 256 << 10;

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn right(index: u32) -> SegmentHash {
        SegmentHash::of(&index.to_le_bytes())
    }

    fn wrong(index: u32) -> SegmentHash {
        SegmentHash::of(&[index.to_le_bytes(), *b"lies"].concat())
    }

    fn from(peer_number: u8, hash: SegmentHash) -> Held {
        let from = Provenance::Peer(peer(peer_number));
        Held { hash, from }
    }

    fn own(index: u32) -> Held {
        let (hash, from) = (right(index), Provenance::Origin);
        Held { hash, from }
    }

    fn repair(held: &[Held]) -> Repair {
        Repair::new(held.iter().map(|held| (*held, SEGMENT_BYTES)))
    }

    fn claims(of: impl IntoIterator<Item = (SegmentHash, bool)>) -> Vec<Option<Claim>> {
        let claim = |(hash, first_hand)| Some(Claim { hash, first_hand });
        of.into_iter().map(claim).collect()
    }

    fn batch(repair: &Repair) -> Vec<u32> {
        let batch = repair.next_batch().expect("something to fetch again");
        batch.segments.iter().map(|index| index.0).collect()
    }

    #[test]
    fn a_segment_that_its_fetcher_contradicts_comes_before_those_that_only_differ() {
        let held = [
            own(0),
            from(1, wrong(1)),
            from(1, right(2)),
            from(2, right(3)),
        ];
        let mut repair = repair(&held);
        // Peer 3 fetched segment 1; peer 1 lies about it, and about 2, which peer 2 has fetched.
        let of_3 = [
            (right(0), false),
            (right(1), true),
            (right(2), false),
            (right(3), false),
        ];
        repair.handle_claims(peer(3), SegmentIndex(0), &claims(of_3));
        let of_1 = [(wrong(1), true), (wrong(2), true)];
        repair.handle_claims(peer(1), SegmentIndex(1), &claims(of_1));
        let of_2 = [(right(2), true)];
        repair.handle_claims(peer(2), SegmentIndex(2), &claims(of_2));
        assert_eq!(batch(&repair), [1]);
        repair.handle_fetched(SegmentIndex(1), own(1));
        assert_eq!(repair.wrong().get(&peer(1)), Some(&1));
        assert_eq!(batch(&repair), [2]);
    }

    #[test]
    fn who_sent_something_wrong_is_doubted_before_the_others() {
        let mut held = vec![from(1, wrong(0)); 1];
        held.extend((1..3).map(|index| from(2, right(index))));
        held.extend((3..9).map(|index| from(1, right(index))));
        let mut repair = Repair::new(held.iter().map(|held| (*held, 4 << 20)));
        let of_3 = [(right(0), true)];
        repair.handle_claims(peer(3), SegmentIndex(0), &claims(of_3));
        assert_eq!(batch(&repair), [0]);
        repair.handle_fetched(SegmentIndex(0), own(0));
        assert_eq!(batch(&repair), [3, 4]);
    }

    #[test]
    fn without_a_contradiction_the_source_of_least_is_fetched_again_first() {
        let held = [
            from(2, right(0)),
            from(2, right(1)),
            from(1, right(2)),
            own(3),
        ];
        let mut repair = Repair::new(held.iter().map(|held| (*held, 8 << 20)));
        assert_eq!(batch(&repair), [2]);
        repair.handle_fetched(SegmentIndex(2), own(2));
        assert!(repair.wrong().is_empty(), "it was right");
        assert_eq!(batch(&repair), [0]);
    }

    #[test]
    fn one_segment_of_each_source_shows_which_one_lies_whoever_passed_them_on() {
        let held = [right(0), wrong(1), right(2), wrong(3)].map(|hash| from(2, hash));
        let mut repair = repair(&held);
        for (peer_number, index, hash) in [
            (3, 0, right(0)),
            (9, 1, wrong(1)),
            (3, 2, right(2)),
            (9, 3, wrong(3)),
        ] {
            let claim = claims([(hash, true)]);
            repair.handle_claims(peer(peer_number), SegmentIndex(index), &claim);
        }
        assert_eq!(batch(&repair), [0, 1]);
        repair.handle_fetched(SegmentIndex(0), own(0));
        repair.handle_fetched(SegmentIndex(1), own(1));
        assert_eq!(batch(&repair), [3]);
    }

    #[test]
    fn what_another_peer_brought_instead_blames_nobody_before_the_whole_matches() {
        let mut repair = repair(&[from(1, wrong(0))]);
        repair.handle_fetched(SegmentIndex(0), from(2, right(0)));
        assert!(repair.wrong().is_empty());
        assert_eq!(repair.next_batch(), None);
        repair.handle_right(|index| Some(right(index.0)));
        assert_eq!(repair.wrong().get(&peer(1)), Some(&1));
    }

    #[test]
    fn who_passed_wrong_bytes_on_is_not_named_where_somebody_says_that_they_began_with_him() {
        let mut repair = repair(&[from(2, wrong(0)), from(2, wrong(1)), from(2, right(2))]);
        repair.handle_claims(peer(9), SegmentIndex(0), &claims([(wrong(0), true)]));
        repair.handle_fetched(SegmentIndex(0), own(0));
        assert_eq!(repair.wrong(), &BTreeMap::from([(peer(9), 1)]));
        repair.handle_right(|index| Some(right(index.0)));
        assert_eq!(
            repair.wrong(),
            &BTreeMap::from([(peer(2), 1), (peer(9), 1)])
        );
    }

    #[test]
    fn probes_are_one_of_each_source_and_those_that_others_contradict_come_first() {
        let mut held = vec![
            own(0),
            from(1, right(1)),
            from(1, right(2)),
            from(2, right(3)),
        ];
        held.extend([from(3, right(4)), from(3, wrong(5))]);
        let mut repair = repair(&held);
        repair.handle_claims(peer(4), SegmentIndex(5), &claims([(right(5), true)]));
        let probes = |repair: &Repair| {
            let probes = repair.probes();
            probes.iter().map(|index| index.0).collect::<Vec<_>>()
        };
        assert_eq!(probes(&repair), [1, 3, 5]);
        held.extend([from(5, right(6)), from(6, right(7)), from(6, right(8))]);
        let mut more = Repair::new(held.iter().map(|held| (*held, SEGMENT_BYTES)));
        more.handle_claims(peer(4), SegmentIndex(5), &claims([(right(5), true)]));
        // Of 2 and 5, of which the least came, the later one is left out.
        assert_eq!(probes(&more), [1, 3, 5, 7]);
    }

    proptest! {
        #[test]
        fn whatever_members_say_the_file_is_right_in_the_end_and_only_who_lied_is_named(
            sources in prop::collection::vec((0u8..6, any::<bool>()), 1..200),
            told in prop::collection::vec((1u8..9, 0u32..200, any::<bool>(), any::<bool>()), 0..60),
        ) {
            let held: Vec<Held> = sources.iter().zip(0..).map(|((source, lie), index)| {
                match source {
                    0 => own(index),
                    peer => from(*peer, if *lie { wrong(index) } else { right(index) }),
                }
            }).collect();
            let mut now = held.clone();
            let mut repair = repair(&held);
            let mut claimed = BTreeMap::new();
            for (by, first, lie, first_hand) in told {
                if lie && first_hand {
                    claimed.entry(first).or_insert(peer(by));
                }
                let hash = if lie { wrong(first) } else { right(first) };
                repair.handle_claims(peer(by), SegmentIndex(first), &claims([(hash, first_hand)]));
            }
            while let Some(batch) = repair.next_batch() {
                prop_assert!(!batch.segments.is_empty());
                for index in batch.segments.iter() {
                    let before = now[index.0 as usize];
                    prop_assert_ne!(before.from, Provenance::Origin);
                    let Provenance::Peer(sender) = before.from else { unreachable!() };
                    prop_assert!(batch.suspects.contains(&sender));
                    now[index.0 as usize] = own(index.0);
                    repair.handle_fetched(index, own(index.0));
                }
            }
            prop_assert!(now.iter().zip(0..).all(|(held, index)| held.hash == right(index)));
            let mut guilty = BTreeMap::new();
            for (held, index) in held.iter().zip(0..) {
                if let Provenance::Peer(peer) = held.from && held.hash == wrong(index) {
                    let source = claimed.get(&index).copied().unwrap_or(peer);
                    *guilty.entry(source).or_insert(0) += 1;
                }
            }
            prop_assert_eq!(repair.wrong(), &guilty);
        }
    }
}
