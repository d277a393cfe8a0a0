//! One swarm as its steward knows it: members, leases, the manifest, who is told of whom.
//!
//! Each input returns nothing; what is to be said is left in `said`. No input looks at all members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::Rng;
use rand::seq::SliceRandom;

use super::ledger::Ledger;
use super::member::{Member, Presence};
use super::queue::Queue;
use super::roster::Roster;
use super::spread::Spread;
use super::{
    GONE_LINGERS, HOLDERS_NAMED_OF, LEASE_LASTS, LESSEE_SILENCE, MANIFEST_FANOUT, MANIFEST_LEASE,
    MAX_LESSEES, MEMBER_SILENCE, NEIGHBOURS_TOLD, NEWS_COALESCED, PEERS_REFRESHED, REFRESH_EVERY,
    RETURNED_RESTS, RUNS_IN_ALL, RUNS_OF_ONE, SPREADS_WITHIN,
};
use crate::PeerId;
use crate::swarm::{
    Answer, BlockRange, Blocks, Enlist, Grant, MAX_LEASES, ManifestLease, Report, SwarmPeer,
};

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
    pub(super) fn new(blocks: Blocks, announcers: BTreeSet<PeerId>) -> Self {
        Self {
            ledger: Ledger::new(blocks.count()),
            members: BTreeMap::new(),
            queue: Queue::default(),
            resting: BTreeSet::new(),
            due: BTreeSet::new(),
            serving: Roster::default(),
            needy: BTreeSet::new(),
            news: Roster::default(),
            news_at: None,
            announcers,
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
        for block in enlist.held.iter() {
            self.ledger.hold(now, from, block);
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
            if self.ledger.give_back(from, blocks) {
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
        self.manifest_room += announcers.len() * MANIFEST_FANOUT;
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

    /// Blocks that nobody gets from who fetched them are free again.
    fn lease_unspread_again(&mut self, now: Instant) {
        for look in self.spread.take_due(now) {
            let (block, holder) = (look.block, look.holder);
            let waits = self.somebody_else_waits_long(now, holder);
            let Some(member) = self.members.get_mut(&holder) else {
                continue;
            };
            if self.ledger.holders(block) != 1 || !member.counts() || !member.held.contains(block) {
                continue;
            }
            if !waits {
                let most = 2 * member.held.size() as usize;
                self.spread.watch(now, block, holder, most);
                continue;
            }
            member.held.remove(block);
            member.shut_out = true;
            self.ledger.let_go(block);
            self.queue.remove(holder);
        }
    }

    fn somebody_else_waits_long(&self, now: Instant, holder: PeerId) -> bool {
        let long = |since: Instant| since + SPREADS_WITHIN <= now;
        let waits = |id: &PeerId| {
            let member = self.members.get(id);
            *id != holder && member.and_then(|m| m.wants_since).is_some_and(long)
        };
        // Those that fetch may stand before those that only wait.
        self.queue.iter().take(2 * MAX_LESSEES).any(|id| waits(&id))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let fetcher = self.manifest_fetcher.map(|(_, until)| until);
        [
            self.ledger.next_expiry(),
            self.due.first().map(|(at, _)| *at),
            self.resting.first().map(|(at, _)| *at),
            fetcher.filter(|_| !self.manifest_waiters.is_empty()),
            self.spread.next_due(),
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

    /// What a member fetches already stays its own where nobody holds it or fetches it.
    fn confirm(&mut self, now: Instant, id: PeerId, leased: &[BlockRange]) -> Vec<Grant> {
        if !self.may_lease(id) {
            return Vec::new();
        }
        let mut confirmed = Vec::new();
        for blocks in leased {
            for blocks in self.ledger.confirm(now, id, *blocks) {
                confirmed.push(grant(blocks));
            }
            if confirmed.len() >= MAX_LEASES / 2 {
                break;
            }
        }
        confirmed
    }

    /// Whether a member may hold leases: it does already, or there is room for one more.
    fn may_lease(&self, id: PeerId) -> bool {
        let mut lessees = self.ledger.lessees();
        lessees.retain(|lessee| self.members.get(lessee).is_some_and(Member::is_live));
        self.announcers.iter().all(|announcer| *announcer == id)
            && (lessees.contains(&id) || lessees.len() < MAX_LESSEES)
    }

    fn grant_runs(&mut self, now: Instant, id: PeerId) -> Vec<Grant> {
        let mut granted = Vec::new();
        let wants = |member: &&mut Member| member.wants_run(now);
        while let Some(member) = self.members.get_mut(&id).filter(wants) {
            let want = member.want;
            let Some(blocks) = self.next_run(now, id, want.blocks_per_run) else {
                break;
            };
            granted.push(grant(blocks));
            self.leases_granted += 1;
            self.blocks_granted += u64::from(blocks.count());
            if let Some(member) = self.members.get_mut(&id) {
                member.want.runs -= 1;
            }
        }
        if !granted.is_empty() {
            self.heard_of_lessee(now, id);
        }
        granted
    }

    fn heard_of_lessee(&mut self, now: Instant, id: PeerId) {
        self.take_place(now, id);
        let heard = self.members.get(&id).map(|member| member.heard);
        self.set_due(id, heard.map(|heard| heard + LESSEE_SILENCE));
    }

    fn next_run(&mut self, now: Instant, id: PeerId, most: u32) -> Option<BlockRange> {
        if !self.may_lease(id) {
            return None;
        }
        let others_want = self.queue.iter().take(2).any(|other| other != id);
        let has = self.ledger.leases_of(id);
        let alone = !others_want && self.ledger.leases() == has;
        let mut lessees = self.ledger.lessees();
        lessees.insert(id);
        let of_one = if alone {
            RUNS_OF_ONE
        } else {
            (RUNS_IN_ALL / lessees.len()).clamp(2, RUNS_OF_ONE)
        };
        if has >= of_one {
            return None;
        }
        // An origin without ranges gives everything or nothing.
        if most == u32::MAX {
            return self.ledger.grant_all(now, id);
        }
        let runs = if alone { RUNS_OF_ONE } else { RUNS_IN_ALL };
        let share = self.ledger.free() / u32::try_from(2 * runs).unwrap_or(u32::MAX);
        self.ledger.grant(now, id, share.clamp(1, most.max(1)))
    }

    /// Grants what is free to those who wait: first to who fetches already, then in their order.
    fn serve_queue(&mut self, now: Instant) {
        let lessees = self.ledger.lessees();
        for id in &lessees {
            self.grant_unasked(now, *id);
        }
        let mut from = 0;
        while self.ledger.free() > 0
            && let Some((ticket, id)) = self.queue.first_from(from)
        {
            if !self.grant_unasked(now, id) && !lessees.contains(&id) {
                break;
            }
            from = ticket + 1;
        }
    }

    fn grant_unasked(&mut self, now: Instant, id: PeerId) -> bool {
        let granted = self.grant_runs(now, id);
        if granted.is_empty() {
            return false;
        }
        let answer = Answer {
            granted,
            lessees: self.lessees(),
            ..Answer::default()
        };
        self.said.push((id, answer));
        true
    }

    fn lessees(&self) -> u32 {
        u32::try_from(self.ledger.lessees().len()).unwrap_or(u32::MAX)
    }

    fn somebody_serves(&self) -> bool {
        !self.serving.is_empty() || !self.announcers.is_empty()
    }

    fn manifest_for(&mut self, now: Instant, id: PeerId) -> ManifestLease {
        let asks = |member: &Member| member.want.manifest && !member.has_manifest;
        if !self.members.get(&id).is_some_and(asks) {
            return ManifestLease::NotAsked;
        }
        if self.somebody_serves() {
            return ManifestLease::Wait;
        }
        let fetched_by_another = self
            .manifest_fetcher
            .is_some_and(|(fetcher, until)| fetcher != id && now < until);
        if fetched_by_another {
            self.manifest_waiters.push(id);
            return ManifestLease::Wait;
        }
        self.manifest_fetcher = Some((id, now + MANIFEST_LEASE));
        ManifestLease::Fetch
    }

    /// As soon as somebody has the manifest, a few of those who wait are told, and a few more by
    /// each that has got it: all at once would be too much for one.
    fn serve_manifest_waiters(&mut self, now: Instant, rng: &mut impl Rng) {
        let fetching = self.manifest_fetcher.is_some_and(|(_, until)| now < until);
        let mut room = match (self.somebody_serves(), fetching) {
            (true, _) => std::mem::take(&mut self.manifest_room),
            (false, true) => 0,
            (false, false) => 1,
        };
        while room > 0
            && let Some(id) = self.manifest_waiters.pop()
        {
            let manifest = self.manifest_for(now, id);
            if manifest == ManifestLease::NotAsked {
                continue;
            }
            let peers = self.peers_for(now, rng, id, manifest);
            let answer = Answer {
                manifest,
                peers,
                ..Answer::default()
            };
            self.said.push((id, answer));
            room -= 1;
        }
    }

    /// Whom a member is told of: as many as it lacks at first, a few more from time to time.
    fn peers_for(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        id: PeerId,
        manifest: ManifestLease,
    ) -> Vec<SwarmPeer> {
        let Some(member) = self.members.get_mut(&id).filter(|m| !m.held.is_full()) else {
            return Vec::new();
        };
        let count = if member.has_manifest {
            let lacks = NEIGHBOURS_TOLD.saturating_sub(member.told);
            let refresh = now >= member.told_at + REFRESH_EVERY;
            lacks.max(if refresh { PEERS_REFRESHED } else { 0 })
        } else if manifest == ManifestLease::Wait {
            MANIFEST_FANOUT
        } else {
            0
        };
        let mut peers = self.serving.draw(rng, count, id);
        // Some that hold everything, drawn anew each time: the same few would serve everybody.
        let mut holders: Vec<PeerId> = self.announcers.iter().copied().collect();
        holders.retain(|holder| *holder != id && !peers.contains(holder));
        holders.shuffle(rng);
        let room = count - peers.len();
        holders.truncate(room.max(count / HOLDERS_NAMED_OF));
        peers.truncate(count - holders.len());
        peers.extend(holders);
        if member.has_manifest && !peers.is_empty() {
            member.told += peers.len();
            member.told_at = now;
        }
        if member.told >= NEIGHBOURS_TOLD {
            self.needy.remove(&id);
        }
        peers.into_iter().map(serving).collect()
    }

    /// Tells members that have few neighbours who has come.
    fn tell_news(&mut self, now: Instant, rng: &mut impl Rng) {
        self.news_at = None;
        let news = std::mem::take(&mut self.news);
        for id in std::mem::take(&mut self.needy) {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            let lacks = NEIGHBOURS_TOLD.saturating_sub(member.told);
            let peers: Vec<_> = news.draw(rng, lacks, id).into_iter().map(serving).collect();
            member.told += peers.len();
            member.told_at = now;
            if member.told < NEIGHBOURS_TOLD {
                self.needy.insert(id);
            }
            if !peers.is_empty() {
                let answer = Answer {
                    peers,
                    ..Answer::default()
                };
                self.said.push((id, answer));
            }
        }
    }
}

fn grant(blocks: BlockRange) -> Grant {
    Grant {
        blocks,
        lasts: LEASE_LASTS,
    }
}

fn serving(peer: PeerId) -> SwarmPeer {
    SwarmPeer {
        peer,
        has_manifest: true,
    }
}
