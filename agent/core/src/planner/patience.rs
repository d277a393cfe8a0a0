//! How long a member waits for others before it fetches by itself.

use std::time::{Duration, Instant};

use super::OriginPace;

/// The share of the time that the origin would need for the whole that may be lost by waiting for a steward: half
/// of the tenth that is promised.
const SHARE: u32 = 20;

/// How much longer than that a wait for others is: have-updates are gathered for 60 ms, and seldom come from the fetcher
/// itself. Without it, of a hundred that start together with 8 MB some lost patience just before the first segments
/// came, and a fifth of the file was fetched twice (tests/sim).
const NEWS_TRAVELS: Duration = Duration::from_millis(100);

/// The bounds of a wait for others to bring anything. The lower: the first runs share the line until each has
/// brought a segment, which of a file of 2 MB takes a tenth of its time. The upper: what waits longer looks broken.
const WAIT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(250)..=Duration::from_secs(2);

/// The bounds of the wait for a steward's first answer: for a small file it is to be unnoticeable.
const ANSWER: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_millis(1200);

/// Who lives has been reached while the origin was asked, which takes two of its round trips: an answer over a connection
/// that is there takes a few milliseconds. For small files only: large ones can wait for a machine that is busy.
const WARMED: Duration = Duration::from_millis(15);

/// See [`AnswerPatience::steward_alone`]: a busy machine's answer.
const STEWARD_ALONE: Duration = Duration::from_millis(150);

/// The runs that a steward lets be fetched at once, which share the line.
const RUNS_AT_ONCE: u64 = 8;

/// Slower than this no progress counts, even before the origin was measured: a tenth of the
/// slowest line that offices still have (1 Mbit/s).
const SLOWEST_BYTES_PER_SEC: u64 = 12_500;

/// The time that others have left to bring something. What comes prolongs it by as long as the
/// origin, at half its rate, would have needed for it.
#[derive(Debug)]
pub(super) struct Patience {
    wait: Duration,
    until: Instant,
}

impl Patience {
    /// Of a transfer of `bytes` in all, in segments of up to `longest`. The first bytes also need the origin's round
    /// trips.
    pub(super) fn new(now: Instant, pace: OriginPace, bytes: u64, longest: u32) -> Self {
        let wait = wait_for_others(pace, bytes, longest);
        Self {
            wait,
            until: now + wait + pace.round_trip,
        }
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Others have brought nothing, or next to nothing, for too long.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    /// What one wait is.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Others have brought so many bytes; the origin gives `bytes_per_sec` to this agent, or 0 if
    /// that is not known.
    pub(super) fn progress(&mut self, now: Instant, bytes: u64, bytes_per_sec: u64) {
        let floor = (bytes_per_sec / 2).max(SLOWEST_BYTES_PER_SEC);
        let worth = Duration::from_micros(bytes.saturating_mul(1_000_000) / floor);
        let until = self.until.max(now) + worth.min(self.wait);
        self.until = until.min(now + self.wait);
    }

    /// This machine was the one that was late.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.until = self.until.max(now + self.wait);
    }
}

/// How long others have to show that they are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerPatience {
    /// The wait for a steward's first answer, over all that are tried.
    pub(crate) whole: Duration,
    /// What of it one has that was not even reached, and others that are asked to join.
    pub(crate) unreached: Duration,
    /// How long the others are not asked for anything, unless the steward answers before: who asks all at one moment has all
    /// busy with handshakes, the steward with them. For a small file there is no time for that.
    pub(crate) steward_alone: Duration,
}

#[cfg(test)]
impl AnswerPatience {
    /// All have `whole`, and all are asked at once.
    pub(crate) fn of(whole: Duration) -> Self {
        Self {
            whole,
            unreached: whole,
            steward_alone: Duration::ZERO,
        }
    }
}

/// `warmed`: connections to all were begun long before.
pub(crate) fn answer_patience(pace: OriginPace, bytes: u64, warmed: bool) -> AnswerPatience {
    let whole = (pace.time_for(bytes) / SHARE).clamp(*ANSWER.start(), *ANSWER.end());
    let is_small = whole == *ANSWER.start();
    AnswerPatience {
        whole,
        unreached: if warmed && is_small { WARMED } else { whole },
        steward_alone: if is_small {
            Duration::ZERO
        } else {
            (whole / 2).min(STEWARD_ALONE)
        },
    }
}

/// How long others may bring nothing: a share of what the origin would need for `bytes`, after its
/// round trip, which others need, too. Where segments are so `long` that the first of those that are fetched at once
/// comes later than the upper bound, until then.
pub(crate) fn wait_for_others(pace: OriginPace, bytes: u64, longest: u32) -> Duration {
    let first = pace.time_for(u64::from(longest) * RUNS_AT_ONCE);
    let most = first.max(*WAIT.end());
    (pace.time_for(bytes) / SHARE + NEWS_TRAVELS).clamp(*WAIT.start(), most) + pace.round_trip
}

/// How long a peer that begins to send may need for a segment: as long as the origin alone would, but no more than a share
/// of what that would need for the whole.
pub(super) fn sending_time(pace: OriginPace, bytes: u64, longest: u32) -> Duration {
    let segment = pace.time_for(longest.into());
    segment.min(pace.time_for(bytes) / SHARE)
}
