//! Where the segments of a file without a manifest lie: at fixed offsets.

use std::ops::Range;

use crate::{SEGMENT_COUNT_LIMIT, SegmentIndex, SegmentingParameters};

/// The segments of a file of which only the length is known: all that share it divide it alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedSegments {
    file_length: u64,
    count: u32,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedSegment {
    /// Which.
    pub index: SegmentIndex,
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u32,
}

impl FixedSegments {
    /// Those of a file of `file_length` bytes; `None` for an empty file, and for one that is longer than
    /// a manifest could describe.
    pub fn of(file_length: u64) -> Option<Self> {
        let count = file_length.div_ceil(u64::from(Self::LENGTH));
        let count = u32::try_from(count).ok()?;
        (1..=SEGMENT_COUNT_LIMIT)
            .contains(&count)
            .then_some(Self { file_length, count })
    }

    /// The length of each but the last, in bytes.
    pub const LENGTH: u32 = SegmentingParameters::FIXED.max();

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The file's length in bytes.
    pub fn file_length(&self) -> u64 {
        self.file_length
    }

    /// One of them; `None` past the end.
    pub fn segment(&self, index: SegmentIndex) -> Option<FixedSegment> {
        if index.0 >= self.count {
            return None;
        }
        let offset = u64::from(index.0) * u64::from(Self::LENGTH);
        let rest = self.file_length - offset;
        Some(FixedSegment {
            index,
            offset,
            length: u32::try_from(rest).map_or(Self::LENGTH, |rest| rest.min(Self::LENGTH)),
        })
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = FixedSegment> + use<> {
        let segments = *self;
        (0..self.count).filter_map(move |index| segments.segment(SegmentIndex(index)))
    }
}

impl FixedSegment {
    /// Its bytes in the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_a_fixed_length_cover_the_file_and_the_last_is_the_rest() {
        let full = u64::from(FixedSegments::LENGTH);
        for (length, count, last) in [
            (1, 1, 1),
            (full, 1, full),
            (full + 1, 2, 1),
            (3 * full, 3, full),
        ] {
            let segments = FixedSegments::of(length).expect("a file");
            assert_eq!(segments.count(), count);
            let mut end = 0;
            for segment in segments.iter() {
                assert_eq!(segment.offset, end);
                end = segment.range().end;
            }
            assert_eq!(end, length);
            let tail = segments.segment(SegmentIndex(count - 1)).expect("the last");
            assert_eq!(u64::from(tail.length), last);
            assert_eq!(segments.segment(SegmentIndex(count)), None);
        }
        assert_eq!(FixedSegments::of(0), None);
        assert_eq!(FixedSegments::of(u64::MAX), None);
    }
}
