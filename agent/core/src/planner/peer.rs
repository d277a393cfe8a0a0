//! One peer of a transfer: what it holds and owes, how fast it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use branchline_hashing::SegmentIndex;

use super::PEER_STALL;
use crate::SegmentSet;

/// The bytes that may be asked of a peer before any has come: enough to see its rate, little
/// enough to lose nothing when it is slow.
const FIRST_WINDOW_BYTES: u64 = 2 << 20;

/// Requests in flight cover this much of a peer's measured rate, so that it never waits for the
/// next request (LAN round trips are below 1 ms, scheduling on a busy machine below 50 ms).
const WINDOW_TIME_MS: u64 = 300;

/// The bounds of that window: the lower keeps a slow peer useful, and is so small that many who ask one for the
/// same block soon have different parts of it to give each other; the upper bounds what is lost with a peer.
const WINDOW_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(48 << 20);

/// Peers that send at this rate or more are alike fast: two thirds of a LAN of 100 Mbit/s.
const FAST_BYTES_PER_SEC: u64 = 8_000_000;

/// A rate is measured over at least so long.
const RATE_WINDOW: Duration = Duration::from_millis(100);

/// Slower than this no peer keeps the origin waiting, even before the origin was measured: a tenth
/// of the slowest line that offices still have (1 Mbit/s).
const SLOWEST_BYTES_PER_SEC: u64 = 12_500;

/// A peer that rests no longer than this is waited for rather than replaced by the origin.
const SHORT_REST: Duration = Duration::from_secs(1);

/// A peer that refuses more often than this in a row is not waited for.
const REFUSALS_ALLOWED: u32 = 4;

/// How long a peer that refuses rests at least: this, doubled by each refusal in a row so often.
const REFUSAL_RESTS: Duration = Duration::from_millis(100);
const REFUSALS_DOUBLE: u32 = 7;

/// A peer that lacks so many segments it had said to hold, and delivers none between them, is dropped: the
/// segments of four requests.
pub(super) const ABSENTS_ALLOWED: u32 = 64;

/// So many runs in flight at the origin end because a peer says that it holds them, before it delivers one.
const TAKEN_OVER_UNPROVEN: u32 = 4;

/// Delivering for so long makes a stall forgotten: every machine pauses now and then.
const STALL_FORGIVEN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) have: SegmentSet,
    /// Segments asked for and not yet come, with their lengths in bytes.
    pub(super) owed: BTreeMap<SegmentIndex, u32>,
    pub(super) owed_bytes: u64,
    /// All it has delivered.
    pub(super) given_bytes: u64,
    pub(super) rate: Rate,
    /// The last time it delivered, or began to owe.
    pub(super) progress: Instant,
    /// The last time it delivered something that it owed, or began to owe: what it was told not to send may still come.
    pub(super) settled: Instant,
    pub(super) stalls: u32,
    pub(super) last_stall: Option<Instant>,
    /// Times it was busy since it last delivered.
    pub(super) refusals: u32,
    /// Segments it did not hold though it had said so, and runs that it took from the origin by saying so,
    /// since it last delivered.
    pub(super) absents: u32,
    pub(super) taken_over: u32,
    /// Whether anything ever came from it.
    pub(super) delivered: bool,
    /// Not to be asked before.
    pub(super) rests_until: Option<Instant>,
    /// Nothing that is open is held by it: not to be asked before one of the two changes.
    pub(super) exhausted: bool,
}

/// How long a peer may owe segments and deliver none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    /// One that has not delivered anything yet.
    pub(super) first_answer: Duration,
    /// One that has.
    pub(super) stall: Duration,
}

/// Bytes per second, measured over windows of [`RATE_WINDOW`] and smoothed.
#[derive(Debug)]
pub(super) struct Rate {
    since: Instant,
    bytes: u64,
    pub(super) bytes_per_sec: Option<u64>,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            bytes_per_sec: None,
        }
    }

    /// Idle time before a request says nothing of a peer's rate.
    pub(super) fn restart(&mut self, now: Instant) {
        self.since = now;
        self.bytes = 0;
    }

    /// 0 where it is not measured or above [`FAST_BYTES_PER_SEC`], one more for each time it is four times slower.
    pub(super) fn slowness(&self) -> u32 {
        let rate = self.bytes_per_sec.unwrap_or(FAST_BYTES_PER_SEC);
        (FAST_BYTES_PER_SEC / rate.max(1))
            .checked_ilog(4)
            .unwrap_or(0)
    }

    pub(super) fn count(&mut self, now: Instant, bytes: u32) {
        self.bytes += u64::from(bytes);
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < RATE_WINDOW {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let measured = self.bytes.saturating_mul(1_000_000) / micros;
        let smoothed = self
            .bytes_per_sec
            .map_or(measured, |old| old / 2 + measured / 2);
        self.bytes_per_sec = Some(smoothed);
        self.restart(now);
    }
}

