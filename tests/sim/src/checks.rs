//! What must hold at each step, checked from outside: nothing here believes a planner or a steward.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use branchline_core::SegmentSet;
use branchline_core::planner::Planner;
use branchline_core::swarm::{
    Answer, BlockIndex, BlockRange, BlockSet, Enlist, LESSEE_SILENCE, MEMBER_SILENCE, Report,
    SPREADS_WITHIN,
};
use branchline_hashing::SegmentIndex;

use crate::member::{Member, MemberId};

/// A planner that says more than this at one moment will not end.
const MOST_ACTIONS_AT_ONCE: u32 = 1_000_000;

#[derive(Debug)]
pub(crate) struct Checks {
    seed: u64,
    /// Of each steward, what it has granted, by its own words.
    ledgers: BTreeMap<MemberId, Ledger>,
    from_origin: BTreeSet<SegmentIndex>,
    fetched_again: u64,
    /// Of each member, when it last acted and how often at that time.
    acted: Vec<(Duration, u32)>,
}

/// One steward's leases and what its members told it.
#[derive(Debug, Default)]
struct Ledger {
    leases: BTreeMap<BlockIndex, GrantId>,
    grants: BTreeMap<GrantId, Lease>,
    last: u64,
    members: BTreeMap<MemberId, Told>,
    /// How many members hold a block, silent ones counted; and since when anybody does.
    holders: BTreeMap<BlockIndex, Held>,
}

#[derive(Debug)]
struct Held {
    by: u32,
    since: Duration,
}

/// What a member told a steward.
#[derive(Debug)]
struct Told {
    held: BlockSet,
    heard: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct GrantId(u64);

#[derive(Debug)]
struct Lease {
    member: MemberId,
    lasts: Duration,
    until: Duration,
}

impl Checks {
    pub(crate) fn new(seed: u64, members: u32) -> Self {
        Self {
            seed,
            ledgers: BTreeMap::new(),
            from_origin: BTreeSet::new(),
            fetched_again: 0,
            acted: vec![(Duration::ZERO, 0); members as usize],
        }
    }

    pub(crate) fn came_from_origin(&mut self, index: SegmentIndex) {
        if !self.from_origin.insert(index) {
            self.fetched_again += 1;
        }
    }

    pub(crate) fn fetched_again(&self) -> u64 {
        self.fetched_again
    }

    /// Every transfer ends.
    pub(crate) fn in_time(&self, now: Duration, limit: Duration, unfinished: u32) {
        assert!(
            now <= limit,
            "seed {}: after {now:?} of virtual time {unfinished} transfers have not ended",
            self.seed
        );
    }

    /// A planner stops acting when nothing happens.
    pub(crate) fn acts(&mut self, id: MemberId, now: Duration) {
        let (at, count) = &mut self.acted[id.0 as usize];
        if *at != now {
            (*at, *count) = (now, 0);
        }
        *count += 1;
        let seed = self.seed;
        assert!(
            *count < MOST_ACTIONS_AT_ONCE,
            "seed {seed}: {id:?} at {now:?} acts without end"
        );
    }

    /// Nothing is called done that did not come, and come right. Counts alone here, for it is asked after
    /// each input; [`Checks::all_is_verified`] compares the sets.
    pub(crate) fn done_came_verified(
        &self,
        id: MemberId,
        planner: &Planner,
        verified: &SegmentSet,
    ) {
        assert!(
            planner.done().len() == verified.len(),
            "seed {}: {id:?} calls {} segments done, of which {} came verified",
            self.seed,
            planner.done().len(),
            verified.len()
        );
    }

    /// Whoever has ended has verified every segment.
    pub(crate) fn all_is_verified(&self, members: &[Member]) {
        for member in members.iter().filter(|member| member.ended.is_some()) {
            let (seed, peer) = (self.seed, member.peer);
            assert!(
                member.verified.is_full(),
                "seed {seed}: {peer} has ended without all"
            );
        }
    }

    pub(crate) fn enlisted(
        &mut self,
        steward: MemberId,
        member: MemberId,
        enlist: &Enlist,
        now: Duration,
    ) {
        self.left(steward, member);
        let ledger = self.ledgers.entry(steward).or_default();
        ledger.hold(member, &enlist.held, now);
    }

