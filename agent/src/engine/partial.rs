//! The file a download grows in: hidden, beside its target, renamed only when it is complete.
//!
//! Invariants: the target's name never shows anything but a complete file; a partial file has one
//! writer, who holds its lock; it outlives every interruption. Nothing is recorded about what it
//! holds: whoever goes on with it hashes what is there against the manifest.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use branchline_core::SegmentSet;
use branchline_hashing::{Digest, Digester, Manifest, SegmentHash, VerifiedSegment};

use crate::engine::linux;
use crate::folder::Folder;
use crate::owner::Owner;

/// Why the local side of a download failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartialError {
    /// The target has no usable name or folder.
    #[error("cannot write to {}: {why}; name a file in an existing folder with -o", path.display())]
    BadTarget {
        /// The target.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Another download writes to the same target.
    #[error("{} is being downloaded already; wait for that download or choose another name with -o", path.display())]
    InUse {
        /// The target.
        path: PathBuf,
    },
    /// Not enough room.
    #[error("no room for {} in {}{}; free some space and run the same command again, it goes on where it stopped", path.display(), folder.display(), more(*needed))]
    DiskFull {
        /// The target.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
        /// What it takes beyond what it has, in bytes, where that is known.
        needed: Option<u64>,
    },
    /// Another error of the file system.
    #[error("cannot {doing} {}: {source}; check the folder's permissions and disk, then run the same command again", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PartialError {
    /// The same for the owner of a job with this target: hidden names are no business of his, and what he does about it is
    /// another thing than for a command.
    pub(crate) fn of_job(&self, target: &Path) -> String {
        let target = target.display();
        match self {
            Self::BadTarget { why, .. } => format!(
                "cannot write to {target}: {why}; cancel the job, and make one for a file in an existing folder"
            ),
            Self::InUse { .. } => format!("another download is writing {target}"),
            Self::DiskFull { folder, needed, .. } => format!(
                "no room for {target} in {}{}; free some space and resume the job, it goes on where it stopped",
                folder.display(),
                more(*needed)
            ),
            Self::Io { doing, source, .. } => format!(
                "cannot {doing} {target}: {source}; mend the folder's permissions or its disk, then resume the job"
            ),
        }
    }
}

/// Read at a time when the whole file is digested; measured: less costs more a byte.
const READ_BYTES: usize = 1 << 20;

/// A partial file, locked. See the module's text.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    owner: Owner,
}

impl Partial {
    /// Opens or makes the partial file of `target` with its owner's rights, and locks it.
    ///
    /// # Errors
    /// When the folder cannot be written to, or another download has the lock.
    pub(crate) fn open(target: &Path, owner: Owner) -> Result<Self, PartialError> {
        acting(owner, target, || Self::open_as_owner(target, owner))
    }

