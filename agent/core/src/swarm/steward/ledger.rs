//! Which blocks are held, which are leased, and which are free.
//!
//! Invariant: a block is in `free` exactly when nobody holds it and it is in no lease; it is in one
//! lease at most. No operation looks at more than the blocks it is about.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Instant;

use super::LEASE_LASTS;
use crate::PeerId;
use crate::swarm::{BlockIndex, BlockRange, BlockSet};

/// Names a lease within one ledger, never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LeaseId(NonZeroU64);

#[derive(Debug)]
pub(super) struct Ledger {
    /// How many members hold each block.
    holders: Vec<u32>,
    leased: Vec<Option<LeaseId>>,
    free: BlockSet,
    /// Where leases begin.
    begin: BlockIndex,
    leases: BTreeMap<LeaseId, Lease>,
    last_id: NonZeroU64,
}

#[derive(Debug)]
struct Lease {
    to: PeerId,
    blocks: BlockRange,
    /// Its blocks that nobody holds yet.
    left: u32,
    expires: Instant,
}

impl Ledger {
    /// Leases begin at `begin`, and go on at the first block after the last.
    pub(super) fn new(blocks: u32, begin: BlockIndex) -> Self {
        Self {
            holders: vec![0; blocks as usize],
            leased: vec![None; blocks as usize],
            free: BlockSet::full(blocks),
            begin,
            leases: BTreeMap::new(),
            last_id: NonZeroU64::MIN,
        }
    }

    pub(super) fn blocks(&self) -> usize {
        self.holders.len()
    }

    pub(super) fn free(&self) -> u32 {
        self.free.len()
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.len()
    }

    pub(super) fn lessees(&self) -> BTreeSet<PeerId> {
        self.leases.values().map(|lease| lease.to).collect()
    }

    pub(super) fn leases_of(&self, member: PeerId) -> usize {
        self.leases
            .values()
            .filter(|lease| lease.to == member)
            .count()
    }

    /// One more member holds `block`. Holding it again by who has it leased renews the lease.
    pub(super) fn hold(&mut self, now: Instant, by: PeerId, block: BlockIndex) {
        let at = block.0 as usize;
        self.holders[at] += 1;
        self.free.remove(block);
        let Some(id) = self.leased[at].take() else {
            return;
        };
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.left -= 1;
            if lease.to == by {
                lease.expires = now + LEASE_LASTS;
            }
            if lease.left == 0 {
                self.leases.remove(&id);
            }
        }
    }

    /// How many members hold `block`.
    pub(super) fn holders(&self, block: BlockIndex) -> u32 {
        self.holders[block.0 as usize]
    }

    /// One member less holds `block`.
    pub(super) fn let_go(&mut self, block: BlockIndex) {
        let at = block.0 as usize;
        self.holders[at] -= 1;
        // A block that was held is in no lease: see `hold`.
        if self.holders[at] == 0 && self.leased[at].is_none() {
            self.free.insert(block);
        }
    }

    /// Leases the next free blocks, at most `most` of them.
    pub(super) fn grant(&mut self, now: Instant, to: PeerId, most: u32) -> Option<BlockRange> {
        let later = self.free.first_from(self.begin);
        let first = later.or_else(|| self.free.first_from(BlockIndex(0)))?;
        let free = (first.0..)
            .take(most.max(1) as usize)
            .take_while(|at| self.free.contains(BlockIndex(*at)));
        let blocks = BlockRange::new(first, u32::try_from(free.count()).ok()?)?;
        self.lease(now, to, blocks);
        Some(blocks)
    }

    /// Leases everything at once, what is held not counted; only while nothing is leased.
    pub(super) fn grant_all(&mut self, now: Instant, to: PeerId) -> Option<BlockRange> {
        if self.free.is_empty() || !self.leases.is_empty() {
            return None;
        }
        let blocks = BlockRange::new(BlockIndex(0), self.free.size())?;
        self.lease(now, to, blocks);
        Some(blocks)
    }

    /// Leases of `asked` what is free, as its fewest ranges.
    pub(super) fn confirm(
        &mut self,
        now: Instant,
        to: PeerId,
        asked: BlockRange,
    ) -> Vec<BlockRange> {
        let mut wanted = BlockSet::empty(self.free.size());
        for block in asked.iter().take(self.holders.len()) {
            if self.free.contains(block) {
                wanted.insert(block);
            }
        }
        let ranges: Vec<BlockRange> = wanted.ranges().collect();
        for blocks in &ranges {
            self.lease(now, to, *blocks);
        }
        ranges
    }

    fn lease(&mut self, now: Instant, to: PeerId, blocks: BlockRange) {
        let id = LeaseId(self.last_id);
        self.last_id = self.last_id.saturating_add(1);
        let mut left = 0;
        for block in blocks.iter() {
            if self.free.remove(block) {
                self.leased[block.0 as usize] = Some(id);
                left += 1;
            }
        }
        let lease = Lease {
            to,
            blocks,
            left,
            expires: now + LEASE_LASTS,
        };
        self.leases.insert(id, lease);
    }

    /// Takes `blocks` out of the leases of `from`; whether any was in one.
    pub(super) fn give_back(&mut self, from: PeerId, blocks: BlockRange) -> bool {
        let mut any = false;
        for block in blocks.iter().take(self.holders.len()) {
            let Some(id) = self.leased.get(block.0 as usize).copied().flatten() else {
                continue;
            };
            let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.to == from) else {
                continue;
            };
            any = true;
            lease.left -= 1;
            if lease.left == 0 {
                self.leases.remove(&id);
            }
            self.leased[block.0 as usize] = None;
            self.free.insert(block);
        }
        any
    }

    /// Ends all leases of a member.
    pub(super) fn release(&mut self, from: PeerId) {
        self.end_where(|lease| lease.to == from);
    }

    /// Ends the leases that have expired.
    pub(super) fn expire(&mut self, now: Instant) {
        self.end_where(|lease| lease.expires <= now);
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.expires).min()
    }

    fn end_where(&mut self, ends: impl Fn(&Lease) -> bool) {
        let ended: Vec<_> = self.leases.extract_if(.., |_, lease| ends(lease)).collect();
        for (id, lease) in ended {
            for block in lease.blocks.iter() {
                let leased = &mut self.leased[block.0 as usize];
                if *leased == Some(id) {
                    *leased = None;
                    self.free.insert(block);
                }
            }
        }
    }
}

#[cfg(test)]
impl Ledger {
    /// To whom each block is leased.
    pub(super) fn lessee_of(&self, block: BlockIndex) -> Option<PeerId> {
        let id = self.leased[block.0 as usize]?;
        self.leases.get(&id).map(|lease| lease.to)
    }

    pub(super) fn is_free(&self, block: BlockIndex) -> bool {
        self.free.contains(block)
    }
}
