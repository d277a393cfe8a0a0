//! Which blocks only the member holds that fetched them, and since when: a lessee that lies, that sends
//! slowly or that nobody reaches keeps them from all others.

use std::collections::VecDeque;
use std::time::Instant;

use super::SPREADS_WITHIN;
use crate::PeerId;
use crate::swarm::BlockIndex;

/// Blocks to be looked at again, in the order of time.
#[derive(Debug, Default)]
pub(super) struct Spread {
    due: VecDeque<Look>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    at: Instant,
    pub(super) block: BlockIndex,
    pub(super) holder: PeerId,
}

impl Spread {
    /// `holder` is the only one that holds `block` now. At most `most` are kept in mind.
    pub(super) fn watch(&mut self, now: Instant, block: BlockIndex, holder: PeerId, most: usize) {
        if self.due.len() < most {
            let at = now + SPREADS_WITHIN;
            self.due.push_back(Look { at, block, holder });
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|look| look.at)
    }

    /// What is to be looked at now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Look> {
        let count = self.due.iter().take_while(|look| look.at <= now).count();
        self.due.drain(..count).collect()
    }
}
