//! How often a member's neighbours are told what it has come to hold.
//!
//! Each word wakes up to 24 neighbours, each of them asks for what is new, and is sent it: the fewer words, the more
//! segments go in one request. With sixteen members that told all others each 60 ms, words and their acknowledgements
//! were most of what the machines had to do. Who waits for a word is who lacks the segment; in a small swarm, where
//! everybody watches everybody, that is the word of whoever fetched it from the origin. What the others say, who took it from him,
//! only spreads the load.

use std::time::Duration;

use super::Planner;
use super::neighbours::Neighbours;

/// Between two words of one member. At 1 Gbit/s some 230 segments of 32 KiB come meanwhile; shorter, and with 24
/// neighbours the packets cost more than the earlier word is worth.
pub const TELL_EVERY: Duration = Duration::from_millis(60);

/// The least time between two words is this share (one in so many) of the time that the origin needs for the whole, where that is less than
/// [`TELL_EVERY`]: the last segment of a short file is not to wait longer than it took to come, and few segments make few words.
const LEAST_SHARE: u32 = 4;

/// In a small swarm, where no segment goes over several members, it is such a part of the time that the origin would need
/// for what is missing: the nearer the end, the sooner a word is worth its packet.
const SHARE_OF_THE_REST: u32 = 50;

/// But no longer, though those who wait for others have more than twice this share.
const MOST: Duration = Duration::from_millis(300);

/// The same for who fetches nothing.
const MOST_OF_RELAYS: Duration = Duration::from_millis(500);

/// In a small swarm who fetches nothing from the origin tells as many times less often.
const RELAYS_TELL_LESS: u32 = 4;

impl Planner {
    /// The least time between two words of this member to those who watch what it has.
    pub fn tell_every(&self) -> Duration {
        let least = TELL_EVERY.min(self.origin_needs / LEAST_SHARE);
        if self.is_finished() || !self.everybody_hears_everybody() {
            return least;
        }
        let missing = self.done.size() - self.done.len();
        let rest = self
            .origin_needs
            .mul_f64(f64::from(missing) / f64::from(self.done.size().max(1)));
        let every = (rest / SHARE_OF_THE_REST).max(least);
        let fetches = !self.origin.is_idle() || !self.leases.is_empty();
        // What it fetched last may not have been told yet.
        if fetches || self.origin.has_brought_since(self.now, MOST) {
            every.min(MOST)
        } else {
            (every * RELAYS_TELL_LESS).min(MOST_OF_RELAYS)
        }
    }

    /// Whether no segment has to go over several members: by the steward's word of who takes part, or in a branch so small.
    fn everybody_hears_everybody(&self) -> bool {
        let small = self
            .neighbours
            .as_ref()
            .is_some_and(Neighbours::branch_is_small);
        self.swarm_is_small() && (small || !self.is_alone())
    }
}
