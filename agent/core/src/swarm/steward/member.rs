//! One member of a swarm, as its steward knows it.

use std::time::Instant;

use super::LESSEE_SILENCE;
use crate::swarm::{BlockSet, Want};

#[derive(Debug)]
pub(super) struct Member {
    pub(super) held: BlockSet,
    pub(super) want: Want,
    pub(super) has_manifest: bool,
    pub(super) presence: Presence,
    /// When it was last heard.
    pub(super) heard: Instant,
    /// It gave a lease back: nothing is granted to it before.
    pub(super) rests_until: Option<Instant>,
    /// Since when it wants a lease, without a break.
    pub(super) wants_since: Option<Instant>,
    /// Nobody gets from it what it fetches: while others want leases it gets none.
    pub(super) shut_out: bool,
    /// Others have got a block that it fetched.
    pub(super) spreads: bool,
    /// How many peers it was told of, and when last.
    pub(super) told: usize,
    pub(super) told_at: Instant,
    /// When this member is to be looked at if nothing is heard of it.
    pub(super) due: Option<Instant>,
}

/// Whether a member is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// Its stream is open, and it speaks.
    Live,
    /// Its stream is open, and nothing was heard for long: what it holds does not count.
    Silent,
    /// Its stream has ended. It may have moved to another steward, so for a while what it holds and
    /// leases still counts.
    Gone,
}

impl Member {
    pub(super) fn new(now: Instant, held: BlockSet, want: Want, has_manifest: bool) -> Self {
        Self {
            held,
            want,
            has_manifest,
            presence: Presence::Live,
            heard: now,
            rests_until: None,
            wants_since: None,
            shut_out: false,
            spreads: false,
            told: 0,
            told_at: now,
            due: None,
        }
    }

    /// Whether what it holds counts.
    pub(super) fn counts(&self) -> bool {
        match self.presence {
            Presence::Live | Presence::Gone => true,
            Presence::Silent => false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.presence == Presence::Live
    }

    /// Whether others can be told of it.
    pub(super) fn serves(&self) -> bool {
        self.is_live() && self.has_manifest
    }

    pub(super) fn wants_run(&self, now: Instant) -> bool {
        self.is_live()
            && self.want.runs > 0
            && !self.shut_out
            // Who is granted something while it is silent would lose it at once.
            && now < self.heard + LESSEE_SILENCE
            && self.rests_until.is_none_or(|until| until <= now)
    }
}
