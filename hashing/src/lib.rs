//! Segments, manifests, digests, verification and blinding: pure functions of bytes.
//!
//! No sockets, no files, no clock, no threads. What arrives here from a network or a disk gives a
//! value or a typed error; nothing panics, nothing is allocated by what a message claims.
//! The formats are specified byte by byte in `docs/manifest.md`.

mod ids;
mod verified;

pub use ids::{
    Blake3Digest, ContentKey, Digest, ParseHexError, SegmentHash, SegmentIndex, Sha256Digest,
    SwarmId,
};
pub use verified::{HashMismatch, VerifiedSegment};
