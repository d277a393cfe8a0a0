//! Proving knowledge of a `ContentKey` without telling it, for one TLS session and one side.

use branchline_core::wire::{EXPORTER_LABEL, JoinProof};
use branchline_hashing::{ContentKey, SwarmId};

use crate::error::PeerFailure;

/// BLAKE3 `derive_key` context of the key that proofs are made with.
const PROOF_KEY: &str = "branchline 2026-11 exchange join proof v1";

/// Whose proof it is. The requester is always TLS's client, so a proof that comes back is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Requester,
    Responder,
}

impl Side {
    fn byte(self) -> u8 {
        match self {
            Self::Requester => 0,
            Self::Responder => 1,
        }
    }
}

/// What both ends of one TLS session, and nobody else, can compute (RFC 8446, section 7.5).
#[derive(Clone, Copy)]
pub(crate) struct SessionSecret([u8; 32]);

impl SessionSecret {
    pub(crate) fn of(connection: &quinn::Connection, swarm: &SwarmId) -> Result<Self, PeerFailure> {
        let mut secret = [0; 32];
        connection
            .export_keying_material(&mut secret, EXPORTER_LABEL, swarm.as_bytes())
            .map_err(|_| PeerFailure::Lost {
                reason: "TLS exported no secret".to_owned(),
            })?;
        Ok(Self(secret))
    }

    /// BLAKE3 keyed with a key derived from `key`, over this secret and the side.
    pub(crate) fn prove(&self, key: &ContentKey, side: Side) -> JoinProof {
        let proof_key = blake3::derive_key(PROOF_KEY, key.as_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&proof_key);
        hasher.update(&self.0).update(&[side.byte()]);
        JoinProof(*hasher.finalize().as_bytes())
    }

    /// Whether `proof` is right; takes the same time wherever it differs.
    pub(crate) fn check(&self, key: &ContentKey, side: Side, proof: &JoinProof) -> bool {
        // blake3::Hash compares in constant time.
        blake3::Hash::from_bytes(self.prove(key, side).0) == blake3::Hash::from_bytes(proof.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_key_session_and_side_only() {
        let key = ContentKey::from_bytes([1; 32]);
        let session = SessionSecret([2; 32]);
        let proof = session.prove(&key, Side::Requester);
        assert!(session.check(&key, Side::Requester, &proof));
        assert!(!session.check(&key, Side::Responder, &proof));
        assert!(!session.check(&ContentKey::from_bytes([3; 32]), Side::Requester, &proof));
        assert!(!SessionSecret([4; 32]).check(&key, Side::Requester, &proof));
    }
}
