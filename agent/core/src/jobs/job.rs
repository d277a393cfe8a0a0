//! One job: what the journal has of it, and what is known until the next restart.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::{STUCK_AFTER, TIME_SLICE};
use super::files::Files;
use super::pool::{PoolKind, Rank};
use super::{
    Config, Header, JobId, JobKind, JobState, JobTime, Order, Revision, Settings, UnixSeconds,
    UserId,
};
use super::{FileIndex, StateKind};

/// A job as the journal has it, without its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// Whose it is.
    pub owner: UserId,
    /// Whether no quota binds it: who made it administrates.
    pub exempt: bool,
    /// What it does.
    pub kind: JobKind,
    /// What can be changed.
    pub settings: Settings,
    /// Where it stands; in the journal never `connecting` or `transferring`, for after a restart it waits
    /// for its turn.
    pub state: JobState,
    /// Since when.
    pub since: JobTime,
    /// Raised with each lasting change.
    pub revision: Revision,
    /// When it was made.
    pub created: UnixSeconds,
    /// When somebody last changed it, or something last moved in it.
    pub touched: JobTime,
    /// How long it has had transfers running, up to the last turn that has ended.
    pub active: Duration,
    /// Since when it fails without a new byte.
    pub failing_since: Option<JobTime>,
    /// How many files it has.
    pub files: u32,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: JobRecord,
    pub(super) files: Files,
    /// While transfers run.
    pub(super) turn: Option<Turn>,
    /// Was stuck: others go first until then.
    pub(super) resting_until: Option<JobTime>,
    /// Its place among its equals.
    pub(super) ticket: u64,
    /// Where it is entered in its pool.
    pub(super) rank: Option<(PoolKind, Rank)>,
    /// When it is to be looked at.
    pub(super) due: Option<JobTime>,
}

/// A time in which transfers run without a break.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    /// From when on time counts that is not yet in the record.
    pub(super) counted_to: JobTime,
    pub(super) slice_ends: JobTime,
    pub(super) last_progress: JobTime,
}

impl Turn {
    pub(super) fn new(now: JobTime) -> Self {
        Self {
            counted_to: now,
            slice_ends: now.after(TIME_SLICE),
            last_progress: now,
        }
    }

    pub(super) fn is_stuck_at(&self) -> JobTime {
        self.last_progress.after(STUCK_AFTER)
    }
}

impl Job {
    pub(super) fn new(record: JobRecord, files: Files) -> Self {
        Self {
            record,
            files,
            turn: None,
            resting_until: None,
            ticket: 0,
            rank: None,
            due: None,
        }
    }

    pub(super) fn kind(&self) -> StateKind {
        self.record.state.kind()
    }

    pub(super) fn pool(&self) -> PoolKind {
        PoolKind::of(self.record.settings.priority)
    }

    /// The rank it should have; `None` when it does not want to run.
    pub(super) fn wanted_rank(&self) -> Option<(PoolKind, Rank)> {
        let rank = Rank {
            resting: self.resting_until.is_some(),
            priority: self.record.settings.priority,
            ticket: self.ticket,
            job: self.record.id,
        };
        self.kind().is_scheduled().then_some((self.pool(), rank))
    }

    /// What the journal is to hold.
    pub(super) fn lasting(&self) -> JobRecord {
        let mut record = self.record.clone();
        if self.kind().is_active() {
            record.state = JobState::Queued;
        }
        record
    }

    /// The time with transfers running goes into the record.
    pub(super) fn count_active(&mut self, now: JobTime) {
        if let Some(turn) = &mut self.turn {
            self.record.active = self
                .record
                .active
                .saturating_add(now.since(turn.counted_to));
            turn.counted_to = now;
        }
    }

    /// How long it has had transfers running.
    pub(super) fn active(&self, now: JobTime) -> Duration {
        let turn = self.turn.as_ref();
        let turn = turn.map_or(Duration::ZERO, |turn| now.since(turn.counted_to));
        self.record.active.saturating_add(turn)
    }

    /// When it has run for its longest time.
    pub(super) fn runs_out_at(&self) -> Option<JobTime> {
        let left = self.record.settings.retry.max_active;
        let left = left.saturating_sub(self.record.active);
        Some(self.turn.as_ref()?.counted_to.after(left))
    }

    /// When it has failed for so long that it gives up.
    pub(super) fn gives_up_at(&self) -> Option<JobTime> {
        let timeout = self.record.settings.retry.no_progress_timeout;
        Some(self.record.failing_since?.after(timeout))
    }

    /// When it is cancelled unless something happens.
    pub(super) fn abandoned_at(&self, config: &Config) -> JobTime {
        self.record.touched.after(config.inactive_after)
    }

    /// When it is forgotten; `None` while its files are still being removed.
    pub(super) fn forgotten_at(&self, config: &Config) -> Option<JobTime> {
        let cleared = self.files.stopping() == 0 && self.files.sums().undiscarded == 0;
        (self.kind().has_ended() && cleared).then(|| self.record.since.after(config.ended_kept))
    }

    /// How many records the journal has of it.
    pub(super) fn records(&self) -> usize {
        1 + self.files.len()
    }

    /// When it is to be looked at next, and for what.
    pub(super) fn next_due(&self, config: &Config) -> Option<(JobTime, &'static str)> {
        if self.kind().has_ended() {
            return Some((self.forgotten_at(config)?, "an ended job's time"));
        }
        let tries = self.kind().is_scheduled() || self.kind() == StateKind::TransientError;
        let retry = self.files.first_retry().filter(|_| tries);
        let failing = self.gives_up_at();
        let failing = failing.filter(|_| self.kind() == StateKind::TransientError);
        let turn = self.turn.as_ref();
        let awake = turn.filter(|_| self.resting_until.is_none());
        let reasons = [
            (Some(self.abandoned_at(config)), "an inactive job"),
            (retry.map(|(at, _)| at), "a retry"),
            (failing, "a no-progress timeout"),
            (self.runs_out_at(), "a job's longest active time"),
            (self.resting_until, "the rest of a stuck job"),
            (turn.map(|turn| turn.slice_ends), "a time slice"),
            (awake.map(Turn::is_stuck_at), "a stuck job"),
        ];
        let due = reasons.into_iter().filter_map(|(at, why)| Some((at?, why)));
        due.min()
    }

    /// What a transfer of a file needs.
    pub(super) fn order(&self, file: FileIndex) -> Option<Order> {
        let spec = &self.files.get(file)?.record.spec;
        let settings = &self.record.settings;
        Some(Order {
            owner: self.record.owner,
            url: spec.url.clone(),
            ranges: spec.ranges.clone(),
            digest: spec.digest,
            without_manifest: spec.without_manifest,
            staged: spec.path.staged(self.record.id, file),
            path: spec.path.clone(),
            headers: settings.headers.iter().map(Header::clone).collect(),
            credentials: settings.credentials.clone(),
            proxy: settings.proxy.clone(),
            priority: settings.priority,
        })
    }
}
