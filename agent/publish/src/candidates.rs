//! Which files of what was named get a manifest.
//!
//! Regular files, at any depth, except manifests and unfinished files of Branchline's own. A
//! symbolic link that is named is followed; below a named folder, links to files are followed,
//! since a web server delivers them under their own name, and links to folders are not, so that
//! no walk goes in circles or leaves the folder. Sockets, devices and FIFOs are passed over.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::PublishFileError;
use crate::manifest_file::{file_of_manifest, is_temporary};

/// Something met on the way.
pub(crate) enum Candidate {
    /// A file to publish.
    File(PathBuf),
    /// A manifest whose file is gone.
    Stale,
    /// A folder that could not be read.
    Unreadable(PublishFileError),
}

/// All candidates, found as they are asked for: nothing is collected.
pub(crate) fn candidates(paths: &[PathBuf]) -> impl Iterator<Item = Candidate> + Send + '_ {
    paths
        .iter()
        .flat_map(WalkDir::new)
        .filter_map(|entry| match entry {
            Ok(entry) => candidate(entry.into_path()),
            Err(error) => Some(Candidate::Unreadable(unreadable(error))),
        })
}

fn candidate(path: PathBuf) -> Option<Candidate> {
    // Follows a link; one that leads nowhere is no file.
    let is_file = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
    if !is_file || is_temporary(&path) {
        return None;
    }
    match file_of_manifest(&path) {
        None => Some(Candidate::File(path)),
        Some(file) if is_absent(&file) => Some(Candidate::Stale),
        Some(_) => None,
    }
}

fn is_absent(file: &Path) -> bool {
    fs::metadata(file).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn unreadable(error: walkdir::Error) -> PublishFileError {
    let path = error.path().unwrap_or(Path::new(".")).to_owned();
    PublishFileError::Read {
        path,
        source: error.into(),
    }
}
