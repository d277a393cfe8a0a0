//! What a run came to.

use std::time::Duration;

use crate::scenario::{Joins, Scenario};

/// A run's figures. Bytes are bytes on the wire, headers included.
#[derive(Debug, Clone)]
pub struct Figures {
    /// The run's seed.
    pub seed: u64,
    /// Members that started together or within the time of [`Joins`]; late comers are apart.
    pub members: u32,
    /// The file.
    pub file_bytes: u64,
    /// What its segments and manifest took on the WAN, wasted bytes included.
    pub wan_content_bytes: f64,
    /// What the question "what is current" took on the WAN, all members together.
    pub wan_question_bytes: f64,
    /// Bytes of segments and manifest that the origin gave to those that started when all others had ended.
    pub late_bytes: u64,
    /// Segments that the origin gave more than once, counted each time but the first.
    pub fetched_again: u64,
    /// From the first start to the end of the last transfer that was to end; late comers aside.
    pub makespan: Duration,
    /// The same if each byte crossed the WAN once at full rate, and the LAN at once: see [`ideal`].
    pub ideal: Duration,
    /// Small messages sent, all members together.
    pub control_messages: u64,
    /// Their bytes; connecting included.
    pub control_bytes: u64,
    /// Those of the member that sent most: mostly the steward.
    pub control_bytes_largest: u64,
    /// Bytes of segments that the busiest member sent.
    pub upload_bytes_largest: u64,
    /// Real time spent in all planners and stewards.
    pub planning: Duration,
    /// Segments that members came to hold.
    pub segments_stored: u64,
    /// Segments that came a second time from a peer, and were thrown away.
    pub peer_duplicates: u64,
    /// Members that died on the way.
    pub members_failed: u32,
}

impl Figures {
    /// WAN bytes of the content for each of the file.
    pub fn wan_ratio(&self) -> f64 {
        self.wan_content_bytes / self.file_bytes as f64
    }

    /// The same with the questions.
    pub fn wan_ratio_with_questions(&self) -> f64 {
        (self.wan_content_bytes + self.wan_question_bytes) / self.file_bytes as f64
    }

    /// Makespan over ideal.
    pub fn makespan_ratio(&self) -> f64 {
        self.makespan.as_secs_f64() / self.ideal.as_secs_f64()
    }

    /// Control bytes that a member sends, for each of the file.
    pub fn control_ratio(&self) -> f64 {
        self.control_bytes as f64 / f64::from(self.members) / self.file_bytes as f64
    }

    /// Small messages that a member sends.
    pub fn control_messages_per_member(&self) -> f64 {
        self.control_messages as f64 / f64::from(self.members)
    }

    /// What the busiest member sent, for each byte of the file.
    pub fn largest_upload_ratio(&self) -> f64 {
        self.upload_bytes_largest as f64 / self.file_bytes as f64
    }

    /// Real time of planning for each segment that a member came to hold.
    pub fn planning_per_segment(&self) -> Duration {
        let nanos = self.planning.as_nanos() / u128::from(self.segments_stored.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Bytes that are asked of the origin before anything else: the round trips of TCP, of TLS 1.3 and of
/// the question itself.
pub(crate) const QUESTION_ROUND_TRIPS: u32 = 3;

/// The time that nobody could beat: the question's round trips, one more for the first range, and the file over the
/// WAN once, from the first start; or, if that is later, the file over the LAN from the last start.
pub(crate) fn ideal(scenario: &Scenario, file_bytes: u64, last_start: Duration) -> Duration {
    let asked = scenario.wan_rtt * (QUESTION_ROUND_TRIPS + 1);
    let over_wan = asked + scenario.wan_time(file_bytes);
    let over_lan =
        Duration::from_secs_f64(file_bytes as f64 * 8.0 / crate::world::LAN_BITS_PER_SEC);
    match scenario.joins {
        Joins::Together => over_wan,
        Joins::Within(_) => over_wan.max(last_start + asked + over_lan),
    }
}
