//! How many packets of each sender are looked at.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::allowance::{Allowance, Rate};

/// Senders share an allowance by a hash that no stranger knows; with so many, one that floods takes
/// few others with it.
const BUCKETS: usize = 256;
/// An agent sends a query and an announcement at its start, then an answer a second at most; there
/// may be some agents on one address. All senders together can have some 5,000 packets a second
/// read, at ten to twenty microseconds each.
const PACKETS: Rate = Rate {
    interval: Duration::from_millis(50),
    burst: 64,
};

/// A fixed amount of memory, whatever is sent.
pub(crate) struct SourceAllowances {
    hash: RandomState,
    buckets: Vec<Allowance>,
}

impl SourceAllowances {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            hash: RandomState::new(),
            buckets: vec![Allowance::new(PACKETS, now); BUCKETS],
        }
    }

    /// Whether one more packet of `source` is to be looked at.
    pub(crate) fn take(&mut self, now: Instant, source: IpAddr) -> bool {
        let buckets = u64::try_from(self.buckets.len()).unwrap_or(u64::MAX);
        let index = self.hash.hash_one(source) % buckets.max(1);
        let bucket = usize::try_from(index).ok();
        let bucket = bucket.and_then(|index| self.buckets.get_mut(index));
        bucket.is_some_and(|bucket| bucket.take(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_floods_is_cut_off_and_almost_all_others_are_heard() {
        let now = Instant::now();
        let mut sources = SourceAllowances::new(now);
        let flooder = IpAddr::from([10, 0, 0, 1]);
        let read = (0..10_000).filter(|_| sources.take(now, flooder)).count();
        assert_eq!(read, 64);
        let others = (2..=254).filter(|n| sources.take(now, IpAddr::from([10, 0, 0, *n])));
        assert!(others.count() > 230);
        assert!(sources.take(now + PACKETS.interval, flooder));
    }
}
