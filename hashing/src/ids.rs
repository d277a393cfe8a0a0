//! Identifiers and digests: 32 bytes each, a type of its own each, hexadecimal in text.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};

/// BLAKE3 `derive_key` contexts (BLAKE3 paper, section 2.3): each names one use for ever.
mod context {
    pub(super) const SWARM_ID: &str = "branchline 2026-11 swarm id v1";
    pub(super) const CONTENT_OF_SHA256: &str = "branchline 2026-11 content key of sha-256 v1";
    pub(super) const CONTENT_OF_BLAKE3: &str = "branchline 2026-11 content key of blake3 v1";
    pub(super) const CONTENT_OF_MANIFEST: &str = "branchline 2026-11 content key of manifest v1";
    pub(super) const CONTENT_OF_VERSION: &str = "branchline 2026-11 content key of version v1";
    pub(super) const CONTENT_IN_REPAIR: &str = "branchline 2026-11 content key of repair v1";
}

/// Text that should have been 64 hexadecimal digits and was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits, found {found} characters that are not such a value")]
pub struct ParseHexError {
    /// How many characters there were.
    pub found: usize,
}

macro_rules! thirty_two_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Takes 32 bytes as such a value; nothing is computed.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseHexError;

            fn from_str(text: &str) -> Result<Self, ParseHexError> {
                let error = ParseHexError { found: text.chars().count() };
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| error.clone())?;
                Ok(Self(bytes.try_into().map_err(|_| error)?))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

thirty_two_bytes! {
    /// BLAKE3 of one segment's bytes.
    SegmentHash
}
thirty_two_bytes! {
    /// SHA-256 of a whole file: what package systems sign.
    Sha256Digest
}
thirty_two_bytes! {
    /// BLAKE3 of a whole file.
    Blake3Digest
}
thirty_two_bytes! {
    /// Names one version of one file, and opens it: who knows it may have the content. It never
    /// travels before both sides have proved that they know it.
    ContentKey
}
thirty_two_bytes! {
    /// The blinded [`ContentKey`]: all that a stranger ever sees of it.
    SwarmId
}

impl SegmentHash {
    /// BLAKE3 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// A whole file's digest that somebody knew before the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Digest {
    /// SHA-256 (FIPS 180-4).
    Sha256(Sha256Digest),
    /// BLAKE3 with 32 bytes of output.
    Blake3(Blake3Digest),
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "SHA-256 {digest}"),
            Self::Blake3(digest) => write!(f, "BLAKE3 {digest}"),
        }
    }
}

impl ContentKey {
    /// The key of content whose whole-file digest was known beforehand.
    pub fn of_digest(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(d) => Self(blake3::derive_key(context::CONTENT_OF_SHA256, d.as_bytes())),
            Digest::Blake3(d) => Self(blake3::derive_key(context::CONTENT_OF_BLAKE3, d.as_bytes())),
        }
    }

    /// The key of content that has a manifest: of its head, whose signature area is zero.
    pub(crate) fn of_manifest_head(unsigned_head: &[u8]) -> Self {
        Self(blake3::derive_key(
            context::CONTENT_OF_MANIFEST,
            unsigned_head,
        ))
    }

    /// The key of content that only its origin vouches for: URL, strong validator and length.
    pub fn of_version(url: &str, validator: &str, length: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context::CONTENT_OF_VERSION);
        for part in [url, validator] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&length.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The key under which content of a known digest is shared anew, after what was shared at first
    /// turned out to be another file.
    pub fn in_repair(&self) -> Self {
        Self(blake3::derive_key(context::CONTENT_IN_REPAIR, &self.0))
    }

    /// What may be said of this content to those who have not proved that they know it.
    pub fn swarm_id(&self) -> SwarmId {
        SwarmId(blake3::derive_key(context::SWARM_ID, &self.0))
    }
}

/// Position of a segment in its manifest's table, from 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct SegmentIndex(pub u32);

impl fmt::Display for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_text_survives_a_round_trip_in_either_case() {
        let hash = SegmentHash::of(b"branch");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
        assert!("12".parse::<SegmentHash>().is_err());
        assert!("é".repeat(32).parse::<SegmentHash>().is_err());
    }

    #[test]
    fn keys_of_different_kinds_never_meet() {
        let bytes = [7; 32];
        let keys = [
            ContentKey::of_digest(&Digest::Sha256(Sha256Digest::from_bytes(bytes))),
            ContentKey::of_digest(&Digest::Blake3(Blake3Digest::from_bytes(bytes))),
            ContentKey::of_version("ab", "c", 1),
            ContentKey::of_version("a", "bc", 1),
            ContentKey::from_bytes(bytes),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert_ne!(a.as_bytes(), a.swarm_id().as_bytes());
            assert!(keys[i + 1..].iter().all(|b| a != b));
        }
    }
}
