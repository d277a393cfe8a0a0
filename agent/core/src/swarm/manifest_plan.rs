//! Who is asked for a manifest's body, before there is a planner: its head alone is known.
//!
//! Inputs are `handle_*` with the time they happened; afterwards the caller drains
//! [`ManifestPlan::poll_action`] and waits for the next input or [`ManifestPlan::next_deadline`].
//! When the manifest is there, [`ManifestPlan::into_enrolment`] gives the planner the relation with
//! the steward: the stream stays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use branchline_hashing::SwarmId;

use super::{
    Answer, BlockSet, Blocks, Enlist, Enrolment, Heard, ManifestLease, News, Report, Want,
};
use crate::planner::{JOIN_GRACE, MAX_NEIGHBOURS, OriginPace, answer_patience, wait_for_others};
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
    /// Whether connections to all members were begun when the origin was asked.
    pub warmed: bool,
    /// How fast the origin is expected to be.
    pub pace: OriginPace,
    /// Whether the origin can be asked at all.
    pub origin_open: bool,
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

/// Peers that are asked for one manifest, however many stewards name.
const MAX_ASKED: usize = 1024;

/// In a branch with no more others than these a member has connections made to all while it asks the origin: who lives is
/// reached before it is known what the content is. A handshake costs both sides some milliseconds of a core.
const WARMED_MEMBERS: usize = 8;

/// Whether connections to all others are to be made before anything is known of the content.
pub fn warms(others: usize) -> bool {
    (1..=WARMED_MEMBERS).contains(&others)
}

/// Whether connections that were begun so long ago are there by now, and have not been closed again for want of use.
pub fn is_warm(begun: Duration) -> bool {
    begun < WARM_FOR
}

/// So long the exchange keeps, at least, a connection that nobody uses.
pub const WARM_FOR: Duration = Duration::from_secs(2);

/// What of the manifest is asked for at first, by a member of a branch with so many others: its head, and the rest of it
/// where the file is small. A second question costs a round trip, but each byte of the first one is sent to every member:
/// 16 of them cost the branch 32 KiB.
pub fn first_bytes_of_manifest(others: usize) -> u64 {
    let share = BRANCH_ASKS_BYTES / (others as u64 + 1);
    share.clamp(*FIRST_BYTES.start(), *FIRST_BYTES.end())
}

const BRANCH_ASKS_BYTES: u64 = 32 << 10;

/// The least holds the head and the table of a file of 600 KiB, the most that of 3 MiB.
const FIRST_BYTES: std::ops::RangeInclusive<u64> = (1 << 10)..=(4 << 10);

/// See the module's text.
#[derive(Debug)]
pub struct ManifestPlan {
    enrolment: Enrolment,
    blocks: Blocks,
    me: PeerId,
    /// The branch's members, where they are few; and whom of them to ask once it is time.
    members: BTreeSet<PeerId>,
    to_ask: Vec<PeerId>,
    /// Whom was asked, and whether an answer is due.
    asked: BTreeMap<PeerId, Ask>,
    origin: Origin,
    /// How long others may take to bring it once a steward said that they do.
    wait: Duration,
    /// When the origin is asked whatever others do; set while others are waited for.
    waits_until: Option<Instant>,
    /// When it is asked whatever stewards say: a full one names neither a fetcher nor a holder.
    ends_at: Instant,
    /// Until when the origin waits for members that were asked, though this one is to fetch.
    grace_until: Instant,
    may_fetch: bool,
    now: Instant,
    actions: VecDeque<ManifestAction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Asked,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Open,
    Asked,
    Closed,
}

