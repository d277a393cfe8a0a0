//! The first 256 bytes of a manifest: all that an agent must have from the origin itself.

use super::{BODY_DIGEST_LENGTH, ManifestError, SEGMENT_COUNT_LIMIT, TABLE_ENTRY_LENGTH};
use crate::{ContentKey, SegmentingAlgorithm, SegmentingParameters};

/// As PNG's: not text, and damaged by every transfer that "mends" line ends or stops at 1A.
const MAGIC: [u8; 8] = *b"\x89BRL\r\n\x1a\n";
const VERSION: u16 = 1;
const BLAKE3: u8 = 1;
const SHA256: u8 = 1;

/// Offsets of the fields; `docs/manifest.md` has the table.
mod at {
    use std::ops::Range;

    pub(super) const MAGIC: Range<usize> = 0..8;
    pub(super) const VERSION: usize = 8;
    pub(super) const HEAD_LENGTH: usize = 10;
    pub(super) const SEGMENTING_ALGORITHM: usize = 12;
    pub(super) const NORMALIZATION: usize = 13;
    pub(super) const SEGMENT_HASH: usize = 14;
    pub(super) const FILE_DIGEST: usize = 15;
    pub(super) const MIN: usize = 16;
    pub(super) const AVERAGE: usize = 20;
    pub(super) const MAX: usize = 24;
    pub(super) const SEGMENT_COUNT: usize = 28;
    pub(super) const FILE_LENGTH: usize = 32;
    pub(super) const HASH: usize = 40;
    pub(super) const HASHED: Range<usize> = 0..HASH;
    pub(super) const RESERVED: Range<usize> = 72..158;
    pub(super) const SIGNATURE_SCHEME: usize = 158;
    pub(super) const PUBLIC_KEY: usize = 160;
    pub(super) const SIGNATURE: usize = 192;
    pub(super) const SIGNATURE_AREA: Range<usize> = 158..256;
}

/// Who vouches for a manifest. Version 1 carries it and checks nothing: no scheme is defined yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// How it was made; 0 says that there is none.
    pub scheme: u16,
    /// Of the signer.
    pub public_key: [u8; 32],
    /// Over the head with the signature area zero.
    pub signature: [u8; 64],
}

impl Signature {
    const NONE: Self = Self {
        scheme: 0,
        public_key: [0; 32],
        signature: [0; 64],
    };
}

/// The head of a manifest, checked by itself: the table it belongs to need not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    parameters: SegmentingParameters,
    segment_count: u32,
    file_length: u64,
    /// BLAKE3 of the head's bytes before it and of the body.
    hash: [u8; 32],
    signature: Signature,
}

impl ManifestHead {
    /// Bytes of every head.
    pub const LENGTH: usize = 256;

    pub(super) fn of_body(
        parameters: SegmentingParameters,
        segment_count: u32,
        file_length: u64,
        body: &[u8],
    ) -> Result<Self, ManifestError> {
        let signature = Signature::NONE;
        let mut head = Self {
            parameters,
            segment_count,
            file_length,
            hash: [0; 32],
            signature,
        };
        head.check_count()?;
        head.hash = head.hash_with(body);
        Ok(head)
    }

    /// Reads a head from the beginning of `bytes`; what follows it is not looked at.
    ///
    /// # Errors
    /// [`ManifestError`] for everything that version 1 does not allow.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let Some(bytes) = bytes.first_chunk::<{ Self::LENGTH }>() else {
            return Err(truncated_or_other(bytes));
        };
        check_format(bytes)?;
        let head = Self {
            parameters: parameters(bytes)?,
            segment_count: u32::from_le_bytes(array(bytes, at::SEGMENT_COUNT)),
            file_length: u64::from_le_bytes(array(bytes, at::FILE_LENGTH)),
            hash: array(bytes, at::HASH),
            signature: signature(bytes)?,
        };
        head.check_count()?;
        Ok(head)
    }

    /// Refuses counts that no table could make true, so that who has only the head can rely on
    /// [`body_length`](Self::body_length) and [`file_length`](Self::file_length) being sane.
    fn check_count(&self) -> Result<(), ManifestError> {
        let Self {
            segment_count,
            file_length,
            ..
        } = *self;
        if segment_count > SEGMENT_COUNT_LIMIT {
            return Err(ManifestError::TooManySegments(segment_count));
        }
        // At most 2^24 segments of 2^24 bytes: no product overflows.
        let longest = u64::from(segment_count) * u64::from(self.parameters.max());
        let shortest = match segment_count {
            0 => 0,
            n => u64::from(n - 1) * u64::from(self.parameters.min()) + 1,
        };
        if (shortest..=longest).contains(&file_length) {
            Ok(())
        } else {
            Err(ManifestError::Count {
                segment_count,
                file_length,
            })
        }
    }

    /// The bytes that [`decode`](Self::decode) reads.
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = self.encode_unsigned();
        put(
            &mut bytes,
            at::SIGNATURE_SCHEME,
            &self.signature.scheme.to_le_bytes(),
        );
        put(&mut bytes, at::PUBLIC_KEY, &self.signature.public_key);
        put(&mut bytes, at::SIGNATURE, &self.signature.signature);
        bytes
    }

    fn encode_unsigned(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[at::MAGIC].copy_from_slice(&MAGIC);
        put(&mut bytes, at::VERSION, &VERSION.to_le_bytes());
        put(&mut bytes, at::HEAD_LENGTH, &HEAD_LENGTH.to_le_bytes());
        bytes[at::SEGMENTING_ALGORITHM] = algorithm_id(self.parameters.algorithm());
        bytes[at::NORMALIZATION] = self.parameters.normalization();
        bytes[at::SEGMENT_HASH] = BLAKE3;
        bytes[at::FILE_DIGEST] = SHA256;
        put(&mut bytes, at::MIN, &self.parameters.min().to_le_bytes());
        put(
            &mut bytes,
            at::AVERAGE,
            &self.parameters.average().to_le_bytes(),
        );
        put(&mut bytes, at::MAX, &self.parameters.max().to_le_bytes());
        put(
            &mut bytes,
            at::SEGMENT_COUNT,
            &self.segment_count.to_le_bytes(),
        );
        put(&mut bytes, at::FILE_LENGTH, &self.file_length.to_le_bytes());
        put(&mut bytes, at::HASH, &self.hash);
        bytes
    }

    /// Names the whole content, since the head holds the hash of the rest. A signature does not
    /// change it.
    pub fn content_key(&self) -> ContentKey {
        ContentKey::of_manifest_head(&self.encode_unsigned())
    }

    /// Bytes that follow the head.
    pub fn body_length(&self) -> u64 {
        u64::from(self.segment_count) * TABLE_ENTRY_LENGTH as u64 + BODY_DIGEST_LENGTH as u64
    }

    /// Bytes of the file.
    pub fn file_length(&self) -> u64 {
        self.file_length
    }

    /// Segments of the file.
    pub fn segment_count(&self) -> u32 {
        self.segment_count
    }

    /// How the file was cut.
    pub fn parameters(&self) -> SegmentingParameters {
        self.parameters
    }

    /// Who vouches for it, unchecked; `None` for nobody.
    pub fn signature(&self) -> Option<&Signature> {
        (self.signature.scheme != 0).then_some(&self.signature)
    }

    /// Whether `body` is the one that this head was made for.
    pub(super) fn is_head_of(&self, body: &[u8]) -> bool {
        self.hash_with(body) == self.hash
    }

    /// Covers what the head says too, so that a manifest with a damaged head is not taken for one
    /// of other parameters.
    fn hash_with(&self, body: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&self.encode_unsigned()[at::HASHED])
            .update(body);
        *hasher.finalize().as_bytes()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "256 fits")]
