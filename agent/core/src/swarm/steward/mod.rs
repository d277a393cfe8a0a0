//! The steward of swarms: says who fetches which blocks from the origin, and who is there.
//!
//! Sans-IO: inputs are `handle_*` with the time they happened; afterwards the caller drains
//! [`Steward::poll_output`] and waits for the next input or [`Steward::next_deadline`].

use std::time::Instant;

use branchline_hashing::SwarmId;

use super::{Answer, Blocks, Enlist, Report};
use crate::{Deadline, PeerId};

/// All swarms this agent is the steward of.
#[derive(Debug)]
pub struct Steward {
    granted: GrantedTotals,
}

/// What is to be told to a member, on the stream that it enlisted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whom.
    pub to: PeerId,
    /// Of which swarm.
    pub swarm: SwarmId,
    /// How its content is divided: with the swarm, this names the table and so the stream.
    pub blocks: Blocks,
    /// What.
    pub answer: Answer,
}

/// What has been granted since the start, for a budget of the whole branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GrantedTotals {
    /// Leases.
    pub leases: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Steward {
    /// A steward of no swarm yet. `seed` is for choices by chance: which peers a member is told of.
    pub fn new(seed: u64) -> Self {
        let _ = seed;
        Self {
            granted: GrantedTotals::default(),
        }
    }

    /// A member enlists: for the first time, or again on a new stream, which ends the old one.
    pub fn handle_enlist(&mut self, now: Instant, from: PeerId, enlist: Enlist) {
        let _ = (now, from, enlist);
    }

    /// A member reports what has changed. `swarm` and `blocks` are those of its stream's `Enlist`.
    pub fn handle_report(
        &mut self,
        now: Instant,
        from: PeerId,
        swarm: SwarmId,
        blocks: Blocks,
        report: Report,
    ) {
        let _ = (now, from, swarm, blocks, report);
    }

    /// A member's stream has ended.
    pub fn handle_left(&mut self, now: Instant, from: PeerId, swarm: SwarmId, blocks: Blocks) {
        let _ = (now, from, swarm, blocks);
    }

    /// An agent says which swarms it holds completely, in addition to those it said before.
    pub fn handle_announce(&mut self, now: Instant, from: PeerId, swarms: &[SwarmId]) {
        let _ = (now, from, swarms);
    }

    /// The stream that an agent announced on has ended: what it announced is forgotten.
    pub fn handle_announcer_left(&mut self, now: Instant, from: PeerId) {
        let _ = (now, from);
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// When to call [`Steward::handle_timeout`] if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        None
    }

    /// The next word to a member.
    pub fn poll_output(&mut self) -> Option<Told> {
        None
    }

    /// What has been granted since the start.
    pub fn granted(&self) -> GrantedTotals {
        self.granted
    }
}
