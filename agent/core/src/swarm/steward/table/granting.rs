//! Which blocks a swarm's members may fetch from the origin.

use std::collections::BTreeSet;
use std::time::Instant;

use super::super::{
    LEASE_LASTS, LESSEE_SILENCE, MAX_LESSEES, RUNS_IN_ALL, RUNS_OF_ONE, SPREADS_WITHIN,
};
use super::{Member, Table};
use crate::PeerId;
use crate::swarm::{Answer, BlockRange, Grant, MAX_LEASES};

/// A content has so many blocks for each lease at once: from 16 MiB on [`RUNS_IN_ALL`].
const BLOCKS_A_RUN: usize = 8;

/// Two leases at least: one fills the line while the other ends and the next begins.
const LEAST_RUNS: usize = 2;

/// So many members that can use nothing but the whole do not keep those behind them from a run.
const PASSED_OVER: usize = 2 * MAX_LESSEES;

/// A member that comes from another steward keeps so many blocks, even where they are most of what is left:
/// the last runs are one block each.
const CONFIRMED_ANYHOW: u32 = 8;

/// A run of a member from which nobody is known to have got a block yet has no more: what it has under way when it
/// turns out that nobody does is lost.
const MOST_UNPROVEN: u32 = 4;

impl Table {
    /// Blocks that nobody gets from who fetched them are free again.
    pub(super) fn lease_unspread_again(&mut self, now: Instant) {
        for look in self.spread.take_due(now) {
            let (block, holder) = (look.block, look.holder);
            let waits = self.somebody_else_waits_long(now, holder);
            let Some(member) = self.members.get_mut(&holder) else {
                continue;
            };
            if self.ledger.holders(block) != 1 || !member.counts() || !member.held.contains(block) {
                member.spreads |= self.ledger.holders(block) > 1;
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

    /// When the word of announcers stops no lease any more, if nobody comes to hold more until then: since a
    /// member waits for a lease, though they say that they hold all.
    pub(super) fn announcers_doubted_at(&self) -> Option<Instant> {
        if self.announcers.is_subset(&self.doubted) {
            return None;
        }
        let first = self.members.get(&self.queue.iter().next()?)?;
        Some(first.wants_since?.max(self.grew) + SPREADS_WITHIN)
    }

    pub(super) fn doubt_announcers(&mut self, now: Instant) {
        if self.announcers_doubted_at().is_some_and(|at| at <= now) {
            self.doubted.extend(&self.announcers);
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

    /// What a member fetches already stays its own where nobody holds it or fetches it.
    pub(super) fn confirm(
        &mut self,
        now: Instant,
        id: PeerId,
        leased: &[BlockRange],
    ) -> Vec<Grant> {
        if !self.may_lease(id) {
            return Vec::new();
        }
        let all = self.members.get(&id).is_some_and(wants_all);
        // What one that is alone has under way is half of what is left, at most.
        let half = self.ledger.free().div_ceil(2).max(CONFIRMED_ANYHOW);
        let mut left = if all { u32::MAX } else { half };
        let mut confirmed = Vec::new();
        for blocks in leased {
            let within = BlockRange::new(blocks.first(), blocks.count().min(left));
            for blocks in within.map_or_else(Vec::new, |b| self.ledger.confirm(now, id, b)) {
                left = left.saturating_sub(blocks.count());
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
        let counts = |announcer: &PeerId| *announcer != id && !self.doubted.contains(announcer);
        !self.announcers.iter().any(counts)
            && (lessees.contains(&id) || lessees.len() < MAX_LESSEES)
    }

    pub(super) fn grant_runs(&mut self, now: Instant, id: PeerId) -> Vec<Grant> {
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

    /// How many leases there are at once: fewer of a short content, so that its first segments, which share the line,
    /// come before members lose patience.
    fn runs_in_all(&self) -> usize {
        (self.ledger.blocks() / BLOCKS_A_RUN).clamp(LEAST_RUNS, RUNS_IN_ALL)
    }

    /// How many leases those who fetch, or are next to, would have at once, by what they say: one each and one in reserve, of an
    /// origin that takes no more than one run from them.
    fn runs_wanted(&self, lessees: &BTreeSet<PeerId>) -> usize {
        let next = self.queue.iter().take(MAX_LESSEES);
        let members: BTreeSet<_> = lessees.iter().copied().chain(next).collect();
        let runs = |id: &PeerId| {
            let wanted = self.members.get(id).map_or(0, |m| usize::from(m.want.runs));
            self.ledger.leases_of(*id) + wanted
        };
        members.iter().map(runs).sum()
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
            (self.runs_in_all() / lessees.len()).clamp(1, RUNS_OF_ONE)
        };
        if has >= of_one {
            return None;
        }
        // An origin without ranges gives everything or nothing.
        if most == u32::MAX {
            return self.ledger.grant_all(now, id);
        }
        let runs = if alone {
            RUNS_OF_ONE
        } else {
            self.runs_in_all()
        };
        let runs = runs.min(self.runs_wanted(&lessees)).max(1);
        let share = self.ledger.free() / u32::try_from(2 * runs).unwrap_or(u32::MAX);
        let spreads = self.members.get(&id).is_some_and(|member| member.spreads);
        let most = if alone || spreads {
            most
        } else {
            most.min(MOST_UNPROVEN)
        };
        self.ledger.grant(now, id, share.clamp(1, most.max(1)))
    }

    /// Grants what is free to those who wait: first to who fetches already, then in their order.
    pub(super) fn serve_queue(&mut self, now: Instant) {
        let lessees = self.ledger.lessees();
        for id in &lessees {
            self.grant_unasked(now, *id);
        }
        let mut from = 0;
        let mut passed_over = PASSED_OVER;
        while self.ledger.free() > 0
            && let Some((ticket, id)) = self.queue.first_from(from)
        {
            let refused = !self.grant_unasked(now, id);
            // One that was not heard for long goes; its next report gives it a place again.
            self.take_place(now, id);
            let member = self.members.get(&id);
            let waits = member.is_some_and(|member| member.wants_run(now));
            if refused && waits && !lessees.contains(&id) {
                if passed_over == 0 || !member.is_some_and(wants_all) {
                    break;
                }
                passed_over -= 1;
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

    pub(super) fn lessees(&self) -> u32 {
        u32::try_from(self.ledger.lessees().len()).unwrap_or(u32::MAX)
    }
}

/// Whether only the whole is of use to it.
fn wants_all(member: &Member) -> bool {
    member.want.blocks_per_run == u32::MAX
}

fn grant(blocks: BlockRange) -> Grant {
    Grant {
        blocks,
        lasts: LEASE_LASTS,
    }
}
