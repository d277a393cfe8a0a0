//! Which agents hold which contents completely, as they announce it. Bounded; an agent's entries
//! go when its stream ends.

use std::collections::{BTreeMap, BTreeSet};

use branchline_hashing::SwarmId;

use super::{ANNOUNCED_OF_ONE, ANNOUNCERS_KEPT, MAX_ANNOUNCED};
use crate::PeerId;

#[derive(Debug, Default)]
pub(super) struct Directory {
    holders: BTreeMap<SwarmId, BTreeSet<PeerId>>,
    announced: BTreeMap<PeerId, BTreeSet<SwarmId>>,
    entries: usize,
}

impl Directory {
    /// Whether the entry is new, and there was room for it.
    pub(super) fn add(&mut self, agent: PeerId, swarm: SwarmId) -> bool {
        let of_agent = self.announced.get(&agent).map_or(0, BTreeSet::len);
        let of_swarm = self.holders.get(&swarm).map_or(0, BTreeSet::len);
        // Who comes later finds room, too: nobody has more than half of what he leaves free.
        if of_agent > MAX_ANNOUNCED.saturating_sub(self.entries) / 2
            || self.entries >= MAX_ANNOUNCED
            || of_agent >= ANNOUNCED_OF_ONE
            || of_swarm >= ANNOUNCERS_KEPT
        {
            return false;
        }
        let new = self.announced.entry(agent).or_default().insert(swarm);
        if new {
            self.holders.entry(swarm).or_default().insert(agent);
            self.entries += 1;
        }
        new
    }

    /// Forgets an agent; the swarms it had announced.
    pub(super) fn remove(&mut self, agent: PeerId) -> BTreeSet<SwarmId> {
        let swarms = self.announced.remove(&agent).unwrap_or_default();
        self.entries -= swarms.len();
        for swarm in &swarms {
            self.forget_holder(agent, swarm);
        }
        swarms
    }

    /// Forgets one entry; whether it was there.
    pub(super) fn withdraw(&mut self, agent: PeerId, swarm: SwarmId) -> bool {
        let of_agent = self.announced.get_mut(&agent);
        let there = of_agent.is_some_and(|swarms| swarms.remove(&swarm));
        if there {
            self.entries -= 1;
            self.forget_holder(agent, &swarm);
        }
        there
    }

    fn forget_holder(&mut self, agent: PeerId, swarm: &SwarmId) {
        if let Some(holders) = self.holders.get_mut(swarm) {
            holders.remove(&agent);
            if holders.is_empty() {
                self.holders.remove(swarm);
            }
        }
    }

    pub(super) fn holders(&self, swarm: &SwarmId) -> BTreeSet<PeerId> {
        self.holders.get(swarm).cloned().unwrap_or_default()
    }
}
