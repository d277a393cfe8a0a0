//! What is asked of the origin: runs of adjacent segments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use branchline_hashing::SegmentIndex;

use super::OriginAccess;
use crate::{SegmentRange, SegmentSet};

/// Range requests in flight: two keep the link full while one ends and the next begins, and four
/// share a bottleneck better with other machines' single connections than one does.
const RUNS_IN_FLIGHT: usize = 4;

/// The bytes of one run before the origin's rate is known, and the bounds after that.
const RUN_BYTES: std::ops::RangeInclusive<u64> = (2 << 20)..=(64 << 20);

/// A run is to take about so long at the measured rate: long enough that the round trip between
/// two runs does not show, short enough that a new peer soon takes over the rest.
const RUN_SECONDS: u64 = 4;

#[derive(Debug)]
pub(super) struct OriginPlan {
    access: OriginAccess,
    /// Runs in flight by their first index, with what has not come yet.
    runs: BTreeMap<SegmentRange, SegmentRun>,
    started: Option<Instant>,
    bytes: u64,
    bytes_per_sec: u64,
    /// Runs that may be in flight; fewer, once the origin has refused some.
    limit: usize,
}

#[derive(Debug)]
struct SegmentRun {
    owed: BTreeSet<SegmentIndex>,
}

impl OriginPlan {
    pub(super) fn new(access: OriginAccess) -> Self {
        Self {
            access,
            runs: BTreeMap::new(),
            started: None,
            bytes: 0,
            bytes_per_sec: 0,
            limit: RUNS_IN_FLIGHT,
        }
    }

    pub(super) fn access(&self) -> OriginAccess {
        self.access
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

    /// Whether another run may be asked for.
    pub(super) fn has_room(&self) -> bool {
        match self.access {
            OriginAccess::Closed => false,
            OriginAccess::Ranges => self.runs.len() < self.limit,
            OriginAccess::WholeFileOnly => self.runs.is_empty(),
        }
    }

    /// Bytes per second over all runs, once measured.
    pub(super) fn bytes_per_sec(&self) -> u64 {
        self.bytes_per_sec
    }

    pub(super) fn owes(&self, index: SegmentIndex) -> bool {
        self.runs.values().any(|run| run.owed.contains(&index))
    }

    pub(super) fn arrived(&mut self, now: Instant, index: SegmentIndex, length: u32) {
        for run in self.runs.values_mut() {
            run.owed.remove(&index);
        }
        let started = *self.started.get_or_insert(now);
        self.bytes += u64::from(length);
        let millis = u64::try_from(now.saturating_duration_since(started).as_millis()).unwrap_or(0);
        if millis >= 200 {
            self.bytes_per_sec = self.bytes.saturating_mul(1000) / millis;
        }
    }

    /// A run has ended: what it still owed.
    pub(super) fn end(&mut self, run: SegmentRange) -> Vec<SegmentIndex> {
        self.runs
            .remove(&run)
            .map(|run| run.owed.into_iter().collect())
            .unwrap_or_default()
    }

    /// The runs whose missing segments are all held by somebody nearer.
    pub(super) fn runs_held_by(&self, holds: impl Fn(SegmentIndex) -> bool) -> Vec<SegmentRange> {
        let held = |run: &SegmentRun| !run.owed.is_empty() && run.owed.iter().all(|i| holds(*i));
        self.runs
            .iter()
            .filter(|(_, run)| held(run))
            .map(|(range, _)| *range)
            .collect()
    }

    /// The next run of open segments that no peer holds.
    pub(super) fn next_run(
        &mut self,
        open: &SegmentSet,
        done: &SegmentSet,
        held_by_peers: &SegmentSet,
        lengths: &[u32],
    ) -> Option<SegmentRange> {
        if !self.has_room() {
            return None;
        }
        let range = match self.access {
            OriginAccess::Closed => None,
            OriginAccess::Ranges => self.first_run(open, held_by_peers, lengths),
            OriginAccess::WholeFileOnly => whole_file(open, held_by_peers),
        }?;
        let missing = |index: &SegmentIndex| !done.contains(*index);
        let owed = range.iter().filter(missing);
        let owed = owed
            .filter(|index| !held_by_peers.contains(*index))
            .collect();
        self.runs.insert(range, SegmentRun { owed });
        Some(range)
    }

    fn first_run(
        &self,
        open: &SegmentSet,
        held_by_peers: &SegmentSet,
        lengths: &[u32],
    ) -> Option<SegmentRange> {
        let wanted =
            |index: &SegmentIndex| open.contains(*index) && !held_by_peers.contains(*index);
        let first = open.first_not_in(held_by_peers)?;
        let limit = (self.bytes_per_sec * RUN_SECONDS).clamp(*RUN_BYTES.start(), *RUN_BYTES.end());
        let mut bytes = 0;
        let count = (first.0..)
            .map(SegmentIndex)
            .take_while(wanted)
            .take_while(|index| {
                let room = bytes < limit;
                bytes += u64::from(lengths.get(index.0 as usize).copied().unwrap_or(0));
                room
            })
            .count();
        SegmentRange::new(first, u32::try_from(count).ok()?)
    }
}

/// Without ranges there is one run, the whole file, when something is missing that only the origin
/// can give.
fn whole_file(open: &SegmentSet, held_by_peers: &SegmentSet) -> Option<SegmentRange> {
    open.first_not_in(held_by_peers)?;
    SegmentRange::new(SegmentIndex(0), open.size())
}
