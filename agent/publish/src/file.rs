//! One file's publication.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use branchline_hashing::{
    Manifest, ManifestBuilder, ManifestError, SegmentHash, Segmenter, SegmentingParameters,
};

use crate::manifest_file::{head_made_for, manifest_path, replace};
use crate::progress::{Progress, ProgressSink};
use crate::reading::read_through;
use crate::stamp::{Stamp, open_regular, settled_stamp};

/// A file that changes is read once more, then given up: it is being written to.
const ATTEMPTS: u32 = 2;

/// Why one file has no current manifest.
#[derive(Debug, thiserror::Error)]
pub enum PublishFileError {
    /// It, or the folder, could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was written to or replaced while it was read, twice.
    #[error("{path} changed while it was read; publish it when its writer is done", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// No manifest can describe it.
    #[error("cannot describe {path}: {source}", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The manifest could not be put beside it.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// Of the manifest.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was done for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Written,
    Unchanged,
}

/// Sees to it that `path` has a current manifest.
pub(crate) fn publish_file(
    path: &Path,
    parameters: SegmentingParameters,
    progress: ProgressSink<'_>,
) -> Result<Done, PublishFileError> {
    for _ in 0..ATTEMPTS {
        match attempt(path, parameters, progress) {
            Ok(done) => return Ok(done),
            Err(Failure::Changed) => tracing::debug!(?path, "changed while it was read"),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Read(source)) => {
                return Err(PublishFileError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
            Err(Failure::Manifest(source)) => {
                return Err(PublishFileError::Manifest {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    Err(PublishFileError::Changed {
        path: path.to_owned(),
    })
}

/// Why one attempt came to nothing.
enum Failure {
    Changed,
    Read(io::Error),
    Manifest(ManifestError),
    Final(PublishFileError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

fn attempt(
    path: &Path,
    parameters: SegmentingParameters,
    progress: ProgressSink<'_>,
) -> Result<Done, Failure> {
    let manifest_path = manifest_path(path);
    let file = open_regular(path)?;
    let metadata = file.metadata()?;
    if is_current(&manifest_path, &Stamp::of(&metadata), parameters) {
        progress(Progress::Advanced {
            bytes: metadata.len(),
        });
        return Ok(Done::Unchanged);
    }
    let stamp = settled_stamp(&file)?;
    let manifest = describe(&file, stamp.length, parameters, progress)?;
    if !stamp.still_holds(&file, path)? {
        return Err(Failure::Changed);
    }
    match replace(&manifest_path, &manifest, &file.metadata()?, &stamp) {
        Ok(()) => Ok(Done::Written),
        Err(source) => Err(Failure::Final(PublishFileError::Write {
            path: manifest_path,
            source,
        })),
    }
}

fn is_current(manifest: &Path, stamp: &Stamp, parameters: SegmentingParameters) -> bool {
    head_made_for(manifest, stamp).is_some_and(|head| head.parameters() == parameters)
}

fn describe(
    file: &File,
    length: u64,
    parameters: SegmentingParameters,
    progress: ProgressSink<'_>,
) -> Result<Manifest, Failure> {
    let segmenter = Segmenter::new(parameters);
    let mut builder = ManifestBuilder::new(parameters);
    let sha256 = read_through(
        file,
        length,
        parameters.max() as usize,
        |window, is_last| {
            let done = push_segments(&segmenter, &mut builder, window, is_last)?;
            progress(Progress::Advanced { bytes: done as u64 });
            Ok::<_, Failure>(done)
        },
    )?;
    builder.finish(sha256).map_err(Failure::Manifest)
}

fn push_segments(
    segmenter: &Segmenter,
    builder: &mut ManifestBuilder,
    window: &[u8],
    is_last: bool,
) -> Result<usize, Failure> {
    let mut done = 0;
    while let Some(length) = segmenter.next_boundary(&window[done..], is_last) {
        let segment = &window[done..done + length];
        #[expect(clippy::cast_possible_truncation, reason = "at most 16 MiB")]
        let length = length as u32;
        builder
            .push(length, SegmentHash::of(segment))
            .map_err(Failure::Manifest)?;
        done += segment.len();
    }
    Ok(done)
}
