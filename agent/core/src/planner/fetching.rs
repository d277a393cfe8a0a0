//! The planner's side towards the origin: leases, and runs by its own right.

use std::collections::BTreeSet;
use std::time::Instant;

use branchline_hashing::SegmentIndex;
use rand::RngExt;

use super::neighbours::Neighbours;
use super::origin::{Right, first_run};
use super::{Action, OriginAccess, PEER_STALL, Planner, RunFailure};
use crate::swarm::{BlockRange, BlockSet, Grant, MAX_LEASES};
use crate::{PeerId, SegmentRange, SegmentSet};

/// The longest run by own right in a branch, in blocks, unless half a second at the measured rate is more:
/// others may fetch the same.
const MOST_OWN_BLOCKS: u64 = 4;

/// Runs by own right at the first moment of impatience, when others may yet bring what they lease.
const FIRST_OWN_RUNS: usize = 2;

/// So many members begin at the first moment of impatience, two runs each: as many as a steward lets fetch at once. More
/// would get so little each that nobody has a segment to give before all have lost patience.
const MOST_BEGIN: usize = 4;

/// A turn of those that have lost patience: the origin's round trip, a block and a have-update take less than a
/// quarter of the wait, and in a branch of a hundred the last one begins 1.75 waits later.
const TURNS_IN_A_WAIT: u32 = 4;

impl Planner {
    /// The origin's answer to `run` has ended; what did not arrive is open again.
    pub fn handle_origin_run_ended(&mut self, now: Instant, run: SegmentRange) {
        let was_in_flight = self.origin.is_fetching(run);
        let freed = self.origin.end(run);
        // One that was cancelled owes nothing, and says nothing of the others.
        if was_in_flight && freed.is_empty() {
            self.origin.room.run_ended_well();
        }
        self.reopen(freed);
        self.plan(now);
    }

    /// The origin would not give `run`, after all retries, for want of ranges, or of room.
    pub fn handle_origin_run_failed(
        &mut self,
        now: Instant,
        run: SegmentRange,
        failure: RunFailure,
    ) {
        if !self.origin.is_fetching(run) {
            // It was cancelled before: what became of it says nothing of those that are under way.
            return;
        }
        let early = self.origin.is_early(run);
        if self.origin.is_own(run) && matches!(failure, RunFailure::Busy { .. }) {
            // What is refused is no reason to ask for more.
            self.own_runs = self.own_runs.saturating_sub(1);
        }
        let freed = self.origin.end(run);
        self.reopen(freed);
        let in_flight = self.origin.runs_in_flight();
        if !matches!(failure, RunFailure::Busy { .. }) {
            self.give_back_leases_of(run);
        }
        match (failure, self.origin.access()) {
            (RunFailure::NoRanges, OriginAccess::Ranges) => {
                self.change_origin(OriginAccess::WholeFileOnly);
            }
            // One of several that failed for the same reason, which has been dealt with.
            (RunFailure::NoRanges, OriginAccess::WholeFileOnly | OriginAccess::Closed) => {}
            // Its lease is kept: it is next.
            (RunFailure::Busy { retry_after }, _) if early && retry_after.is_zero() => {
                self.origin.room.refused_early(in_flight);
            }
            (RunFailure::Busy { retry_after }, _) => {
                let random = self.rng.random();
                let room = &mut self.origin.room;
                if !room.refused(now, in_flight, retry_after, random) {
                    self.change_origin(OriginAccess::Closed);
                }
                if self.leases.len() > self.origin.leases_at(now) {
                    self.give_back_idle_leases_of(run);
                }
            }
            (RunFailure::GaveUp, _) => {
                if !self.origin.room.give_up(in_flight) {
                    self.change_origin(OriginAccess::Closed);
                }
            }
        }
        self.plan(now);
    }

    fn change_origin(&mut self, access: OriginAccess) {
        for run in self.origin.set_access(access) {
            self.cancel_run(run);
        }
        for lease in std::mem::take(&mut self.leases) {
            self.give_back(lease);
        }
    }

    /// Hands out to the origin what this member has a right to fetch there.
    pub(super) fn plan_origin(&mut self, now: Instant) {
        if self.open.is_empty() {
            self.plan_end_game(now);
        }
        let mut at = 0;
        while let Some(lease) = self.leases.get(at).copied() {
            if self.plan_lease(now, lease) {
                at += 1;
            } else {
                self.leases.remove(at);
            }
        }
        self.plan_own_runs(now);
    }

    /// `false` when nothing of the lease is left to fetch: it is given back, or done.
    fn plan_lease(&mut self, now: Instant, lease: BlockRange) -> bool {
        let Some(segments) = self.blocks.segments_of(lease) else {
            return false;
        };
        let idle = self.origin.runs_in(segments) == 0;
        if idle && self.origin.limit_at(now) == 0 {
            // Others may fetch while the origin refuses this member.
            self.give_back(lease);
            return false;
        }
        let (most_runs, most_bytes) = self.runs_of_a_lease();
        while self.origin.runs_in(segments) < most_runs {
            let Some(run) = self.run_within(now, segments, most_bytes) else {
                break;
            };
            if !self.origin.has_room(now) {
                return true;
            }
            self.fetch(now, run, Right::Leased);
        }
        let fetches = self.origin.runs_in(segments) > 0;
        if !fetches {
            self.give_back(lease);
        }
        fetches
    }

