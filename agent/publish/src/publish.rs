//! Many files' publication, on all cores.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io, thread};

use branchline_hashing::SegmentingParameters;

use crate::PublishFileError;
use crate::candidates::{Candidate, candidates};
use crate::file::{Done, publish_file};
use crate::progress::{Outcome, Progress, ProgressSink};

/// How to publish.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// How files are cut. Versions share segments only where this stays the same.
    pub parameters: SegmentingParameters,
    /// Files that are read at the same time, each in some 5 MiB of memory.
    pub threads: NonZeroUsize,
}

impl Default for PublishOptions {
    /// The default segments, and as many files at a time as there are cores.
    fn default() -> Self {
        Self {
            parameters: SegmentingParameters::DEFAULT,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// What was done. Complete only when `failed` is empty.
#[derive(Debug, Default)]
pub struct PublishReport {
    /// Files whose manifest was written.
    pub written: u64,
    /// Files whose manifest was current.
    pub unchanged: u64,
    /// Manifests whose file is gone; they are left where they are.
    pub stale: u64,
    /// Files and folders that could not be published. All others were.
    pub failed: Vec<PublishFileError>,
}

/// Why nothing was published at all.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A path that was named cannot be found.
    #[error("cannot publish {path}: {source}", path = path.display())]
    Path {
        /// As it was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path that was named is a device, a socket or a FIFO.
    #[error("cannot publish {path}: neither a file nor a folder", path = path.display())]
    Kind {
        /// As it was named.
        path: PathBuf,
    },
}

/// Writes `NAME.branchline` beside each of the files, and beside each file in the folders, wherever
/// it is not current.
///
/// # Errors
/// [`PublishError`] before anything is done, when a path makes no sense. What goes wrong with
/// single files does not stop the others and is in the report.
pub fn publish(
    paths: &[PathBuf],
    options: &PublishOptions,
    progress: ProgressSink<'_>,
) -> Result<PublishReport, PublishError> {
    paths.iter().try_for_each(|path| check_named(path))?;
    let files = count(paths, progress);
    let workers = usize::try_from(files)
        .unwrap_or(usize::MAX)
        .clamp(1, options.threads.get());

    // The walk is cheap beside the reading: workers take turns at it.
    let queue = Mutex::new(candidates(paths));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let reports = thread::scope(|scope| {
        let work = || scope.spawn(|| work(next, options.parameters, progress));
        let workers: Vec<_> = (0..workers).map(|_| work()).collect();
        workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<Vec<_>>()
    });
    Ok(reports
        .into_iter()
        .fold(PublishReport::default(), PublishReport::and))
}

fn check_named(path: &Path) -> Result<(), PublishError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => Ok(()),
        Ok(_) => Err(PublishError::Kind {
            path: path.to_owned(),
        }),
        Err(source) => Err(PublishError::Path {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Tells how much there is; a second walk is cheaper than remembering every path.
fn count(paths: &[PathBuf], progress: ProgressSink<'_>) -> u64 {
    let (mut files, mut bytes) = (0, 0);
    for candidate in candidates(paths) {
        if let Candidate::File(path) = candidate {
            files += 1;
            bytes += fs::metadata(path).map_or(0, |metadata| metadata.len());
        }
    }
    progress(Progress::Found { files, bytes });
    files
}

fn work(
    next: impl Fn() -> Option<Candidate>,
    parameters: SegmentingParameters,
    progress: ProgressSink<'_>,
) -> PublishReport {
    let mut report = PublishReport::default();
    while let Some(candidate) = next() {
        match candidate {
            Candidate::Stale => report.stale += 1,
            Candidate::Unreadable(error) => report.failed.push(error),
            Candidate::File(path) => {
                let result = publish_file(&path, parameters, progress);
                let outcome = match &result {
                    Ok(Done::Written) => Outcome::Written,
                    Ok(Done::Unchanged) => Outcome::Unchanged,
                    Err(error) => Outcome::Failed(error),
                };
                progress(Progress::Finished {
                    path: &path,
                    outcome,
                });
                report.add(result);
            }
        }
    }
    report
}

impl PublishReport {
    fn add(&mut self, result: Result<Done, PublishFileError>) {
        match result {
            Ok(Done::Written) => self.written += 1,
            Ok(Done::Unchanged) => self.unchanged += 1,
            Err(error) => self.failed.push(error),
        }
    }

    fn and(mut self, mut other: Self) -> Self {
        self.written += other.written;
        self.unchanged += other.unchanged;
        self.stale += other.stale;
        self.failed.append(&mut other.failed);
        self
    }
}
