//! What goes in and out of a planner.

use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;
use bytes::Bytes;

use super::DropReason;
use crate::swarm::{Enlist, Report};
use crate::{PeerId, SegmentRange};

/// Where a segment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A neighbour.
    Peer(PeerId),
    /// The origin.
    Origin,
}

/// A segment as it came, believed by nobody yet.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who sent it.
    pub source: Source,
    /// Which it is to be.
    pub index: SegmentIndex,
    /// Its bytes, of the right length or not.
    pub bytes: Bytes,
}

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial this member and join the swarm at it; answered by `handle_joined` or
    /// `handle_not_joined`. What it has is watched from then on.
    Join {
        /// Whom.
        peer: PeerId,
    },
    /// Ask this peer for these segments.
    Request {
        /// Whom.
        peer: PeerId,
        /// What.
        range: SegmentRange,
    },
    /// These segments are not wanted from this peer any more.
    Cancel {
        /// Whom.
        peer: PeerId,
        /// What.
        range: SegmentRange,
    },
    /// Nothing that this peer was asked for is wanted from it any more.
    Interrupt {
        /// Whom.
        peer: PeerId,
    },
    /// End the session with this peer.
    DropPeer {
        /// Whom.
        peer: PeerId,
        /// Why.
        reason: DropReason,
    },
    /// Fetch this run from the origin.
    FetchFromOrigin {
        /// Adjacent segments, for one range request.
        run: SegmentRange,
    },
    /// What has not arrived of this run is not wanted from the origin any more.
    CancelOrigin {
        /// The run as it was asked for.
        run: SegmentRange,
    },
    /// Open a stream to this steward, which may be this agent itself, and say this. Answered by
    /// `handle_answer` or `handle_steward_lost`.
    Enlist {
        /// Whom.
        steward: PeerId,
        /// What.
        enlist: Enlist,
    },
    /// Say this on the stream to this steward.
    Report {
        /// Whom.
        steward: PeerId,
        /// What.
        report: Report,
    },
    /// End the stream to this steward; nothing more is heard of it.
    LeaveSteward {
        /// Whom.
        steward: PeerId,
    },
}

/// Why a member that was asked did not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinFailure {
    /// It does not hold the content, or cannot be reached.
    Absent,
    /// It has too much to do for now.
    Busy {
        /// When it said to try again.
        retry_after: Duration,
    },
    /// It broke the protocol: it is not asked again.
    Misbehaved,
}

/// The origin, as far as planning is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginAccess {
    /// Range requests work: runs may be asked for in any order.
    Ranges,
    /// One request gives the whole file from its start, or nothing.
    WholeFileOnly,
    /// It cannot be reached or must not be asked.
    Closed,
}

/// Why the origin did not give a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunFailure {
    /// It answers ranges with something else.
    NoRanges,
    /// It has enough to do, or gives one client, or one address, only so many connections at a time.
    Busy {
        /// How long it asks to wait.
        retry_after: Duration,
    },
    /// All retries are used up.
    GaveUp,
}

/// What a transfer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// What, or whom.
    pub waiting_for: &'static str,
    /// When something else is tried; `None` where only the origin's own retries know.
    pub until: Option<Instant>,
}
