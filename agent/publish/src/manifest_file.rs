//! Where a file's manifest is, and how it is read and replaced.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use branchline_hashing::{Manifest, ManifestError, ManifestHead};
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};

use crate::stamp::{Stamp, open_regular};

const EXTENSION: &str = ".branchline";
/// In every hidden name that Branchline gives to a file it has not finished.
const TEMPORARY: &[u8] = b".branchline-";
/// Of the file's name, as much goes into a temporary name: with the rest, less than the 255 bytes
/// that file systems allow.
const TEMPORARY_NAME_LENGTH: usize = 200;

/// Where the manifest of `file` is: `.branchline` appended to its whole name.
pub fn manifest_path(file: &Path) -> PathBuf {
    let mut path = OsString::from(file);
    path.push(EXTENSION);
    PathBuf::from(path)
}

/// The file whose manifest has this path; `None` when it is no manifest's path.
pub(crate) fn file_of_manifest(path: &Path) -> Option<PathBuf> {
    let name = path
        .file_name()?
        .as_bytes()
        .strip_suffix(EXTENSION.as_bytes())?;
    (!name.is_empty()).then(|| path.with_file_name(OsStr::from_bytes(name)))
}

/// Whether this is the name of a file that Branchline has not finished, or died over.
pub(crate) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().map_or(&[][..], OsStr::as_bytes);
    name.starts_with(b".") && name.windows(TEMPORARY.len()).any(|part| part == TEMPORARY)
}

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadManifestError {
    /// The file could not.
    #[error("cannot read manifest {path}: {source}; make it with `branchline publish`", path = path.display())]
    Io {
        /// Of the manifest.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not one.
    #[error("{path}: {source}; make it anew with `branchline publish`", path = path.display())]
    Invalid {
        /// Of the manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
}

/// Reads and checks the manifest at `path`, in memory of its own length.
///
/// # Errors
/// [`ReadManifestError`] when the file cannot be read or is no manifest.
pub fn read_manifest(path: &Path) -> Result<Manifest, ReadManifestError> {
    let io = |source| ReadManifestError::Io {
        path: path.to_owned(),
        source,
    };
    let invalid = |source| ReadManifestError::Invalid {
        path: path.to_owned(),
        source,
    };
    let mut file = open_regular(path).map_err(io)?;
    let head = read_head(&mut file).map_err(io)?;
    let head = ManifestHead::decode(&head).map_err(invalid)?;
    let mut body = Vec::new();
    // One byte more than there should be shows that there are too many.
    file.take(head.body_length() + 1)
        .read_to_end(&mut body)
        .map_err(io)?;
    Manifest::from_parts(head, &body).map_err(invalid)
}

fn read_head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(ManifestHead::LENGTH);
    file.take(ManifestHead::LENGTH as u64)
        .read_to_end(&mut head)?;
    Ok(head)
}

/// The head of the manifest at `path` if it was made for a file with this stamp, and the manifest
/// is as long as the head says; all without reading the table.
pub(crate) fn head_made_for(path: &Path, stamp: &Stamp) -> Option<ManifestHead> {
    let mut file = open_regular(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !stamp.has_mtime_of(&metadata) {
        return None;
    }
    let head = ManifestHead::decode(&read_head(&mut file).ok()?).ok()?;
    let is_whole = metadata.len() == ManifestHead::LENGTH as u64 + head.body_length();
    (is_whole && head.file_length() == stamp.length).then_some(head)
}

/// Puts a manifest beside its file: whole, or not at all.
///
/// It gets the file's owner and mode, and the time it had when it was read, so that whoever may read the file may read it (the web
/// server among them), and nobody else.
pub(crate) fn replace(
    path: &Path,
    manifest: &Manifest,
    of: &Metadata,
    stamp: &Stamp,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Removed when dropped before it has its name.
    let mut temporary = tempfile::Builder::new()
        .prefix(&temporary_prefix(path))
        .tempfile_in(folder)?;
    temporary.write_all(&manifest.encode())?;
    dress(temporary.as_file(), of, stamp)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

fn temporary_prefix(path: &Path) -> OsString {
    let name = path.file_name().map_or(&[][..], OsStr::as_bytes);
    let name = name.strip_suffix(EXTENSION.as_bytes()).unwrap_or(name);
    let name = &name[..name.len().min(TEMPORARY_NAME_LENGTH)];
    OsStr::from_bytes(&[b".", name, TEMPORARY].concat()).to_owned()
}

fn dress(temporary: &File, of: &Metadata, stamp: &Stamp) -> io::Result<()> {
    // Only root may give files away; whoever is refused publishes under their own name.
    let _ = std::os::unix::fs::fchown(temporary, Some(of.uid()), Some(of.gid()));
    temporary.set_permissions(Permissions::from_mode(of.mode() & 0o666))?;
    let last_modification = Timespec {
        tv_sec: stamp.mtime_seconds,
        tv_nsec: stamp.mtime_nanoseconds,
    };
    let last_access = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    rustix::fs::futimens(
        temporary,
        &Timestamps {
            last_access,
            last_modification,
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_manifests_and_temporary_files_are_told_apart() {
        let path = manifest_path(Path::new("a/b.tar.gz"));
        assert_eq!(path, Path::new("a/b.tar.gz.branchline"));
        assert_eq!(
            file_of_manifest(&path).as_deref(),
            Some(Path::new("a/b.tar.gz"))
        );
        assert_eq!(file_of_manifest(Path::new("a/.branchline")), None);
        assert_eq!(file_of_manifest(Path::new("a/b")), None);
        assert!(is_temporary(Path::new("a/.b.branchline-Ab3")));
        assert!(!is_temporary(Path::new("a/b.branchline-Ab3")));
        assert!(!is_temporary(Path::new("a/.b.branchline")));
    }

    #[test]
    fn temporary_names_are_recognized_and_never_too_long() {
        let path = manifest_path(Path::new(&"x".repeat(244)));
        let mut name = temporary_prefix(&path);
        name.push("123456");
        assert!(is_temporary(Path::new(&name)));
        assert!(name.len() <= 255);
    }
}
