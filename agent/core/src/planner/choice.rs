//! Which open segments are asked of a peer: what is rare among the neighbours first.
//!
//! Rarity is told apart by block, not by segment: a table of a few thousand counts, whatever the
//! content's length.

use branchline_hashing::SegmentIndex;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::swarm::{BlockIndex, BlockRange, Blocks};
use crate::{SegmentRange, SegmentSet};

/// Adjacent segments of about so many bytes go into one request.
pub(super) const REQUEST_BYTES: u64 = 1 << 20;

/// So many blocks are compared for one request: all of a content of 128 MiB. Of a longer one the rarest of so many, from a place
/// drawn by chance on: looking at all 4,096 cost 12 us a segment where neighbours held parts.
const BLOCKS_COMPARED: u32 = 512;

/// The segments that are neither there nor on their way.
#[derive(Debug)]
pub(super) struct Open {
    set: SegmentSet,
    /// Not to be asked of peers yet, whether open or not.
    held_back: SegmentSet,
    /// Open, and not held back.
    askable: SegmentSet,
    blocks: Blocks,
    /// How many of each block may be asked for.
    of_block: Vec<u32>,
}

impl Open {
    pub(super) fn new(blocks: Blocks, set: SegmentSet) -> Self {
        let ranges = (0..blocks.count()).filter_map(|at| segments_of(blocks, at));
        let of_block = ranges.map(|range| set.count_in(range)).collect();
        Self {
            held_back: SegmentSet::empty(set.size()),
            askable: set.clone(),
            set,
            blocks,
            of_block,
        }
    }

    /// How many of each block may be asked for.
    pub(super) fn of_blocks(&self) -> &[u32] {
        &self.of_block
    }

    pub(super) fn set(&self) -> &SegmentSet {
        &self.set
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    pub(super) fn insert(&mut self, index: SegmentIndex) -> bool {
        let new = self.set.insert(index);
        if new && !self.held_back.contains(index) {
            self.allow(index);
        }
        new
    }

    pub(super) fn remove(&mut self, index: SegmentIndex) {
        self.set.remove(index);
        self.forbid(index);
    }

    /// It is not to be asked of peers yet.
    pub(super) fn hold_back(&mut self, index: SegmentIndex) {
        self.held_back.insert(index);
        self.forbid(index);
    }

    /// It may be asked of peers; whether that is new, and it is open.
    pub(super) fn release(&mut self, index: SegmentIndex) -> bool {
        let new = self.held_back.remove(index) && self.set.contains(index);
        if new {
            self.allow(index);
        }
        new
    }

    /// What is held back of a set.
    pub(super) fn held_back_of(&self, of: &SegmentSet) -> Vec<SegmentIndex> {
        let held_back = self.held_back.iter();
        held_back.filter(|index| of.contains(*index)).collect()
    }

    fn allow(&mut self, index: SegmentIndex) {
        if self.askable.insert(index) {
            self.of_block[self.blocks.of_segment(index).0 as usize] += 1;
        }
    }

    fn forbid(&mut self, index: SegmentIndex) {
        if self.askable.remove(index) {
            self.of_block[self.blocks.of_segment(index).0 as usize] -= 1;
        }
    }
}

/// How many neighbours hold each block.
#[derive(Debug)]
pub(super) struct Availability {
    blocks: Blocks,
    /// The segments of each block that neighbours hold, added up over them.
    segments: Vec<u32>,
    /// Neighbours that hold everything.
    full: u32,
}

impl Availability {
    pub(super) fn new(blocks: Blocks) -> Self {
        Self {
            blocks,
            segments: vec![0; blocks.count() as usize],
            full: 0,
        }
    }

    pub(super) fn add(&mut self, have: &SegmentSet) {
        self.full += u32::from(have.is_full());
        for (at, sum) in (0..).zip(&mut self.segments) {
            *sum += segments_of(self.blocks, at).map_or(0, |range| have.count_in(range));
        }
    }

    pub(super) fn remove(&mut self, have: &SegmentSet) {
        self.full -= u32::from(have.is_full());
        for (at, sum) in (0..).zip(&mut self.segments) {
            *sum -= segments_of(self.blocks, at).map_or(0, |range| have.count_in(range));
        }
    }