    /// How many runs a lease is fetched in at once, and the most bytes of each: in one, unless it is the only lease that the
    /// content has.
    fn runs_of_a_lease(&self) -> (usize, u64) {
        if self.blocks.count() == 1 {
            (2, self.half())
        } else {
            (1, u64::MAX)
        }
    }

    /// Of the content: the longest run by own right, and of a content of one block. The question what is current has opened two
    /// connections, and each doubles what it carries every round trip: half of the file comes sooner over each.
    fn half(&self) -> u64 {
        self.bytes.div_ceil(2)
    }

    fn run_within(
        &mut self,
        now: Instant,
        segments: SegmentRange,
        most_bytes: u64,
    ) -> Option<SegmentRange> {
        if self.open.is_empty() {
            return None;
        }
        let worth_waiting_for = self.origin.bytes_per_sec() / 2;
        let held = self.peers.held(now, worth_waiting_for);
        let run = first_run(self.open.set(), held, &self.lengths, segments, most_bytes)?;
        match self.origin.access() {
            OriginAccess::Closed => None,
            OriginAccess::Ranges => Some(run),
            OriginAccess::WholeFileOnly => SegmentRange::new(SegmentIndex(0), self.done.size()),
        }
    }

    /// A lease is not needed any more; what is there of it is reported as held.
    pub(super) fn give_back(&mut self, lease: BlockRange) {
        let mut rest = BlockSet::empty(self.blocks.count());
        for block in lease.iter().filter(|block| !self.held.contains(*block)) {
            rest.insert(block);
        }
        self.returned.extend(rest.ranges());
        self.news.urgent = true;
    }

    /// By its own right a member fetches when it is alone, and when others have let it wait.
    fn plan_own_runs(&mut self, now: Instant) {
        let alone = self.is_alone();
        if !alone && !self.patience.is_over(now) {
            self.own_runs = 0;
            self.own_turn = None;
            return;
        }
        if !alone && now < self.own_turn(now) {
            return;
        }
        let most = if alone {
            self.origin.limit()
        } else {
            FIRST_OWN_RUNS.max(self.own_runs / 2)
        };
        while self.origin.has_room(now)
            && (alone || self.origin.own_runs() < most)
            && let Some(run) = self.next_own_run(now)
        {
            self.own_runs += 1;
            self.fetch(now, run, Right::Own);
        }
    }

    /// When this member is the one that fetches what others have not brought. All lose patience at one moment,
    /// often for the same few blocks: as many as there are blocks for begin at once, the others in turns of
    /// twice as many each time, for what one fetches all have soon.
    fn own_turn(&mut self, now: Instant) -> Instant {
        if let Some(turn) = self.own_turn {
            return turn;
        }
        let swarm = self.neighbours.as_ref().map_or(1, Neighbours::swarm_size);
        let missing = self.blocks.count() - self.held.len();
        let draw = self.rng.random_range(0..swarm.max(1));
        let mut begin = (missing as usize / 2).clamp(1, MOST_BEGIN);
        let mut turn = self.patience.until().max(now);
        while begin <= draw {
            begin *= 2;
            turn += self.patience.wait() / TURNS_IN_A_WAIT;
        }
        self.own_turn = Some(turn);
        turn
    }

    fn next_own_run(&mut self, now: Instant) -> Option<SegmentRange> {
        if self.open.is_empty() {
            return None;
        }
        let company = self.enrolment.as_ref().is_some_and(|e| e.has_company());
        let mut bytes = self.origin.run_bytes().min(self.half());
        if company {
            // Others may be in the same position: short runs at first, at any place.
            let measured = self.origin.measured_bytes_per_sec();
            let most = (self.block_bytes() * MOST_OWN_BLOCKS).max(measured / 2);
            let doubled = self.block_bytes() << self.own_runs.min(10);
            bytes = bytes.min(doubled.min(most));
            self.own_next = self.any_place();
        }
        let worth_waiting_for = self.origin.bytes_per_sec() / 2;
        let held = self.peers.held(now, worth_waiting_for);
        let size = self.done.size();
        let first_from = |from: SegmentIndex| {
            let rest = SegmentRange::new(from, size - from.0)?;
            first_run(self.open.set(), held, &self.lengths, rest, bytes)
        };
        let run = first_from(self.own_next).or_else(|| first_from(SegmentIndex(0)))?;
        self.own_next = SegmentIndex(run.end() % size);
        match self.origin.access() {
            OriginAccess::Closed => None,
            OriginAccess::Ranges => Some(run),
            OriginAccess::WholeFileOnly => SegmentRange::new(SegmentIndex(0), size),
        }
    }

