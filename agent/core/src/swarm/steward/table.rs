//! One swarm as its steward knows it: members, leases, the manifest, who is told of whom.
//!
//! Each input returns nothing; what is to be said is left in `said`. No input looks at all members.

mod granting;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::{Rng, RngExt};

use super::ledger::Ledger;
use super::member::{Member, Presence};
use super::queue::Queue;
use super::roster::Roster;
use super::spread::Spread;
use super::{
    GONE_LINGERS, LESSEE_SILENCE, MANIFEST_FANOUT, MEMBER_SILENCE, NEIGHBOURS_TOLD, NEWS_COALESCED,
    RETURNED_RESTS,
};
use crate::PeerId;
use crate::swarm::{Answer, BlockIndex, Blocks, Enlist, Grant, Report};

#[derive(Debug)]
pub(super) struct Table {
    pub(super) ledger: Ledger,
    pub(super) members: BTreeMap<PeerId, Member>,
    /// Members that want a lease.
    queue: Queue,
    /// Members whose rest ends then.
    resting: BTreeSet<(Instant, PeerId)>,
    /// When each member is to be looked at.
    due: BTreeSet<(Instant, PeerId)>,
    /// Live members that have the manifest.
    serving: Roster,
    /// Members that were told of too few peers, and whom they will be told of.
    needy: BTreeSet<PeerId>,
    news: Roster,
    news_at: Option<Instant>,
    /// Agents that hold the whole content without being members.
    announcers: BTreeSet<PeerId>,
    /// Those of them whose word stops no lease any more: members had waited long, and got nothing.
    doubted: BTreeSet<PeerId>,
    /// When a member last came to hold more, or another announcer came.
    grew: Instant,
    spread: Spread,
    manifest_fetcher: Option<(PeerId, Instant)>,
    manifest_waiters: Queue,
    /// How many of those may be told of somebody who has it.
    manifest_room: usize,
    pub(super) said: Vec<(PeerId, Answer)>,
    pub(super) blocks_granted: u64,
    pub(super) leases_granted: u64,
}

impl Table {
    pub(super) fn new(
        now: Instant,
        blocks: Blocks,
        announcers: BTreeSet<PeerId>,
        rng: &mut impl Rng,
    ) -> Self {
        // Two stewards of one swarm, as long as members differ in whom they see, lease different blocks.
        let begin = BlockIndex(rng.random_range(0..blocks.count().max(1)));
        Self {
            ledger: Ledger::new(blocks.count(), begin),
            members: BTreeMap::new(),
            queue: Queue::default(),
            resting: BTreeSet::new(),
            due: BTreeSet::new(),
            serving: Roster::default(),
            needy: BTreeSet::new(),
            news: Roster::default(),
            news_at: None,
            announcers,
            doubted: BTreeSet::new(),
            grew: now,
            spread: Spread::default(),
            manifest_fetcher: None,
            manifest_waiters: Queue::default(),
            manifest_room: 0,
            said: Vec::new(),
            blocks_granted: 0,
            leases_granted: 0,
        }
    }

    /// Nobody is there whose stream is open.
    pub(super) fn is_idle(&self) -> bool {
        self.members
            .values()
            .all(|member| member.presence == Presence::Gone)
    }

    pub(super) fn enlist(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        from: PeerId,
        enlist: Enlist,
    ) {
        self.forget(from);
        let most = 2 * enlist.held.size() as usize;
        for block in enlist.held.iter() {
            self.ledger.hold(now, from, block);
            if self.ledger.holders(block) == 1 {
                self.spread.watch(now, block, from, most);
            }
        }
        let member = Member::new(now, enlist.held, enlist.want, enlist.has_manifest);
        self.members.insert(from, member);
        self.heard(now, from);
        let granted = self.confirm(now, from, &enlist.leased);
        self.answer(now, rng, from, granted);
    }

    pub(super) fn report(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        from: PeerId,
        report: Report,
    ) {
        let there = |member: &&mut Member| member.presence != Presence::Gone;
        let Some(member) = self.members.get_mut(&from).filter(there) else {
            let answer = Answer {
                asked: true,
                ..Answer::default()
            };
            return self.said.push((from, answer));
        };
        if !member.counts() {
            member
                .held
                .iter()
                .for_each(|block| self.ledger.hold(now, from, block));
        }
        for block in report.held.iter() {
            if member.held.insert(block) {
                self.grew = now;
                self.ledger.hold(now, from, block);
                if self.ledger.holders(block) == 1 {
                    let most = 2 * member.held.size() as usize;
                    self.spread.watch(now, block, from, most);
                }
            }
        }
        member.presence = Presence::Live;
        member.want = report.want;
        member.has_manifest |= report.has_manifest;
        for blocks in report.returned {
            if self.ledger.give_back(from, blocks) && report.want.runs > 0 {
                let until = now + RETURNED_RESTS;
                member.rests_until = Some(until);
                self.resting.insert((until, from));
            }
        }
        self.heard(now, from);
        self.answer(now, rng, from, Vec::new());
    }

    pub(super) fn left(&mut self, now: Instant, rng: &mut impl Rng, from: PeerId) {
        let Some(member) = self.members.get_mut(&from) else {
            return;
        };
        if !member.counts() {
            return self.forget(from);
        }
        member.presence = Presence::Gone;
        self.withdraw(from);
        self.set_due(from, Some(now + GONE_LINGERS));
        self.go_on(now, rng);
    }