impl ManifestPlan {
    /// Plans how the body of a manifest comes.
    pub fn new(now: Instant, setup: ManifestSetup) -> Self {
        let ManifestSetup {
            me,
            swarm,
            blocks,
            content_bytes,
            manifest_bytes,
            members,
            warmed,
            pace,
            origin_open,
        } = setup;
        let patience = answer_patience(pace, content_bytes, warmed);
        let mut plan = Self {
            enrolment: Enrolment::new(now, me, swarm, &members, patience),
            blocks,
            me,
            members: BTreeSet::new(),
            to_ask: Vec::new(),
            asked: BTreeMap::new(),
            origin: if origin_open {
                Origin::Open
            } else {
                Origin::Closed
            },
            wait: wait_for_others(pace, content_bytes, 0) + pace.time_for(manifest_bytes),
            waits_until: None,
            ends_at: now,
            grace_until: now + JOIN_GRACE.min(patience.unreached),
            may_fetch: false,
            now,
            actions: VecDeque::new(),
        };
        plan.ends_at = now + patience.whole + plan.wait;
        plan.learn_members(&members);
        plan.plan(now);
        plan
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<ManifestAction> {
        self.actions.pop_front()
    }

    /// When to call [`ManifestPlan::handle_timeout`] if nothing else happens before, and what is
    /// waited for.
    pub fn next_deadline(&self) -> Option<Deadline> {
        let later = |at: Option<Instant>, waiting_for| {
            let at = at.filter(|at| *at > self.now);
            at.map(|at| Deadline { at, waiting_for })
        };
        let open = self.origin == Origin::Open;
        [
            later(
                self.enrolment.steward_is_asked_alone_until(),
                "the steward to answer before others are asked",
            ),
            later(
                Some(self.grace_until).filter(|_| open && self.is_asking()),
                "peers to answer",
            ),
            later(self.waits_until, "others to bring the manifest"),
            later(
                Some(self.ends_at).filter(|_| open),
                "a steward to say who fetches the manifest",
            ),
            self.enrolment.next_deadline(self.now, News::default()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether nobody is left to ask: the origin gave no manifest or is closed, and no peer in
    /// sight has it.
    pub fn is_stuck(&self) -> bool {
        self.origin == Origin::Closed
            && self.actions.is_empty()
            && !self.is_asking()
            && self.to_ask.is_empty()
            && !self.enrolment.awaits_answer()
            && self.waits_until.is_none_or(|until| until <= self.now)
    }

    /// The branch's live members by now.
    pub fn handle_members(&mut self, now: Instant, members: &BTreeSet<PeerId>) {
        self.enrolment.handle_members(now, members);
        self.learn_members(members);
        self.plan(now);
    }

    /// The steward has answered.
    pub fn handle_answer(&mut self, now: Instant, steward: PeerId, answer: &Answer) {
        let heard = self
            .enrolment
            .handle_answer(now, steward, answer.asked, answer.lessees);
        if heard == Heard::Stranger {
            return;
        }
        match answer.manifest {
            ManifestLease::Fetch => self.may_fetch = true,
            ManifestLease::Wait => {
                self.waits_until.get_or_insert(now + self.wait);
            }
            ManifestLease::NotAsked => {}
        }
        for named in answer.peers.iter().filter(|named| named.has_manifest) {
            self.ask(named.peer);
        }
        self.plan(now);
    }

    /// There is a connection to the steward: it lives, as far as is known, and may be busy.
    pub fn handle_steward_reached(&mut self, now: Instant, steward: PeerId) {
        self.enrolment.handle_reached(steward);
        self.plan(now);
    }

    /// The stream to the steward has ended or could not be opened.
    pub fn handle_steward_lost(&mut self, now: Instant, steward: PeerId) {
        self.enrolment.handle_lost(now, steward);
        self.plan(now);
    }

    /// A peer that was asked does not give the manifest.
    pub fn handle_peer_failed(&mut self, now: Instant, peer: PeerId) {
        self.asked.insert(peer, Ask::Failed);
        self.plan(now);
    }

    /// The origin does not give it, after all retries.
    pub fn handle_origin_failed(&mut self, now: Instant) {
        self.origin = Origin::Closed;
        self.plan(now);
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.enrolment.handle_timeout(now);
        self.plan(now);
    }

    /// The manifest is there: the relation with the steward, for the planner.
    pub fn into_enrolment(self) -> Enrolment {
        self.enrolment
    }

    fn is_asking(&self) -> bool {
        self.asked.values().any(|ask| *ask == Ask::Asked)
    }

    /// In a small branch all members are asked at once: one may have had it for long.
    fn learn_members(&mut self, members: &BTreeSet<PeerId>) {
        if members.len() > MAX_NEIGHBOURS {
            return;
        }
        let new: Vec<PeerId> = members.difference(&self.members).copied().collect();
        self.members.clone_from(members);
        self.to_ask.extend(new);
    }

    /// Who failed is asked again when a steward names it: it has the manifest by now.
    fn ask(&mut self, peer: PeerId) {
        let asked = self.asked.values().filter(|ask| **ask == Ask::Asked);
        if peer != self.me
            && asked.count() < MAX_NEIGHBOURS
            && (self.asked.len() < MAX_ASKED || self.asked.contains_key(&peer))
            && self.asked.insert(peer, Ask::Asked) != Some(Ask::Asked)
        {
            self.actions.push_back(ManifestAction::AskPeer { peer });
        }
    }

    fn plan(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if !self.enrolment.asks_the_steward_alone(self.now) {
            let to_ask = std::mem::take(&mut self.to_ask);
            to_ask.into_iter().for_each(|peer| self.ask(peer));
        }
        self.plan_origin(now);
        for steward in self.enrolment.take_left() {
            self.actions
                .push_back(ManifestAction::LeaveSteward { steward });
        }
        let want = Want {
            runs: 0,
            blocks_per_run: 0,
            manifest: true,
        };
        let held = BlockSet::empty(self.blocks.count());
        if let Some(steward) = self.enrolment.take_enlist(now) {
            let enlist = Enlist {
                swarm: self.enrolment.swarm(),
                blocks: self.blocks,
                held,
                leased: Vec::new(),
                has_manifest: false,
                want,
            };
            self.actions
                .push_back(ManifestAction::Enlist { steward, enlist });
        } else if let Some(steward) = self.enrolment.take_report(now, News::default()) {
            let report = Report {
                held,
                returned: Vec::new(),
                has_manifest: false,
                want,
            };
            self.actions
                .push_back(ManifestAction::Report { steward, report });
        }
    }

    fn plan_origin(&mut self, now: Instant) {
        let waited = self.ends_at <= now || self.waits_until.is_some_and(|until| until <= now);
        let may = self.may_fetch || self.enrolment.is_alone();
        let grace = self.is_asking() && now < self.grace_until;
        if self.origin == Origin::Open && (waited || (may && !grace)) {
            self.origin = Origin::Asked;
            self.actions.push_back(ManifestAction::FetchFromOrigin);
        }
    }
}

#[cfg(test)]
mod tests;
