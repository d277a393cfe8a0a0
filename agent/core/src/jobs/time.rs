//! The time that jobs live by.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Time since the journal was begun. It never goes back, goes on where it was after a restart, and
/// knows nothing of the wall clock: whoever sets that ends no timeout and begins none anew.
/// Serialised as nanoseconds.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(from = "u64", into = "u64")]
pub struct JobTime(Duration);

impl From<u64> for JobTime {
    fn from(nanoseconds: u64) -> Self {
        Self(Duration::from_nanos(nanoseconds))
    }
}

impl From<JobTime> for u64 {
    fn from(time: JobTime) -> Self {
        // 2^64 ns are 584 years.
        Self::try_from(time.0.as_nanos()).unwrap_or(Self::MAX)
    }
}

impl JobTime {
    /// When the journal was begun.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// So long after the journal was begun.
    pub const fn since_epoch(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long after the journal was begun.
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// `wait` later; at the end of time at the latest.
    pub const fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }

    /// How long `earlier` is ago; nothing when it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for JobTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}", Brief(self.0))
    }
}

/// What the wall clock says: seconds since 1970, for people to read. No timer follows it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

/// The moment of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What timers go by.
    pub time: JobTime,
    /// What is shown.
    pub wall: UnixSeconds,
}

/// For `#[serde(with)]`: a time span as whole seconds.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::jobs) fn serialize<S: Serializer>(
        span: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(span.as_secs())
    }

    pub(in crate::jobs) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// A time span in its two largest units: `3 d 4 h`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brief(pub(super) Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (large, small, units) = match seconds {
            0..60 => return write!(f, "{seconds} s"),
            60..3_600 => (seconds / 60, seconds % 60, ("min", "s")),
            3_600..86_400 => (seconds / 3_600, seconds % 3_600 / 60, ("h", "min")),
            _ => (seconds / 86_400, seconds % 86_400 / 3_600, ("d", "h")),
        };
        match small {
            0 => write!(f, "{large} {}", units.0),
            _ => write!(f, "{large} {} {small} {}", units.0, units.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_show_their_two_largest_units() {
        let shown = |seconds| Brief(Duration::from_secs(seconds)).to_string();
        assert_eq!(shown(59), "59 s");
        assert_eq!(shown(60), "1 min");
        assert_eq!(shown(3_725), "1 h 2 min");
        assert_eq!(shown(14 * 86_400), "14 d");
        assert_eq!(shown(86_400 + 7_200), "1 d 2 h");
    }
}
