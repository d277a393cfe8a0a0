//! What can fail, where, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// RocksDB's word on a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IndexError {
    /// What RocksDB said.
    pub message: String,
    /// The disk was full.
    pub no_space: bool,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "cannot open the store {}: {holder} uses it; stop that one or choose another state directory",
        dir.display()
    )]
    InUse {
        /// The store's directory.
        dir: PathBuf,
        /// `process 123`, or `another process` when it left no number.
        holder: String,
    },
    /// The directory is somebody else's.
    #[error(
        "cannot open the store {}: it belongs to user {owner} and this process runs as user \
         {user}; run as that user or choose another state directory",
        dir.display()
    )]
    OtherOwner {
        /// The store's directory.
        dir: PathBuf,
        /// Numeric id of its owner.
        owner: u32,
        /// Numeric id of this process's user.
        user: u32,
    },
    /// Written by another version of the program, or no store at all.
    #[error(
        "cannot open the store {}: its FORMAT file says {found:?}, this program reads {expected:?}; \
         use the version that wrote it, or move the directory away to begin with an empty store",
        dir.display()
    )]
    OtherFormat {
        /// The store's directory.
        dir: PathBuf,
        /// The beginning of what the file says.
        found: String,
        /// What this program writes.
        expected: &'static str,
    },
    /// The file system said no.
    #[error(
        "cannot open the store: {doing} {} failed: {source}; check its permissions and the disk",
        path.display()
    )]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The index cannot be used.
    #[error(
        "cannot open the index of the store {}: {source}; if it is damaged, move the directory \
         away: segments are then fetched again",
        dir.display()
    )]
    Index {
        /// The store's directory.
        dir: PathBuf,
        /// The reason.
        source: IndexError,
    },
}

impl OpenError {
    pub(crate) fn io<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

/// Why an operation on an open store failed. The store stays usable, and nothing that was stored
/// is lost.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full, or would be with less left than is to stay free.
    #[error(
        "the store {} cannot take {needed_bytes} bytes more: the disk is full; free some space, \
         lower the cache limit, or go on without caching",
        dir.display()
    )]
    NoSpace {
        /// The store's directory.
        dir: PathBuf,
        /// What was to be written.
        needed_bytes: u64,
    },
    /// The limit leaves no room beside what is held.
    #[error(
        "the store cannot take {needed_bytes} bytes more: its limit of {limit_bytes} bytes is \
         taken by segments in use; raise the cache limit or go on without caching"
    )]
    Full {
        /// What was to be written.
        needed_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Nobody makes segments of this size.
    #[error("a segment of {bytes} bytes cannot be stored: a store takes 1 to {limit} bytes")]
    SegmentSize {
        /// Its size.
        bytes: usize,
        /// The largest that is taken.
        limit: u32,
    },
    /// The file system said no.
    #[error("{doing} {} in the store failed: {source}; check the disk", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The index said no.
    #[error("the index of the store failed: {0}; check the disk")]
    Index(IndexError),
    /// A record in the index makes no sense.
    #[error(
        "a record of the store's index ({what}) cannot be read; move the store's directory away: \
         segments are then fetched again"
    )]
    DamagedRecord {
        /// Which kind of record.
        what: &'static str,
    },
    /// A content's text is longer than its record takes.
    #[error("the URL or file name of a content has {bytes} bytes, a store takes {limit}")]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The longest that is taken.
        limit: usize,
    },
    /// A thread panicked while it wrote; what it left is mended when the store is opened again.
    #[error("the store stopped taking writes after an internal error; restart the agent")]
    Stopped,
}

impl StoreError {
    pub(crate) fn io<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// Gives "the disk is full" its own variant, from whichever layer it comes.
    pub(crate) fn or_no_space(self, dir: &Path, needed_bytes: u64) -> Self {
        let full = match &self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            Self::Index(source) => source.no_space,
            Self::NoSpace { .. }
            | Self::Full { .. }
            | Self::SegmentSize { .. }
            | Self::DamagedRecord { .. }
            | Self::TextTooLong { .. }
            | Self::Stopped => false,
        };
        if full {
            Self::NoSpace {
                dir: dir.to_owned(),
                needed_bytes,
            }
        } else {
            self
        }
    }
}

impl From<IndexError> for StoreError {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}
