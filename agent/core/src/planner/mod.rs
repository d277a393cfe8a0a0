//! Who is asked for which segment, when, and what happens when nothing comes.
//!
//! One [`Planner`] plans one transfer of one machine. Inputs are `handle_*` with the time they
//! happened; outputs are drained from [`Planner::poll_action`] until `None`; then the caller waits
//! for the next input or for [`Planner::next_deadline`] and calls [`Planner::handle_timeout`].
//!
//! Invariants:
//! - a segment is in flight at one place at most, but for the end game, where a second place may
//!   be asked and the first answer cancels the other;
//! - a peer that was dropped is never asked again;
//! - as long as a segment is missing there is an action in flight or a deadline set, unless no
//!   peer holds it and the origin is closed: then [`Planner::is_stuck`] says so;
//! - nothing here reads the clock or draws a random number.
//!
//! It does not verify, and it does not retry the origin: the origin's own retries lie below
//! `FetchFromOrigin`.

mod action;
mod origin;
mod peers;
mod setup;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;

use crate::swarm::Answer;
use crate::{Deadline, PeerId, SegmentRange, SegmentSet};
use origin::OriginPlan;
use peers::Peers;

pub use action::{Action, Arrival, JoinFailure, OriginAccess, RunFailure, Source};
pub use peers::DropReason;
pub use setup::{OriginPace, Setup, Sharing};

/// How long the start waits for peers that were asked and have not answered: the origin would
/// need about a WAN round trip and a TLS handshake (40 ms x 3 in the lab) before its first byte, and
/// a peer on the LAN answers within a few milliseconds.
pub const JOIN_GRACE: Duration = Duration::from_millis(250);

/// A peer that owes segments and delivers none for so long loses its requests. A LAN answers
/// within milliseconds; one second is several retransmission timeouts (RFC 9002, 6.2).
pub const PEER_STALL: Duration = Duration::from_secs(1);

/// The same for a peer that has not delivered anything yet: nothing says that it ever will, and the
/// origin could have sent since. Half a second is a busy machine's answer, not a hung one's.
pub const FIRST_ANSWER: Duration = Duration::from_millis(500);

/// After so many stalls in one transfer a peer is not asked again.
pub const STALLS_ALLOWED: u32 = 2;

/// Plans one transfer. See the module's text.
#[derive(Debug)]
pub struct Planner {
    lengths: Arc<[u32]>,
    /// Verified and written.
    done: SegmentSet,
    /// Neither done nor in flight anywhere.
    open: SegmentSet,
    peers: Peers,
    origin: OriginPlan,
    /// Peers that were asked to join and have not answered, and until when the origin waits.
    joining: u32,
    grace_until: Option<Instant>,
    actions: VecDeque<Action>,
}

impl Planner {
    /// Plans one transfer.
    pub fn new(now: Instant, setup: Setup) -> Self {
        let Setup {
            lengths,
            done,
            origin,
            ..
        } = setup;
        let joining = 0;
        let open = done.complement();
        let mut planner = Self {
            lengths,
            done,
            open,
            peers: Peers::default(),
            origin: OriginPlan::new(origin),
            joining,
            grace_until: Some(now + JOIN_GRACE),
            actions: VecDeque::new(),
        };
        planner.plan(now);
        planner
    }

    /// Whether every segment is there.
    pub fn is_finished(&self) -> bool {
        self.done.is_full()
    }

    /// Whether segments are missing that nobody can give: no peer in sight holds them and the
    /// origin is closed.
    pub fn is_stuck(&self, now: Instant) -> bool {
        !self.is_finished()
            && self.actions.is_empty()
            && self.origin.access() == OriginAccess::Closed
            && !self.waits_for_joiners(now)
            && self.peers.is_idle()
    }

    /// What the origin is good for, as far as is known.
    pub fn origin_access(&self) -> OriginAccess {
        self.origin.access()
    }

