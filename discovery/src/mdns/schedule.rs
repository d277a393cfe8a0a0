//! When to say something on one link. Pure: the time comes in.

use std::time::{Duration, Instant};

/// When an interface comes up the agent announces itself at once, and again at these times after it,
/// for the case that a packet is lost: RFC 6762 section 8.3 wants two announcements or more, with
/// growing gaps. The late ones are for switches that forward nothing for 30 s after a cable was
/// plugged in (spanning tree, IEEE 802.1D).
const STARTUP: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(7),
    Duration::from_secs(15),
    Duration::from_secs(31),
];
/// With so many of them it asks, too. Who hears an announcement connects, so that asking only makes
/// it faster; and every agent answers.
const QUERIES: usize = 4;
/// Afterwards it announces this often, so that agents that were cut off are found again. Only
/// announcements repeat: a repeated query would make all N agents answer each of N.
const REPEAT: Duration = Duration::from_secs(60);
/// Spread over the repeats, so that agents started together do not stay together.
const REPEAT_JITTER: Duration = Duration::from_secs(10);
/// Answers wait this long and a random part more, so that one answers several queries and N agents
/// do not answer at the same moment (RFC 6762 section 6).
const ANSWER_DELAY: Duration = Duration::from_millis(20);
const ANSWER_JITTER: Duration = Duration::from_millis(100);
/// Records are not sent more often than this (RFC 6762 section 6).
const MIN_GAP: Duration = Duration::from_secs(1);

/// What to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Send {
    /// A query and this agent's announcement.
    QueryAndAnnouncement,
    /// The announcement alone.
    Announcement,
}

#[derive(Debug)]
pub(crate) struct Schedule {
    started: Instant,
    startup_sent: usize,
    next_repeat: Instant,
    announced: Option<Instant>,
    answer_due: Option<Instant>,
}

impl Schedule {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            startup_sent: 0,
            next_repeat: now + REPEAT,
            announced: None,
            answer_due: None,
        }
    }

    /// Somebody asked. `random` is uniform over all values.
    pub(crate) fn handle_query(&mut self, now: Instant, random: u64) {
        let earliest = self.announced.map_or(now, |at| (at + MIN_GAP).max(now));
        let due = earliest + ANSWER_DELAY + part(ANSWER_JITTER, random);
        self.answer_due.get_or_insert(due);
    }

    /// When [`Self::poll_send`] has something next.
    pub(crate) fn deadline(&self) -> Instant {
        let startup = STARTUP
            .get(self.startup_sent)
            .map(|after| self.started + *after);
        let regular = startup.unwrap_or(self.next_repeat);
        self.answer_due
            .map_or(regular, |answer| answer.min(regular))
    }

    /// What is due at `now`. `random` is uniform over all values.
    pub(crate) fn poll_send(&mut self, now: Instant, random: u64) -> Option<Send> {
        if now < self.deadline() {
            return None;
        }
        let startup = STARTUP
            .get(self.startup_sent)
            .is_some_and(|after| self.started + *after <= now);
        let asks = startup && self.startup_sent < QUERIES;
        self.startup_sent += usize::from(startup);
        self.answer_due = None;
        self.announced = Some(now);
        self.next_repeat = now + REPEAT + part(REPEAT_JITTER, random);
        Some(if asks {
            Send::QueryAndAnnouncement
        } else {
            Send::Announcement
        })
    }
}

fn part(of: Duration, random: u64) -> Duration {
    let micros = u64::try_from(of.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random % micros.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sends(schedule: &mut Schedule, from: Instant, until: Duration) -> Vec<(Duration, Send)> {
        let mut sent = Vec::new();
        while schedule.deadline() <= from + until {
            let now = schedule.deadline();
            sent.push((now - from, schedule.poll_send(now, 0).expect("it is due")));
        }
        sent
    }

    #[test]
    fn it_asks_at_once_and_then_falls_silent_for_a_minute() {
        let start = Instant::now();
        let sent = sends(&mut Schedule::new(start), start, Duration::from_secs(160));
        let queries = STARTUP.map(|after| (after, Send::QueryAndAnnouncement));
        assert_eq!(sent[..QUERIES], queries[..QUERIES]);
        let announced: Vec<_> = sent[QUERIES..]
            .iter()
            .map(|(after, send)| (after.as_secs(), *send))
            .collect();
        let expected = [7, 15, 31, 91, 151].map(|secs| (secs, Send::Announcement));
        assert_eq!(announced, expected);
    }

    #[test]
    fn a_hundred_queries_get_one_answer_a_second() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        sends(&mut schedule, start, Duration::from_secs(40));
        let asked = start + Duration::from_secs(50);
        for n in 0..100 {
            schedule.handle_query(asked + Duration::from_millis(n / 10), n * 12_345);
        }
        let answered = sends(&mut schedule, asked, Duration::from_secs(1));
        assert_eq!(answered.len(), 1, "{answered:?}");
        assert!(answered[0].0 >= ANSWER_DELAY && answered[0].0 <= ANSWER_DELAY + ANSWER_JITTER);
        let again = asked + answered[0].0;
        schedule.handle_query(again, 0);
        assert_eq!(schedule.deadline(), again + MIN_GAP + ANSWER_DELAY);
    }
}