const HEAD_LENGTH: u16 = ManifestHead::LENGTH as u16;

fn truncated_or_other(bytes: &[u8]) -> ManifestError {
    if bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]) {
        ManifestError::Truncated {
            needed: ManifestHead::LENGTH as u64,
            found: bytes.len() as u64,
        }
    } else {
        ManifestError::Magic
    }
}

fn check_format(bytes: &[u8; ManifestHead::LENGTH]) -> Result<(), ManifestError> {
    if bytes[at::MAGIC] != MAGIC {
        return Err(ManifestError::Magic);
    }
    // The version comes first: nothing else is known of another version.
    let version = u16::from_le_bytes(array(bytes, at::VERSION));
    if version != VERSION {
        return Err(ManifestError::Version(version));
    }
    let head_length = u16::from_le_bytes(array(bytes, at::HEAD_LENGTH));
    if head_length != HEAD_LENGTH {
        return Err(ManifestError::HeadLength(head_length));
    }
    if bytes[at::SEGMENT_HASH] != BLAKE3 {
        return Err(ManifestError::SegmentHashAlgorithm(bytes[at::SEGMENT_HASH]));
    }
    if bytes[at::FILE_DIGEST] != SHA256 {
        return Err(ManifestError::FileDigestAlgorithm(bytes[at::FILE_DIGEST]));
    }
    if bytes[at::RESERVED].iter().any(|byte| *byte != 0) {
        return Err(ManifestError::Reserved);
    }
    Ok(())
}

fn parameters(bytes: &[u8; ManifestHead::LENGTH]) -> Result<SegmentingParameters, ManifestError> {
    let algorithm = match bytes[at::SEGMENTING_ALGORITHM] {
        0 => SegmentingAlgorithm::Fixed,
        1 => SegmentingAlgorithm::FastCdc2020,
        other => return Err(ManifestError::SegmentingAlgorithm(other)),
    };
    Ok(SegmentingParameters::new(
        algorithm,
        bytes[at::NORMALIZATION],
        u32::from_le_bytes(array(bytes, at::MIN)),
        u32::from_le_bytes(array(bytes, at::AVERAGE)),
        u32::from_le_bytes(array(bytes, at::MAX)),
    )?)
}

fn algorithm_id(algorithm: SegmentingAlgorithm) -> u8 {
    match algorithm {
        SegmentingAlgorithm::Fixed => 0,
        SegmentingAlgorithm::FastCdc2020 => 1,
    }
}

fn signature(bytes: &[u8; ManifestHead::LENGTH]) -> Result<Signature, ManifestError> {
    let signature = Signature {
        scheme: u16::from_le_bytes(array(bytes, at::SIGNATURE_SCHEME)),
        public_key: array(bytes, at::PUBLIC_KEY),
        signature: array(bytes, at::SIGNATURE),
    };
    if signature.scheme == 0 && bytes[at::SIGNATURE_AREA].iter().any(|byte| *byte != 0) {
        return Err(ManifestError::SignatureWithoutScheme);
    }
    Ok(signature)
}

/// The `N` bytes at a constant offset of the head.
fn array<const N: usize>(bytes: &[u8; ManifestHead::LENGTH], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn put(bytes: &mut [u8; ManifestHead::LENGTH], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}
