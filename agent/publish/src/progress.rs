//! What long work tells whoever waits for it.

use std::path::Path;

use crate::PublishFileError;

/// One step of `publish` or `verify`.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// What there is to do, told before anything is read.
    Found {
        /// Files to look at.
        files: u64,
        /// Their lengths together; less needs to be read where manifests are current.
        bytes: u64,
    },
    /// So many bytes more are dealt with: read, or found to be published already. A file that
    /// changed and is read a second time counts twice.
    Advanced {
        /// Bytes since the last such step.
        bytes: u64,
    },
    /// A file is done.
    Finished {
        /// The file, not its manifest.
        path: &'a Path,
        /// How it went.
        outcome: Outcome<'a>,
    },
}

/// How one file's publication went.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// Its manifest was written.
    Written,
    /// Its manifest was current.
    Unchanged,
    /// It has no current manifest now.
    Failed(&'a PublishFileError),
}

/// Takes the steps; called from several threads, within the reading, so it should be quick.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress<'_>) + Sync);
