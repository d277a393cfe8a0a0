//! What goes wrong with jobs, and with what is asked of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{FileIndex, JobId, JobTime, NotAUrl, Revision, SpecError, StateKind, Trigger};

/// Where something went wrong.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorContext {
    /// In the agent: a timeout, a quota.
    Queue,
    /// On this machine: disk full, no rights, no such folder.
    LocalFile,
    /// At the origin: no such file, refused.
    RemoteFile,
    /// On the way: connections, names, proxies.
    Transport,
    /// The bytes are not those that were promised.
    Verification,
    /// Somebody could not be told.
    Notification,
}

impl ErrorContext {
    /// As people read it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::LocalFile => "local file",
            Self::RemoteFile => "remote file",
            Self::Transport => "transport",
            Self::Verification => "verification",
            Self::Notification => "notification",
        }
    }
}

/// What went wrong: where, and why in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Where.
    pub context: ErrorContext,
    /// Why.
    pub cause: String,
}

/// The longest cause or notice that is kept.
const MAX_LINE_BYTES: usize = 512;

/// The first line of a text, without control characters.
pub(super) fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = &line[..line.floor_char_boundary(MAX_LINE_BYTES)];
    line.replace(char::is_control, " ")
}

impl Trouble {
    /// Keeps the first line of `cause`.
    pub fn new(context: ErrorContext, cause: &str) -> Self {
        Self {
            context,
            cause: first_line(cause),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context.word(), self.cause)
    }
}

/// What a job suffers from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// What went wrong.
    pub trouble: Trouble,
    /// With which file.
    pub file: Option<FileIndex>,
    /// Whether it is tried again.
    pub permanence: Permanence,
}

/// Whether something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permanence {
    /// When the owner says so.
    Permanent,
    /// By itself.
    Transient {
        /// When; `None`: when the network is back.
        retry_at: Option<JobTime>,
    },
}

impl JobError {
    /// One that waits for the owner.
    pub(super) fn permanent(trouble: Trouble, file: Option<FileIndex>) -> Self {
        Self {
            trouble,
            file,
            permanence: Permanence::Permanent,
        }
    }

    /// One that passes.
    pub(super) fn transient(
        trouble: Trouble,
        file: Option<FileIndex>,
        retry_at: Option<JobTime>,
    ) -> Self {
        Self {
            trouble,
            file,
            permanence: Permanence::Transient { retry_at },
        }
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            Some(file) => write!(f, "{} (file {file})", self.trouble),
            None => self.trouble.fmt(f),
        }
    }
}

/// Why a request is refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is none of this number, or it is somebody else's.
    #[error("no such job: {0}")]
    NoSuchJob(JobId),
    /// The job has no such file.
    #[error("job {job} has no file {file}")]
    NoSuchFile {
        /// Of which job.
        job: JobId,
        /// The index asked for.
        file: FileIndex,
    },
    /// Not in this state.
    #[error("a job that is {state} cannot be asked to {request}")]
    WrongState {
        /// The job's state.
        state: StateKind,
        /// What was asked for.
        request: Trigger,
    },
    /// The job's files are just getting their names.
    #[error("the job's files are just being put in place; ask again when that has ended")]
    Placing,
    /// There is nothing to do.
    #[error("the job has no files")]
    EmptyJob,
    /// The job has changed since the caller looked at it.
    #[error("the job has changed: revision {actual} where {expected} was expected")]
    RevisionMismatch {
        /// What the caller believed.
        expected: Revision,
        /// What is.
        actual: Revision,
    },
    /// The file is there already, or dropped.
    #[error("file {0} is not to be fetched any more")]
    FileFinished(FileIndex),
    /// No unfinished file's URL begins so.
    #[error("no URL of an unfinished file begins with that prefix")]
    PrefixNotFound,
    /// With the new prefix it would not be one.
    #[error(transparent)]
    NotAUrl(#[from] NotAUrl),
    /// What was asked for is not possible.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// More than this user may have.
    #[error("at most {most} {what} are allowed for each user")]
    Quota {
        /// Of what.
        what: &'static str,
        /// How many.
        most: u64,
    },
}

/// Why records from the journal cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Two jobs with one number.
    #[error("the journal has job {0} twice")]
    Twice(JobId),
    /// A file without its job.
    #[error("the journal has a file of job {0}, which it does not have")]
    Orphan(JobId),
    /// A job without its files.
    #[error("the journal has {found} of the {expected} files of job {job}")]
    FilesMissing {
        /// Whose.
        job: JobId,
        /// How many it has.
        expected: u32,
        /// How many are there.
        found: usize,
    },
}
