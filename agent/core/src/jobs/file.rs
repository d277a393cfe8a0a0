//! One file of a job.

use branchline_hashing::ContentKey;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::first_line;
use super::pool::PoolKind;
use super::schema::content_key;
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
    /// What it is, once it is staged.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// What its owner should read: the first [`NOTICES_KEPT`].
    #[serde(default)]
    pub notices: Vec<String>,
}

/// Notices of a file that are kept; there is hardly ever more than one.
pub const NOTICES_KEPT: usize = 8;

/// What a file is, and why that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    /// Which version of the file.
    #[schema(schema_with = content_key)]
    pub content: ContentKey,
    /// What says that the bytes are right.
    pub trust: Trust,
}

/// What the belief rests on that the bytes are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// The manifest that the origin publishes.
    Manifest,
    /// A digest known beforehand.
    Digest,
    /// The members of the enrolled branch.
    Branch,
    /// Every byte came from the origin.
    Origin,
}

impl std::fmt::Display for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Manifest => "manifest",
            Self::Digest => "digest",
            Self::Branch => "branch",
            Self::Origin => "origin",
        })
    }
}

/// What is known of a transfer while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Live {
    /// How many agents it takes segments from.
    pub peers: u32,
    /// What it waits for, when nothing arrives.
    pub waiting_for: Option<String>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
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

    /// These, and then those of an attempt that found some of them as a partial file: what it counts as
    /// from the store came from elsewhere before. The whole is as much as the attempt says.
    pub(super) fn continued_by(&self, attempt: &Self) -> Self {
        let found = self.total().min(attempt.from_store);
        let own = Self {
            from_store: attempt.from_store - found,
            ..*attempt
        };
        self.at_most(found).plus(&own)
    }

    /// So many of them: those from the origin first, which cost most.
    fn at_most(&self, mut bytes: u64) -> Self {
        let mut take = |from: u64| {
            let taken = from.min(bytes);
            bytes -= taken;
            taken
        };
        Self {
            from_origin: take(self.from_origin),
            from_peers: take(self.from_peers),
            from_store: take(self.from_store),
        }
    }
}

/// A file, and what is known of it until the next restart.
#[derive(Debug)]
pub(super) struct File {
    pub(super) record: FileRecord,
    pub(super) transfer: Option<Transfer>,
    /// Of the transfer.
    pub(super) live: Live,
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
            proof: None,
            notices: Vec::new(),
        };
        Self {
            record,
            transfer: None,
            live: Live::default(),
            on_disk: false,
        }
    }

    pub(super) fn restored(record: FileRecord) -> Self {
        Self {
            record,
            transfer: None,
            live: Live::default(),
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

    /// Where its bytes came from, the running attempt's included. One that is still looking at what an earlier
    /// one left has not lost it.
    pub(super) fn sources(&self) -> BySource {
        let before = self.record.sources;
        match &self.transfer {
            Some(transfer) if transfer.sources.total() >= before.total() => {
                before.continued_by(&transfer.sources)
            }
            Some(_) | None => before,
        }
    }

    /// Keeps a word to the owner; whether it is new.
    pub(super) fn note(&mut self, notice: &str) -> bool {
        let notices = &mut self.record.notices;
        let notice = first_line(notice);
        let new = notices.len() < NOTICES_KEPT && !notices.contains(&notice);
        if new {
            notices.push(notice);
        }
        new
    }

    /// The attempt has brought the whole file.
    pub(super) fn stage(&mut self, bytes: u64, sources: BySource, proof: Proof) {
        self.record.bytes = bytes;
        self.record.proof = Some(proof);
        self.record.sources = self.record.sources.continued_by(&sources);
        if let Some(transfer) = &mut self.transfer {
            transfer.sources = BySource::default();
        }
    }

    /// The attempt is over; what it brought stays.
    pub(super) fn end_transfer(&mut self) -> Option<Transfer> {
        self.record.sources = self.sources();
        self.live = Live::default();
        self.transfer.take()
    }
}
