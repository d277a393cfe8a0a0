//! What is asked of the origin: runs of adjacent segments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;

use super::{OriginAccess, OriginPace};
use crate::backoff::Backoff;
use crate::{SegmentRange, SegmentSet};

/// Range requests in flight: two keep the link full while one ends and the next begins, and four
/// share a bottleneck better with other machines' single connections than one does.
const RUNS_IN_FLIGHT: usize = 4;

/// The bytes of one run before the origin's rate is known, and the bounds after that.
const RUN_BYTES: std::ops::RangeInclusive<u64> = (2 << 20)..=(64 << 20);

/// A run is to take about so long at the measured rate: long enough that the round trip between
/// two runs does not show, short enough that a new peer soon takes over the rest.
const RUN_SECONDS: u64 = 4;

/// A leased run of which nothing has come for so long is given back: another member's connection may be
/// better. The origin's own retries have had several turns by then.
const RUN_STALL: Duration = Duration::from_secs(10);

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

/// See [`OriginPlan::bytes_per_sec_at_least`].
const EXPECTED_AT_LEAST: u64 = 4;

/// A shorter time without runs is the pause between two, and counts: else a member that gets one short run at
/// a time would never know the origin's rate.
const IDLE_GAP: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct OriginPlan {
    access: OriginAccess,
    /// Runs in flight, with what has not come yet.
    runs: BTreeMap<SegmentRange, SegmentRun>,
    started: Option<Instant>,
    /// When something last came.
    last: Option<Instant>,
    bytes: u64,
    /// As measured; 0 before.
    measured: u64,
    /// As expected before it is measured.
    expected: u64,
    /// Runs that may be in flight; fewer, once the origin has refused some.
    limit: usize,
    /// Runs that ended well since one was refused.
    ended_well: u32,
    /// How often in a row it has refused a run while no other was in flight.
    refusals: u32,
    /// How long it has rested since anybody brought anything.
    rested: Duration,
    /// Nothing is asked of it before.
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct SegmentRun {
    owed: BTreeSet<SegmentIndex>,
    right: Right,
    /// Whether the steward that is asked now was told of it.
    told: bool,
    progress: Instant,
}

/// By whose word a run is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// A steward's.
    Leased,
    /// This member's: it is alone, or has waited long enough.
    Own,
}

impl OriginPlan {
    pub(super) fn new(access: OriginAccess, pace: OriginPace) -> Self {
        Self {
            access,
            runs: BTreeMap::new(),
            started: None,
            last: None,
            bytes: 0,
            measured: 0,
            expected: pace.bytes_per_sec,
            limit: RUNS_IN_FLIGHT,
            ended_well: 0,
            refusals: 0,
            rested: Duration::ZERO,
            rests_until: None,
        }
    }

    pub(super) fn access(&self) -> OriginAccess {
        self.access
    }

    /// Runs that may be in flight at once.
    pub(super) fn limit(&self) -> usize {
        match self.access {
            OriginAccess::Closed => 0,
            OriginAccess::Ranges => self.limit,
            OriginAccess::WholeFileOnly => 1,
        }
    }

    /// Changes what is expected of it; the runs in flight, which end with that.
    pub(super) fn set_access(&mut self, access: OriginAccess) -> Vec<SegmentRange> {
        self.access = access;
        self.runs.keys().copied().collect()
    }

    /// A run was given up after all its retries. Others may still come, if fewer are asked for;
    /// `false` when it was the last.
    pub(super) fn give_up(&mut self) -> bool {
        self.limit = self.runs.len();
        self.limit > 0
    }

