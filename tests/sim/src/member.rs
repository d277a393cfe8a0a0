//! One simulated machine: the real planner and steward, and what its shell keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_core::planner::Planner;
use branchline_core::swarm::{ManifestPlan, Steward};
use branchline_core::{PeerId, SegmentSet};

use crate::download::Download;
use crate::uploads::Uploads;
use crate::wan::FetchId;

/// Its place in the world's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemberId(pub(crate) u32);

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) peer: PeerId,
    pub(crate) nature: Nature,
    pub(crate) phase: Phase,
    pub(crate) planner_alarm: Alarm,
    /// What came and was found right: what the planner may call done.
    pub(crate) verified: SegmentSet,
    pub(crate) asking: Asking,
    pub(crate) serving: Serving,
    pub(crate) stewarding: Stewarding,
    pub(crate) started: Option<Duration>,
    pub(crate) ended: Option<Duration>,
    pub(crate) died: Option<Duration>,
    pub(crate) tally: Tally,
}

/// How it differs from an honest machine at full rate.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Nature {
    pub(crate) slow: bool,
    pub(crate) lying: bool,
    /// As a steward it says nothing any more; all else goes on.
    pub(crate) mute: bool,
}

/// How far its transfer is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The agent runs, and was not told to fetch the file yet.
    Idle,
    /// The origin was asked what is current.
    Asking,
    Manifest(Box<ManifestPlan>),
    /// Also when it has ended: the relation with the steward goes on.
    Segments(Box<Planner>),
}

/// The requesting side.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// Peers at which it has joined, or joins.
    pub(crate) sessions: BTreeMap<MemberId, Session>,
    /// Peers that it has asked for the manifest.
    pub(crate) manifest_asked: BTreeSet<MemberId>,
    /// Members that it has a connection to: another stream needs no handshake.
    pub(crate) dialled: BTreeSet<MemberId>,
    /// Of all fetches from the origin that run.
    pub(crate) fetches: BTreeSet<FetchId>,
    /// Its stream to each steward that it has one to.
    pub(crate) enlisted_at: BTreeMap<MemberId, u32>,
    /// Agents that it has announced the content to.
    pub(crate) announced_to: BTreeSet<MemberId>,
    /// The last number given to a download, a join, or a stream to a steward.
    pub(crate) last_number: u32,
}

impl Asking {
    pub(crate) fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }
}

/// A member's side of a session with a peer.
#[derive(Debug)]
pub(crate) enum Session {
    Joining,
    Joined(Download),
}

/// The serving side.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) uploads: Uploads,
    pub(crate) watchers: BTreeSet<MemberId>,
    /// What the watchers have not been told.
    pub(crate) untold: SegmentSet,
    pub(crate) push_is_due: bool,
    /// When they were told last.
    pub(crate) told_at: Option<Duration>,
}

/// The steward's side.
#[derive(Debug)]
pub(crate) struct Stewarding {
    pub(crate) steward: Steward,
    pub(crate) alarm: Alarm,
    /// The stream of each member that has enlisted.
    pub(crate) streams: BTreeMap<MemberId, u32>,
}

/// One event is scheduled for the earliest deadline; that of an earlier one that was put off does nothing.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    scheduled: Option<Duration>,
}

impl Alarm {
    /// When to schedule an event for this deadline, if there is none that comes before it.
    pub(crate) fn set(&mut self, deadline: Option<Duration>) -> Option<Duration> {
        let at = deadline?;
        if self.scheduled.is_some_and(|scheduled| scheduled <= at) {
            return None;
        }
        self.scheduled = Some(at);
        Some(at)
    }

    /// An event of this alarm has come: whether it is the one that counts.
    pub(crate) fn rings(&mut self, now: Duration) -> bool {
        let counts = self.scheduled == Some(now);
        if counts {
            self.scheduled = None;
        }
        counts
    }
}

/// What a member did, counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) message_bytes: u64,
    pub(crate) upload_bytes: u64,
    pub(crate) stored: u64,
    pub(crate) duplicates: u64,
    pub(crate) planning: Duration,
}

impl Member {
    pub(crate) fn new(peer: PeerId, seed: u64, segments: u32) -> Self {
        Self {
            peer,
            nature: Nature::default(),
            phase: Phase::Idle,
            planner_alarm: Alarm::default(),
            verified: SegmentSet::empty(segments),
            asking: Asking::default(),
            serving: Serving {
                uploads: Uploads::default(),
                watchers: BTreeSet::new(),
                untold: SegmentSet::empty(segments),
                push_is_due: false,
                told_at: None,
            },
            stewarding: Stewarding {
                steward: Steward::new(seed),
                alarm: Alarm::default(),
                streams: BTreeMap::new(),
            },
            started: None,
            ended: None,
            died: None,
            tally: Tally::default(),
        }
    }

    pub(crate) fn lives(&self) -> bool {
        self.died.is_none()
    }

    /// Its steward, its own planning time counted.
    pub(crate) fn steward<T>(&mut self, work: impl FnOnce(&mut Steward) -> T) -> T {
        let begun = Instant::now();
        let result = work(&mut self.stewarding.steward);
        self.tally.planning += begun.elapsed();
        result
    }
}