    pub(crate) fn reported(
        &mut self,
        steward: MemberId,
        member: MemberId,
        report: &Report,
        now: Duration,
    ) {
        let ledger = self.ledgers.entry(steward).or_default();
        ledger.hold(member, &report.held, now);
        for block in report.returned.iter().flat_map(BlockRange::iter) {
            if ledger
                .lease_of(block)
                .is_some_and(|lease| lease.member == member)
            {
                ledger.leases.remove(&block);
            }
        }
    }

    pub(crate) fn left(&mut self, steward: MemberId, member: MemberId) {
        let ledger = self.ledgers.entry(steward).or_default();
        ledger.grants.retain(|_, lease| lease.member != member);
        let grants = &ledger.grants;
        ledger.leases.retain(|_, grant| grants.contains_key(grant));
        let Some(told) = ledger.members.remove(&member) else {
            return;
        };
        for block in told.held.iter() {
            ledger.let_go(block);
        }
    }

    /// No block is leased to two members at once by one steward, nor one that a member holds and others got within the time
    /// they have for that.
    pub(crate) fn granted(
        &mut self,
        steward: MemberId,
        member: MemberId,
        answer: &Answer,
        now: Duration,
    ) {
        let seed = self.seed;
        let ledger = self.ledgers.entry(steward).or_default();
        for grant in &answer.granted {
            ledger.last += 1;
            let id = GrantId(ledger.last);
            for block in grant.blocks.iter() {
                let lessee = ledger.lessee(block, now);
                assert!(
                    lessee.is_none(),
                    "seed {seed}: at {now:?} {steward:?} leases {block:?} to {member:?}, but {lessee:?} has it"
                );
                let holder = ledger.holder(block, now);
                assert!(
                    holder.is_none(),
                    "seed {seed}: at {now:?} {steward:?} leases {block:?} to {member:?}, but {holder:?} holds it"
                );
                ledger.discount(block);
                ledger.leases.insert(block, id);
            }
            let lease = Lease {
                member,
                lasts: grant.lasts,
                until: now + grant.lasts,
            };
            ledger.grants.insert(id, lease);
        }
    }
}

impl Ledger {
    fn lease_of(&self, block: BlockIndex) -> Option<&Lease> {
        self.grants.get(self.leases.get(&block)?)
    }

    /// Who has a block leased: neither is its lease over, nor is it silent for long.
    fn lessee(&self, block: BlockIndex, now: Duration) -> Option<MemberId> {
        let lease = self.lease_of(block)?;
        let heard = self.members.get(&lease.member)?.heard;
        let lives = now < lease.until && now < heard + LESSEE_SILENCE;
        lives.then_some(lease.member)
    }

    /// A member that holds a block: one that was heard, or that has everything and so has nothing to say.
    fn holder(&self, block: BlockIndex, now: Duration) -> Option<MemberId> {
        let unspread = |held: &Held| held.by == 1 && held.since + SPREADS_WITHIN <= now;
        if self.holders.get(&block).is_none_or(unspread) {
            return None;
        }
        let counts = |told: &Told| {
            let heard = now < told.heard + MEMBER_SILENCE || told.held.is_full();
            heard && told.held.contains(block)
        };
        let mut holders = self.members.iter().filter(|(_, told)| counts(told));
        holders.next().map(|(member, _)| *member)
    }

    /// A block is leased again: who holds it alone does not count as its holder any more.
    fn discount(&mut self, block: BlockIndex) {
        for told in self.members.values_mut() {
            if told.held.remove(block) {
                self.holders.remove(&block);
            }
        }
    }

    fn let_go(&mut self, block: BlockIndex) {
        if let Some(held) = self.holders.get_mut(&block) {
            held.by -= 1;
            if held.by == 0 {
                self.holders.remove(&block);
            }
        }
    }

    /// A member has come to hold blocks. Nobody has those leased any more; its own leases of them
    /// last longer for the rest of each run.
    fn hold(&mut self, member: MemberId, blocks: &BlockSet, now: Duration) {
        let told = self.members.entry(member).or_insert_with(|| Told {
            held: BlockSet::empty(blocks.size()),
            heard: now,
        });
        told.heard = now;
        for block in blocks.iter() {
            if told.held.insert(block) {
                let held = self.holders.entry(block);
                held.or_insert(Held { by: 0, since: now }).by += 1;
            }
            let grant = self.leases.remove(&block);
            let lease = grant.and_then(|grant| self.grants.get_mut(&grant));
            if let Some(lease) = lease.filter(|lease| lease.member == member) {
                lease.until = now + lease.lasts;
            }
        }
    }
}
