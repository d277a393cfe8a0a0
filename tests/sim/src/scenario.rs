//! What is simulated: how many members, which file, who joins when, what goes wrong.

use std::time::Duration;

/// One run of the simulator; everything else follows from it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What all chance is drawn from.
    pub seed: u64,
    /// Members of the branch that want the file.
    pub members: u32,
    /// The file's segments.
    pub segments: u32,
    /// Their mean length in bytes; each is between half and one and a half of it.
    pub segment_bytes: u32,
    /// The WAN's rate to the branch, bits per second.
    pub wan_bits_per_sec: f64,
    /// The WAN's round trip.
    pub wan_rtt: Duration,
    /// When members start.
    pub joins: Joins,
    /// Members, besides the others, that start when all others have ended.
    pub late: u32,
    /// What goes wrong.
    pub troubles: Troubles,
}

/// When members start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joins {
    /// All within 5 ms, as when a schedule says so.
    Together,
    /// At random times within so long.
    Within(Duration),
}

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Troubles {
    /// Of a hundred members, so many die without a word at a random time of the file's own.
    pub failing_percent: u32,
    /// What becomes of the steward when half of the file's own time has passed.
    pub steward: StewardFate,
    /// Of a hundred members, so many send at a hundredth of the rate.
    pub slow_percent: u32,
    /// Of a hundred members, so many send wrong bytes for one segment in four.
    pub lying_percent: u32,
    /// For the first second each member sees a random half of the others only.
    pub partial_views: bool,
}

/// What becomes of the steward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StewardFate {
    /// Nothing.
    #[default]
    Lives,
    /// It dies without a word.
    Dies,
    /// Its connections live and it never says anything again.
    Hangs,
    /// The same from the start.
    HangsFromTheStart,
}

impl Scenario {
    /// A common start in the lab's setting: 64 MB over 20 Mbit/s with 40 ms, nothing goes wrong.
    pub fn common_start(members: u32, seed: u64) -> Self {
        Self {
            seed,
            members,
            segments: 1024,
            segment_bytes: 62_500,
            wan_bits_per_sec: 20e6,
            wan_rtt: Duration::from_millis(40),
            joins: Joins::Together,
            late: 0,
            troubles: Troubles::default(),
        }
    }

    /// The time one transfer of the file takes the WAN.
    pub(crate) fn wan_time(&self, file_bytes: u64) -> Duration {
        let wire = file_bytes as f64 * crate::wan::WAN_FACTOR;
        Duration::from_secs_f64(wire * 8.0 / self.wan_bits_per_sec)
    }
}
