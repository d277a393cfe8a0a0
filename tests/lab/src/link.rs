//! One direction of the WAN as a pure model: packets in with a time, packets out when due.
//!
//! A packet waits until the line is free, occupies it for `size / rate`, then travels for `delay`:
//! it departs at `max(now, line free) + size / rate` and arrives `delay` later. Timing therefore
//! does not drift when the relay is woken late. A packet that would have to wait longer than
//! `queue` is dropped and never counted; one lost on the line has occupied it and is counted.
//!
//! The model reads no clock: times are durations since the relay started.

use std::collections::VecDeque;
use std::time::Duration;

use crate::wan::LinkCounters;

/// Buffers kept for reuse; more than a bandwidth-delay product of packets is never in flight long.
const SPARE_BUFFERS: usize = 1024;

/// What one direction does to packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LinkProfile {
    pub(crate) rate_bytes_per_sec: u64,
    pub(crate) delay: Duration,
    pub(crate) queue: Duration,
    pub(crate) loss: f64,
}

impl LinkProfile {
    fn transmission_time(&self, size: usize) -> Duration {
        let rate = u128::from(self.rate_bytes_per_sec.max(1));
        let nanos = (size as u128 * 1_000_000_000).div_ceil(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

struct InFlight {
    due: Duration,
    packet: Vec<u8>,
}

/// One direction of the WAN.
pub(crate) struct Link {
    profile: LinkProfile,
    free_at: Duration,
    in_flight: VecDeque<InFlight>,
    spare: Vec<Vec<u8>>,
    up: bool,
    random: SplitMix,
    counters: LinkCounters,
}

impl Link {
    pub(crate) fn new(profile: LinkProfile, seed: u64) -> Self {
        Self {
            profile,
            free_at: Duration::ZERO,
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            up: true,
            random: SplitMix(seed),
            counters: LinkCounters::default(),
        }
    }

    pub(crate) fn counters(&self) -> LinkCounters {
        self.counters
    }

    /// Packets already under way keep their times.
    pub(crate) fn set_profile(&mut self, profile: LinkProfile) {
        self.profile = profile;
    }

    /// Cutting loses what is queued and under way, as a cable does.
    pub(crate) fn set_up(&mut self, up: bool) {
        self.up = up;
        if !up {
            self.counters.cut_packets += self.in_flight.len() as u64;
            self.in_flight.clear();
            self.free_at = Duration::ZERO;
        }
    }

    pub(crate) fn handle_packet(&mut self, now: Duration, packet: &[u8]) {
        if !self.up {
            self.counters.cut_packets += 1;
            return;
        }
        let starts = self.free_at.max(now);
        if starts - now > self.profile.queue {
            self.counters.dropped_packets += 1;
            return;
        }
        self.free_at = starts + self.profile.transmission_time(packet.len());
        self.counters.bytes += packet.len() as u64;
        self.counters.packets += 1;
        if self.random.next_fraction() < self.profile.loss {
            self.counters.lost_packets += 1;
            return;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        // Never before its predecessor, should the delay have been lowered meanwhile.
        let earliest = self
            .in_flight
            .back()
            .map_or(Duration::ZERO, |last| last.due);
        let due = (self.free_at + self.profile.delay).max(earliest);
        self.in_flight.push_back(InFlight {
            due,
            packet: buffer,
        });
    }

    /// When the next packet arrives at the other end.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.in_flight.front().map(|first| first.due)
    }

    /// The next packet that has arrived by `now`; give it back with [`Self::recycle`].
    pub(crate) fn poll_arrival(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        self.in_flight.pop_front().map(|first| first.packet)
    }

    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS {
            self.spare.push(buffer);
        }
    }
}

/// SplitMix64: a full-period generator, good enough for independent losses and the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In `0.0..1.0`.
    fn next_fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// 1 MB/s, so that a packet of 1,000 bytes takes a millisecond; 20 ms away.
    fn link() -> Link {
        link_with_loss(0.0, 1)
    }

    fn link_with_loss(loss: f64, seed: u64) -> Link {
        let profile = LinkProfile {
            rate_bytes_per_sec: 1_000_000,
            delay: 20 * MILLISECOND,
            queue: 5 * MILLISECOND,
            loss,
        };
        Link::new(profile, seed)
    }

    fn arrivals(link: &mut Link) -> Vec<Duration> {
        let mut times = Vec::new();
        while let Some(due) = link.next_due() {
            assert!(
                link.poll_arrival(due - Duration::from_nanos(1)).is_none(),
                "too early"
            );
            assert!(link.poll_arrival(due).is_some(), "not there when due");
            times.push(due);
        }
        times
    }

    #[test]
    fn packets_arrive_one_transmission_time_apart_after_the_delay() {
        let mut link = link();
        for _ in 0..3 {
            link.handle_packet(Duration::ZERO, &[0; 1000]);
        }
        assert_eq!(arrivals(&mut link), [21, 22, 23].map(|at| at * MILLISECOND));
    }

    #[test]
    fn an_idle_line_starts_at_once() {
        let mut link = link();
        link.handle_packet(Duration::ZERO, &[0; 1000]);
        link.handle_packet(100 * MILLISECOND, &[0; 1000]);
        assert_eq!(arrivals(&mut link), [21, 121].map(|at| at * MILLISECOND));
    }

    #[test]
    fn a_full_queue_drops_and_does_not_count() {
        let mut link = link();
        for _ in 0..10 {
            link.handle_packet(Duration::ZERO, &[0; 1000]);
        }
        let counters = link.counters();
        // One on the line, five milliseconds of queue.
        assert_eq!(
            (counters.packets, counters.bytes, counters.dropped_packets),
            (6, 6000, 4)
        );
    }

    #[test]
    fn a_cut_loses_what_is_under_way_and_mending_starts_clean() {
        let mut link = link();
        link.handle_packet(Duration::ZERO, &[0; 1000]);
        link.set_up(false);
        link.handle_packet(MILLISECOND, &[0; 1000]);
        assert_eq!(link.next_due(), None);
        link.set_up(true);
        link.handle_packet(2 * MILLISECOND, &[0; 1000]);
        assert_eq!(arrivals(&mut link), [23 * MILLISECOND]);
        assert_eq!(
            (link.counters().packets, link.counters().cut_packets),
            (2, 2)
        );
    }

    #[test]
    fn losses_follow_the_probability_and_the_seed() {
        let lost = |seed| {
            let mut link = link_with_loss(0.1, seed);
            for n in 0..10_000 {
                link.handle_packet(n * MILLISECOND, &[0; 1000]);
            }
            assert_eq!(
                link.counters().packets,
                10_000,
                "lost packets occupied the line too"
            );
            link.counters().lost_packets
        };
        // Four standard deviations of a binomial with p = 0.1 are 120.
        assert!((880..=1120).contains(&lost(1)), "{}", lost(1));
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(1), lost(2));
    }

    #[test]
    fn a_shorter_delay_does_not_reorder() {
        let mut link = link();
        link.handle_packet(Duration::ZERO, &[1; 1000]);
        link.set_profile(LinkProfile {
            delay: Duration::ZERO,
            ..link.profile
        });
        link.handle_packet(MILLISECOND, &[2; 1000]);
        assert_eq!(arrivals(&mut link), [21, 21].map(|at| at * MILLISECOND));
    }
}