    /// The beginning of a block drawn by chance; the first, when one run holds all.
    pub(super) fn any_place(&mut self) -> SegmentIndex {
        if self.bytes <= self.origin.run_bytes() && self.blocks.count() <= 1 {
            return SegmentIndex(0);
        }
        let block = self.rng.random_range(0..self.blocks.count().max(1));
        SegmentIndex(block * self.blocks.segments_per_block())
    }

    fn fetch(&mut self, now: Instant, run: SegmentRange, right: Right) {
        let worth_waiting_for = self.origin.bytes_per_sec() / 2;
        let held = self.peers.held(now, worth_waiting_for);
        let missing = |index: &SegmentIndex| !self.done.contains(*index);
        let owed: BTreeSet<_> = run
            .iter()
            .filter(missing)
            .filter(|index| !held.contains(*index))
            .collect();
        for index in &owed {
            self.open.remove(*index);
        }
        let bytes_to_come = run.iter().map(|i| u64::from(self.length(i))).sum();
        self.origin.begin(now, run, owed, bytes_to_come, right);
        self.actions.push_back(Action::FetchFromOrigin { run });
    }

    /// Ends a run in flight; what it owed is open again.
    pub(super) fn cancel_run(&mut self, run: SegmentRange) {
        self.actions.push_back(Action::CancelOrigin { run });
        let freed = self.origin.end(run);
        self.reopen(freed);
    }

    /// Runs in flight at the origin that a peer has come to hold are taken back: the LAN is nearer.
    pub(super) fn take_from_origin(&mut self, now: Instant, peer: PeerId) {
        let worth_waiting_for = self.origin.bytes_per_sec() / 2;
        // A whole file would begin at its first byte again.
        if self.origin.access() != OriginAccess::Ranges
            || !self.peers.may_take_over(now, peer, worth_waiting_for)
        {
            return;
        }
        let held = self
            .origin
            .runs_held_by(|index| self.peers.holds(peer, index));
        for run in held {
            self.peers.has_taken_over(peer);
            self.cancel_run(run);
        }
    }

    /// What a peer that turned out slow owes goes back, while the origin could send it.
    pub(super) fn shed_to_origin(&mut self, now: Instant) {
        if self.origin.access() != OriginAccess::Ranges {
            return;
        }
        let longest = self.patience.wait().max(PEER_STALL);
        let rate = self.origin.bytes_per_sec();
        for (peer, freed) in self.peers.shed(now, rate, longest) {
            let mut set = SegmentSet::empty(self.done.size());
            freed.iter().for_each(|index| {
                set.insert(*index);
            });
            for range in set.ranges() {
                self.actions.push_back(Action::Cancel { peer, range });
            }
            self.reopen(freed);
        }
    }

    /// A leased run of which nothing comes is given back.
    pub(super) fn end_stalled_runs(&mut self, now: Instant) {
        for run in self.origin.stalled(now) {
            self.cancel_run(run);
            self.give_back_leases_of(run);
        }
    }

    /// But for a lease of which another run is in flight.
    fn give_back_idle_leases_of(&mut self, run: SegmentRange) {
        let idle = |lease: &BlockRange| {
            let segments = self.blocks.segments_of(*lease);
            segments.is_none_or(|segments| self.origin.runs_in(segments) == 0)
        };
        let (idle, busy): (Vec<_>, Vec<_>) = self.leases.iter().partition(|lease| idle(lease));
        self.leases = idle;
        self.give_back_leases_of(run);
        self.leases.extend(busy);
    }

    pub(super) fn give_back_leases_of(&mut self, run: SegmentRange) {
        let (first, last) = (run.first(), SegmentIndex(run.end() - 1));
        let blocks = self.blocks.of_segment(first)..=self.blocks.of_segment(last);
        let meets = |lease: &mut BlockRange| {
            lease.first() <= *blocks.end() && blocks.start().0 < lease.end()
        };
        let given_back: Vec<_> = self.leases.extract_if(.., meets).collect();
        given_back
            .into_iter()
            .for_each(|lease| self.give_back(lease));
    }

    pub(super) fn take_grants(&mut self, granted: &[Grant]) {
        let known = granted.iter().map(|grant| grant.blocks);
        let count = self.blocks.count();
        for blocks in known.filter(|blocks| blocks.end() <= count) {
            if self.leases.len() >= MAX_LEASES {
                break;
            }
            // What is there, or leased already, need not be fetched by this word.
            let mut new = BlockSet::empty(count);
            for block in blocks.iter().filter(|block| !self.held.contains(*block)) {
                if !self.leases.iter().any(|lease| lease.contains(block)) {
                    new.insert(block);
                }
            }
            self.leases.extend(new.ranges());
        }
    }

    /// The first answer of a steward says all that may be fetched: what it was told of and did not
    /// grant again, somebody else has.
    pub(super) fn confirm_runs(&mut self, granted: &[Grant]) {
        self.leases.clear();
        let blocks = self.blocks;
        let may = |index: SegmentIndex| {
            let block = blocks.of_segment(index);
            granted.iter().any(|grant| grant.blocks.contains(block))
        };
        let refused = self.origin.confirm(may);
        refused.into_iter().for_each(|run| self.cancel_run(run));
    }
}
