//! Manifests: a file each. They are megabytes, written once and read whole, so in the index they
//! would only be copied from level to level.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use branchline_hashing::{SegmentHash, SwarmId};
use bytes::Bytes;

use crate::packs::sync_dir;

/// The folder of manifests.
pub(crate) struct Manifests {
    dir: PathBuf,
}

/// What a manifest's file must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ManifestSum {
    pub(crate) length: u32,
    /// BLAKE3 of the bytes, whatever they mean.
    pub(crate) hash: SegmentHash,
}

impl ManifestSum {
    pub(crate) fn of(manifest: &[u8]) -> io::Result<Self> {
        let length = u32::try_from(manifest.len()).map_err(io::Error::other)?;
        Ok(Self {
            length,
            hash: SegmentHash::of(manifest),
        })
    }

    /// The blinded name, for directory listings get into backups and logs; and what is in it, so
    /// that a new manifest of the same content never overwrites the one in use.
    pub(crate) fn file_name(&self, swarm: &SwarmId) -> String {
        let [a, b, c, d, ..] = self.hash.as_bytes();
        format!("{swarm}-{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

impl Manifests {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// On disk under its name when this returns.
    pub(crate) fn write(&self, name: &str, manifest: &[u8]) -> io::Result<()> {
        let new = self.path(&format!("{name}.new"));
        let written = self.write_new(&new, manifest);
        if written.is_err() {
            // If this fails too, the next open removes it.
            let _ = std::fs::remove_file(&new);
        }
        written?;
        std::fs::rename(&new, self.path(name))?;
        sync_dir(&self.dir)
    }

    fn write_new(&self, path: &Path, manifest: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(path)?;
        file.write_all(manifest)?;
        file.sync_all()
    }

    /// `None` when the file is gone or holds something else.
    pub(crate) fn read(&self, name: &str, sum: &ManifestSum) -> io::Result<Option<Bytes>> {
        let file = match std::fs::File::open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(u64::from(sum.length) + 1)
            .read_to_end(&mut bytes)?;
        let right =
            bytes.len() as u64 == u64::from(sum.length) && SegmentHash::of(&bytes) == sum.hash;
        Ok(right.then(|| bytes.into()))
    }

    pub(crate) fn remove(&self, name: &str) {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("removing a manifest failed, the next start tries again: {error}");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Removes what no record names; tells how many files.
    pub(crate) fn remove_others(&self, named: &BTreeSet<String>) -> io::Result<u64> {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|name| named.contains(name))
            {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