    pub(super) fn set_announcers(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        announcers: BTreeSet<PeerId>,
    ) {
        let new = announcers.difference(&self.announcers).count();
        self.manifest_room += new * MANIFEST_FANOUT;
        if announcers
            .iter()
            .any(|id| !self.doubted.contains(id) && !self.announcers.contains(id))
        {
            self.grew = now;
        }
        self.announcers = announcers;
        self.go_on(now, rng);
    }

    pub(super) fn timeout(&mut self, now: Instant, rng: &mut impl Rng) {
        self.ledger.expire(now);
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.due.remove(&(at, id));
            self.look_at(now, id);
        }
        while let Some((at, id)) = self.resting.first().copied()
            && at <= now
        {
            self.resting.remove(&(at, id));
            self.take_place(now, id);
        }
        self.lease_unspread_again(now);
        self.go_on(now, rng);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let fetcher = self.manifest_fetcher.map(|(_, until)| until);
        [
            self.ledger.next_expiry(),
            self.due.first().map(|(at, _)| *at),
            self.resting.first().map(|(at, _)| *at),
            fetcher.filter(|_| !self.manifest_waiters.is_empty() && !self.somebody_serves()),
            self.spread.next_due(),
            self.announcers_doubted_at(),
            self.news_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Answers a member that spoke, then the others for whom that changed something.
    fn answer(&mut self, now: Instant, rng: &mut impl Rng, to: PeerId, mut granted: Vec<Grant>) {
        granted.extend(self.grant_runs(now, to));
        let manifest = self.manifest_for(now, to);
        let peers = self.peers_for(now, rng, to, manifest);
        let answer = Answer {
            asked: true,
            granted,
            manifest,
            peers,
            lessees: self.lessees(),
        };
        self.said.push((to, answer));
        self.go_on(now, rng);
    }

    /// Tells those who wait what has become possible.
    fn go_on(&mut self, now: Instant, rng: &mut impl Rng) {
        self.doubt_announcers(now);
        self.serve_queue(now);
        self.serve_manifest_waiters(now, rng);
        if self.news_at.is_some_and(|at| at <= now) {
            self.tell_news(now, rng);
        }
    }

    /// A member spoke: it is there, in its place in the queue, and others may be told of it.
    fn heard(&mut self, now: Instant, id: PeerId) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.heard = now;
        let has_all = member.held.is_full();
        let (serves, needs) = (member.serves(), member.told < NEIGHBOURS_TOLD && !has_all);
        if serves && self.serving.add(id) {
            self.news.add(id);
            self.news_at.get_or_insert(now + NEWS_COALESCED);
            self.manifest_room += MANIFEST_FANOUT;
        }
        if serves && needs {
            self.needy.insert(id);
        } else {
            self.needy.remove(&id);
        }
        self.take_place(now, id);
        let lessee = self.ledger.leases_of(id) > 0;
        let silence = if lessee {
            LESSEE_SILENCE
        } else {
            MEMBER_SILENCE
        };
        // Who has everything has nothing more to report; its stream's end tells of its own.
        self.set_due(id, (lessee || !has_all).then(|| now + silence));
    }

    fn take_place(&mut self, now: Instant, id: PeerId) {
        let nobody_waits = self.queue.is_empty();
        let Some(member) = self.members.get_mut(&id) else {
            return self.queue.remove(id);
        };
        member.shut_out &= !nobody_waits;
        if member.wants_run(now) {
            member.wants_since.get_or_insert(now);
            self.queue.push(id);
        } else {
            member.wants_since = None;
            self.queue.remove(id);
        }
    }

    fn set_due(&mut self, id: PeerId, at: Option<Instant>) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut member.due, at) {
            self.due.remove(&(old, id));
        }
        self.due.extend(at.map(|at| (at, id)));
    }

    /// Nothing was heard of a member for long.
    fn look_at(&mut self, now: Instant, id: PeerId) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.due = None;
        match member.presence {
            Presence::Gone => self.forget(id),
            Presence::Silent => {}
            Presence::Live if now >= member.heard + MEMBER_SILENCE => {
                member.presence = Presence::Silent;
                member
                    .held
                    .iter()
                    .for_each(|block| self.ledger.let_go(block));
                self.ledger.release(id);
                self.withdraw(id);
            }
            Presence::Live => {
                self.ledger.release(id);
                let silent = member.heard + MEMBER_SILENCE;
                let has_all = member.held.is_full();
                self.set_due(id, (!has_all).then_some(silent));
            }
        }
    }

    /// Nobody is told of it, and nothing is granted to it.
    fn withdraw(&mut self, id: PeerId) {
        self.serving.remove(id);
        self.news.remove(id);
        self.needy.remove(&id);
        if self
            .manifest_fetcher
            .is_some_and(|(fetcher, _)| fetcher == id)
        {
            self.manifest_fetcher = None;
        }
        self.queue.remove(id);
        self.manifest_waiters.remove(id);
    }

    fn forget(&mut self, id: PeerId) {
        self.withdraw(id);
        self.set_due(id, None);
        self.ledger.release(id);
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        if let Some(until) = member.rests_until {
            self.resting.remove(&(until, id));
        }
        if member.counts() {
            member
                .held
                .iter()
                .for_each(|block| self.ledger.let_go(block));
        }
    }
}
