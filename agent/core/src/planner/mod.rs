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
//! - the origin is asked only for what a steward leased to this member, or, while it is alone or has waited
//!   long enough, by its own right;
//! - as long as a segment is missing there is an action in flight or a deadline set, unless no
//!   peer holds it and the origin is closed: then [`Planner::is_stuck`] says so;
//! - nothing here reads the clock or draws a random number: choices by chance come from the seed.
//!
//! It does not verify, and it does not retry the origin, unless that was busy: the origin's own retries lie below
//! `FetchFromOrigin`.

mod action;
mod choice;
mod fetching;
mod fresh;
mod neighbours;
mod origin;
mod patience;
mod peer;
mod peers;
mod room;
mod setup;
mod telling;
mod words;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::swarm::{BlockIndex, BlockRange, BlockSet, Blocks, Enrolment, News};
use crate::{Deadline, PeerId, SegmentRange, SegmentSet};
use choice::Open;
use fresh::Fresh;
use neighbours::Neighbours;
use origin::{OriginPlan, Right};
use patience::{Patience, sending_time};
use peer::Silence;
use peers::Peers;

pub use action::{Action, Arrival, JoinFailure, OriginAccess, RunFailure, Source, Waiting};
pub use neighbours::MAX_NEIGHBOURS;
pub(crate) use patience::{AnswerPatience, answer_patience, wait_for_others};
pub use peers::DropReason;
pub use setup::{OriginPace, Setup, Sharing};
pub use telling::TELL_EVERY;

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
    me: Option<PeerId>,
    lengths: Arc<[u32]>,
    bytes: u64,
    /// The time that the origin alone is expected to need for the whole.
    origin_needs: Duration,
    blocks: Blocks,
    /// Verified and written.
    done: SegmentSet,
    /// Neither done nor in flight anywhere.
    open: Open,
    fresh: Fresh,
    peers: Peers,
    neighbours: Option<Neighbours>,
    enrolment: Option<Enrolment>,
    origin: OriginPlan,
    /// What the steward granted and is not fetched yet.
    leases: Vec<BlockRange>,
    /// Runs by own right since others brought something; and where the next one begins.
    own_runs: usize,
    /// When it is this member's turn to begin them; drawn when it has lost patience.
    own_turn: Option<Instant>,
    own_next: SegmentIndex,
    patience: Patience,
    /// The blocks that are there, those not reported yet, and how many segments each lacks.
    held: BlockSet,
    unreported: BlockSet,
    lacks: Vec<u32>,
    returned: Vec<BlockRange>,
    news: News,
    /// Until when the origin waits for members that were asked to join.
    grace_until: Option<Instant>,
    /// The last time that was told.
    now: Instant,
    rng: Xoshiro256PlusPlus,
    actions: VecDeque<Action>,
}

impl Planner {
    /// Plans one transfer.
    ///
    /// # Panics
    /// When the lengths are not as many as the set of what is there has room for.
    pub fn new(now: Instant, setup: Setup) -> Self {
        let Setup {
            lengths,
            done,
            origin,
            pace,
            seed,
            sharing,
        } = setup;
        assert_eq!(lengths.len(), done.size() as usize, "a set of this content");
        let bytes = lengths.iter().map(|length| u64::from(*length)).sum();
        let blocks = Blocks::of(done.size(), bytes);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let patience = Patience::new(now, pace, bytes, longest);
        let sending = sending_time(pace, bytes, longest);
        let silence = Silence {
            first_answer: FIRST_ANSWER.min(patience.wait()) + sending,
            stall: PEER_STALL + sending,
        };
        let held = blocks.held_of(&done);
        let open = Open::new(blocks, done.complement());
        let lacks = open.of_blocks().to_vec();
        let mut planner = Self {
            me: sharing.as_ref().map(|sharing| sharing.me),
            lengths,
            bytes,
            origin_needs: pace.time_for(bytes),
            blocks,
            peers: Peers::new(blocks, silence),
            fresh: Fresh::new(done.size()),
            open,
            done,
            neighbours: None,
            enrolment: None,
            origin: OriginPlan::new(origin, pace),
            leases: Vec::new(),
            own_runs: 0,
            own_turn: None,
            own_next: SegmentIndex(0),
            patience,
            unreported: held.clone(),
            held,
            lacks,
            returned: Vec::new(),
            news: News::default(),
            grace_until: None,
            now,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            actions: VecDeque::new(),
        };
        if let Some(sharing) = sharing {
            let patience = answer_patience(pace, planner.bytes, sharing.warmed);
            planner.share(now, sharing, patience);
        }
        planner.plan(now);
        planner
    }