    /// The segments that are there.
    pub fn done(&self) -> &SegmentSet {
        &self.done
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Planner::handle_timeout`] if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Deadline> {
        if self.is_finished() {
            return None;
        }
        let waiting_for = "peers to answer";
        let grace = self.grace_until.filter(|_| self.joining > 0);
        let grace = grace.map(|at| Deadline { at, waiting_for });
        grace.into_iter().chain(self.peers.next_deadline()).min()
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

    /// A peer that was asked to join has not.
    pub fn handle_not_joined(&mut self, now: Instant, peer: PeerId, failure: JoinFailure) {
        let _ = (peer, failure);
        self.joining = self.joining.saturating_sub(1);
        self.plan(now);
    }

    /// Besides what it said before, a peer holds these by now.
    pub fn handle_have_more(
        &mut self,
        now: Instant,
        peer: PeerId,
        more: impl IntoIterator<Item = SegmentRange>,
    ) {
        let _ = (now, peer, more.into_iter().count());
    }

    /// Segments have been verified and written.
    pub fn handle_stored_many(
        &mut self,
        now: Instant,
        stored: impl IntoIterator<Item = (Source, SegmentIndex)>,
    ) {
        for (source, index) in stored {
            self.handle_stored(now, source, index);
        }
    }

    /// What is waited for, and until when: for `status`.
    pub fn waiting(&self) -> Option<Deadline> {
        self.next_deadline()
    }

    /// A peer has joined and holds `have`.
    pub fn handle_joined(&mut self, now: Instant, peer: PeerId, have: SegmentSet) {
        self.joining = self.joining.saturating_sub(1);
        self.peers.join(now, peer, have);
        self.take_from_origin(peer);
        self.plan(now);
    }

    /// A peer holds `have` by now.
    pub fn handle_have(&mut self, now: Instant, peer: PeerId, have: SegmentSet) {
        self.peers.update_have(peer, have);
        self.take_from_origin(peer);
        self.plan(now);
    }

    /// A segment has been verified and written.
    pub fn handle_stored(&mut self, now: Instant, source: Source, index: SegmentIndex) {
        let new = self.done.insert(index);
        self.open.remove(index);
        let length = self.length(index);
        match source {
            Source::Peer(peer) => self.peers.arrived(now, peer, index, length),
            Source::Origin => self.origin.arrived(now, index, length),
        }
        if new {
            self.cancel_elsewhere(source, index);
        }
        self.plan(now);
    }

    /// A peer sent bytes that are not the segment: it is cut off at once.
    pub fn handle_bad_segment(&mut self, now: Instant, peer: PeerId) {
        self.drop_peer(now, peer, DropReason::Lied);
    }

    /// A peer does not hold a segment it was asked for.
    pub fn handle_absent(&mut self, now: Instant, peer: PeerId, index: SegmentIndex) {
        if self.peers.absent(now, peer, index) {
            self.reopen([index]);
        }
        self.plan(now);
    }

    /// A peer refuses `range` for now.
    pub fn handle_busy(
        &mut self,
        now: Instant,
        peer: PeerId,
        range: SegmentRange,
        retry_after: Duration,
    ) {
        let freed = self.peers.busy(now, peer, range, retry_after);
        self.reopen(freed);
        self.plan(now);
    }

    /// A peer's session has ended.
    pub fn handle_left(&mut self, now: Instant, peer: PeerId) {
        let freed = self.peers.remove(peer);
        self.forget_actions(peer);
        self.reopen(freed);
        self.plan(now);
    }

    /// The origin's answer to `run` has ended; what did not arrive is open again.
    pub fn handle_origin_run_ended(&mut self, now: Instant, run: SegmentRange) {
        let freed = self.origin.end(run);
        self.reopen(freed);
        self.plan(now);
    }

    /// The origin would not give `run`, after all retries or for want of ranges.
    pub fn handle_origin_run_failed(
        &mut self,
        now: Instant,
        run: SegmentRange,
        failure: RunFailure,
    ) {
        let freed = self.origin.end(run);
        self.reopen(freed);
        match (failure, self.origin.access()) {
            (RunFailure::NoRanges, OriginAccess::Ranges) => {
                self.change_origin(OriginAccess::WholeFileOnly);
            }
            // One of several that failed for the same reason, which has been dealt with.
            (RunFailure::NoRanges, OriginAccess::WholeFileOnly | OriginAccess::Closed) => {}
            (RunFailure::GaveUp, _) => {
                if !self.origin.give_up() {
                    self.change_origin(OriginAccess::Closed);
                }
            }
        }
        self.plan(now);
    }

    fn change_origin(&mut self, access: OriginAccess) {
        for run in self.origin.set_access(access) {
            self.actions.push_back(Action::CancelOrigin { run });
            let freed = self.origin.end(run);
            self.reopen(freed);
        }
    }

    /// This machine's disk is behind with what has come: no peer is to blame for silence.
    pub fn handle_local_delay(&mut self, now: Instant) {
        self.peers.excuse(now);
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.grace_until = self.grace_until.filter(|until| now < *until);
        for peer in self.peers.stalled(now) {
            match self.peers.stall(now, peer) {
                Some(freed) => {
                    self.actions.push_back(Action::Interrupt { peer });
                    self.reopen(freed);
                }
                None => self.drop_peer(now, peer, DropReason::Stalled),
            }
        }
        self.plan(now);
    }

    /// Hands out what is open: to peers first, fastest first; then to the origin what no peer
    /// holds.
    fn plan(&mut self, now: Instant) {
        if self.is_finished() {
            return;
        }
        while let Some((peer, range)) = self.peers.next_request(now, &self.open, &self.lengths) {
            self.close(range);
            self.actions.push_back(Action::Request { peer, range });
        }
        if !self.waits_for_joiners(now) {
            self.plan_origin(now);
        }
    }

    fn plan_origin(&mut self, now: Instant) {
        if self.open.is_empty() {
            return self.plan_end_game(now);
        }
        if !self.origin.has_room() {
            return;
        }
        let worth_waiting_for = self.origin.bytes_per_sec() / 2;
        let held_by_peers = self.peers.held(now, self.done.size(), worth_waiting_for);
        while let Some(run) =
            self.origin
                .next_run(&self.open, &self.done, &held_by_peers, &self.lengths)
        {
            for index in run.iter().filter(|index| !held_by_peers.contains(*index)) {
                self.open.remove(index);
            }
            self.actions.push_back(Action::FetchFromOrigin { run });
        }
    }

    /// Nothing is open, and somebody has nothing to do: he may take over what the slowest owes.
    fn plan_end_game(&mut self, now: Instant) {
        while let Some((peer, range)) = self.peers.next_takeover(now, &self.lengths) {
            self.actions.push_back(Action::Request { peer, range });
        }
    }

    fn waits_for_joiners(&self, now: Instant) -> bool {
        self.joining > 0 && self.grace_until.is_some_and(|until| now < until)
    }

    /// Runs in flight at the origin that a new peer holds are taken back: the LAN is nearer.
    fn take_from_origin(&mut self, peer: PeerId) {
        // A whole file would begin at its first byte again.
        if self.origin.access() != OriginAccess::Ranges {
            return;
        }
        for run in self
            .origin
            .runs_held_by(|index| self.peers.holds(peer, index))
        {
            self.actions.push_back(Action::CancelOrigin { run });
            let freed = self.origin.end(run);
            self.reopen(freed);
        }
    }

    /// A segment has come: nobody else needs to send it.
    fn cancel_elsewhere(&mut self, source: Source, index: SegmentIndex) {
        for peer in self.peers.also_asked(source, index) {
            self.actions.push_back(Action::Cancel {
                peer,
                range: SegmentRange::one(index),
            });
        }
    }

    fn drop_peer(&mut self, now: Instant, peer: PeerId, reason: DropReason) {
        let freed = self.peers.drop_for(peer);
        self.forget_actions(peer);
        self.actions.push_back(Action::DropPeer { peer, reason });
        self.reopen(freed);
        self.plan(now);
    }

    /// What was still to be said to a peer that is gone.
    fn forget_actions(&mut self, gone: PeerId) {
        self.actions.retain(|action| match action {
            Action::Request { peer, .. }
            | Action::Cancel { peer, .. }
            | Action::Interrupt { peer } => *peer != gone,
            Action::DropPeer { .. }
            | Action::Join { .. }
            | Action::FetchFromOrigin { .. }
            | Action::CancelOrigin { .. }
            | Action::Enlist { .. }
            | Action::Report { .. }
            | Action::LeaveSteward { .. } => true,
        });
    }

    fn close(&mut self, range: SegmentRange) {
        for index in range.iter() {
            self.open.remove(index);
        }
    }

    /// Segments that are no longer expected from one place are open, unless they are there or
    /// another place still owes them.
    fn reopen(&mut self, freed: impl IntoIterator<Item = SegmentIndex>) {
        for index in freed {
            let owed = self.peers.owes(index) || self.origin.owes(index);
            if !self.done.contains(index) && !owed {
                self.open.insert(index);
            }
        }
    }

    fn length(&self, index: SegmentIndex) -> u32 {
        self.lengths.get(index.0 as usize).copied().unwrap_or(0)
    }
}

#[cfg(any())]
mod tests;
