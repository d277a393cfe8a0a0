//! The virtual clock and what is to happen on it.
//!
//! Time is a [`Duration`] since the start; the planner's [`Instant`]s are one base instant plus
//! that. Events of one time happen in the order they were scheduled in, so a seed gives one run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Clock<E> {
    base: Instant,
    now: Duration,
    scheduled: u64,
    events: BinaryHeap<Scheduled<E>>,
}

#[derive(Debug)]
struct Scheduled<E> {
    due: Reverse<(Duration, u64)>,
    event: E,
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl<E> Eq for Scheduled<E> {}

impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Scheduled<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl<E> Clock<E> {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            now: Duration::ZERO,
            scheduled: 0,
            events: BinaryHeap::new(),
        }
    }

    /// Since the start.
    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// As the planner wants it.
    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// A planner's instant as time since the start.
    pub(crate) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.base)
    }

    /// `event` at `at`, or now when that is past.
    pub(crate) fn at(&mut self, at: Duration, event: E) {
        self.scheduled += 1;
        self.events.push(Scheduled {
            due: Reverse((at.max(self.now), self.scheduled)),
            event,
        });
    }

    /// `event` after `wait`.
    pub(crate) fn after(&mut self, wait: Duration, event: E) {
        self.at(self.now + wait, event);
    }

    /// Moves on to the next event.
    pub(crate) fn next(&mut self) -> Option<E> {
        let next = self.events.pop()?;
        self.now = next.due.0.0;
        Some(next.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_by_time_and_then_in_the_order_they_were_scheduled() {
        let mut clock = Clock::new();
        clock.at(Duration::from_secs(2), 'c');
        clock.at(Duration::from_secs(1), 'a');
        clock.at(Duration::from_secs(1), 'b');
        let order: String = std::iter::from_fn(|| clock.next()).collect();
        assert_eq!(order, "abc");
        clock.at(Duration::from_secs(1), 'd');
        assert_eq!(clock.next(), Some('d'));
        assert_eq!(clock.now(), Duration::from_secs(2), "time never runs back");
    }
}
