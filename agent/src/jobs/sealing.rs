//! Records of jobs on the disk: encrypted, for they hold passwords and secret headers.
//!
//! AES-256-GCM-SIV (RFC 8452) with a random nonce before each value: a nonce drawn twice, or one that a copied disk
//! image brings back, does not give the key away. The key of a record is bound to its value, so none can be
//! put in another's place. The key lies in the state directory, for its owner alone: whoever can read that can read
//! the records, whoever has a copy of the store without it cannot.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secret_file::{random, read_or_make};

/// The key's file in the state directory.
const KEY_NAME: &str = "jobs.key";

/// AES-256.
const KEY_BYTES: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[error("the key of the jobs' records, {}: {source}; check the permissions of the state directory", .path.display())]
pub(crate) struct KeyError {
    path: PathBuf,
    source: io::Error,
}

/// Seals and opens records.
pub(super) struct Sealer {
    key: LessSafeKey,
}

impl Sealer {
    /// Reads the key, or makes it if there is none. Blocks.
    pub(super) fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(KEY_NAME);
        let bytes = read_or_make(&path, || Ok(random::<KEY_BYTES>()?.to_vec()));
        let key = bytes.and_then(|bytes| {
            UnboundKey::new(&AES_256_GCM_SIV, &bytes).map_err(|_| io::ErrorKind::InvalidData.into())
        });
        match key {
            Ok(key) => Ok(Self {
                key: LessSafeKey::new(key),
            }),
            Err(source) => Err(KeyError { path, source }),
        }
    }

    /// The value as it may lie on a disk, under this name only.
    pub(super) fn seal(&self, name: &str, value: &[u8]) -> io::Result<Vec<u8>> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = nonce.to_vec();
        let mut text = value.to_vec();
        let aad = Aad::from(name.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// The value again; `None` when it was sealed under another name or key, or is damaged.
    pub(super) fn unseal(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let aad = Aad::from(name.as_bytes());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, aad, &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_record_opens_under_its_name_and_key_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let sealer = Sealer::open(dir.path()).expect("a key");
        let sealed = sealer.seal("job/1", b"password").expect("sealed");
        assert!(!sealed.windows(8).any(|window| window == b"password"));
        let again = Sealer::open(dir.path()).expect("the same key");
        assert_eq!(
            again.unseal("job/1", &sealed).as_deref(),
            Some(&b"password"[..])
        );
        assert_eq!(again.unseal("job/2", &sealed), None);
        let other = tempfile::tempdir().expect("a folder");
        let other = Sealer::open(other.path()).expect("another key");
        assert_eq!(other.unseal("job/1", &sealed), None);
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(sealer.unseal("job/1", &damaged), None);
            assert_eq!(sealer.unseal("job/1", &sealed[..at]), None);
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        Sealer::open(dir.path()).expect("a key");
        let path = dir.path().join(KEY_NAME);
        assert_eq!(fs::metadata(&path).expect("made").mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(Sealer::open(dir.path()).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&path, "short").expect("written");
        assert!(Sealer::open(dir.path()).is_err());
    }
}
