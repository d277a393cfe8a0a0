//! Where the segments of a content lie, and what is known of their bytes before they come.

use std::sync::Arc;

use branchline_hashing::{FixedSegments, Manifest, SegmentHash, SegmentIndex};

/// How a file is divided.
#[derive(Debug, Clone)]
pub(crate) enum Outline {
    /// As a table says, which knows each segment's hash.
    Table(Arc<Manifest>),
    /// At fixed offsets: nobody knows the hashes.
    Fixed(FixedSegments),
}

/// A segment's place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) index: SegmentIndex,
    /// In the file.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u32,
    /// What its bytes must hash to, where that is known.
    pub(crate) expected: Option<SegmentHash>,
}

impl Outline {
    /// One segment's place; `None` past the end.
    pub(crate) fn place(&self, index: SegmentIndex) -> Option<Place> {
        match self {
            Self::Table(table) => table.segment(index).map(|segment| Place {
                index,
                offset: segment.offset,
                length: segment.length,
                expected: Some(segment.hash),
            }),
            Self::Fixed(fixed) => fixed.segment(index).map(|segment| Place {
                index,
                offset: segment.offset,
                length: segment.length,
                expected: None,
            }),
        }
    }

    /// How many segments there are.
    pub(crate) fn count(&self) -> u32 {
        match self {
            Self::Table(table) => table.segment_count(),
            Self::Fixed(fixed) => fixed.count(),
        }
    }

    /// No segment has more bytes.
    pub(crate) fn longest(&self) -> u32 {
        match self {
            Self::Table(table) => table.parameters().max(),
            Self::Fixed(_) => FixedSegments::LENGTH,
        }
    }

    /// Each segment's length in bytes.
    pub(crate) fn lengths(&self) -> Arc<[u32]> {
        match self {
            Self::Table(table) => table.segments().map(|segment| segment.length).collect(),
            Self::Fixed(fixed) => fixed.iter().map(|segment| segment.length).collect(),
        }
    }
}

impl Place {
    /// The offset after its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}
