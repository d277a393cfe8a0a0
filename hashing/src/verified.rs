//! A segment whose bytes are known to be right.

use bytes::Bytes;

use crate::SegmentHash;

/// Bytes that have another hash than the segment that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("segment {expected} was expected, the bytes hash to {found}")]
pub struct HashMismatch {
    /// The hash in the manifest.
    pub expected: SegmentHash,
    /// The hash of the bytes that came.
    pub found: SegmentHash,
}

/// Bytes together with their hash, made by hashing them and in no other way.
///
/// The store, the file writer and the peer server accept nothing else.
#[derive(Debug, Clone)]
pub struct VerifiedSegment {
    hash: SegmentHash,
    bytes: Bytes,
}

impl VerifiedSegment {
    /// Hashes `bytes` and compares with what the manifest says.
    ///
    /// # Errors
    /// [`HashMismatch`] when they are other bytes.
    pub fn verify(bytes: Bytes, expected: SegmentHash) -> Result<Self, HashMismatch> {
        let found = SegmentHash::of(&bytes);
        if found == expected {
            Ok(Self {
                hash: expected,
                bytes,
            })
        } else {
            Err(HashMismatch { expected, found })
        }
    }

    /// Hashes bytes whose right hash nobody has told yet: those that come from an origin without
    /// a manifest.
    pub fn of(bytes: Bytes) -> Self {
        Self {
            hash: SegmentHash::of(&bytes),
            bytes,
        }
    }

    /// BLAKE3 of the bytes.
    pub fn hash(&self) -> SegmentHash {
        self.hash
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, without the proof.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Bytes of a file of which only the digest of the whole is known, with the hash they had when they came.
/// Nothing says that they are right before the whole matches: the store takes none of these.
#[derive(Debug, Clone)]
pub struct ProvisionalSegment {
    hash: SegmentHash,
    bytes: Bytes,
}

impl ProvisionalSegment {
    /// Hashes bytes that have come.
    pub fn of(bytes: Bytes) -> Self {
        let hash = SegmentHash::of(&bytes);
        Self { hash, bytes }
    }

    /// Bytes that were read back from a disk, if they still are what came.
    ///
    /// # Errors
    /// [`HashMismatch`] when they are not.
    pub fn read_back(bytes: Bytes, came: SegmentHash) -> Result<Self, HashMismatch> {
        let segment = Self::of(bytes);
        match segment.hash == came {
            true => Ok(segment),
            false => Err(HashMismatch {
                expected: came,
                found: segment.hash,
            }),
        }
    }

    /// BLAKE3 of the bytes.
    pub fn hash(&self) -> SegmentHash {
        self.hash
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes alone.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provisional_bytes_are_read_back_as_they_came_or_not_at_all() {
        let came = ProvisionalSegment::of(Bytes::from_static(b"came")).hash();
        let again = ProvisionalSegment::read_back(Bytes::from_static(b"came"), came);
        assert_eq!(again.map(|segment| segment.hash()), Ok(came));
        let changed = ProvisionalSegment::read_back(Bytes::from_static(b"else"), came);
        assert_eq!(changed.map(|s| s.hash()).map_err(|e| e.expected), Err(came));
    }

    #[test]
    fn only_the_right_bytes_pass() {
        let right = Bytes::from_static(b"right");
        let hash = SegmentHash::of(&right);
        assert_eq!(
            VerifiedSegment::verify(right, hash).map(|s| s.hash()),
            Ok(hash)
        );
        let wrong = VerifiedSegment::verify(Bytes::from_static(b"wrong"), hash);
        assert_eq!(wrong.map_err(|e| e.expected).map(|s| s.hash()), Err(hash));
    }
}