    /// A neighbour has come to hold one more; `full` when that was the last it lacked.
    pub(super) fn add_one(&mut self, index: SegmentIndex, full: bool) {
        self.full += u32::from(full);
        self.segments[self.blocks.of_segment(index).0 as usize] += 1;
    }

    /// A neighbour does not hold one that it was said to hold; `was_full` if that was all.
    pub(super) fn remove_one(&mut self, index: SegmentIndex, was_full: bool) {
        self.full -= u32::from(was_full);
        self.segments[self.blocks.of_segment(index).0 as usize] -= 1;
    }

    /// About how many neighbours hold a block, rounded up.
    fn of(&self, block: u32, segments: u32) -> u32 {
        self.segments[block as usize].div_ceil(segments.max(1))
    }
}

/// The next segments to ask of a peer that holds `have`. With one order for all where nothing is
/// rarer than anything else, for disks and caches like it; else the rarest, and of those any.
pub(super) fn choose(
    open: &Open,
    have: &SegmentSet,
    availability: &Availability,
    peers: u32,
    lengths: &[u32],
    most_bytes: u64,
    rng: &mut Xoshiro256PlusPlus,
) -> Option<SegmentRange> {
    let most_bytes = most_bytes.min(REQUEST_BYTES);
    if availability.full == peers {
        return first_range(&open.askable, have, lengths, most_bytes);
    }
    let count = open.blocks.count();
    let turn = rng.random_range(0..count.max(1));
    let mut best: Option<(u32, SegmentIndex, SegmentRange)> = None;
    for (compared, at) in (0..).zip((turn..count).chain(0..turn)) {
        if compared >= BLOCKS_COMPARED && best.is_some() {
            break;
        }
        if open.of_block[at as usize] == 0 {
            continue;
        }
        let Some(range) = segments_of(open.blocks, at) else {
            continue;
        };
        let level = availability.of(at, range.count());
        if best.as_ref().is_some_and(|(least, _, _)| level >= *least) {
            continue;
        }
        if let Some(first) = any_also_in_range(&open.askable, have, range, rng) {
            best = Some((level, first, range));
            if level <= 1 {
                break;
            }
        }
    }
    let (level, first, range) = best?;
    if level >= peers {
        return first_range(&open.askable, have, lengths, most_bytes);
    }
    range_from(&open.askable, have, lengths, first, range.end(), most_bytes)
}

/// The first run of segments that are in both sets, of about so many bytes.
pub(super) fn first_range(
    wanted: &SegmentSet,
    have: &SegmentSet,
    lengths: &[u32],
    most_bytes: u64,
) -> Option<SegmentRange> {
    let first = wanted.first_also_in(have)?;
    range_from(wanted, have, lengths, first, wanted.size(), most_bytes)
}

/// A segment of `range` that is in both sets: the first from a place drawn by chance on, so that
/// those who ask one peer for the same block at once do not all begin at its first segment.
fn any_also_in_range(
    wanted: &SegmentSet,
    have: &SegmentSet,
    range: SegmentRange,
    rng: &mut Xoshiro256PlusPlus,
) -> Option<SegmentIndex> {
    let from = rng.random_range(range.first().0..range.end());
    SegmentRange::new(SegmentIndex(from), range.end() - from)
        .and_then(|rest| wanted.first_also_in_range(have, rest))
        .or_else(|| wanted.first_also_in_range(have, range))
}

fn range_from(
    wanted: &SegmentSet,
    have: &SegmentSet,
    lengths: &[u32],
    first: SegmentIndex,
    end: u32,
    most_bytes: u64,
) -> Option<SegmentRange> {
    let mut bytes = 0;
    let count = (first.0..end)
        .map(SegmentIndex)
        .take_while(|index| wanted.contains(*index) && have.contains(*index))
        .take_while(|index| {
            let room = bytes < most_bytes;
            bytes += u64::from(lengths.get(index.0 as usize).copied().unwrap_or(0));
            room
        })
        .count();
    SegmentRange::new(first, u32::try_from(count).ok()?)
}

fn segments_of(blocks: Blocks, at: u32) -> Option<SegmentRange> {
    blocks.segments_of(BlockRange::one(BlockIndex(at)))
}
