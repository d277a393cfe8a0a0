//! Sets and ranges of segments.

use std::fmt;

use branchline_hashing::SegmentIndex;

/// Adjacent segments: `first`, and `count` of them. Never empty, never past `u32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentRange {
    first: u32,
    count: u32,
}

impl SegmentRange {
    /// `count` segments from `first` on; `None` when that is empty or runs past the last index.
    pub fn new(first: SegmentIndex, count: u32) -> Option<Self> {
        let last = first.0.checked_add(count.checked_sub(1)?)?;
        (last < u32::MAX).then_some(Self {
            first: first.0,
            count,
        })
    }

    /// One segment.
    ///
    /// # Panics
    /// For the index `u32::MAX`, which no manifest can have.
    pub fn one(index: SegmentIndex) -> Self {
        assert!(
            index.0 < u32::MAX,
            "a manifest has fewer than u32::MAX segments"
        );
        Self {
            first: index.0,
            count: 1,
        }
    }

    /// The first segment.
    pub fn first(&self) -> SegmentIndex {
        SegmentIndex(self.first)
    }

    /// How many segments, at least one.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The index after the last one.
    pub fn end(&self) -> u32 {
        self.first + self.count
    }

    /// Whether `index` lies inside.
    pub fn contains(&self, index: SegmentIndex) -> bool {
        (self.first..self.end()).contains(&index.0)
    }

    /// What is left of it without `other`: what lies before, and what lies after.
    pub fn without(&self, other: Self) -> impl Iterator<Item = Self> + use<> {
        let before = self.first..self.end().min(other.first);
        let after = self.first.max(other.end())..self.end();
        [before, after].into_iter().filter_map(|rest| {
            Self::new(
                SegmentIndex(rest.start),
                rest.end.saturating_sub(rest.start),
            )
        })
    }

    /// Each index, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = SegmentIndex> + use<> {
        (self.first..self.end()).map(SegmentIndex)
    }
}

impl fmt::Display for SegmentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}+{}", self.first, self.count)
    }
}

/// A set of a content's segments: one bit each, with a fixed size known from the manifest.
#[derive(Clone, PartialEq, Eq)]
pub struct SegmentSet {
    size: u32,
    members: u32,
    words: Vec<u64>,
}

impl SegmentSet {
    /// No segment of `size`.
    pub fn empty(size: u32) -> Self {
        Self {
            size,
            members: 0,
            words: vec![0; size.div_ceil(64) as usize],
        }
    }

    /// All `size` segments.
    pub fn full(size: u32) -> Self {
        Self::empty(size).complement()
    }

    /// How many segments the content has.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// How many of them are in the set.
    pub fn len(&self) -> u32 {
        self.members
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// Whether all are.
    pub fn is_full(&self) -> bool {
        self.members == self.size
    }

    /// Whether `index` is in the set; an index past the end never is.
    pub fn contains(&self, index: SegmentIndex) -> bool {
        let word = self.words.get(index.0 as usize / 64).copied().unwrap_or(0);
        word >> (index.0 % 64) & 1 == 1
    }

    /// Adds `index`; whether it was new. An index past the end changes nothing.
    pub fn insert(&mut self, index: SegmentIndex) -> bool {
        let new = index.0 < self.size && !self.contains(index);
        if new {
            self.words[index.0 as usize / 64] |= 1 << (index.0 % 64);
            self.members += 1;
        }
        new
    }

    /// Takes `index` out; whether it was there.
    pub fn remove(&mut self, index: SegmentIndex) -> bool {
        let there = self.contains(index);
        if there {
            self.words[index.0 as usize / 64] &= !(1 << (index.0 % 64));
            self.members -= 1;
        }
        there
    }

    /// Adds the members of another set of the same size.
    ///
    /// # Panics
    /// When the sizes differ: they belong to different contents.
    pub fn unite(&mut self, other: &Self) {
        assert_eq!(self.size, other.size, "sets of one content");
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        self.members = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// All segments that are not in this set.
    pub fn complement(&self) -> Self {
        let mut words: Vec<u64> = self.words.iter().map(|word| !word).collect();
        if let Some(last) = words.last_mut() {
            *last &= u64::MAX >> ((64 - self.size % 64) % 64);
        }
        Self {
            size: self.size,
            members: self.size - self.members,
            words,
        }
    }

    /// The first member that is in `other`, too.
    pub fn first_also_in(&self, other: &Self) -> Option<SegmentIndex> {
        self.first_by(other, |mine, theirs| mine & theirs)
    }

    /// The first member that is not in `other`.
    pub fn first_not_in(&self, other: &Self) -> Option<SegmentIndex> {
        self.first_by(other, |mine, theirs| mine & !theirs)
    }

    /// The first member within `range` that is not in `other`.
    pub fn first_not_in_range(&self, other: &Self, range: SegmentRange) -> Option<SegmentIndex> {
        self.first_in(range.first..range.end(), other, |mine, theirs| {
            mine & !theirs
        })
    }

    /// The first member within `range` that is in `other`, too.
    pub fn first_also_in_range(&self, other: &Self, range: SegmentRange) -> Option<SegmentIndex> {
        self.first_in(range.first..range.end(), other, |mine, theirs| {
            mine & theirs
        })
    }

    /// How many members lie in `range`.
    pub fn count_in(&self, range: SegmentRange) -> u32 {
        words_of(range.first..range.end().min(self.size))
            .map(|(at, mask)| (self.words[at] & mask).count_ones())
            .sum()
    }

    fn first_in(
        &self,
        range: std::ops::Range<u32>,
        other: &Self,
        choose: fn(u64, u64) -> u64,
    ) -> Option<SegmentIndex> {
        let end = range.end.min(self.size);
        words_of(range.start..end).find_map(|(at, mask)| {
            let theirs = other.words.get(at).copied().unwrap_or(0);
            let chosen = choose(self.words[at], theirs) & mask;
            let word = u32::try_from(at).unwrap_or(u32::MAX);
            (chosen != 0).then(|| SegmentIndex(word * 64 + chosen.trailing_zeros()))
        })
    }

    fn first_by(&self, other: &Self, choose: fn(u64, u64) -> u64) -> Option<SegmentIndex> {
        self.words
            .iter()
            .zip(&other.words)
            .zip(0u32..)
            .find_map(|((mine, theirs), at)| {
                let chosen = choose(*mine, *theirs);
                (chosen != 0).then(|| SegmentIndex(at * 64 + chosen.trailing_zeros()))
            })
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = SegmentIndex> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(word, at)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    SegmentIndex(at * 64 + bit)
                })
            })
        })
    }

    /// The members as the fewest ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = SegmentRange> + '_ {
        let mut members = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = members.next()?;
            let mut count = 1;
            while members.next_if(|next| next.0 == first.0 + count).is_some() {
                count += 1;
            }
            SegmentRange::new(first, count)
        })
    }
}

