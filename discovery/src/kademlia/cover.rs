//! Asking one member for everybody it knows, twenty at a time. Pure: the seed comes in.
//!
//! A question is about a key, and is answered with the peers closest to it. So the answer names
//! everybody in some part of the key space around that key, or, when it is short, everybody there
//! is. What is left is divided and asked for until nothing is.

use libp2p::kad::KBucketKey;

use super::NAMED_AT_ONCE;

/// A member that knows 1,024 needs about a hundred; more is invention.
const MAX_QUESTIONS: u32 = 160;
/// Regions are not divided further than this: with 1,024 peers one has a single peer on average,
/// and finding a key in it takes a thousand hashes.
const MAX_BITS: u32 = 10;

/// Where a peer lies in the key space, to the precision that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u32);

/// The keys that begin with the first `bits` bits of `begins_with`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    begins_with: Position,
    bits: u32,
}

/// What of one member's acquaintances is still to be asked for.
#[derive(Debug)]
pub(crate) struct Cover {
    seed: u64,
    drawn: u64,
    left: Vec<Region>,
    asked: Option<(Region, Position)>,
    questions: u32,
}

/// The position of the peer with these bytes as its libp2p peer id.
pub(crate) fn position_of(peer_id: &[u8]) -> Position {
    let key = KBucketKey::new(peer_id.to_vec());
    let first = key.hashed_bytes().first_chunk().copied();
    Position(u32::from_be_bytes(first.unwrap_or_default()))
}

impl Position {
    fn bits_in_common(self, other: Self) -> u32 {
        (self.0 ^ other.0).leading_zeros()
    }
}

impl Region {
    const EVERYTHING: Self = Self {
        begins_with: Position(0),
        bits: 0,
    };

    fn contains(self, position: Position) -> bool {
        self.begins_with.bits_in_common(position) >= self.bits
    }

    /// The other half of the region of `bits` bits that `position` is in.
    fn other_half(position: Position, bits: u32) -> Self {
        let flipped = position.0 ^ (1 << (31 - bits));
        Self {
            begins_with: Position(flipped),
            bits: bits + 1,
        }
    }
}

impl Cover {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            drawn: 0,
            left: vec![Region::EVERYTHING],
            asked: None,
            questions: 0,
        }
    }

    /// Whether the member has told everything, or too much.
    pub(crate) fn is_complete(&self) -> bool {
        self.left.is_empty() || self.questions >= MAX_QUESTIONS
    }

    /// The key to ask for next; `None` when nothing is left to ask.
    pub(crate) fn next_question(&mut self) -> Option<Vec<u8>> {
        if self.is_complete() {
            return None;
        }
        let region = self.left.pop()?;
        let (key, position) = self.key_in(region);
        self.questions += 1;
        self.asked = Some((region, position));
        Some(key)
    }

    /// The last question's answer: where the peers lie that it names.
    pub(crate) fn handle_answer(&mut self, named: &[Position]) {
        let Some((region, asked)) = self.asked.take() else {
            return;
        };
        if named.len() < NAMED_AT_ONCE {
            self.left.clear();
            return;
        }
        // Whatever is closer than the farthest one was named.
        let of_farthest = named.iter().map(|peer| asked.bits_in_common(*peer)).min();
        let covered_bits = of_farthest.map_or(0, |bits| bits + 1).min(MAX_BITS);
        let halves = region.bits..covered_bits;
        self.left
            .extend(halves.map(|bits| Region::other_half(asked, bits)));
    }

    /// Kademlia hashes what is asked for, so a key in a region has to be found by trying.
    fn key_in(&mut self, region: Region) -> (Vec<u8>, Position) {
        loop {
            let key = [self.seed.to_be_bytes(), self.drawn.to_be_bytes()].concat();
            self.drawn += 1;
            let position = position_of(&key);
            if region.contains(position) {
                return (key, position);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The whole key of something, as libp2p computes it.
    fn key(bytes: &[u8]) -> [u8; 32] {
        let key = KBucketKey::new(bytes.to_vec());
        key.hashed_bytes().try_into().expect("32 bytes")
    }

    /// What a member answers that knows `peers`: the closest by XOR.
    fn answer(peers: &[u32], asked: &[u8]) -> Vec<u32> {
        let asked = key(asked);
        let distance = |peer: u32| {
            let peer = key(&peer.to_be_bytes());
            std::array::from_fn::<u8, 32, _>(|byte| peer[byte] ^ asked[byte])
        };
        let mut sorted = peers.to_vec();
        sorted.sort_by_key(|peer| distance(*peer));
        sorted.truncate(NAMED_AT_ONCE);
        sorted
    }

    /// Asks until nothing is left. Returns who was named, and the questions it took.
    fn ask_all(peers: &[u32], seed: u64) -> (BTreeSet<u32>, u32) {
        let mut cover = Cover::new(seed);
        let mut named = BTreeSet::new();
        while let Some(asked) = cover.next_question() {
            let told = answer(peers, &asked);
            let positions: Vec<_> = told
                .iter()
                .map(|peer| position_of(&peer.to_be_bytes()))
                .collect();
            cover.handle_answer(&positions);
            named.extend(told);
        }
        (named, cover.questions)
    }

    #[test]
    fn everybody_a_member_knows_is_named_in_few_questions() {
        for (count, most) in [(0, 1), (19, 1), (20, 4), (100, 16), (1023, 130)] {
            for seed in 0..4 {
                let peers: Vec<u32> = (0..count).map(|peer| peer * 7 + 1).collect();
                let (named, questions) = ask_all(&peers, seed);
                assert_eq!(named, peers.iter().copied().collect());
                println!("{count} peers took {questions} questions");
                assert!(questions <= most, "{count} peers took {questions}");
            }
        }
    }

    #[test]
    fn a_member_that_invents_peers_is_asked_a_bounded_number_of_questions() {
        // All as far from the key as can be, or all next to it: neither ends the questions early.
        for far in [0x8000_0000, 0x0020_0000, 1] {
            let mut cover = Cover::new(7);
            let mut questions = 0;
            while cover.next_question().is_some() {
                questions += 1;
                let (_, asked) = cover.asked.expect("just asked");
                cover.handle_answer(&[Position(asked.0 ^ far); NAMED_AT_ONCE]);
            }
            assert!(questions <= MAX_QUESTIONS, "{questions}");
        }
    }

    #[test]
    fn an_answer_nobody_asked_for_changes_nothing() {
        let mut cover = Cover::new(1);
        cover.handle_answer(&[]);
        assert!(cover.next_question().is_some());
        assert!(cover.next_question().is_none());
    }
}
