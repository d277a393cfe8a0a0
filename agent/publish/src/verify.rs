//! Where a file differs from its manifest.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use branchline_hashing::{ContentKey, Manifest, SegmentHash, SegmentIndex};

use crate::manifest_file::{ReadManifestError, read_manifest};
use crate::progress::{Progress, ProgressSink};
use crate::reading::read_through;
use crate::stamp::{open_regular, settled_stamp};

/// What a file is, beside what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Names the content that the manifest describes.
    pub content_key: ContentKey,
    /// Bytes of the file.
    pub file_length: u64,
    /// Bytes that it should have.
    pub expected_length: u64,
    /// Bytes of the file in segments that are not the manifest's; adjacent ones are one range. A
    /// segment that the file ends within is one of them.
    pub different: Vec<Range<u64>>,
    /// Whether the file's SHA-256 is the manifest's.
    pub sha256_matches: bool,
}

impl VerifyReport {
    /// Whether the file is exactly what the manifest says.
    pub fn is_intact(&self) -> bool {
        self.different.is_empty() && self.file_length == self.expected_length && self.sha256_matches
    }

    /// Bytes that the file lacks at its end; empty when it lacks none.
    pub fn missing(&self) -> Range<u64> {
        self.file_length..self.expected_length.max(self.file_length)
    }

    /// Bytes that the file has past the end it should have; empty when there are none.
    pub fn extra(&self) -> Range<u64> {
        self.expected_length..self.file_length.max(self.expected_length)
    }
}

/// Why a file could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nothing to compare it with.
    #[error(transparent)]
    Manifest(#[from] ReadManifestError),
    /// It could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was written to or replaced while it was read.
    #[error("{path} changed while it was read; verify it when its writer is done", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// Compares every byte of `file` with the manifest at `manifest`.
///
/// # Errors
/// [`VerifyError`] when they cannot be compared; that they differ is in the report.
pub fn verify(
    file: &Path,
    manifest: &Path,
    progress: ProgressSink<'_>,
) -> Result<VerifyReport, VerifyError> {
    let manifest = read_manifest(manifest)?;
    match compare(file, &manifest, progress) {
        Ok(Some(report)) => Ok(report),
        Ok(None) => Err(VerifyError::Changed {
            path: file.to_owned(),
        }),
        Err(source) => Err(VerifyError::Read {
            path: file.to_owned(),
            source,
        }),
    }
}

/// `None` when the file changed meanwhile.
fn compare(
    path: &Path,
    manifest: &Manifest,
    progress: ProgressSink<'_>,
) -> io::Result<Option<VerifyReport>> {
    let file = open_regular(path)?;
    let stamp = settled_stamp(&file)?;
    progress(Progress::Found {
        files: 1,
        bytes: stamp.length,
    });

    let mut comparison = Comparison {
        manifest,
        next: SegmentIndex(0),
        different: Vec::new(),
    };
    let longest = manifest.parameters().max() as usize;
    let sha256 = read_through(&file, stamp.length, longest, |window, is_last| {
        let done = comparison.compare(window, is_last);
        progress(Progress::Advanced { bytes: done as u64 });
        Ok::<_, io::Error>(done)
    })?;
    Ok(stamp.still_holds(&file, path)?.then(|| VerifyReport {
        content_key: manifest.content_key(),
        file_length: stamp.length,
        expected_length: manifest.file_length(),
        different: comparison.different,
        sha256_matches: !manifest.states_sha256() || sha256 == *manifest.sha256(),
    }))
}

struct Comparison<'a> {
    manifest: &'a Manifest,
    next: SegmentIndex,
    different: Vec<Range<u64>>,
}

impl Comparison<'_> {
    /// Compares the whole segments of `window`, which begins where the next segment should.
    fn compare(&mut self, window: &[u8], is_last: bool) -> usize {
        let mut done = 0;
        while let Some(segment) = self.manifest.segment(self.next) {
            let rest = &window[done..];
            match rest.get(..segment.length as usize) {
                Some(bytes) => {
                    if SegmentHash::of(bytes) != segment.hash {
                        self.add_different(segment.range());
                    }
                    done += bytes.len();
                    self.next = SegmentIndex(self.next.0 + 1);
                }
                None if is_last => {
                    self.add_different(segment.offset..segment.offset + rest.len() as u64);
                    return window.len();
                }
                None => return done,
            }
        }
        // The file goes on past its last segment.
        window.len()
    }

    fn add_different(&mut self, range: Range<u64>) {
        match self.different.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.different.push(range),
        }
    }
}
