//! What is asked of the origin: runs of adjacent segments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;

use super::room::Room;
use super::{OriginAccess, OriginPace};
use crate::{SegmentRange, SegmentSet};

/// The bytes of one run before the origin's rate is known, and the bounds after that.
const RUN_BYTES: std::ops::RangeInclusive<u64> = (2 << 20)..=(64 << 20);

/// A run is to take about so long at the measured rate: long enough that the round trip between
/// two runs does not show, short enough that a new peer soon takes over the rest.
const RUN_SECONDS: u64 = 4;

/// A leased run of which nothing has come for so long is given back: another member's connection may be
/// better. The origin's own retries have had several turns by then.
const RUN_STALL: Duration = Duration::from_secs(10);

/// A lease is held in reserve for no longer than this, if the origin stays as fast: a steward gives it to another after 20 s.
const RESERVES_FOR: Duration = Duration::from_secs(5);

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
    /// As expected: from a request to its first byte.
    round_trip: Duration,
    /// How many runs it takes.
    pub(super) room: Room,
}

#[derive(Debug)]
struct SegmentRun {
    owed: BTreeSet<SegmentIndex>,
    /// The origin sends so many bytes more of it, owed or not.
    bytes_to_come: u64,
    right: Right,
    /// Whether it was asked for before there was room.
    early: bool,
    /// Whether the steward that is asked now was told of it.
    told: bool,
    /// Whether anything of it has come.
    has_begun: bool,
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
            round_trip: pace.round_trip,
            room: Room::new(),
        }
    }

    pub(super) fn access(&self) -> OriginAccess {
        self.access
    }

    /// Runs that may be in flight at once.
    pub(super) fn limit(&self) -> usize {
        match self.access {
            OriginAccess::Closed => 0,
            OriginAccess::Ranges => self.room.limit(),
            OriginAccess::WholeFileOnly => 1,
        }
    }

    /// Changes what is expected of it; the runs in flight, which end with that.
    pub(super) fn set_access(&mut self, access: OriginAccess) -> Vec<SegmentRange> {
        self.access = access;
        self.runs.keys().copied().collect()
    }

    /// Runs that may be in flight by now: none is begun while it rests.
    pub(super) fn limit_at(&self, now: Instant) -> usize {
        if self.room.rests(now) {
            0
        } else {
            self.limit()
        }
    }

    /// Whether another run may be asked for.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.runs.len() < self.limit_at(now)
            || (!self.room.rests(now) && self.early_at().is_some_and(|at| at <= now))
    }

    /// When one more run than there is room for may be asked for: so long before one in flight is all here as the request is on
    /// its way. By then the origin has sent it.
    pub(super) fn early_at(&self) -> Option<Instant> {
        let may_be = self.access == OriginAccess::Ranges
            && self.measured > 0
            && self.runs.len() == self.room.limit()
            && self.room.may_be_early();
        let first_sent = || self.runs.values().map(|run| self.sent_by(run)).min();
        may_be.then(first_sent).flatten()
    }

    /// From when on a request that leaves here is to find the run sent when it comes there: a round trip before the last byte of
    /// the run is expected here.
    fn sent_by(&self, run: &SegmentRun) -> Instant {
        let in_flight = u64::try_from(self.runs.len()).unwrap_or(u64::MAX);
        let bytes = run.bytes_to_come.saturating_mul(in_flight);
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_sec().max(1);
        let all_here = run.progress + Duration::from_micros(micros);
        // Of a run that has not begun nothing was heard: its request is under way for the same time, too.
        let before = run
            .has_begun
            .then(|| all_here.checked_sub(self.round_trip))
            .flatten();
        before.unwrap_or(all_here)
    }

    /// How many leases are of use by now: one for each run, and where there is room for few, one in reserve when a leased run is
    /// soon to end.
    pub(super) fn leases_at(&self, now: Instant) -> usize {
        let ends_soon = |run: &SegmentRun| {
            run.right == Right::Leased && self.sent_by(run) <= now + RESERVES_FOR
        };
        let reserves = self.access == OriginAccess::Ranges
            && self.room.is_limited()
            && self.runs.values().any(ends_soon);
        match self.limit_at(now) {
            0 => 0,
            limit => limit + usize::from(reserves),
        }
    }

    pub(super) fn is_fetching(&self, run: SegmentRange) -> bool {
        self.runs.contains_key(&run)
    }

    pub(super) fn runs_in_flight(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the run is fetched by this member's own right.
    pub(super) fn is_own(&self, run: SegmentRange) -> bool {
        self.runs
            .get(&run)
            .is_some_and(|run| run.right == Right::Own)
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
                run.bytes_to_come = run.bytes_to_come.saturating_sub(u64::from(length));
                if run.early && !run.has_begun {
                    self.room.came_early();
                }
                run.has_begun = true;
            }
            if run.owed.remove(&index) {
                right = Some(run.right);
            }
        }
        let started = *self.started.get_or_insert(now);
        self.last = Some(now);
        self.room.something_came();
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
        bytes_to_come: u64,
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
            bytes_to_come,
            right,
            early: self.runs.len() >= self.room.limit(),
            told: false,
            has_begun: false,
            progress: now,
        };
        self.runs.insert(run, run_state);
    }

    /// Whether the run was asked for before there was room, and nothing of it has come.
    pub(super) fn is_early(&self, run: SegmentRange) -> bool {
        let early = |run: &SegmentRun| run.early && !run.has_begun;
        self.runs.get(&run).is_some_and(early)
    }

    /// A run has ended: what it still owed.
    pub(super) fn end(&mut self, run: SegmentRange) -> Vec<SegmentIndex> {
        self.room.run_ended();
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
