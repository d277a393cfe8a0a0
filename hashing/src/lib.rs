//! Segments, manifests, digests, verification and blinding: pure functions of bytes.
//!
//! No sockets, no files, no clock, no threads. What arrives here from a network or a disk gives a
//! value or a typed error; nothing panics, nothing is allocated by what a message claims.
//! The formats are specified byte by byte in `docs/manifest.md`.

mod digester;
mod fixed;
mod ids;
mod manifest;
mod segmenting;
mod verified;

pub use digester::{Digester, Sha256};
pub use fixed::{FixedSegment, FixedSegments};
pub use ids::{
    Blake3Digest, ContentKey, Digest, ParseHexError, SegmentHash, SegmentIndex, Sha256Digest,
    SwarmId,
};
pub use manifest::{
    Manifest, ManifestBuilder, ManifestError, ManifestHead, SEGMENT_COUNT_LIMIT, Segment, Signature,
};
pub use segmenting::{
    ParametersError, SEGMENT_LENGTH_LIMIT, Segmenter, SegmentingAlgorithm, SegmentingParameters,
};
pub use verified::{HashMismatch, ProvisionalSegment, VerifiedSegment};
