//! How many runs an origin takes from this member at a time: fewer, once it has refused some.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Range requests in flight: two keep the link full while one ends and the next begins, and four
/// share a bottleneck better with other machines' single connections than one does.
const RUNS_IN_FLIGHT: usize = 4;

/// The waits of a member all of whose runs the origin refused because it has enough to do: as it may give others of the branch
/// what it refuses this one, the first is short.
const REFUSED_RESTS: Backoff = Backoff {
    min: Duration::from_millis(500),
    max: Duration::from_secs(30),
};

/// After so much rest, in which nobody brought anything, it is given up: as the retries of a single request end.
const MOST_REST: Duration = Duration::from_secs(180);

/// After so many runs that ended well one more is tried at a time: an origin that was busy for a moment is not asked by one
/// connection for hours, and one that never takes more refuses a request a minute.
const ONE_MORE_AFTER: u32 = 16;

/// An origin that refused so many in a row that were asked for while the run before was on its last way here counts requests
/// otherwise, and is asked so no more.
const MOST_EARLY_REFUSED: u32 = 3;

#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    /// Runs that ended well since one was refused.
    ended_well: u32,
    /// How often in a row it has refused a run while no other was in flight.
    refusals: u32,
    /// How long it has rested since anybody brought anything.
    rested: Duration,
    /// Nothing is asked of it before.
    rests_until: Option<Instant>,
    /// Whether it has said when to ask again: it wants to be asked then, and not when there may be room.
    says_when: bool,
    /// How often in a row it has refused a run that was asked for early.
    early_refused: u32,
    /// It has, and the run that was to end has not ended since.
    waits_for_end: bool,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            limit: RUNS_IN_FLIGHT,
            ended_well: 0,
            refusals: 0,
            rested: Duration::ZERO,
            rests_until: None,
            says_when: false,
            early_refused: 0,
            waits_for_end: false,
        }
    }

    /// Runs that may be in flight at once.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether it takes fewer than are asked for at first.
    pub(super) fn is_limited(&self) -> bool {
        self.limit < RUNS_IN_FLIGHT
    }

    /// Whether a run may be asked for while the one before it is on its last way here: what is gone between two requests, a
    /// round trip, is as much as a quarter of the time of short ones.
    pub(super) fn may_be_early(&self) -> bool {
        self.is_limited()
            && !self.says_when
            && !self.waits_for_end
            && self.early_refused < MOST_EARLY_REFUSED
    }

    /// A run was given up after all its retries, while so many others are in flight. They may still come, if no more are asked
    /// for; `false` when it was the last.
    pub(super) fn give_up(&mut self, in_flight: usize) -> bool {
        self.limit = in_flight;
        in_flight > 0
    }

    /// A run was refused, for the origin has enough to do. Where others are in flight, no more than those are from now on, and
    /// when one ends there is room; else nothing is asked for a while. Nor is it before the time it `asked` for is over, the longest
    /// rest at most where it gives something: it may ask for an hour, and means the request too many.
    /// `false` when it has rested for too long.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        in_flight: usize,
        asked: Duration,
        random: u64,
    ) -> bool {
        self.limit = in_flight.max(1);
        self.ended_well = 0;
        self.says_when |= !asked.is_zero();
        let mut rest = asked.min(REFUSED_RESTS.max);
        if in_flight == 0 {
            rest = REFUSED_RESTS.delay(self.refusals, random).max(asked);
            self.refusals = self.refusals.saturating_add(1);
            self.rested += rest;
        }
        let goes_on = self.rested <= MOST_REST;
        if goes_on && !rest.is_zero() {
            self.rests_until = self.rests_until.max(Some(now + rest));
        }
        goes_on
    }

    /// A run was refused that was asked for early, while so many others are in flight: there is room when one of them has ended.
    pub(super) fn refused_early(&mut self, in_flight: usize) {
        self.early_refused = self.early_refused.saturating_add(1);
        self.waits_for_end = in_flight > 0;
    }

    /// A run that was asked for early is sent.
    pub(super) fn came_early(&mut self) {
        self.early_refused = 0;
    }

    /// The origin has sent something.
    pub(super) fn something_came(&mut self) {
        self.refusals = 0;
    }

    /// Somebody has brought something: the origin is not what all wait for.
    pub(super) fn is_not_missed(&mut self) {
        self.rested = Duration::ZERO;
    }

    /// A run has ended, in whatever way.
    pub(super) fn run_ended(&mut self) {
        self.waits_for_end = false;
    }

    /// A run has ended, and all of it came.
    pub(super) fn run_ended_well(&mut self) {
        self.ended_well = self.ended_well.saturating_add(1);
        if self.ended_well >= ONE_MORE_AFTER && self.is_limited() {
            self.limit += 1;
            self.ended_well = 0;
        }
    }

    /// Until when nothing is asked of it, for it refused.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Whether it may be asked again, which is said once: who wants runs then is to say so.
    pub(super) fn has_rested(&mut self, now: Instant) -> bool {
        self.rests_until.take_if(|until| *until <= now).is_some()
    }

    /// Whether nothing is asked of it at `now`.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}