    fn share(&mut self, now: Instant, sharing: Sharing, patience: AnswerPatience) {
        let Sharing {
            me,
            swarm,
            members,
            enrolment,
            warmed: _,
        } = sharing;
        let enrolment =
            enrolment.unwrap_or_else(|| Enrolment::new(now, me, swarm, &members, patience));
        // Members that were silent while the manifest was sought are not waited for once more.
        self.grace_until = Some(enrolment.began() + JOIN_GRACE.min(patience.unreached));
        self.enrolment = Some(enrolment);
        self.neighbours = Some(Neighbours::new(&members, me, &mut self.rng));
        // The steward knows nothing of what this member would fetch.
        self.news.urgent = true;
        self.own_next = self.any_place();
    }

    /// Whether every segment is there.
    pub fn is_finished(&self) -> bool {
        self.done.is_full()
    }

    /// Whether segments are missing that nobody can give: no peer in sight holds them and the
    /// origin is closed.
    pub fn is_stuck(&self, now: Instant) -> bool {
        let asking = self.neighbours.as_ref().is_some_and(Neighbours::is_asking);
        let hopes = self.enrolment.as_ref().is_some_and(|enrolment| {
            enrolment.awaits_answer() || !enrolment.is_alone() && !self.patience.is_over(now)
        });
        !self.is_finished()
            && self.actions.is_empty()
            && self.origin.access() == OriginAccess::Closed
            && !asking
            && self.fresh.next_due().is_none()
            && !hopes
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
        let later = |at: Option<Instant>, waiting_for| {
            let at = at.filter(|at| *at > self.now);
            at.map(|at| Deadline { at, waiting_for })
        };
        let news = self.current_news();
        [
            later(
                self.enrolment
                    .as_ref()
                    .and_then(Enrolment::steward_is_asked_alone_until),
                "the steward to answer before others are asked",
            ),
            later(
                self.grace_until.filter(|_| self.awaits_first()),
                "peers to answer",
            ),
            later(
                Some(self.patience.until()).filter(|_| !self.is_alone()),
                "others to bring what they fetch",
            ),
            later(
                self.own_turn.filter(|_| !self.is_alone()),
                "its turn among those that waited too long",
            ),
            later(
                self.fresh.next_due(),
                "a second neighbour that holds what one has fetched",
            ),
            later(self.origin.next_stall(), "the origin"),
            later(self.origin.room.rests_until(), "the origin, which is busy"),
            later(
                self.origin.early_at().filter(|_| !self.open.is_empty()),
                "the origin to have sent a run",
            ),
            self.peers.next_deadline(),
            self.neighbours
                .as_ref()
                .and_then(|neighbours| neighbours.next_deadline(self.now)),
            self.enrolment
                .as_ref()
                .and_then(|enrolment| enrolment.next_deadline(self.now, news)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What is waited for, and until when at most: for `status`. `None` when all is there.
    pub fn waiting(&self) -> Option<Waiting> {
        if self.is_finished() {
            return None;
        }
        let awaits_steward = self
            .enrolment
            .as_ref()
            .is_some_and(Enrolment::awaits_answer);
        let peers = self.peers.next_deadline();
        let (waiting_for, until) = if !self.origin.is_idle() {
            ("the origin", self.origin.next_stall())
        } else if self.peers.owe_anything() {
            ("peers to send segments", peers.map(|peers| peers.at))
        } else if let Some(until) = self.origin.room.rests_until() {
            ("the origin, which is busy", Some(until))
        } else if self.awaits_first() {
            ("peers to answer", self.grace_until)
        } else if awaits_steward {
            ("the steward to answer", Some(self.patience.until()))
        } else if !self.is_alone() {
            let until = Some(self.patience.until());
            ("others to bring what they fetch", until)
        } else {
            (
                "a peer that holds it",
                self.next_deadline().map(|next| next.at),
            )
        };
        let until = until.filter(|until| *until > self.now);
        Some(Waiting { waiting_for, until })
    }

    /// The branch's live members by now.
    pub fn handle_members(&mut self, now: Instant, members: &BTreeSet<PeerId>) {
        if let Some(enrolment) = &mut self.enrolment {
            enrolment.handle_members(now, members);
        }
        if let Some(neighbours) = &mut self.neighbours {
            let me = self.me.expect("who has neighbours knows itself");
            neighbours.set_members(members, me, &mut self.rng);
        }
        self.plan(now);
    }

    /// A peer that was asked to join has not.
    pub fn handle_not_joined(&mut self, now: Instant, peer: PeerId, failure: JoinFailure) {
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.not_joined(now, peer, failure);
        }
        self.plan(now);
    }

    /// A peer has joined and holds `have`.
    pub fn handle_joined(&mut self, now: Instant, peer: PeerId, have: SegmentSet) {
        if let Some(neighbours) = &mut self.neighbours
            && !neighbours.joined(peer)
        {
            return self.refuse(peer);
        }
        let freed = self.peers.remove_for_rejoin(peer);
        self.reopen(freed);
        self.hear_all(&have);
        if self.peers.join(now, peer, have) {
            self.take_from_origin(now, peer);
        } else {
            if let Some(neighbours) = &mut self.neighbours {
                neighbours.dropped(peer);
            }
            self.refuse(peer);
        }
        self.plan(now);
    }

    /// One that was dropped before, or speaks of another content, has come: its session is to end.
    fn refuse(&mut self, peer: PeerId) {
        let reason = DropReason::Stalled;
        self.actions.push_back(Action::DropPeer { peer, reason });
    }

    /// A peer holds `have` by now.
    pub fn handle_have(&mut self, now: Instant, peer: PeerId, have: SegmentSet) {
        self.hear_all(&have);
        if self.peers.update_have(peer, have) {
            self.take_from_origin(now, peer);
        }
        self.plan(now);
    }

    /// Besides what it said before, a peer holds these by now.
    pub fn handle_have_more(
        &mut self,
        now: Instant,
        peer: PeerId,
        more: impl IntoIterator<Item = SegmentRange>,
    ) {
        let more: Vec<SegmentRange> = more.into_iter().collect();
        self.hear_of_more(now, peer, &more);
        if self.peers.extend_have(peer, more) {
            self.take_from_origin(now, peer);
        }
        self.plan(now);
    }

    /// A segment has been verified and written.
    pub fn handle_stored(&mut self, now: Instant, source: Source, index: SegmentIndex) {
        self.handle_stored_many(now, [(source, index)]);
    }

    /// Segments have been verified and written.
    pub fn handle_stored_many(
        &mut self,
        now: Instant,
        stored: impl IntoIterator<Item = (Source, SegmentIndex)>,
    ) {
        for (source, index) in stored {
            self.store(now, source, index);
        }
        self.plan(now);
    }

    fn store(&mut self, now: Instant, source: Source, index: SegmentIndex) {
        let new = self.done.insert(index);
        self.open.remove(index);
        let length = self.length(index);
        let from_others = match source {
            Source::Peer(peer) => {
                self.peers.arrived(now, peer, index, length);
                self.origin.disown(index);
                true
            }
            Source::Origin => self.origin.arrived(now, index, length) == Some(Right::Leased),
        };
        if !new {
            return;
        }
        self.origin.room.is_not_missed();
        if from_others {
            let rate = self.origin.bytes_per_sec_at_least();
            self.patience.progress(now, u64::from(length), rate);
        }
        self.cancel_elsewhere(source, index);
        let block = self.blocks.of_segment(index);
        self.lacks[block.0 as usize] -= 1;
        if self.lacks[block.0 as usize] == 0 {
            self.block_is_there(block);
        }
    }

    fn block_is_there(&mut self, block: BlockIndex) {
        self.held.insert(block);
        self.unreported.insert(block);
        let held = &self.held;
        let over = |lease: &mut BlockRange| {
            lease.contains(block) && lease.iter().all(|block| held.contains(block))
        };
        let ended = self.leases.extract_if(.., over).count();
        self.news.urgent |= ended > 0 || self.held.is_full();
    }

    /// A peer sent bytes that are not the segment: it is cut off at once.
    pub fn handle_bad_segment(&mut self, now: Instant, peer: PeerId) {
        self.drop_peer(now, peer, DropReason::Lied);
        self.plan(now);
    }

    /// A peer does not hold a segment it was asked for.
    pub fn handle_absent(&mut self, now: Instant, peer: PeerId, index: SegmentIndex) {
        if self.peers.absent(peer, index) {
            self.reopen([index]);
        }
        if self.peers.is_boasting(peer) {
            self.drop_peer(now, peer, DropReason::Stalled);
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
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.left(now, peer);
        }
        self.forget_actions(peer);
        self.reopen(freed);
        self.news.urgent = true;
        self.plan(now);
    }

    /// This machine's disk is behind with what has come: nobody else is to blame for silence.
    pub fn handle_local_delay(&mut self, now: Instant) {
        self.peers.excuse(now);
        self.patience.excuse(now);
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
        self.end_stalled_runs(now);
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.timeout(now);
        }
        if let Some(enrolment) = &mut self.enrolment {
            enrolment.handle_timeout(now);
        }
        self.plan(now);
    }

    /// Hands out what is open: to peers first, fastest first; then to the origin what no peer
    /// holds. Then tells the steward.
    fn plan(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if self.origin.room.has_rested(now) {
            self.news.urgent = true;
        }
        if !self.is_finished() {
            self.plan_neighbours(now);
            self.peers.wake(now);
            self.release_due(now);
            self.shed_to_origin(now);
            while let Some((peer, range)) =
                self.peers
                    .next_request(now, &self.open, &self.lengths, &mut self.rng)
            {
                self.close(range);
                self.actions.push_back(Action::Request { peer, range });
            }
            if !self.waits_for_joiners(now) {
                self.plan_origin(now);
            }
        }
        self.plan_words(now);
    }

    fn plan_neighbours(&mut self, now: Instant) {
        let enrolment = self.enrolment.as_ref();
        if enrolment.is_some_and(|enrolment| enrolment.asks_the_steward_alone(self.now)) {
            return;
        }
        let alone = self.is_alone();
        let Some(neighbours) = &mut self.neighbours else {
            return;
        };
        let any_member = alone || neighbours.branch_is_small();
        while let Some(peer) = neighbours.next(now, &mut self.rng, any_member) {
            self.actions.push_back(Action::Join { peer });
        }
    }

    /// Nothing is open, and somebody has nothing to do: he may take over what the slowest owes.
    fn plan_end_game(&mut self, now: Instant) {
        while let Some((peer, range)) = self.peers.next_takeover(now, &self.lengths) {
            self.actions.push_back(Action::Request { peer, range });
        }
    }

    /// No steward says what this member may fetch.
    fn is_alone(&self) -> bool {
        self.enrolment.as_ref().is_none_or(Enrolment::is_alone)
    }

    fn awaits_first(&self) -> bool {
        self.neighbours
            .as_ref()
            .is_some_and(Neighbours::awaits_first)
    }

    fn waits_for_joiners(&self, now: Instant) -> bool {
        self.awaits_first() && self.grace_until.is_some_and(|until| now < until)
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
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.dropped(peer);
        }
        self.forget_actions(peer);
        self.actions.push_back(Action::DropPeer { peer, reason });
        self.reopen(freed);
        self.news.urgent = true;
        self.now = self.now.max(now);
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
        let mut any = false;
        for index in freed {
            let owed = self.peers.owes(index) || self.origin.owes(index);
            if !self.done.contains(index) && !owed {
                any |= self.open.insert(index);
            }
        }
        if any {
            self.peers.reopened();
        }
    }

    fn length(&self, index: SegmentIndex) -> u32 {
        self.lengths.get(index.0 as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