    /// A run was refused, for the origin has enough to do. Where others are in flight, no more than those are from now on, and
    /// when one ends there is room; else nothing is asked for a while. Nor is it before the time it `asked` for is over, the longest
    /// rest at most where it gives something: it may ask for an hour, and means the request too many.
    /// `false` when it has rested for too long.
    pub(super) fn refused(&mut self, now: Instant, asked: Duration, random: u64) -> bool {
        self.limit = self.runs.len().max(1);
        self.ended_well = 0;
        let mut rest = asked.min(REFUSED_RESTS.max);
        if self.runs.is_empty() {
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

    /// Somebody has brought something: the origin is not what all wait for.
    pub(super) fn is_not_missed(&mut self) {
        self.rested = Duration::ZERO;
    }

    /// A run has ended, and all of it came.
    pub(super) fn run_ended_well(&mut self) {
        self.ended_well = self.ended_well.saturating_add(1);
        if self.ended_well >= ONE_MORE_AFTER && self.limit < RUNS_IN_FLIGHT {
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

    /// Runs that may be in flight by now: none is begun while it rests.
    pub(super) fn limit_at(&self, now: Instant) -> usize {
        match self.rests_until {
            Some(until) if now < until => 0,
            _ => self.limit(),
        }
    }

    /// Whether another run may be asked for.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.runs.len() < self.limit_at(now)
    }

    pub(super) fn is_fetching(&self, run: SegmentRange) -> bool {
        self.runs.contains_key(&run)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn own_runs(&self) -> usize {
        let own = |run: &&SegmentRun| run.right == Right::Own;
        self.runs.values().filter(own).count()
    }

    /// Bytes per second over all runs, as measured, or 0.
    pub(super) fn measured_bytes_per_sec(&self) -> u64 {
        self.measured
    }

    /// The rate by which it is told how much others are to bring: as measured, or before a quarter of what is
    /// expected, for that may be wrong, and all would ask a slow origin at once.
    pub(super) fn bytes_per_sec_at_least(&self) -> u64 {
        if self.measured > 0 {
            self.measured
        } else {
            self.expected / EXPECTED_AT_LEAST
        }
    }

    /// Bytes per second over all runs: as measured, or as expected before.
    pub(super) fn bytes_per_sec(&self) -> u64 {
        if self.measured > 0 {
            self.measured
        } else {
            self.expected
        }
    }

    /// Whether a segment came from it within the last `time`.
    pub(super) fn has_brought_since(&self, now: Instant, time: Duration) -> bool {
        self.last.is_some_and(|last| now < last + time)
    }

    /// How long a run is to be by now.
    pub(super) fn run_bytes(&self) -> u64 {
        (self.measured * RUN_SECONDS).clamp(*RUN_BYTES.start(), *RUN_BYTES.end())
    }

    pub(super) fn owes(&self, index: SegmentIndex) -> bool {
        self.runs.values().any(|run| run.owed.contains(&index))
    }

    /// By which right the segment was fetched, if by any.
    pub(super) fn arrived(
        &mut self,
        now: Instant,
        index: SegmentIndex,
        length: u32,
    ) -> Option<Right> {
        let mut right = None;
        for (range, run) in &mut self.runs {
            // What is there already passes, too, where the whole is sent.
            if range.contains(index) {
                run.progress = now;
            }
            if run.owed.remove(&index) {
                right = Some(run.right);
            }
        }
        let started = *self.started.get_or_insert(now);
        self.last = Some(now);
        self.refusals = 0;
        self.bytes += u64::from(length);
        let millis = u64::try_from(now.saturating_duration_since(started).as_millis()).unwrap_or(0);
        if millis >= 200 {
            self.measured = (self.bytes.saturating_mul(1000) / millis).max(1);
        }
        right
    }

    /// A segment has come from elsewhere.
    pub(super) fn disown(&mut self, index: SegmentIndex) {
        for run in self.runs.values_mut() {
            run.owed.remove(&index);
        }
    }

    /// A run is asked for, and owes these.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        run: SegmentRange,
        owed: BTreeSet<SegmentIndex>,
        right: Right,
    ) {
        let idle = self.last.is_none_or(|last| last + IDLE_GAP < now);
        if self.runs.is_empty() && idle {
            // Idle time says nothing of the origin's rate.
            self.started = None;
            self.bytes = 0;
        }
        let run_state = SegmentRun {
            owed,
            right,
            told: false,
            progress: now,
        };
        self.runs.insert(run, run_state);
    }

    /// A run has ended: what it still owed.
    pub(super) fn end(&mut self, run: SegmentRange) -> Vec<SegmentIndex> {
        let owed = self.runs.remove(&run).map(|run| run.owed);
        owed.into_iter().flatten().collect()
    }

    /// The runs whose missing segments are all held by somebody nearer; of those by own right
    /// whose next one is: somebody else fetches there, too.
    pub(super) fn runs_held_by(&self, holds: impl Fn(SegmentIndex) -> bool) -> Vec<SegmentRange> {
        let held = |run: &SegmentRun| match run.right {
            Right::Leased => !run.owed.is_empty() && run.owed.iter().all(|i| holds(*i)),
            Right::Own => run.owed.first().is_some_and(|i| holds(*i)),
        };
        self.runs
            .iter()
            .filter(|(_, run)| held(run))
            .map(|(range, _)| *range)
            .collect()
    }

    /// How many runs in flight have segments in `range`.
    pub(super) fn runs_in(&self, range: SegmentRange) -> usize {
        let meets =
            |run: &&SegmentRange| run.first().0 < range.end() && range.first().0 < run.end();
        self.runs.keys().filter(meets).count()
    }

    /// All runs in flight; from now on they count as told to the steward.
    pub(super) fn tell(&mut self) -> Vec<SegmentRange> {
        self.runs.values_mut().for_each(|run| run.told = true);
        self.runs.keys().copied().collect()
    }

    /// The steward has answered: runs it was told of go on by its word where all they owe is
    /// `granted`. The others, which are to end.
    pub(super) fn confirm(&mut self, granted: impl Fn(SegmentIndex) -> bool) -> Vec<SegmentRange> {
        let mut refused = Vec::new();
        for (range, run) in self.runs.iter_mut().filter(|(_, run)| run.told) {
            run.told = false;
            if run.owed.iter().all(|index| granted(*index)) {
                run.right = Right::Leased;
            } else {
                refused.push(*range);
            }
        }
        refused
    }

    /// Leased runs of which nothing has come for [`RUN_STALL`].
    pub(super) fn stalled(&self, now: Instant) -> Vec<SegmentRange> {
        let runs = self.runs.iter().filter(|(_, run)| self.may_stall(run));
        let late = runs.filter(|(_, run)| run.progress + RUN_STALL <= now);
        late.map(|(range, _)| *range).collect()
    }

    pub(super) fn next_stall(&self) -> Option<Instant> {
        let runs = self.runs.values().filter(|run| self.may_stall(run));
        runs.map(|run| run.progress + RUN_STALL).min()
    }

    /// A whole file passes what is there already first, of which nothing is heard; and would begin anew.
    fn may_stall(&self, run: &SegmentRun) -> bool {
        run.right == Right::Leased && self.access != OriginAccess::WholeFileOnly
    }
}

/// The first open segments within `range` that no peer holds, of about `most_bytes`.
pub(super) fn first_run(
    open: &SegmentSet,
    held_by_peers: &SegmentSet,
    lengths: &[u32],
    range: SegmentRange,
    most_bytes: u64,
) -> Option<SegmentRange> {
    let wanted = |index: &SegmentIndex| open.contains(*index) && !held_by_peers.contains(*index);
    let first = open.first_not_in_range(held_by_peers, range)?;
    let mut bytes = 0;
    let count = (first.0..range.end())
        .map(SegmentIndex)
        .take_while(wanted)
        .take_while(|index| {
            let room = bytes < most_bytes;
            bytes += u64::from(lengths.get(index.0 as usize).copied().unwrap_or(0));
            room
        })
        .count();
    SegmentRange::new(first, u32::try_from(count).ok()?)
}
