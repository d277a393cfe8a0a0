//! What one neighbour alone has come to hold, and when it is asked for that.
//!
//! All who watch a member hear at one moment of what it fetched; if all asked at once it would send it to each of
//! them. So each waits for a time drawn by chance. Those that drew a short one hold it soon, too, and the others ask
//! them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;
use rand::RngExt;

use super::Planner;
use super::neighbours::Neighbours;
use crate::swarm::{BlockIndex, MAX_LESSEES};
use crate::{PeerId, SegmentRange, SegmentSet};

/// Of those who watch one member the next one asks after so long: four do before the first of them can have told
/// the others, which takes up to 60 ms (docs/exchange.md).
const TURN: Duration = Duration::from_millis(15);

/// But no longer than so small a part of the time that others have to bring anything: what comes over several
/// members is to be there by then.
const SHARE_OF_A_WAIT: u32 = 4;

/// In a swarm no larger nobody waits: whoever fetched as much as half of the file and sends it to all others has sent
/// eight times the file.
const SMALL_SWARM: usize = 4 * MAX_LESSEES;

#[derive(Debug)]
pub(super) struct Fresh {
    /// What some neighbour holds, or has held.
    heard: SegmentSet,
    /// What waits for a second holder, and until when.
    due: BTreeSet<(Instant, SegmentIndex)>,
}

impl Fresh {
    pub(super) fn new(segments: u32) -> Self {
        Self {
            heard: SegmentSet::empty(segments),
            due: BTreeSet::new(),
        }
    }

    /// A neighbour holds it; whether none did before.
    pub(super) fn hear(&mut self, index: SegmentIndex) -> bool {
        self.heard.insert(index)
    }

    /// It is not asked for before, unless another comes to hold it.
    pub(super) fn wait(&mut self, index: SegmentIndex, until: Instant) {
        self.due.insert((until, index));
    }

    /// What has waited long enough.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SegmentIndex> {
        let mut due = Vec::new();
        while let Some((at, index)) = self.due.first().copied()
            && at <= now
        {
            self.due.remove(&(at, index));
            due.push(index);
        }
        due
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

impl Planner {
    /// What a neighbour held before this member watched it is nobody's news.
    pub(super) fn hear_all(&mut self, have: &SegmentSet) {
        for index in have.iter() {
            self.fresh.hear(index);
        }
        for index in self.open.held_back_of(have) {
            self.release(index);
        }
    }

    /// What a neighbour is the first to have fetched waits for a second one, adjacent segments of a block together.
    pub(super) fn hear_of_more(&mut self, now: Instant, peer: PeerId, more: &[SegmentRange]) {
        let size = self.done.size();
        let all_may_ask = self.swarm_is_small();
        for range in more.iter().filter(|range| range.end() <= size) {
            let mut drawn: Option<(BlockIndex, Instant)> = None;
            for index in range.iter() {
                if !self.fresh.hear(index) {
                    self.release(index);
                } else if !all_may_ask && self.open.set().contains(index) {
                    let block = self.blocks.of_segment(index);
                    let until = match drawn {
                        Some((of, until)) if of == block => until,
                        Some(_) | None => now + self.draw_wait(peer, index),
                    };
                    drawn = Some((block, until));
                    self.open.hold_back(index);
                    self.fresh.wait(index, until);
                }
            }
        }
    }

    pub(super) fn swarm_is_small(&self) -> bool {
        let size = self.neighbours.as_ref().map(Neighbours::swarm_size);
        size.is_some_and(|size| size <= SMALL_SWARM)
    }

    /// How long this member waits before it asks `peer` for what it alone holds.
    fn draw_wait(&mut self, peer: PeerId, index: SegmentIndex) -> Duration {
        let sending = self.peers.time_for(peer, self.length(index));
        let longest = longest_wait(self.peers.len(), sending);
        let longest = longest.min(self.patience.wait() / SHARE_OF_A_WAIT);
        longest.mul_f64(self.rng.random())
    }

    /// What has waited long enough is asked of who alone holds it.
    pub(super) fn release_due(&mut self, now: Instant) {
        for index in self.fresh.take_due(now) {
            self.release(index);
        }
    }

    fn release(&mut self, index: SegmentIndex) {
        if self.open.release(index) {
            self.peers.released(index);
        }
    }
}

/// The longest wait for what a neighbour fetched: so that of `watchers` one asks in each turn, and in the time it
/// takes to send one of these segments.
fn longest_wait(watchers: usize, sending: Duration) -> Duration {
    (TURN + sending) * u32::try_from(watchers).unwrap_or(u32::MAX)
}
