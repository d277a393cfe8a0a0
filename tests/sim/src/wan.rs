//! The WAN: one link that all range requests of the branch share equally.
//!
//! Processor sharing by virtual time: `served` counts the bytes that each active request has got
//! since the start; a request's next segment is complete when that has grown by the segment's
//! length. One ordered set finds the next one to be complete, so an event costs O(log n). Not
//! modelled: slow start, loss, a queue that builds up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use branchline_hashing::SegmentIndex;

/// Bytes on the wire for a byte of the file: TCP over IPv4 with time stamps at MTU 1500, and HTTP's.
pub(crate) const WAN_FACTOR: f64 = 1.036;

/// A range request in the world's own numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FetchId(pub(crate) u64);

#[derive(Debug)]
pub(crate) struct Wan {
    bytes_per_sec: f64,
    /// Bytes of the wire each active request has got since the start, in 1/1024 bytes: whole numbers,
    /// so that equal shares compare equal.
    served: u64,
    updated: Duration,
    active: BTreeMap<FetchId, Fetch>,
    next: BTreeSet<(u64, FetchId)>,
    /// All bytes of the wire so far.
    carried: f64,
}

#[derive(Debug)]
struct Fetch {
    /// The count of `served` at which the segment in front is complete.
    complete_at: u64,
    segments: VecDeque<(SegmentIndex, u32)>,
}

/// What came when the WAN was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WanArrival {
    pub(crate) fetch: FetchId,
    pub(crate) index: SegmentIndex,
    /// It was the request's last.
    pub(crate) ends: bool,
}

impl Wan {
    pub(crate) fn new(bytes_per_sec: f64) -> Self {
        Self {
            bytes_per_sec,
            served: 0,
            updated: Duration::ZERO,
            active: BTreeMap::new(),
            next: BTreeSet::new(),
            carried: 0.0,
        }
    }

    /// Bytes of the wire so far, up to the last call.
    pub(crate) fn carried_bytes(&self) -> f64 {
        self.carried
    }

    /// A request's first byte is due: from now on it has its share.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        fetch: FetchId,
        segments: VecDeque<(SegmentIndex, u32)>,
    ) {
        self.advance(now);
        let Some((_, length)) = segments.front() else {
            return;
        };
        let complete_at = self.served + on_the_wire(*length);
        self.next.insert((complete_at, fetch));
        self.active.insert(
            fetch,
            Fetch {
                complete_at,
                segments,
            },
        );
    }

    /// The requester has closed the request.
    pub(crate) fn cancel(&mut self, now: Duration, fetch: FetchId) {
        self.advance(now);
        if let Some(cancelled) = self.active.remove(&fetch) {
            self.next.remove(&(cancelled.complete_at, fetch));
        }
    }

    /// When the next segment is complete, if nothing changes before.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        let (complete_at, _) = self.next.first()?;
        let each = complete_at.saturating_sub(self.served) as f64 / 1024.0;
        let wait = each * self.active.len() as f64 / self.bytes_per_sec;
        // Rounded up, or the segment would not be complete yet.
        Some(self.updated + Duration::from_secs_f64(wait) + Duration::from_nanos(1))
    }

    /// A segment that is complete by now, if there is one.
    pub(crate) fn poll(&mut self, now: Duration) -> Option<WanArrival> {
        self.advance(now);
        let (complete_at, fetch) = *self.next.first()?;
        // One byte of tolerance for the rounding of times.
        if complete_at > self.served + 1024 {
            return None;
        }
        self.next.pop_first();
        let running = self.active.get_mut(&fetch)?;
        let (index, _) = running.segments.pop_front()?;
        let following = running.segments.front().copied();
        if let Some((_, length)) = following {
            running.complete_at = complete_at + on_the_wire(length);
            self.next.insert((running.complete_at, fetch));
        } else {
            self.active.remove(&fetch);
        }
        Some(WanArrival {
            fetch,
            index,
            ends: following.is_none(),
        })
    }

    fn advance(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.updated).as_secs_f64();
        self.updated = self.updated.max(now);
        if self.active.is_empty() {
            return;
        }
        let all = elapsed * self.bytes_per_sec;
        self.carried += all;
        self.served += whole(all / self.active.len() as f64 * 1024.0);
    }
}

/// 1/1024 bytes of the wire.
fn on_the_wire(length: u32) -> u64 {
    whole(f64::from(length) * WAN_FACTOR * 1024.0)
}

/// Rounded down; through [`Duration`], whose conversion is checked.
fn whole(value: f64) -> u64 {
    let nanos = Duration::from_secs_f64(value / 1e9).as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(range: std::ops::Range<u32>) -> VecDeque<(SegmentIndex, u32)> {
        range
            .map(|index| (SegmentIndex(index), 1_000_000))
            .collect()
    }

    fn run(wan: &mut Wan) -> Vec<(u64, u32, u64)> {
        let mut arrivals = Vec::new();
        while let Some(at) = wan.next_at() {
            while let Some(arrival) = wan.poll(at) {
                let millis = u64::try_from(at.as_millis()).unwrap_or(0);
                arrivals.push((arrival.fetch.0, arrival.index.0, millis));
            }
        }
        arrivals
    }

    #[test]
    fn requests_share_the_link_and_one_alone_has_all_of_it() {
        let mut wan = Wan::new(1_036_000.0);
        wan.begin(Duration::ZERO, FetchId(1), segments(0..2));
        wan.begin(Duration::ZERO, FetchId(2), segments(5..6));
        assert_eq!(run(&mut wan), [(1, 0, 2_000), (2, 5, 2_000), (1, 1, 3_000)]);
        assert!((wan.carried_bytes() - 3_108_000.0).abs() < 10.0);
    }

    #[test]
    fn a_cancelled_request_gives_its_share_back_and_what_it_carried_counts() {
        let mut wan = Wan::new(1_036_000.0);
        wan.begin(Duration::ZERO, FetchId(1), segments(0..1));
        wan.begin(Duration::ZERO, FetchId(2), segments(5..6));
        wan.cancel(Duration::from_secs(1), FetchId(2));
        assert_eq!(run(&mut wan), [(1, 0, 1_500)]);
        assert!((wan.carried_bytes() - 1_554_000.0).abs() < 10.0);
    }
}
