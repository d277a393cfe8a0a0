//! A job's states, and the one table of what leads from which to which.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{FileIndex, JobError, Trouble, UnixSeconds};

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for its owner to resume it.
    Suspended,
    /// Waits for its turn.
    Queued,
    /// Transfers run, nothing has come yet.
    Connecting,
    /// Transfers run, bytes have come.
    Transferring,
    /// Failed, and tries again by itself.
    TransientError {
        /// What failed, and when it is tried again.
        error: JobError,
    },
    /// Failed, and waits for its owner.
    Error {
        /// What failed.
        error: JobError,
    },
    /// All files are there, under their hidden names.
    Transferred {
        /// Whether they are just getting their own.
        placing: Option<Placing>,
    },
    /// Over: the files are in place.
    Acknowledged {
        /// When it ended.
        ended: UnixSeconds,
    },
    /// Over: what had no name yet is gone.
    Cancelled {
        /// When it ended.
        ended: UnixSeconds,
        /// Who ended it.
        cause: CancelCause,
    },
}

/// Files are getting their names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placing {
    /// The first that could not.
    pub failed: Option<(FileIndex, Trouble)>,
}

/// Who cancelled a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelCause {
    /// Somebody who may.
    Request,
    /// The agent: nobody had touched it for too long.
    Inactive,
}

/// A state's name.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StateKind {
    /// See [`JobState::Suspended`].
    Suspended,
    /// See [`JobState::Queued`].
    Queued,
    /// See [`JobState::Connecting`].
    Connecting,
    /// See [`JobState::Transferring`].
    Transferring,
    /// See [`JobState::TransientError`].
    TransientError,
    /// See [`JobState::Error`].
    Error,
    /// See [`JobState::Transferred`].
    Transferred,
    /// See [`JobState::Acknowledged`].
    Acknowledged,
    /// See [`JobState::Cancelled`].
    Cancelled,
}

impl StateKind {
    /// All, in the order in which a job meets them.
    pub const ALL: [Self; 9] = [
        Self::Suspended,
        Self::Queued,
        Self::Connecting,
        Self::Transferring,
        Self::TransientError,
        Self::Error,
        Self::Transferred,
        Self::Acknowledged,
        Self::Cancelled,
    ];

    /// The word for it, as in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Queued => "queued",
            Self::Connecting => "connecting",
            Self::Transferring => "transferring",
            Self::TransientError => "transient_error",
            Self::Error => "error",
            Self::Transferred => "transferred",
            Self::Acknowledged => "acknowledged",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can happen to the job any more.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Acknowledged | Self::Cancelled)
    }

    /// Whether the job has transfers running.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Connecting | Self::Transferring)
    }

    /// Whether the job takes part in scheduling.
    pub(super) const fn is_scheduled(self) -> bool {
        self.is_active() || matches!(self, Self::Queued)
    }
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl JobState {
    /// Its name.
    pub fn kind(&self) -> StateKind {
        match self {
            Self::Suspended => StateKind::Suspended,
            Self::Queued => StateKind::Queued,
            Self::Connecting => StateKind::Connecting,
            Self::Transferring => StateKind::Transferring,
            Self::TransientError { .. } => StateKind::TransientError,
            Self::Error { .. } => StateKind::Error,
            Self::Transferred { .. } => StateKind::Transferred,
            Self::Acknowledged { .. } => StateKind::Acknowledged,
            Self::Cancelled { .. } => StateKind::Cancelled,
        }
    }

    /// When it ended.
    pub fn ended(&self) -> Option<UnixSeconds> {
        match self {
            Self::Acknowledged { ended } | Self::Cancelled { ended, .. } => Some(*ended),
            Self::Suspended
            | Self::Queued
            | Self::Connecting
            | Self::Transferring
            | Self::TransientError { .. }
            | Self::Error { .. }
            | Self::Transferred { .. } => None,
        }
    }

    /// The error that the job shows.
    pub fn error(&self) -> Option<&JobError> {
        match self {
            Self::TransientError { error } | Self::Error { error } => Some(error),
            Self::Suspended
            | Self::Queued
            | Self::Connecting
            | Self::Transferring
            | Self::Transferred { .. }
            | Self::Acknowledged { .. }
            | Self::Cancelled { .. } => None,
        }
    }
}

/// What can lead to another state: requests first, then what happens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// Request: more files.
    AddFiles,
    /// Request: go on; after an error: try again.
    Resume,
    /// Request: pause.
    Suspend,
    /// Request: give the files their names; drop what is not there yet.
    Complete,
    /// Request: end it and drop all that has no name yet.
    Cancel,
    /// Request: other settings.
    Set,
    /// Request: another URL for a file, or another prefix for all.
    ReplaceUrl,
    /// Its first transfer was started.
    Started,
    /// The first bytes came.
    FirstBytes,
    /// Another job goes first, or nothing of it can be started just now.
    Yielded,
    /// All that is left waits to be tried again, or the network is gone.
    Faltered,
    /// Something can be tried again.
    Requeued,
    /// Nothing can be done without its owner: a permanent error, or a timeout.
    GaveUp,
    /// All files are there.
    AllFetched,
    /// All files have their names.
    AllPlaced,
    /// Nobody touched it for too long.
    Abandoned,
}