    fn open_as_owner(target: &Path, owner: Owner) -> Result<Self, PartialError> {
        let bad = |why| PartialError::BadTarget {
            path: target.to_owned(),
            why,
        };
        let name = target.file_name().ok_or_else(|| bad("it names no file"))?;
        let partial = partial_name(name);
        let path = target.with_file_name(&partial);
        let fail = |doing| {
            let path = path.clone();
            move |source| PartialError::Io {
                doing,
                path,
                source,
            }
        };
        let folder = Folder::of(target, owner).map_err(fail("reach the folder of"))?;
        if folder.join(name).is_dir() {
            return Err(bad("it is a folder"));
        }
        // Whatever else stands there under that name (a link, a pipe) is not followed.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(linux::NO_FOLLOW)
            .open(folder.join(&partial))
            .map_err(fail("create"))?;
        match linux::try_lock(&file) {
            Ok(true) => {}
            Ok(false) => {
                return Err(PartialError::InUse {
                    path: target.to_owned(),
                });
            }
            Err(source) => return Err(fail("lock")(source)),
        }
        let metadata = file.metadata().map_err(fail("inspect"))?;
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Err(bad("its partial file is not a plain file with one name"));
        }
        // Between opening and locking another download may have given the file its final name.
        let named = std::fs::symlink_metadata(folder.join(&partial)).map_err(fail("inspect"))?;
        if (named.dev(), named.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(PartialError::InUse {
                path: target.to_owned(),
            });
        }
        Ok(Self {
            file,
            path,
            target: target.to_owned(),
            owner,
        })
    }

    /// The note on the file, if there is one.
    pub(crate) fn note(&self) -> Option<Vec<u8>> {
        linux::note(&self.file)
    }

    /// Puts a note on the file, in place of another.
    ///
    /// # Errors
    /// When the file system has no room for notes.
    pub(crate) fn put_note(&self, note: &[u8]) -> io::Result<()> {
        linux::put_note(&self.file, note)
    }

    /// Reads bytes back.
    ///
    /// # Errors
    /// When the file cannot be read, or is shorter.
    pub(crate) fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, PartialError> {
        let mut bytes = vec![0; length as usize];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|e| self.fail("read", e))?;
        Ok(bytes)
    }

    /// Takes the note off: what is written from now on is not what it speaks of. Where that does not
    /// work the file is emptied, and the note speaks of nothing.
    ///
    /// # Errors
    /// When neither works.
    pub(crate) fn forget_note(&self) -> Result<(), PartialError> {
        match linux::remove_note(&self.file) {
            Ok(()) => Ok(()),
            Err(_) => self.discard(),
        }
    }

    /// A handle to read it by, which does not keep the file locked.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn reader(&self) -> Result<File, PartialError> {
        linux::reopen(&self.file).map_err(|e| self.fail("open", e))
    }

    /// Gives the file its full length and reserves the room for it.
    ///
    /// # Errors
    /// [`PartialError::DiskFull`] before a byte has been fetched in vain.
    pub(crate) fn reserve(&self, length: u64) -> Result<(), PartialError> {
        let present = self.file.metadata().map_err(|e| self.fail("inspect", e))?;
        if present.len() != length {
            self.file
                .set_len(length)
                .map_err(|e| self.fail("resize", e))?;
        }
        linux::reserve(&self.file, length).map_err(|source| match is_full(&source) {
            true => {
                let held = present.blocks() * 512;
                let folder = self.path.parent().unwrap_or(Path::new("/")).to_owned();
                let needed = Some(length.saturating_sub(held));
                PartialError::DiskFull {
                    path: self.target.clone(),
                    folder,
                    needed,
                }
            }
            false => self.fail("reserve room for", source),
        })
    }

    /// The segments of `manifest` that are in the file already, found by hashing them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn present(&self, manifest: &Manifest) -> Result<SegmentSet, PartialError> {
        let mut present = SegmentSet::empty(manifest.segment_count());
        let mut buffer = Vec::new();
        let mut data_until = 0;
        for segment in manifest.segments() {
            if segment.offset >= data_until {
                match linux::next_data(&self.file, segment.offset) {
                    Ok(Some(data)) if data.start < segment.offset + u64::from(segment.length) => {
                        data_until = data.end;
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) => break,
                    Err(error) => return Err(self.fail("read", error)),
                }
            }
            buffer.resize(segment.length as usize, 0);
            match self.file.read_exact_at(&mut buffer, segment.offset) {
                Ok(()) if SegmentHash::of(&buffer) == segment.hash => {
                    present.insert(segment.index);
                }
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(self.fail("read", error)),
            }
        }
        Ok(present)
    }

    /// Writes a segment that is known to be right.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn write(&self, segment: &VerifiedSegment, offset: u64) -> Result<(), PartialError> {
        self.file
            .write_all_at(segment.bytes(), offset)
            .map_err(|e| self.fail("write", e))
    }

    /// The first of `digests` that the first `length` bytes do not have.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn first_wrong_digest(
        &self,
        digests: &[Digest],
        length: u64,
    ) -> Result<Option<Digest>, PartialError> {
        let mut digesters: Vec<_> = digests.iter().map(Digester::for_digest).collect();
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < length {
            let rest = usize::try_from(length - offset).unwrap_or(usize::MAX);
            let part = &mut buffer[..rest.min(READ_BYTES)];
            self.file
                .read_exact_at(part, offset)
                .map_err(|e| self.fail("read", e))?;
            digesters
                .iter_mut()
                .for_each(|digester| digester.update(part));
            offset += part.len() as u64;
        }
        let mut results = digests.iter().zip(digesters);
        Ok(results
            .find(|(_, digester)| !digester.clone().matches())
            .map(|(digest, _)| *digest))
    }

    /// A second handle on the file, for the writer; the file stays locked as long as it lives.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn handle(&self) -> Result<File, PartialError> {
        self.file.try_clone().map_err(|e| self.fail("open", e))
    }

    /// Makes the complete file durable and gives it its name.
    ///
    /// # Errors
    /// When the disk or the folder refuses; the partial file stays.
    pub(crate) fn finish(&self, length: u64) -> Result<(), PartialError> {
        acting(self.owner, &self.target, || self.finish_as_owner(length))
    }

    fn finish_as_owner(&self, length: u64) -> Result<(), PartialError> {
        self.file
            .set_len(length)
            .map_err(|e| self.fail("resize", e))?;
        // Best effort: a note on a finished file speaks of nothing and harms nobody.
        let _ = linux::remove_note(&self.file);
        let folder = Folder::of(&self.target, self.owner)
            .map_err(|e| self.fail("reach the folder of", e))?;
        let named = |path: &Path| folder.join(path.file_name().unwrap_or_default());
        // Best effort: on some file systems modes cannot be changed at all.
        let _ = self.keep_mode(&named(&self.target));
        self.file.sync_all().map_err(|e| self.fail("write", e))?;
        std::fs::rename(named(&self.path), named(&self.target))
            .map_err(|e| self.fail("rename", e))?;
        // The file is in place. A folder that may be written to but not read cannot be synced.
        let synced = File::open(folder.join(OsStr::new("."))).and_then(|folder| folder.sync_all());
        if let Err(error) = synced {
            tracing::warn!(path = %self.target.display(), %error, "a new name may be lost with the power");
        }
        Ok(())
    }

    /// As the file that it replaces, where that is the same user's.
    fn keep_mode(&self, target: &Path) -> io::Result<()> {
        let (old, new) = (std::fs::symlink_metadata(target)?, self.file.metadata()?);
        if old.is_file() && old.uid() == new.uid() {
            let mode = old.permissions().mode() & 0o777;
            self.file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// Keeps at most the first `limit` bytes, cuts off the rest, and says how many there are.
    pub(crate) fn keep_first(&self, limit: u64) -> u64 {
        let present = self.file.metadata().map_or(0, |metadata| metadata.len());
        match self.file.set_len(present.min(limit)) {
            Ok(()) => present.min(limit),
            Err(_) => 0,
        }
    }

    /// Throws away what is there: it turned out to be other content.
    ///
    /// # Errors
    /// When the file cannot be cut.
    pub(crate) fn discard(&self) -> Result<(), PartialError> {
        self.file.set_len(0).map_err(|e| self.fail("empty", e))
    }

    /// What the system refused to do with this file.
    pub(crate) fn fail(&self, doing: &'static str, source: io::Error) -> PartialError {
        match is_full(&source) {
            true => PartialError::DiskFull {
                path: self.target.clone(),
                folder: self.path.parent().unwrap_or(Path::new("/")).to_owned(),
                needed: None,
            },
            false => PartialError::Io {
                doing,
                path: self.path.clone(),
                source,
            },
        }
    }
}

/// Does what needs a path with the owner's rights.
fn acting<T: Send>(
    owner: Owner,
    target: &Path,
    work: impl FnOnce() -> Result<T, PartialError> + Send,
) -> Result<T, PartialError> {
    match owner.act(work) {
        Ok(done) => done,
        Err(source) => Err(PartialError::Io {
            doing: "take on its owner's rights for",
            path: target.to_owned(),
            source,
        }),
    }
}

fn more(needed: Option<u64>) -> String {
    needed.map_or_else(String::new, |needed| {
        format!(": {needed} more bytes are needed")
    })
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// `.NAME.branchline-part`: hidden, and recognisable for those who clean up.
pub(crate) fn partial_name(target: &std::ffi::OsStr) -> OsString {
    let mut name = OsString::from(".");
    name.push(target);
    name.push(".branchline-part");
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use branchline_hashing::{ManifestBuilder, SegmentIndex, SegmentingParameters, Sha256Digest};
    use bytes::Bytes;

    use super::*;

    /// The length of fixed segments, asserted where it is used.
    const SEGMENT: usize = 64 << 10;

    fn manifest_of(bytes: &[u8]) -> Manifest {
        assert_eq!(SegmentingParameters::FIXED.max() as usize, SEGMENT);
        let mut builder = ManifestBuilder::new(SegmentingParameters::FIXED);
        for segment in bytes.chunks(SEGMENT) {
            let length = u32::try_from(segment.len()).expect("a segment's length");
            builder
                .push(length, SegmentHash::of(segment))
                .expect("a fixed segment");
        }
        builder
            .finish(Sha256Digest::from_bytes([0; 32]))
            .expect("a consistent table")
    }

    fn some_bytes(length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| u8::try_from(i * 7 % 251).expect("below 251"))
            .collect()
    }

    #[test]
    fn what_an_interrupted_download_left_is_found_by_its_hashes() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("f");
        let bytes = some_bytes(5 * SEGMENT + 100);
        let manifest = manifest_of(&bytes);
        let partial = Partial::open(&target, Owner::Process).expect("opened");
        partial.reserve(manifest.file_length()).expect("room");
        assert!(partial.present(&manifest).expect("read").is_empty());
        for index in [1, 3, 5] {
            let segment = manifest.segment(SegmentIndex(index)).expect("in the table");
            let part = bytes
                .chunks(SEGMENT)
                .nth(index as usize)
                .expect("a segment")
                .to_vec();
            let verified = VerifiedSegment::verify(Bytes::from(part), segment.hash).expect("right");
            partial.write(&verified, segment.offset).expect("written");
        }
        // A torn write in segment 4 is not taken for the segment.
        partial
            .file
            .write_all_at(&bytes[4 * SEGMENT..4 * SEGMENT + 10], 4 * SEGMENT as u64)
            .expect("written");
        drop(partial);
        let partial = Partial::open(&target, Owner::Process).expect("opened again");
        let present = partial.present(&manifest).expect("read");
        assert_eq!(present.iter().map(|i| i.0).collect::<Vec<_>>(), [1, 3, 5]);
    }

    #[test]
    fn the_target_appears_whole_and_keeps_the_mode_of_what_it_replaces() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("f");
        std::fs::write(&target, "old").expect("written");
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).expect("set");
        let partial = Partial::open(&target, Owner::Process).expect("opened");
        partial
            .file
            .write_all_at(b"new content, too long", 0)
            .expect("written");
        assert_eq!(std::fs::read(&target).expect("read"), b"old");
        partial.finish(11).expect("finished");
        assert_eq!(std::fs::read(&target).expect("read"), b"new content");
        let mode = std::fs::metadata(&target)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_partial_file_has_one_writer() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("f");
        let first = Partial::open(&target, Owner::Process).expect("opened");
        assert!(matches!(
            Partial::open(&target, Owner::Process),
            Err(PartialError::InUse { .. })
        ));
        first.finish(0).expect("finished");
        // Its lock is on the finished file now and hinders nobody.
        assert!(Partial::open(&target, Owner::Process).is_ok());
    }

    #[test]
    fn what_stands_under_the_partial_files_name_is_not_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let (target, precious) = (dir.path().join("f"), dir.path().join("precious"));
        let name = dir.path().join(".f.branchline-part");
        std::fs::write(&precious, "precious").expect("written");
        std::os::unix::fs::symlink(&precious, &name).expect("linked");
        assert!(matches!(
            Partial::open(&target, Owner::Process),
            Err(PartialError::Io { .. })
        ));
        std::fs::remove_file(&name).expect("removed");
        std::fs::hard_link(&precious, &name).expect("linked");
        assert!(matches!(
            Partial::open(&target, Owner::Process),
            Err(PartialError::BadTarget { .. })
        ));
        assert_eq!(std::fs::read(&precious).expect("read"), b"precious");
    }

    #[test]
    fn targets_that_are_no_files_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(
            Partial::open(dir.path(), Owner::Process),
            Err(PartialError::BadTarget { .. })
        ));
        let nowhere = dir.path().join("missing").join("f");
        assert!(matches!(
            Partial::open(&nowhere, Owner::Process),
            Err(PartialError::Io { .. })
        ));
        assert!(matches!(
            Partial::open(Path::new("/"), Owner::Process),
            Err(PartialError::BadTarget { .. })
        ));
    }

    #[test]
    fn a_digest_is_of_the_files_bytes_and_no_more() {
        let dir = tempfile::tempdir().expect("a folder");
        let partial = Partial::open(&dir.path().join("f"), Owner::Process).expect("opened");
        partial
            .file
            .write_all_at(b"abc and more", 0)
            .expect("written");
        let mut sha256 = branchline_hashing::Sha256::new();
        sha256.update(b"abc");
        let right = Digest::Sha256(sha256.finish());
        let wrong = Digest::Sha256(Sha256Digest::from_bytes([1; 32]));
        assert_eq!(partial.first_wrong_digest(&[right], 3).expect("read"), None);
        assert_eq!(
            partial
                .first_wrong_digest(&[right, wrong], 3)
                .expect("read"),
            Some(wrong)
        );
        assert!(
            partial.first_wrong_digest(&[right], 13).is_err(),
            "shorter than that"
        );
    }
}
