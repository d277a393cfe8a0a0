//! Digests of whole files, computed as the bytes go by.

use aws_lc_rs::digest;

use crate::{Blake3Digest, Digest, Sha256Digest};

/// SHA-256 of bytes that come piece by piece.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// Of no bytes yet.
    #[expect(
        clippy::new_without_default,
        reason = "a hasher is begun, not defaulted"
    )]
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Adds the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Sha256Digest {
        let digest = self.0.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Sha256Digest::from_bytes(bytes)
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256")
    }
}

/// Compares bytes that come piece by piece with a digest that was known before them.
#[derive(Debug, Clone)]
pub struct Digester {
    expected: Digest,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Digester {
    /// Begins a comparison with `expected`.
    pub fn for_digest(expected: &Digest) -> Self {
        let state = match expected {
            Digest::Sha256(_) => State::Sha256(Sha256::new()),
            Digest::Blake3(_) => State::Blake3(Box::new(blake3::Hasher::new())),
        };
        Self {
            expected: *expected,
            state,
        }
    }

    /// Adds the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(sha256) => sha256.update(bytes),
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of all that was added, of the kind that was expected.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(sha256) => Digest::Sha256(sha256.finish()),
            State::Blake3(hasher) => {
                Digest::Blake3(Blake3Digest::from_bytes(*hasher.finalize().as_bytes()))
            }
        }
    }

    /// Whether all that was added is what was expected.
    pub fn matches(self) -> bool {
        let expected = self.expected;
        self.finish() == expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-4's and BLAKE3's published examples for "abc".
    const SHA256_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const BLAKE3_ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";

    #[test]
    fn pieces_match_the_published_digests() -> Result<(), crate::ParseHexError> {
        let digests = [
            Digest::Sha256(SHA256_ABC.parse()?),
            Digest::Blake3(BLAKE3_ABC.parse()?),
        ];
        for expected in digests {
            let mut right = Digester::for_digest(&expected);
            right.update(b"a");
            right.update(b"");
            let mut wrong = right.clone();
            right.update(b"bc");
            wrong.update(b"bd");
            assert_eq!(right.clone().finish(), expected);
            assert!(right.matches());
            assert!(!wrong.matches());
        }
        Ok(())
    }
}