impl Peer {
    pub(super) fn window_bytes(&self) -> u64 {
        let Some(rate) = self.rate.bytes_per_sec else {
            return FIRST_WINDOW_BYTES;
        };
        (rate / 1000 * WINDOW_TIME_MS).clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end())
    }

    pub(super) fn delivered(&mut self, now: Instant) {
        self.delivered = true;
        self.refusals = 0;
        self.absents = 0;
        self.taken_over = 0;
        if self
            .last_stall
            .is_some_and(|last| now > last + STALL_FORGIVEN)
        {
            self.stalls = 0;
            self.last_stall = None;
        }
    }

    /// Whether waiting for it beats asking the origin, which gives this rate or twice as much.
    pub(super) fn is_worth_waiting_for(&self, now: Instant, bytes_per_sec: u64) -> bool {
        let soon = self
            .rests_until
            .is_none_or(|until| until <= now + SHORT_REST);
        let floor = bytes_per_sec.max(SLOWEST_BYTES_PER_SEC);
        let fast = self.rate.bytes_per_sec.is_none_or(|rate| rate >= floor);
        soon && fast && self.refusals <= REFUSALS_ALLOWED
    }

    /// Whether runs in flight at the origin, which gives this rate or twice as much, are to end for it.
    pub(super) fn may_take_over(&self, now: Instant, bytes_per_sec: u64) -> bool {
        !self.rests(now)
            && self.taken_over < TAKEN_OVER_UNPROVEN
            && self.is_worth_waiting_for(now, bytes_per_sec)
    }

    /// It is busy: it rests for as long as it says, and longer each time.
    pub(super) fn refused(&mut self, now: Instant, retry_after: Duration) {
        let least = REFUSAL_RESTS * 2u32.pow(self.refusals.min(REFUSALS_DOUBLE));
        self.rests_until = Some(now + retry_after.min(PEER_STALL * 10).max(least));
        self.refusals = self.refusals.saturating_add(1);
    }

    /// When it has stalled, if it owes anything.
    pub(super) fn patience_ends(&self, silence: Silence) -> Instant {
        self.progress
            + if self.delivered {
                silence.stall
            } else {
                silence.first_answer
            }
    }

    pub(super) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    pub(super) fn has_room(&self, now: Instant) -> bool {
        !self.exhausted && !self.rests(now) && self.owed_bytes < self.window_bytes()
    }

    /// How long it will need for what it owes, by its rate and by how long it has kept us waiting.
    pub(super) fn time_to_finish(&self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.settled);
        self.rate.bytes_per_sec.map_or(waited, |rate| {
            let millis = self.owed_bytes.saturating_mul(1000) / rate.max(1);
            waited.max(Duration::from_millis(millis))
        })
    }

    /// Whether it did not owe it before.
    pub(super) fn owe(&mut self, now: Instant, index: SegmentIndex, length: u32) -> bool {
        if self.owed.is_empty() {
            self.progress = now;
            self.settled = now;
            self.rate.restart(now);
        }
        let new = self.owed.insert(index, length).is_none();
        self.owed_bytes += if new { u64::from(length) } else { 0 };
        new
    }

    /// Whether it was owed.
    pub(super) fn settle(&mut self, index: SegmentIndex) -> bool {
        let length = self.owed.remove(&index);
        self.owed_bytes -= u64::from(length.unwrap_or(0));
        length.is_some()
    }

    /// Whether the last of what it owes lies beyond its window. Asking for that, while there was room, is not
    /// enough: it would be asked for the same again at once.
    pub(super) fn owes_beyond_window(&self) -> bool {
        let last = self.owed.last_key_value();
        last.is_some_and(|(_, length)| self.owed_bytes - u64::from(*length) >= self.window_bytes())
    }

    /// Forgives the last segments it owes, as long as those lie beyond its window.
    pub(super) fn forgive_last(&mut self) -> Vec<SegmentIndex> {
        let mut forgiven = Vec::new();
        while self.owes_beyond_window()
            && let Some((index, length)) = self.owed.pop_last()
        {
            self.owed_bytes -= u64::from(length);
            forgiven.push(index);
        }
        forgiven
    }

    pub(super) fn forgive_all(&mut self) -> Vec<SegmentIndex> {
        self.owed_bytes = 0;
        std::mem::take(&mut self.owed).into_keys().collect()
    }
}
