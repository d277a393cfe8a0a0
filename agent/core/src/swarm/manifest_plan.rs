//! Who is asked for a manifest's body, before there is a planner: its head alone is known.
//!
//! Inputs are `handle_*` with the time they happened; afterwards the caller drains
//! [`ManifestPlan::poll_action`] and waits for the next input or [`ManifestPlan::next_deadline`].
//! When the manifest is there, [`ManifestPlan::into_enrolment`] gives the planner the relation with
//! the steward: the stream stays.

use std::collections::BTreeSet;
use std::time::Instant;

use branchline_hashing::SwarmId;

use super::{Answer, Blocks, Enlist, Enrolment, Report};
use crate::planner::OriginPace;
use crate::{Deadline, PeerId};

/// What is known when the head is.
#[derive(Debug)]
pub struct ManifestSetup {
    /// This agent.
    pub me: PeerId,
    /// The content, blinded.
    pub swarm: SwarmId,
    /// How the content is divided.
    pub blocks: Blocks,
    /// The content's length in bytes.
    pub content_bytes: u64,
    /// The manifest's length in bytes.
    pub manifest_bytes: u64,
    /// The branch's live members; this agent among them or not.
    pub members: BTreeSet<PeerId>,
    /// How fast the origin is expected to be.
    pub pace: OriginPace,
    /// Whether the origin can be asked at all.
    pub origin_open: bool,
    /// For choices by chance; another one on each machine.
    pub seed: u64,
}

/// What the caller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestAction {
    /// Open a stream to this steward, or to this agent's own, and say this.
    Enlist {
        /// Whom.
        steward: PeerId,
        /// What.
        enlist: Enlist,
    },
    /// Say this on the stream that is open.
    Report {
        /// Whom.
        steward: PeerId,
        /// What.
        report: Report,
    },
    /// End the stream.
    LeaveSteward {
        /// Whom.
        steward: PeerId,
    },
    /// Join this peer and ask it for the manifest.
    AskPeer {
        /// Whom.
        peer: PeerId,
    },
    /// Fetch the manifest from the origin. Requests to peers go on: who comes first wins.
    FetchFromOrigin,
}

/// See the module's text.
#[derive(Debug)]
pub struct ManifestPlan {
    enrolment: Enrolment,
}

impl ManifestPlan {
    /// Plans how the body of a manifest comes.
    pub fn new(now: Instant, setup: ManifestSetup) -> Self {
        let _ = (now, setup);
        Self {
            enrolment: Enrolment {},
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<ManifestAction> {
        None
    }

    /// When to call [`ManifestPlan::handle_timeout`] if nothing else happens before, and what is
    /// waited for.
    pub fn next_deadline(&self) -> Option<Deadline> {
        None
    }

    /// Whether nobody is left to ask: the origin gave no manifest or is closed, and no peer in
    /// sight has it.
    pub fn is_stuck(&self) -> bool {
        false
    }

    /// The branch's live members by now.
    pub fn handle_members(&mut self, now: Instant, members: &BTreeSet<PeerId>) {
        let _ = (now, members);
    }

    /// The steward has answered.
    pub fn handle_answer(&mut self, now: Instant, steward: PeerId, answer: &Answer) {
        let _ = (now, steward, answer);
    }

    /// The stream to the steward has ended or could not be opened.
    pub fn handle_steward_lost(&mut self, now: Instant, steward: PeerId) {
        let _ = (now, steward);
    }

    /// A peer that was asked does not give the manifest.
    pub fn handle_peer_failed(&mut self, now: Instant, peer: PeerId) {
        let _ = (now, peer);
    }

    /// The origin does not give it, after all retries.
    pub fn handle_origin_failed(&mut self, now: Instant) {
        let _ = now;
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// The manifest is there: the relation with the steward, for the planner.
    pub fn into_enrolment(self) -> Enrolment {
        self.enrolment
    }
}
