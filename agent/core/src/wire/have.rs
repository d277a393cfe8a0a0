//! What a peer has, as it travels: ranges or a bitmap, whichever is shorter.

use std::fmt;

use branchline_hashing::SegmentIndex;

use super::codec::{Fields, Stop, WireError};
use super::{MAX_BITMAP_SEGMENTS, MAX_HAVE_RANGES};
use crate::{SegmentRange, SegmentSet};

/// The form bytes.
mod form {
    pub(super) const RANGES: u8 = 0;
    pub(super) const BITMAP: u8 = 1;
}

/// A set of segments as a peer told it. Its size is the peer's claim until [`Have::to_set`] has
/// compared it with the manifest's.
#[derive(Clone, PartialEq, Eq)]
pub struct Have {
    size: u32,
    body: Body,
}

#[derive(Clone, PartialEq, Eq)]
enum Body {
    /// Ascending, with gaps between.
    Ranges(Vec<SegmentRange>),
    /// Bit `i % 8` of byte `i / 8` is segment `i`; bits past the end are 0.
    Bitmap(Vec<u8>),
}

impl Have {
    /// The shortest form of `set`. A set too scattered and too large for either form loses its end:
    /// saying less is always allowed.
    pub fn of(set: &SegmentSet) -> Self {
        let bitmap_fits = set.size() <= MAX_BITMAP_SEGMENTS;
        // A range takes 8 bytes, a bitmap one byte for 8 segments.
        let most = if bitmap_fits {
            set.size() / 64
        } else {
            MAX_HAVE_RANGES
        };
        let most = most.clamp(1, MAX_HAVE_RANGES) as usize;
        let mut ranges: Vec<SegmentRange> = set.ranges().take(most + 1).collect();
        let body = if ranges.len() > most && bitmap_fits {
            Body::Bitmap(bitmap(set))
        } else {
            ranges.truncate(most);
            Body::Ranges(ranges)
        };
        Self {
            size: set.size(),
            body,
        }
    }

    /// How many segments the peer thinks the content has.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The set; `None` when it speaks of another number of segments than the manifest.
    pub fn to_set(&self, segments: u32) -> Option<SegmentSet> {
        if self.size != segments {
            return None;
        }
        let mut set = SegmentSet::empty(segments);
        match &self.body {
            Body::Ranges(ranges) => ranges
                .iter()
                .flat_map(SegmentRange::iter)
                .for_each(|index| {
                    set.insert(index);
                }),
            Body::Bitmap(bits) => members(bits).for_each(|index| {
                set.insert(index);
            }),
        }
        Some(set)
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Stop> {
        let size = fields.u32()?;
        Self::read_of(fields, size)
    }

    /// What follows the size.
    pub(super) fn read_of(fields: &mut Fields<'_>, size: u32) -> Result<Self, Stop> {
        let body = match fields.u8()? {
            form::RANGES => Body::Ranges(read_ranges(fields, size)?),
            form::BITMAP => Body::Bitmap(read_bitmap(fields, size)?),
            found => return Err(WireError::UnknownForm { found }.into()),
        };
        Ok(Self { size, body })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.size.to_le_bytes());
        match &self.body {
            Body::Ranges(ranges) => {
                out.push(form::RANGES);
                let count = u32::try_from(ranges.len()).expect("at most MAX_HAVE_RANGES");
                out.extend_from_slice(&count.to_le_bytes());
                for range in ranges {
                    out.extend_from_slice(&range.first().0.to_le_bytes());
                    out.extend_from_slice(&range.count().to_le_bytes());
                }
            }
            Body::Bitmap(bits) => {
                out.push(form::BITMAP);
                out.extend_from_slice(bits);
            }
        }
    }
}

impl fmt::Debug for Have {
    /// Its form only: a set may have millions of members.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Ranges(ranges) => write!(f, "Have({} ranges of {})", ranges.len(), self.size),
            Body::Bitmap(_) => write!(f, "Have(bitmap of {})", self.size),
        }
    }
}

fn read_ranges(fields: &mut Fields<'_>, size: u32) -> Result<Vec<SegmentRange>, Stop> {
    let count = fields.u32()?;
    // Each is a segment at least, with a gap before the next.
    if count > MAX_HAVE_RANGES.min(size.div_ceil(2)) {
        return Err(WireError::HaveTooLong { size, parts: count }.into());
    }
    let bytes = fields.take(count as usize * 8)?;
    let mut free_from = 0;
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|pair| {
            let range = parse_range(pair)
                .filter(|range| range.first().0 >= free_from && range.end() <= size)
                .ok_or(WireError::HaveNotCanonical { size })?;
            // Adjacent ranges would be one: the next begins after a gap.
            free_from = range.end().saturating_add(1);
            Ok(range)
        })
        .collect()
}

fn parse_range(pair: &[u8; 8]) -> Option<SegmentRange> {
    let [a, b, c, d, e, f, g, h] = *pair;
    let first = SegmentIndex(u32::from_le_bytes([a, b, c, d]));
    SegmentRange::new(first, u32::from_le_bytes([e, f, g, h]))
}

fn read_bitmap(fields: &mut Fields<'_>, size: u32) -> Result<Vec<u8>, Stop> {
    if size > MAX_BITMAP_SEGMENTS {
        return Err(WireError::HaveTooLong {
            size,
            parts: size.div_ceil(8),
        }
        .into());
    }
    let bits = fields.take(size.div_ceil(8) as usize)?;
    let used_in_last = size % 8;
    let spare = bits
        .last()
        .is_some_and(|last| used_in_last != 0 && last >> used_in_last != 0);
    if spare {
        return Err(WireError::HaveNotCanonical { size }.into());
    }
    Ok(bits.to_vec())
}

fn bitmap(set: &SegmentSet) -> Vec<u8> {
    let mut bits = vec![0; set.size().div_ceil(8) as usize];
    for index in set.iter() {
        bits[index.0 as usize / 8] |= 1 << (index.0 % 8);
    }
    bits
}

fn members(bits: &[u8]) -> impl Iterator<Item = SegmentIndex> + '_ {
    bits.iter().zip(0u32..).flat_map(|(byte, at)| {
        (0..8)
            .filter(move |bit| byte >> bit & 1 == 1)
            .map(move |bit| SegmentIndex(at * 8 + bit))
    })
}
