//! Makes a manifest from segments, one after the other.

use super::{Manifest, ManifestError, ManifestHead, SEGMENT_COUNT_LIMIT, encode_body};
use crate::{SegmentHash, SegmentIndex, SegmentingParameters, Sha256Digest};

/// Collects a file's segments in order; holds 40 bytes a segment.
#[derive(Debug)]
pub struct ManifestBuilder {
    parameters: SegmentingParameters,
    ends: Vec<u64>,
    hashes: Vec<SegmentHash>,
    /// The last segment is shorter than `min`: nothing may follow it.
    ended: bool,
}

impl ManifestBuilder {
    /// Begins the manifest of a file that is cut by `parameters`.
    pub fn new(parameters: SegmentingParameters) -> Self {
        Self {
            parameters,
            ends: Vec::new(),
            hashes: Vec::new(),
            ended: false,
        }
    }

    /// Adds the segment that follows.
    ///
    /// # Errors
    /// [`ManifestError::SegmentLength`] when the parameters do not allow its length there, and
    /// [`ManifestError::TooManySegments`]. The builder is then as it was.
    pub fn push(&mut self, length: u32, hash: SegmentHash) -> Result<(), ManifestError> {
        // The limit of 2^24 segments makes this fit.
        let segment = SegmentIndex(u32::try_from(self.ends.len()).unwrap_or(u32::MAX));
        if segment.0 >= SEGMENT_COUNT_LIMIT {
            return Err(ManifestError::TooManySegments(segment.0.saturating_add(1)));
        }
        if self.ended || !self.parameters.allow(length, true) {
            return Err(ManifestError::SegmentLength { segment, length });
        }
        self.ended = !self.parameters.allow(length, false);
        self.ends.push(self.file_length() + u64::from(length));
        self.hashes.push(hash);
        Ok(())
    }

    /// Bytes of the segments so far.
    pub fn file_length(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The manifest of the segments so far, which are the whole file.
    ///
    /// # Errors
    /// [`ManifestError`] when no file can consist of them; what [`push`](Self::push) accepted
    /// gives none.
    pub fn finish(self, sha256: Sha256Digest) -> Result<Manifest, ManifestError> {
        let file_length = self.file_length();
        let Self {
            parameters,
            ends,
            hashes,
            ..
        } = self;
        let count = u32::try_from(ends.len()).unwrap_or(u32::MAX);
        let body = encode_body(&ends, &hashes, &sha256);
        let head = ManifestHead::of_body(parameters, count, file_length, &body)?;
        Ok(Manifest {
            head,
            ends,
            hashes,
            sha256,
        })
    }
}
