//! One file of a job.

use serde::{Deserialize, Serialize};

use super::pool::PoolKind;
use super::{Attempt, FileSpec, JobTime, Trouble};

/// A file as the journal has it. Transfers are not in it: after a restart none runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// What was asked for.
    pub spec: FileSpec,
    /// Where it stands.
    pub state: FileState,
    /// How many bytes it has, once the origin said so.
    pub length: Option<u64>,
    /// How many of them are here.
    pub bytes: u64,
    /// Where they came from, over all attempts.
    pub sources: BySource,
    /// Failures in a row, without a byte in between.
    pub failures: u32,
    /// How often it changed at the origin while it was fetched.
    pub changes: u32,
}

/// Where a file stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// To be fetched.
    Waiting,
    /// To be tried again.
    RetryLater {
        /// What failed.
        trouble: Trouble,
        /// When it is tried again.
        at: JobTime,
        /// Whether the server named the time; the network's return does not change it then.
        by_server: bool,
    },
    /// Not tried again by itself.
    Failed {
        /// What failed.
        trouble: Trouble,
    },
    /// Complete and verified, under its hidden name.
    Staged,
    /// Just getting its own name.
    Placing,
    /// Complete, verified, and under its own name.
    InPlace,
    /// Not wanted any more.
    Dropped {
        /// Whether nothing of it is left on the disk.
        discarded: bool,
    },
}

/// Bytes by where they came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BySource {
    /// From the origin.
    pub from_origin: u64,
    /// From peers.
    pub from_peers: u64,
    /// From this machine's store, or from what an earlier attempt left.
    pub from_store: u64,
}

impl BySource {
    /// All.
    pub fn total(&self) -> u64 {
        self.from_origin
            .saturating_add(self.from_peers)
            .saturating_add(self.from_store)
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            from_origin: self.from_origin.saturating_add(other.from_origin),
            from_peers: self.from_peers.saturating_add(other.from_peers),
            from_store: self.from_store.saturating_add(other.from_store),
        }
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        Self {
            from_origin: self.from_origin.saturating_sub(other.from_origin),
            from_peers: self.from_peers.saturating_sub(other.from_peers),
            from_store: self.from_store.saturating_sub(other.from_store),
        }
    }
}

/// A file, and what is known of it until the next restart.
#[derive(Debug)]
pub(super) struct File {
    pub(super) record: FileRecord,
    pub(super) transfer: Option<Transfer>,
    /// Whether something of it may lie on the disk under a hidden name.
    pub(super) on_disk: bool,
}

/// An attempt that the shell has not ended yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) attempt: Attempt,
    /// Whose place it takes.
    pub(super) pool: PoolKind,
    pub(super) stopping: bool,
    /// What this attempt brought.
    pub(super) sources: BySource,
}

impl File {
    pub(super) fn new(spec: FileSpec) -> Self {
        let record = FileRecord {
            spec,
            state: FileState::Waiting,
            length: None,
            bytes: 0,
            sources: BySource::default(),
            failures: 0,
            changes: 0,
        };
        Self {
            record,
            transfer: None,
            on_disk: false,
        }
    }

    pub(super) fn restored(record: FileRecord) -> Self {
        Self {
            record,
            transfer: None,
            on_disk: true,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.transfer.is_some_and(|transfer| !transfer.stopping)
    }

    /// Whether a transfer may be started for it.
    pub(super) fn is_startable(&self) -> bool {
        self.record.state == FileState::Waiting && self.transfer.is_none()
    }

    /// Whether it is still to be fetched: its URL matters.
    pub(super) fn is_unfinished(&self) -> bool {
        match self.record.state {
            FileState::Waiting | FileState::RetryLater { .. } | FileState::Failed { .. } => true,
            FileState::Staged
            | FileState::Placing
            | FileState::InPlace
            | FileState::Dropped { .. } => false,
        }
    }

    /// Where its bytes came from, the running attempt's included.
    pub(super) fn sources(&self) -> BySource {
        match &self.transfer {
            Some(transfer) => self.record.sources.plus(&transfer.sources),
            None => self.record.sources,
        }
    }

    /// The attempt is over; what it brought stays.
    pub(super) fn end_transfer(&mut self) -> Option<Transfer> {
        self.record.sources = self.sources();
        self.transfer.take()
    }
}
