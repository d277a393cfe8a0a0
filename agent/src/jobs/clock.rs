//! The time that jobs live by: it goes on over restarts and never follows the wall clock.
//!
//! While the machine is up it is the kernel's time since boot, sleep included. What the machine was switched off for does
//! not count: nothing tells how long that was but a wall clock that anybody may have set.

use std::time::Duration;

use branchline_core::jobs::{JobTime, Now, UnixSeconds};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where the clock stood, for the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClockRecord {
    boot: String,
    since_boot_ns: u64,
    time: JobTime,
}

/// The running clock.
#[derive(Debug, Clone)]
pub(super) struct JobClock {
    boot: String,
    /// What the time was when the machine had been up for so long.
    time: JobTime,
    since_boot: Duration,
}

impl JobClock {
    /// Goes on from where it stood.
    pub(super) fn from(record: Option<ClockRecord>) -> Self {
        Self::going_on(record, boot_id(), since_boot())
    }

    fn going_on(record: Option<ClockRecord>, boot: String, since_boot: Duration) -> Self {
        let time = record.map_or(JobTime::ZERO, |record| {
            let then = Duration::from_nanos(record.since_boot_ns);
            let passed = if record.boot == boot && !boot.is_empty() {
                since_boot.saturating_sub(then)
            } else {
                Duration::ZERO
            };
            record.time.after(passed)
        });
        Self {
            boot,
            time,
            since_boot,
        }
    }

    /// This moment.
    pub(super) fn now(&self) -> Now {
        Now {
            time: self
                .time
                .after(since_boot().saturating_sub(self.since_boot)),
            wall: UnixSeconds(unix_seconds()),
        }
    }

    /// For the journal.
    pub(super) fn record(&self) -> ClockRecord {
        let since_boot = since_boot();
        ClockRecord {
            boot: self.boot.clone(),
            since_boot_ns: u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX),
            time: self.time.after(since_boot.saturating_sub(self.since_boot)),
        }
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Another one each time the machine starts (random(4)).
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(boot: &str, since_boot: u64, time: u64) -> ClockRecord {
        ClockRecord {
            boot: boot.into(),
            since_boot_ns: since_boot * 1_000_000_000,
            time: JobTime::since_epoch(Duration::from_secs(time)),
        }
    }

    #[test]
    fn it_goes_on_over_restarts_and_stands_still_while_the_machine_is_off() {
        let up = Duration::from_secs(500);
        let time = |record| JobClock::going_on(record, "a".into(), up).time.elapsed();
        assert_eq!(
            time(Some(record("a", 480, 1_000))),
            Duration::from_secs(1_020)
        );
        assert_eq!(
            time(Some(record("b", 480, 1_000))),
            Duration::from_secs(1_000)
        );
        assert_eq!(
            time(Some(record("a", 900, 1_000))),
            Duration::from_secs(1_000)
        );
        assert_eq!(time(None), Duration::ZERO);
        let clock = JobClock::from(None);
        let first = clock.now().time;
        assert!(clock.now().time >= first);
        assert!(JobClock::from(Some(clock.record())).now().time >= first);
    }
}
