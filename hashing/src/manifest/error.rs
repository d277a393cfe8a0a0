//! What can be wrong with a manifest.

use crate::{ParametersError, SegmentIndex};

/// Bytes that are no manifest, or segments that none can describe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It ends before it should.
    #[error("manifest is cut short: {needed} bytes are needed, {found} are there")]
    Truncated {
        /// Bytes that its head, or the format, calls for.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Something follows it.
    #[error("manifest should end after {expected} bytes, {found} are there")]
    TrailingBytes {
        /// Bytes that its head calls for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// It does not begin as every manifest does.
    #[error("these bytes are no Branchline manifest: they begin otherwise")]
    Magic,
    /// A format that this program does not know.
    #[error("manifest has format version {0}, this program reads version 1; update Branchline")]
    Version(u16),
    /// A head of another length than this version has.
    #[error("manifest says that its head has {0} bytes; version 1 has 256")]
    HeadLength(u16),
    /// A way to cut files that this program does not know.
    #[error("manifest uses segmenting algorithm {0}, which this program does not know")]
    SegmentingAlgorithm(u8),
    /// A hash for segments that this program does not know.
    #[error("manifest uses segment hash {0}, this program knows 1 (BLAKE3)")]
    SegmentHashAlgorithm(u8),
    /// A digest for the whole file that this program does not know.
    #[error("manifest uses file digest {0}, this program knows 1 (SHA-256)")]
    FileDigestAlgorithm(u8),
    /// Lengths that no file can be cut by.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// Bytes that have no meaning yet have a value.
    #[error("manifest has a value in bytes that version 1 reserves")]
    Reserved,
    /// A key or a signature, but no word about its scheme.
    #[error("manifest has a signature without a scheme")]
    SignatureWithoutScheme,
    /// More segments than [`SEGMENT_COUNT_LIMIT`](crate::SEGMENT_COUNT_LIMIT).
    #[error("manifest has {0} segments, more than the 16777216 that version 1 allows")]
    TooManySegments(u32),
    /// So many segments cannot make up so long a file.
    #[error("manifest claims {segment_count} segments for {file_length} bytes, which cannot be")]
    Count {
        /// Segments that it claims.
        segment_count: u32,
        /// Length of the file that it claims.
        file_length: u64,
    },
    /// Head and body are not those that were made together.
    #[error("manifest is damaged: head and table do not match the hash in the head")]
    Hash,
    /// A segment that the parameters do not allow.
    #[error("manifest has segment {segment} of {length} bytes, which its parameters do not allow")]
    SegmentLength {
        /// Which segment.
        segment: SegmentIndex,
        /// Its length in bytes.
        length: u32,
    },
    /// The segments are more or less than the file.
    #[error("manifest claims a file of {file_length} bytes, its segments add up to {sum}")]
    FileLength {
        /// Length that its head claims.
        file_length: u64,
        /// Sum of the segments' lengths.
        sum: u64,
    },
}
