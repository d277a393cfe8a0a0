//! One simulated machine: the real planner and steward, and what its shell keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_core::planner::Planner;
use branchline_core::swarm::{ManifestPlan, Steward};
use branchline_core::{PeerId, SegmentSet};

use crate::download::Download;
use crate::uploads::Uploads;
use crate::wan::FetchId;

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) peer: PeerId,
    pub(crate) phase: Phase,
    pub(crate) steward: Steward,
    /// What came and was found right: what the planner may call done.
    pub(crate) verified: SegmentSet,
    /// What of it the watchers have not been told.
    pub(crate) untold: SegmentSet,
    pub(crate) push_is_due: bool,
    /// Peers at which it has joined, or joins.
    pub(crate) sessions: BTreeMap<u32, Session>,
    pub(crate) downloads: u32,
    /// Members that it has dialled: another session needs no handshake.
    pub(crate) dialled: BTreeSet<u32>,
    pub(crate) watchers: BTreeSet<u32>,
    pub(crate) uploads: Uploads,
    pub(crate) fetches: BTreeMap<FetchId, ()>,
    /// Its stream to each steward that it has one to.
    pub(crate) enlisted_at: BTreeMap<u32, u32>,
    pub(crate) streams: u32,
    /// As a steward: the stream of each member.
    pub(crate) enlisted: BTreeMap<u32, u32>,
    pub(crate) planner_alarm: Option<Duration>,
    pub(crate) steward_alarm: Option<Duration>,
    pub(crate) nature: Nature,
    pub(crate) started: Option<Duration>,
    pub(crate) ended: Option<Duration>,
    pub(crate) tally: Tally,
}
