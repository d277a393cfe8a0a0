//! How often something may happen that strangers cause. Pure: the time comes in.

use std::time::{Duration, Instant};

/// One each `interval` in the long run, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) interval: Duration,
    pub(crate) burst: u32,
}

/// A bucket that fills with time and is full at first; its whole state is when it will be full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    rate: Rate,
    full_at: Instant,
}

impl Allowance {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Takes one; false when there is none left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.rate.interval;
        let is_left = full_at <= now + self.rate.interval * self.rate.burst;
        if is_left {
            self.full_at = full_at;
        }
        is_left
    }

    /// From then on there is one left.
    pub(crate) fn ready_at(&self) -> Instant {
        let taken = self.rate.interval * self.rate.burst.saturating_sub(1);
        self.full_at.checked_sub(taken).unwrap_or(self.full_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        interval: Duration::from_millis(100),
        burst: 3,
    };

    #[test]
    fn a_burst_is_allowed_and_then_one_each_interval() {
        let start = Instant::now();
        let mut allowance = Allowance::new(RATE, start);
        let at_once = (0..10).filter(|_| allowance.take(start)).count();
        assert_eq!(at_once, 3);
        assert_eq!(allowance.ready_at(), start + RATE.interval);
        let seconds = (0..1000).filter(|ms| allowance.take(start + Duration::from_millis(*ms)));
        assert_eq!(seconds.count(), 9);
    }

    #[test]
    fn it_never_holds_more_than_a_burst() {
        let start = Instant::now();
        let mut allowance = Allowance::new(RATE, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..10).filter(|_| allowance.take(later)).count(), 3);
    }
}
