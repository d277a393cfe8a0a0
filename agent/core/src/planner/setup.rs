//! What a planner is told at its beginning.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use branchline_hashing::SwarmId;

use super::OriginAccess;
use crate::swarm::Enrolment;
use crate::{PeerId, SegmentSet};

/// One transfer, as its planner is told of it.
#[derive(Debug)]
pub struct Setup {
    /// Each segment's length in bytes.
    pub lengths: Arc<[u32]>,
    /// The segments that are there already.
    pub done: SegmentSet,
    /// What the origin is good for.
    pub origin: OriginAccess,
    /// How fast it is expected to be.
    pub pace: OriginPace,
    /// For choices by chance; another one on each machine.
    pub seed: u64,
    /// With whom the file is shared; `None` when no peer may be asked or believed.
    pub sharing: Option<Sharing>,
}

/// The branch around a transfer.
#[derive(Debug)]
pub struct Sharing {
    /// This agent.
    pub me: PeerId,
    /// The content, blinded.
    pub swarm: SwarmId,
    /// The branch's live members; this agent among them or not.
    pub members: BTreeSet<PeerId>,
    /// Whether connections to all members were begun when the origin was asked.
    pub warmed: bool,
    /// The relation with a steward that finding the manifest has begun.
    pub enrolment: Option<Enrolment>,
}

/// What the origin would need: deadlines are derived from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginPace {
    /// From a request to its first byte, over the connection that is there.
    pub round_trip: Duration,
    /// Its rate alone.
    pub bytes_per_sec: u64,
}

impl Default for OriginPace {
    /// 20 Mbit/s and 60 ms: an office's line and a server on the same continent. A faster origin
    /// than this is waited on too long by at most the floor of the deadlines, a slower one is only
    /// asked sooner than need be.
    fn default() -> Self {
        Self {
            round_trip: Duration::from_millis(60),
            bytes_per_sec: 2_500_000,
        }
    }
}

impl OriginPace {
    /// How long it would need for so many bytes, begun now.
    pub fn time_for(&self, bytes: u64) -> Duration {
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_sec.max(1);
        self.round_trip + Duration::from_micros(micros)
    }
}
