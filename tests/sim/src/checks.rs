//! What must hold at each step, checked from outside: nothing here believes a planner or a steward.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use branchline_core::SegmentSet;
use branchline_core::planner::Planner;
use branchline_core::swarm::{Answer, BlockIndex, BlockRange, Enlist, Report};
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
    /// How many live members hold a block, and which each does.
    holders: BTreeMap<BlockIndex, u32>,
    held: BTreeMap<MemberId, BTreeSet<BlockIndex>>,
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
        ledger.hold(member, enlist.held.iter(), now);
    }

    pub(crate) fn reported(
        &mut self,
        steward: MemberId,
        member: MemberId,
        report: &Report,
        now: Duration,
    ) {
        let ledger = self.ledgers.entry(steward).or_default();
        ledger.hold(member, report.held.iter(), now);
        for block in report.returned.iter().flat_map(BlockRange::iter) {
            ledger.release(member, block);
        }
    }

    pub(crate) fn left(&mut self, steward: MemberId, member: MemberId) {
        let ledger = self.ledgers.entry(steward).or_default();
        ledger.grants.retain(|_, lease| lease.member != member);
        let grants = &ledger.grants;
        ledger.leases.retain(|_, grant| grants.contains_key(grant));
        for block in ledger.held.remove(&member).unwrap_or_default() {
            if let Some(count) = ledger.holders.get_mut(&block) {
                *count -= 1;
            }
        }
    }

    /// No block is leased to two members at once by one steward, nor one that a member holds.
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
                let other = ledger.lessee(block, now);
                assert!(
                    other.is_none(),
                    "seed {seed}: at {now:?} {steward:?} leases {block:?} to {member:?}, which {other:?} has"
                );
                let holders = ledger.holders.get(&block).copied().unwrap_or(0);
                assert!(
                    holders == 0,
                    "seed {seed}: at {now:?} {steward:?} leases {block:?}, which {holders} members hold"
                );
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
    fn lessee(&self, block: BlockIndex, now: Duration) -> Option<MemberId> {
        let lease = self.grants.get(self.leases.get(&block)?)?;
        (now < lease.until).then_some(lease.member)
    }

    /// A member has come to hold blocks: its leases of them are fulfilled and last longer for the rest of each run.
    fn hold(&mut self, member: MemberId, blocks: impl Iterator<Item = BlockIndex>, now: Duration) {
        for block in blocks {
            if let Some(lease) = self.release(member, block) {
                lease.until = now + lease.lasts;
            }
            if self.held.entry(member).or_default().insert(block) {
                *self.holders.entry(block).or_default() += 1;
            }
        }
    }

    fn release(&mut self, member: MemberId, block: BlockIndex) -> Option<&mut Lease> {
        let grant = *self.leases.get(&block)?;
        let lease = self.grants.get_mut(&grant)?;
        if lease.member != member {
            return None;
        }
        self.leases.remove(&block);
        Some(lease)
    }
}
