//! Which agents hold which contents completely, as they announce it. Bounded; an agent's entries
//! go when its stream ends.

use std::collections::{BTreeMap, BTreeSet};

use branchline_hashing::SwarmId;
use rand::Rng;
use rand::seq::IteratorRandom;

use super::{ANNOUNCED_OF_ONE, ANNOUNCERS_KEPT, MAX_ANNOUNCED};
use crate::PeerId;

#[derive(Debug, Default)]
pub(super) struct Directory {
    holders: BTreeMap<SwarmId, BTreeSet<PeerId>>,
    announced: BTreeMap<PeerId, BTreeSet<SwarmId>>,
    entries: usize,
}

impl Directory {
    /// Whether the entry is new, and there was room for it. Where a swarm has as many as are kept, it takes the place
    /// of one drawn by chance: else those that came first would serve all who come later.
    pub(super) fn add(&mut self, rng: &mut impl Rng, agent: PeerId, swarm: SwarmId) -> bool {
        let of_agent = self.announced.get(&agent).map_or(0, BTreeSet::len);
        // Who comes later finds room, too: nobody has more than half of what he leaves free.
        if of_agent > MAX_ANNOUNCED.saturating_sub(self.entries) / 2
            || self.entries >= MAX_ANNOUNCED
            || of_agent >= ANNOUNCED_OF_ONE
        {
            return false;
        }
        let new = self.announced.entry(agent).or_default().insert(swarm);
        if new {
            let holders = self.holders.get(&swarm);
            let full = holders.filter(|holders| holders.len() >= ANNOUNCERS_KEPT);
            if let Some(replaced) = full.and_then(|holders| holders.iter().choose(rng)).copied() {
                self.withdraw(replaced, swarm);
            }
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

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    #[test]
    fn who_comes_later_takes_the_place_of_one_of_those_that_are_kept() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut directory = Directory::default();
        let swarm = SwarmId::from_bytes([7; 32]);
        let agent = |number| PeerId::from_public_key([number; 32]);
        for number in 0..250 {
            assert!(directory.add(&mut rng, agent(number), swarm));
        }
        let holders = directory.holders(&swarm);
        assert_eq!(holders.len(), ANNOUNCERS_KEPT);
        assert_eq!(directory.entries, ANNOUNCERS_KEPT);
        assert!(holders.contains(&agent(249)));
        let early = (0..64).filter(|number| holders.contains(&agent(*number)));
        assert!(early.count() < 16, "a few of the first are left");
    }
}
