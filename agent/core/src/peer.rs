//! Who an agent is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What comes before the 32 key bytes in a libp2p peer id of an Ed25519 key: identity multihash
/// (0x00) of 0x24 bytes, a protobuf with the key type Ed25519 (08 01) and 0x20 bytes of key
/// (12 20). Source: libp2p specs, peer-ids/peer-ids.md.
const LIBP2P_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// An agent's identity: its Ed25519 public key. Shown as libp2p shows it (`12D3KooW…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

/// Text or bytes that are no peer id of an Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the peer id of an Ed25519 key (they begin with 12D3KooW)")]
pub struct ParsePeerIdError;

impl PeerId {
    /// Takes an Ed25519 public key.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The Ed25519 public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 38 bytes libp2p uses.
    pub fn to_libp2p_bytes(self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&LIBP2P_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads the bytes libp2p uses.
    ///
    /// # Errors
    /// [`ParsePeerIdError`] when they belong to another kind of key.
    pub fn from_libp2p_bytes(bytes: &[u8]) -> Result<Self, ParsePeerIdError> {
        let key = bytes.strip_prefix(&LIBP2P_PREFIX).ok_or(ParsePeerIdError)?;
        Ok(Self(key.try_into().map_err(|_| ParsePeerIdError)?))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_libp2p_bytes()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = ParsePeerIdError;

    fn from_str(text: &str) -> Result<Self, ParsePeerIdError> {
        let bytes = bs58::decode(text)
            .into_vec()
            .map_err(|_| ParsePeerIdError)?;
        Self::from_libp2p_bytes(&bytes)
    }
}

impl Serialize for PeerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_libp2ps_and_survives_a_round_trip() {
        let peer = PeerId::from_public_key([9; 32]);
        assert!(peer.to_string().starts_with("12D3KooW"));
        assert_eq!(peer.to_string().parse(), Ok(peer));
        assert_eq!("QmNotEd25519".parse::<PeerId>(), Err(ParsePeerIdError));
        assert_eq!("".parse::<PeerId>(), Err(ParsePeerIdError));
    }
}
