//! Manifests: what a file consists of, in the one form that is published, sent and kept.
//!
//! A [`Manifest`] that exists is consistent: its segments have lengths that its parameters allow,
//! add up to the file's length, and hash, table and head belong together. The format is specified
//! in `docs/manifest.md`. Nothing here says who made a manifest: whoever decodes one must know
//! that its head comes from the origin.

mod builder;
mod error;
mod head;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

pub use builder::ManifestBuilder;
pub use error::ManifestError;
pub use head::{ManifestHead, Signature};

use crate::{ContentKey, SegmentHash, SegmentIndex, SegmentingParameters, Sha256Digest};

/// No manifest has more segments: some 600 GiB of file with the default parameters, 604 MB of
/// table, 672 MB of memory.
pub const SEGMENT_COUNT_LIMIT: u32 = 1 << 24;

/// A length (u32) and a BLAKE3 hash.
const TABLE_ENTRY_LENGTH: usize = 36;
/// The whole file's SHA-256, behind the table.
const BODY_DIGEST_LENGTH: usize = 32;

/// One entry of a manifest's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its position in the table.
    pub index: SegmentIndex,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub length: u32,
    /// BLAKE3 of its bytes.
    pub hash: SegmentHash,
}

impl Segment {
    /// The bytes of the file that it is.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

/// The content information of one version of one file; 40 bytes of memory a segment.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    head: ManifestHead,
    /// Where each segment ends in the file: rises strictly, the last is the file's length.
    ends: Vec<u64>,
    hashes: Vec<SegmentHash>,
    sha256: Sha256Digest,
}

impl Manifest {
    /// Reads a manifest that is all of `bytes`.
    ///
    /// # Errors
    /// [`ManifestError`] for everything but the encoding of a consistent manifest. Memory is taken
    /// for entries that are there, never for those that a head claims.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let head = ManifestHead::decode(bytes)?;
        Self::from_parts(head, &bytes[ManifestHead::LENGTH..])
    }

    /// Joins a head that came from the origin with the rest, which may come from anybody.
    ///
    /// # Errors
    /// [`ManifestError`] when `body` is not exactly what the head was made for, or is inconsistent.
    pub fn from_parts(head: ManifestHead, body: &[u8]) -> Result<Self, ManifestError> {
        check_body_length(&head, body)?;
        if !head.is_head_of(body) {
            return Err(ManifestError::Hash);
        }
        let (table, sha256) = body.split_at(body.len() - BODY_DIGEST_LENGTH);
        let (ends, hashes) = decode_table(&head, table)?;
        let mut digest = [0; BODY_DIGEST_LENGTH];
        digest.copy_from_slice(sha256);
        Ok(Self {
            head,
            ends,
            hashes,
            sha256: Sha256Digest::from_bytes(digest),
        })
    }

    /// The bytes that [`decode`](Self::decode) reads.
    pub fn encode(&self) -> Vec<u8> {
        let body = encode_body(&self.ends, &self.hashes, &self.sha256);
        [&self.head.encode()[..], &body].concat()
    }

    /// The head.
    pub fn head(&self) -> &ManifestHead {
        &self.head
    }

    /// Names this content.
    pub fn content_key(&self) -> ContentKey {
        self.head.content_key()
    }

    /// SHA-256 of the whole file, as its publisher computed it.
    pub fn sha256(&self) -> &Sha256Digest {
        &self.sha256
    }

    /// Whether the SHA-256 is stated. A table that was made without reading the file twice leaves
    /// it zero.
    pub fn states_sha256(&self) -> bool {
        self.sha256.as_bytes() != &[0; 32]
    }

    /// Bytes of the file.
    pub fn file_length(&self) -> u64 {
        self.head.file_length()
    }

    /// Segments of the file.
    pub fn segment_count(&self) -> u32 {
        self.head.segment_count()
    }

    /// How the file was cut.
    pub fn parameters(&self) -> SegmentingParameters {
        self.head.parameters()
    }

    /// The segment at a position of the table; `None` past its end.
    pub fn segment(&self, index: SegmentIndex) -> Option<Segment> {
        let at = index.0 as usize;
        let end = *self.ends.get(at)?;
        let offset = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the difference of two ends is a u32"
        )]
        let length = (end - offset) as u32;
        Some(Segment {
            index,
            offset,
            length,
            hash: self.hashes[at],
        })
    }

    /// All segments, in the file's order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + '_ {
        // `ends` holds `segment_count` entries, so every index below it has a segment.
        (0..self.ends.len()).map(|at| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most SEGMENT_COUNT_LIMIT"
            )]
            let index = SegmentIndex(at as u32);
            self.segment(index).expect("an index within the table")
        })
    }

    /// The segment that the byte at `offset` belongs to; `None` at and past the file's end.
    pub fn segment_at(&self, offset: u64) -> Option<Segment> {
        let index = self.ends.partition_point(|end| *end <= offset);
        self.segment(SegmentIndex(u32::try_from(index).ok()?))
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest")
            .field("content_key", &self.content_key())
            .field("head", &self.head)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

fn check_body_length(head: &ManifestHead, body: &[u8]) -> Result<(), ManifestError> {
    let total = |body_length: u64| ManifestHead::LENGTH as u64 + body_length;
    let (needed, found) = (total(head.body_length()), total(body.len() as u64));
    match found.cmp(&needed) {
        std::cmp::Ordering::Less => Err(ManifestError::Truncated { needed, found }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ManifestError::TrailingBytes {
            expected: needed,
            found,
        }),
    }
}

fn decode_table(
    head: &ManifestHead,
    table: &[u8],
) -> Result<(Vec<u64>, Vec<SegmentHash>), ManifestError> {
    let (entries, _) = table.as_chunks::<TABLE_ENTRY_LENGTH>();
    let mut ends = Vec::with_capacity(entries.len());
    let mut hashes = Vec::with_capacity(entries.len());
    let mut sum = 0_u64;
    for (index, entry) in (0_u32..).zip(entries) {
        let (length, hash) = decode_entry(entry);
        if !head
            .parameters()
            .allow(length, index + 1 == head.segment_count())
        {
            return Err(ManifestError::SegmentLength {
                segment: SegmentIndex(index),
                length,
            });
        }
        // At most 2^24 lengths of at most 2^24: no overflow.
        sum += u64::from(length);
        ends.push(sum);
        hashes.push(hash);
    }
    if sum != head.file_length() {
        return Err(ManifestError::FileLength {
            file_length: head.file_length(),
            sum,
        });
    }
    Ok((ends, hashes))
}

fn decode_entry(entry: &[u8; TABLE_ENTRY_LENGTH]) -> (u32, SegmentHash) {
    let (mut length, mut hash) = ([0; 4], [0; 32]);
    length.copy_from_slice(&entry[..4]);
    hash.copy_from_slice(&entry[4..]);
    (u32::from_le_bytes(length), SegmentHash::from_bytes(hash))
}

fn encode_body(ends: &[u64], hashes: &[SegmentHash], sha256: &Sha256Digest) -> Vec<u8> {
    let mut body = Vec::with_capacity(ends.len() * TABLE_ENTRY_LENGTH + BODY_DIGEST_LENGTH);
    let mut offset = 0;
    for (end, hash) in ends.iter().zip(hashes) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the difference of two ends is a u32"
        )]
        let length = (end - offset) as u32;
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(hash.as_bytes());
        offset = *end;
    }
    body.extend_from_slice(sha256.as_bytes());
    body
}
