//! What goes out of [`super::Jobs`], and what comes back.

use std::path::PathBuf;
use std::time::Duration;

use branchline_hashing::Digest;
use serde::{Deserialize, Serialize};

use super::{
    Attempt, BySource, ByteRange, Credentials, FileIndex, FileRecord, Header, JobError, JobId,
    JobRecord, Live, NotificationId, NotifyOf, Priority, Proof, ProxyChoice, RemoteUrl, TargetPath,
    Trouble, UnixSeconds, UserId,
};

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write these to the journal, all or none, and sync it, before the request that led here is answered and
    /// before any later action. Several in a row may be written as one.
    Persist(Vec<Change>),
    /// Transfer this file. Ends with one of [`Event::Staged`], [`Event::Modified`], [`Event::Failed`] and
    /// [`Event::Stopped`]; [`Event::Connected`] and [`Event::Progress`] come before.
    Start {
        /// Of which job.
        job: JobId,
        /// Which file.
        file: FileIndex,
        /// What all events about this transfer carry.
        attempt: Attempt,
        /// What and how.
        order: Box<Order>,
    },
    /// Stop this transfer and keep what it has. Answered by [`Event::Stopped`], unless it has ended before.
    Stop {
        /// Of which job.
        job: JobId,
        /// Which file.
        file: FileIndex,
        /// Which transfer.
        attempt: Attempt,
    },
    /// Give this file its name, with its owner's rights; replaces what has that name. Answered by [`Event::Placed`] or
    /// [`Event::PlaceFailed`].
    Place {
        /// Of which job.
        job: JobId,
        /// Which file.
        file: FileIndex,
        /// Whose rights.
        owner: UserId,
        /// Its hidden name.
        from: PathBuf,
        /// Its name.
        to: TargetPath,
        /// Whether it may have been done before a restart: then, when nothing is at `from` any more, it was.
        again: bool,
    },
    /// Remove this file under its hidden name, and the partial file of that, if they are there, with its owner's
    /// rights. Answered by [`Event::Discarded`], also when it cannot be done.
    Discard {
        /// Of which job.
        job: JobId,
        /// Which file.
        file: FileIndex,
        /// Whose rights.
        owner: UserId,
        /// Its hidden name.
        staged: PathBuf,
    },
    /// Tell somebody. Answered by `handle_notified` or `handle_notify_failed`.
    Notify(Box<Notification>),
}

/// What the journal is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The numbers that are given next.
    Counters(Counters),
    /// This job, without its files. It may hold secrets: see [`super::Secret`].
    Job(Box<JobRecord>),
    /// One file of a job.
    File(JobId, FileIndex, Box<FileRecord>),
    /// Not this job any more, nor any of its files 0 .. `files`.
    ForgetJob {
        /// Which.
        job: JobId,
        /// How many records of files there are.
        files: u32,
    },
    /// A notification that is to be delivered.
    Notification(Box<NotificationRecord>),
    /// Not this notification any more.
    ForgetNotification(NotificationId),
}

/// The numbers that are given next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// To a job.
    pub next_job: JobId,
    /// To a notification.
    pub next_notification: NotificationId,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            next_job: JobId(1),
            next_notification: NotificationId(1),
        }
    }
}

/// All that a transfer needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// With whose rights.
    pub owner: UserId,
    /// Where from.
    pub url: RemoteUrl,
    /// Which bytes; all when none are named.
    pub ranges: Vec<ByteRange>,
    /// The whole file's digest, when somebody knows it.
    pub digest: Option<Digest>,
    /// No manifest is to be looked for.
    pub without_manifest: bool,
    /// The hidden name under which the complete, verified and synced file is to appear; not before. When the
    /// power went between that and its record, a complete file is there already.
    pub staged: PathBuf,
    /// The name it will get: in the same folder.
    pub path: TargetPath,
    /// Sent with each request to the origin.
    pub headers: Vec<Header>,
    /// For the origin.
    pub credentials: Option<Credentials>,
    /// How the origin is reached.
    pub proxy: ProxyChoice,
    /// How urgent it is.
    pub priority: Priority,
}

/// What became of a transfer, a place or a discard. Events of an attempt that has ended are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The origin has answered.
    Connected {
        /// Of how many bytes the file is, or its ranges are.
        length: Option<u64>,
    },
    /// More bytes are here. A few a second are enough.
    Progress {
        /// How many bytes of the file are here and verified.
        bytes: u64,
        /// Where they came from in this attempt.
        sources: BySource,
    },
    /// Whom it fetches from, and what it waits for.
    Live(Live),
    /// Something its owner should read; it goes on.
    Notice(String),
    /// Complete, verified and synced under its hidden name.
    Staged {
        /// How many bytes it has.
        bytes: u64,
        /// Where they came from in this attempt.
        sources: BySource,
        /// What it is.
        proof: Proof,
    },
    /// The remote file is another version now: this attempt has ended, the file is fetched anew.
    Modified,
    /// This attempt has ended.
    Failed(Failure),
    /// Stopped as asked; what was here is kept.
    Stopped,
}

/// Why an attempt has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It may work later: connections, 5xx, 408, 429.
    Transient {
        /// What happened.
        trouble: Trouble,
        /// When the server said to come again.
        retry_after: Option<Duration>,
    },
    /// Trying again changes nothing: 404, 403, disk full, wrong digest.
    Permanent {
        /// What happened.
        trouble: Trouble,
    },
}

/// Why a file did not get its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceFailure {
    /// What happened.
    pub trouble: Trouble,
    /// What lies under the hidden name.
    pub staged: Staging,
}

/// What lies under a file's hidden name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staging {
    /// The file, as it was staged.
    Kept,
    /// Nothing: it must be fetched again.
    Lost,
}

/// Over which way somebody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Posted to this.
    Webhook(RemoteUrl),
    /// Run with the owner's rights.
    Command(Vec<String>),
}

/// A notification as the journal has it until it is delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationRecord {
    /// Its number.
    pub id: NotificationId,
    /// About which job.
    pub job: JobId,
    /// The job's name.
    pub name: String,
    /// Whose job.
    pub owner: UserId,
    /// How it is told.
    pub channel: Channel,
    /// What is told.
    pub of: NotifyOf,
    /// About which file.
    pub file: Option<FileIndex>,
    /// Where that file is to lie.
    pub path: Option<TargetPath>,
    /// Of an error: which.
    pub error: Option<JobError>,
    /// When it happened.
    pub happened: UnixSeconds,
    /// How often it was tried.
    pub tries: u32,
}

/// A notification to be delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// What is told, to whom.
    pub record: NotificationRecord,
    /// Whether it may have been delivered before.
    pub may_be_repeated: bool,
}
