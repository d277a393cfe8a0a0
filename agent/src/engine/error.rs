//! Why a download ended without its file, and what kind of failure that is.

use branchline_hashing::{Digest, HashMismatch, SegmentIndex};
use branchline_origin::{OriginError, TargetError, Version};
use branchline_store::StoreError;
use url::Url;

use crate::api::{Failure, FailureKind};
use crate::engine::partial::PartialError;

/// Why a download ended without its file. One line each: what, where, why, what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Local(#[from] PartialError),
    #[error("the store of this machine failed: {0}")]
    Store(#[from] StoreError),
    #[error(
        "the manifest {manifest} does not belong to the file {url}: {difference}; publish the file again at the origin, or fetch it from the origin alone with --without-manifest"
    )]
    Stale {
        manifest: String,
        url: String,
        difference: Box<Difference>,
    },
    #[error(
        "the manifest {manifest} cannot be used: {why}; publish the file again at the origin, or fetch it from the origin alone with --without-manifest"
    )]
    BadManifest { manifest: Url, why: String },
    #[error(
        "{url} has another digest than the {expected} that was asked for; the file was not kept: check the digest and the address"
    )]
    WrongDigest { url: Url, expected: Digest },
    #[error(
        "{url} has no byte range from {first} on as asked for: {}; ask for bytes that it has", length_of(*.file_bytes)
    )]
    NoSuchRange {
        url: Url,
        first: u64,
        file_bytes: Option<u64>,
    },
    #[error("{url} kept changing while it was fetched (now: {version}); try again later")]
    KeepsChanging { url: Url, version: Box<Version> },
    #[error(
        "no peer in sight holds the rest of {url}, and the origin cannot be reached; run the same command again when the network is back, it goes on where it stopped"
    )]
    NobodyHasIt { url: Url },
    #[error("interrupted; what was fetched is kept, the same command goes on where it stopped")]
    Cancelled,
}

/// In what a manifest and its file differ.
#[derive(Debug)]
pub(crate) enum Difference {
    Length {
        manifest_bytes: u64,
        origin_bytes: u64,
    },
    Segment {
        index: SegmentIndex,
        offset: u64,
        mismatch: HashMismatch,
    },
    Digest {
        expected: Digest,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length {
                manifest_bytes,
                origin_bytes,
            } => write!(
                f,
                "the manifest describes {manifest_bytes} bytes, the origin has {origin_bytes}"
            ),
            Self::Segment {
                index,
                offset,
                mismatch,
            } => write!(
                f,
                "segment {index} at offset {offset} should hash to {}, the origin's bytes hash to {}",
                mismatch.expected, mismatch.found
            ),
            Self::Digest { expected } => {
                write!(
                    f,
                    "the manifest describes a file that does not have the {expected}"
                )
            }
        }
    }
}

impl GetError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Target(_) => FailureKind::Usage,
            Self::Origin(error) => kind_of_origin(error),
            Self::Local(_) | Self::Store(_) => FailureKind::LocalDisk,
            Self::Stale { .. } | Self::BadManifest { .. } | Self::WrongDigest { .. } => {
                FailureKind::Verification
            }
            Self::NoSuchRange { .. } => FailureKind::OriginRefused,
            Self::KeepsChanging { .. } | Self::NobodyHasIt { .. } => FailureKind::Network,
            Self::Cancelled => FailureKind::Interrupted,
        }
    }
}

fn length_of(file_bytes: Option<u64>) -> String {
    match file_bytes {
        Some(bytes) => format!("it has {bytes} bytes"),
        None => "the origin does not say how long it is".into(),
    }
}

fn kind_of_origin(error: &OriginError) -> FailureKind {
    match error {
        OriginError::UnsupportedScheme { .. }
        | OriginError::Refused { .. }
        | OriginError::NotFound { .. }
        | OriginError::TooManyRedirects { .. } => FailureKind::OriginRefused,
        OriginError::Unavailable { .. }
        | OriginError::Network { .. }
        | OriginError::Stalled { .. }
        | OriginError::Truncated { .. }
        | OriginError::Overlong { .. }
        | OriginError::Changed { .. }
        | OriginError::CannotResume { .. }
        | OriginError::BadRange { .. }
        | OriginError::BadAnswer { .. } => FailureKind::Network,
    }
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Self {
        Self::new(error.kind(), error)
    }
}