impl Trigger {
    /// As people read it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::AddFiles => "add files",
            Self::Resume => "resume",
            Self::Suspend => "suspend",
            Self::Complete => "complete",
            Self::Cancel => "cancel",
            Self::Set => "set",
            Self::ReplaceUrl => "replace URL",
            Self::Started => "started",
            Self::FirstBytes => "first bytes",
            Self::Yielded => "yielded",
            Self::Faltered => "faltered",
            Self::Requeued => "requeued",
            Self::GaveUp => "gave up",
            Self::AllFetched => "all fetched",
            Self::AllPlaced => "all placed",
            Self::Abandoned => "abandoned",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The state that `trigger` leads to; `None` where it cannot be.
pub fn next(from: StateKind, trigger: Trigger) -> Option<StateKind> {
    let (_, row) = TABLE.iter().find(|(of, _)| *of == trigger)?;
    let (_, to) = StateKind::ALL
        .iter()
        .zip(row)
        .find(|(of, _)| **of == from)?;
    *to
}

/// Every transition there is. Columns are the states of [`StateKind::ALL`].
#[rustfmt::skip]
const TABLE: [(Trigger, [Option<StateKind>; 9]); 16] = {
    use StateKind::{
        Acknowledged, Cancelled, Connecting, Error, Queued, Suspended, Transferred, Transferring,
        TransientError,
    };
    const SUS: Option<StateKind> = Some(Suspended);
    const QUE: Option<StateKind> = Some(Queued);
    const CON: Option<StateKind> = Some(Connecting);
    const TFG: Option<StateKind> = Some(Transferring);
    const TRE: Option<StateKind> = Some(TransientError);
    const ERR: Option<StateKind> = Some(Error);
    const TFD: Option<StateKind> = Some(Transferred);
    const ACK: Option<StateKind> = Some(Acknowledged);
    const CAN: Option<StateKind> = Some(Cancelled);
    const NOT: Option<StateKind> = None;
    [
        // from:              SUS  QUE  CON  TFG  TRE  ERR  TFD  ACK  CAN
        (Trigger::AddFiles,   [SUS, QUE, CON, TFG, TRE, ERR, QUE, NOT, NOT]),
        (Trigger::Resume,     [QUE, QUE, CON, TFG, QUE, QUE, NOT, NOT, NOT]),
        (Trigger::Suspend,    [SUS, SUS, SUS, SUS, SUS, SUS, NOT, NOT, NOT]),
        (Trigger::Complete,   [TFD, TFD, TFD, TFD, TFD, TFD, TFD, NOT, NOT]),
        (Trigger::Cancel,     [CAN, CAN, CAN, CAN, CAN, CAN, CAN, NOT, NOT]),
        (Trigger::Set,        [SUS, QUE, CON, TFG, TRE, ERR, TFD, NOT, NOT]),
        (Trigger::ReplaceUrl, [SUS, QUE, CON, TFG, TRE, ERR, NOT, NOT, NOT]),
        (Trigger::Started,    [NOT, CON, NOT, NOT, NOT, NOT, NOT, NOT, NOT]),
        (Trigger::FirstBytes, [NOT, NOT, TFG, NOT, NOT, NOT, NOT, NOT, NOT]),
        (Trigger::Yielded,    [NOT, NOT, QUE, QUE, NOT, NOT, NOT, NOT, NOT]),
        (Trigger::Faltered,   [NOT, TRE, TRE, TRE, NOT, NOT, NOT, NOT, NOT]),
        (Trigger::Requeued,   [NOT, NOT, NOT, NOT, QUE, NOT, NOT, NOT, NOT]),
        (Trigger::GaveUp,     [NOT, ERR, ERR, ERR, ERR, NOT, ERR, NOT, NOT]),
        (Trigger::AllFetched, [NOT, TFD, TFD, TFD, TFD, NOT, NOT, NOT, NOT]),
        (Trigger::AllPlaced,  [NOT, NOT, NOT, NOT, NOT, NOT, ACK, NOT, NOT]),
        (Trigger::Abandoned,  [CAN, CAN, CAN, CAN, CAN, CAN, CAN, NOT, NOT]),
    ]
};

/// The table as docs/jobs.md shows it.
#[cfg(test)]
pub(super) fn table_in_markdown() -> String {
    let mut lines = vec![String::from("| from |"), String::from("|---|")];
    for (trigger, _) in &TABLE {
        lines[0] += &format!(" {trigger} |");
        lines[1] += "---|";
    }
    for (column, from) in StateKind::ALL.into_iter().enumerate() {
        let mut line = format!("| **{from}** |");
        for (_, row) in &TABLE {
            line += &match row[column] {
                None => " |".to_owned(),
                Some(to) if to == from => " = |".to_owned(),
                Some(to) => format!(" {to} |"),
            };
        }
        lines.push(line);
    }
    lines.join("\n") + "\n"
}