/// The words that hold the bits of `range`, each with a mask of those.
fn words_of(range: std::ops::Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let words = range.start / 64..range.end.div_ceil(64).max(range.start / 64);
    words.map(move |word| {
        let from = range.start.saturating_sub(word * 64).min(63);
        let until = (range.end - word * 64).min(64);
        let mask = (u64::MAX << from) & (u64::MAX >> (64 - until));
        (word as usize, mask)
    })
}

impl fmt::Debug for SegmentSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentSet({} of {})", self.members, self.size)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_segment_set_behaves_as_an_ordered_set(
            size in 1u32..300,
            changes in prop::collection::vec((any::<bool>(), 0u32..320), 0..200),
        ) {
            let mut set = SegmentSet::empty(size);
            let mut twin = BTreeSet::new();
            for (insert, index) in changes {
                if insert {
                    let new = index < size && twin.insert(index);
                    prop_assert_eq!(set.insert(SegmentIndex(index)), new);
                } else {
                    prop_assert_eq!(set.remove(SegmentIndex(index)), twin.remove(&index));
                }
            }
            prop_assert_eq!(set.len() as usize, twin.len());
            prop_assert_eq!(
                set.iter().map(|i| i.0).collect::<Vec<_>>(),
                twin.iter().copied().collect::<Vec<_>>()
            );
            let missing: Vec<u32> = (0..size).filter(|index| !twin.contains(index)).collect();
            let complement = set.complement();
            prop_assert_eq!(complement.len() as usize, missing.len());
            prop_assert_eq!(complement.iter().map(|i| i.0).collect::<Vec<_>>(), missing);
            prop_assert_eq!(set.first_also_in(&complement), None);
            prop_assert_eq!(set.first_not_in(&complement).map(|i| i.0), twin.first().copied());
            let part = SegmentRange::new(SegmentIndex(size / 3), size / 2 + 1).expect("a range");
            let in_part: Vec<u32> =
                twin.iter().copied().filter(|i| part.contains(SegmentIndex(*i))).collect();
            prop_assert_eq!(set.count_in(part) as usize, in_part.len());
            let full = SegmentSet::full(size);
            let first = set.first_also_in_range(&full, part).map(|i| i.0);
            prop_assert_eq!(first, in_part.first().copied());
            let first = set.first_not_in_range(&complement, part).map(|i| i.0);
            prop_assert_eq!(first, in_part.first().copied());
            let mut all = set.clone();
            all.unite(&complement);
            prop_assert!(all.is_full());
            let from_ranges: Vec<u32> =
                set.ranges().flat_map(|r| r.iter().map(|i| i.0).collect::<Vec<_>>()).collect();
            prop_assert_eq!(from_ranges, twin.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_range_without_another_is_what_lies_before_and_after() {
        let range = |first, count| SegmentRange::new(SegmentIndex(first), count).expect("a range");
        let rest = |other| range(10, 10).without(other).collect::<Vec<_>>();
        assert_eq!(rest(range(0, 10)), [range(10, 10)]);
        assert_eq!(rest(range(20, 10)), [range(10, 10)]);
        assert_eq!(rest(range(0, 15)), [range(15, 5)]);
        assert_eq!(rest(range(15, 9)), [range(10, 5)]);
        assert_eq!(rest(range(12, 3)), [range(10, 2), range(15, 5)]);
        assert_eq!(rest(range(5, 30)), []);
    }

    #[test]
    fn ranges_that_are_empty_or_run_past_the_end_cannot_be_made() {
        assert_eq!(SegmentRange::new(SegmentIndex(5), 0), None);
        assert_eq!(SegmentRange::new(SegmentIndex(u32::MAX), 1), None);
        assert_eq!(SegmentRange::new(SegmentIndex(u32::MAX - 1), 2), None);
        let range = SegmentRange::new(SegmentIndex(u32::MAX - 1), 1);
        assert_eq!(range.map(|r| r.end()), Some(u32::MAX));
    }
}
