//! The unit of leases: adjacent segments, so many together that a content has few of them.
//!
//! A steward keeps one bit a block and member whatever the content's length; a member tells it of
//! a block when it holds all of it.

use branchline_hashing::SegmentIndex;

use crate::{SegmentRange, SegmentSet};

/// The most blocks a content has: 512 bytes a set, so that a steward holds ten thousand members'
/// in 5 MB, and each block of a content of 10 GiB is 2.5 MiB.
pub const MAX_BLOCKS: u32 = 4096;

/// A block is no shorter than this, if the content has as much: 100 ms of a WAN of 20 Mbit/s, so that
/// what two members fetch twice by mistake is little.
const MIN_BLOCK_BYTES: u64 = 256 << 10;

/// A block's position in its content, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

/// How a content's segments are gathered into blocks. All members that know the manifest compute the
/// same; a steward, which does not know it, keeps one table for each value it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks {
    segments: u32,
    segments_per_block: u32,
}

impl Blocks {
    /// The blocks of a content of `segments` segments and `bytes` bytes.
    pub fn of(segments: u32, bytes: u64) -> Self {
        let by_bytes = (u64::from(segments) * MIN_BLOCK_BYTES)
            .checked_div(bytes)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(u32::MAX);
        let by_count = segments.div_ceil(MAX_BLOCKS);
        let segments_per_block = by_bytes.max(by_count).clamp(1, segments.max(1));
        Self {
            segments,
            segments_per_block,
        }
    }

    /// As somebody else says they are; `None` when that is empty or too many.
    pub fn claimed(segments: u32, segments_per_block: u32) -> Option<Self> {
        let count = segments.checked_add(segments_per_block.checked_sub(1)?)? / segments_per_block;
        (1..=MAX_BLOCKS).contains(&count).then_some(Self {
            segments,
            segments_per_block,
        })
    }

    /// How many segments the content has.
    pub fn segments(&self) -> u32 {
        self.segments
    }

    /// How many segments a block has, but for the last.
    pub fn segments_per_block(&self) -> u32 {
        self.segments_per_block
    }

    /// How many blocks there are.
    pub fn count(&self) -> u32 {
        self.segments.div_ceil(self.segments_per_block)
    }

    /// The block of a segment.
    pub fn of_segment(&self, index: SegmentIndex) -> BlockIndex {
        BlockIndex(index.0 / self.segments_per_block)
    }

    /// The segments of adjacent blocks; `None` past the end.
    pub fn segments_of(&self, range: BlockRange) -> Option<SegmentRange> {
        if range.end() > self.count() {
            return None;
        }
        let first = range.first().0 * self.segments_per_block;
        let end = (range.end() * self.segments_per_block).min(self.segments);
        SegmentRange::new(SegmentIndex(first), end - first)
    }

    /// The blocks all of whose segments are in `segments`.
    ///
    /// # Panics
    /// For a set of another content.
    pub fn held_of(&self, segments: &SegmentSet) -> BlockSet {
        assert_eq!(segments.size(), self.segments, "a set of this content");
        let mut held = BlockSet::empty(self.count());
        for block in (0..self.count()).map(BlockIndex) {
            let of_block = BlockRange::one(block);
            let whole = self
                .segments_of(of_block)
                .is_some_and(|range| range.iter().all(|index| segments.contains(index)));
            if whole {
                held.insert(block);
            }
        }
        held
    }
}

/// Adjacent blocks, never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange(SegmentRange);

impl BlockRange {
    /// `count` blocks from `first` on; `None` when that is empty or runs past the last index.
    pub fn new(first: BlockIndex, count: u32) -> Option<Self> {
        SegmentRange::new(SegmentIndex(first.0), count).map(Self)
    }

    /// One block.
    ///
    /// # Panics
    /// For the index `u32::MAX`.
    pub fn one(index: BlockIndex) -> Self {
        Self(SegmentRange::one(SegmentIndex(index.0)))
    }

    /// The first block.
    pub fn first(&self) -> BlockIndex {
        BlockIndex(self.0.first().0)
    }

    /// How many, at least one.
    pub fn count(&self) -> u32 {
        self.0.count()
    }

    /// The index after the last one.
    pub fn end(&self) -> u32 {
        self.0.end()
    }

    /// Whether `index` lies inside.
    pub fn contains(&self, index: BlockIndex) -> bool {
        self.0.contains(SegmentIndex(index.0))
    }

    /// Each block, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = BlockIndex> + use<> {
        self.0.iter().map(|index| BlockIndex(index.0))
    }
}

/// A set of a content's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSet(SegmentSet);

impl BlockSet {
    /// None of `size` blocks.
    pub fn empty(size: u32) -> Self {
        Self(SegmentSet::empty(size))
    }

    /// All of `size` blocks.
    pub fn full(size: u32) -> Self {
        Self(SegmentSet::full(size))
    }

    /// How many blocks the content has.
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// How many of them are in the set.
    pub fn len(&self) -> u32 {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all are.
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: BlockIndex) -> bool {
        self.0.contains(SegmentIndex(index.0))
    }

    /// Adds `index`; whether it was new. An index past the end changes nothing.
    pub fn insert(&mut self, index: BlockIndex) -> bool {
        self.0.insert(SegmentIndex(index.0))
    }

    /// Takes `index` out; whether it was there.
    pub fn remove(&mut self, index: BlockIndex) -> bool {
        self.0.remove(SegmentIndex(index.0))
    }

    /// Adds the members of another set of the same size.
    ///
    /// # Panics
    /// When the sizes differ.
    pub fn unite(&mut self, other: &Self) {
        self.0.unite(&other.0);
    }

    /// The blocks that are not in this set.
    pub fn complement(&self) -> Self {
        Self(self.0.complement())
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.0.iter().map(|index| BlockIndex(index.0))
    }

    /// The first member that is not before `from`.
    pub fn first_from(&self, from: BlockIndex) -> Option<BlockIndex> {
        let rest = SegmentRange::new(SegmentIndex(from.0), self.size().checked_sub(from.0)?)?;
        let first = self.0.first_also_in_range(&self.0, rest)?;
        Some(BlockIndex(first.0))
    }

    /// The members as the fewest ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.0.ranges().map(BlockRange)
    }

    /// As it travels: the wire's form of a set.
    pub(crate) fn as_segments(&self) -> &SegmentSet {
        &self.0
    }

    /// From the wire's form of a set.
    pub(crate) fn from_segments(set: SegmentSet) -> Self {
        Self(set)
    }
}
