//! Jobs from nothing, and from what the journal has.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::file::File;
use super::files::Files;
use super::history::History;
use super::job::Job;
use super::outbox::Outbox;
use super::pool::{FileBounds, Pool};
use super::usage::Usage;
use super::{
    Config, Counters, FileIndex, FileRecord, FileState, JobId, JobRecord, JobState, Jobs,
    NotificationRecord, Now, RestoreError, StateKind, Writing,
};

/// With what an agent's jobs begin.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Bounds.
    pub config: Config,
    /// For the jitter of retries.
    pub seed: u64,
    /// Whether there is a network.
    pub network_up: bool,
}

/// All that the journal has.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// The numbers that are given next.
    pub counters: Counters,
    /// Jobs.
    pub jobs: Vec<JobRecord>,
    /// Their files.
    pub files: Vec<(JobId, FileIndex, FileRecord)>,
    /// Notifications that nobody knows to be delivered.
    pub notifications: Vec<NotificationRecord>,
}

impl Jobs {
    /// No jobs yet.
    pub fn new(now: Now, setup: Setup) -> Self {
        let parallel = setup.config.parallel.sound();
        let bounds = |in_all| FileBounds {
            in_all,
            per_job: parallel.files_per_job,
        };
        let background = bounds(parallel.background_files);
        let foreground = bounds(parallel.foreground_files);
        Self {
            config: Config {
                parallel,
                ..setup.config
            },
            jobs: BTreeMap::new(),
            usage: Usage::default(),
            foreground: Pool::new(parallel.foreground_files, foreground),
            background: Pool::new(parallel.background_jobs, background),
            active: Default::default(),
            faltered: Default::default(),
            due: Default::default(),
            ended: Default::default(),
            network_up: setup.network_up,
            counters: Counters::default(),
            written: Counters::default(),
            next_ticket: 0,
            next_attempt: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(setup.seed),
            outbox: Outbox::default(),
            history: History::new(now.time),
            touched: BTreeMap::new(),
            changes: Vec::new(),
            effects: Vec::new(),
            actions: Default::default(),
        }
    }

    /// The jobs of an agent that has been restarted: those that ran are queued, interrupted places and
    /// discards are done again, undelivered notifications are delivered, perhaps a second time.
    ///
    /// # Errors
    ///
    /// [`RestoreError`] when the records do not belong together.
    pub fn restore(now: Now, setup: Setup, records: Records) -> Result<Self, RestoreError> {
        let mut jobs = Self::new(now, setup);
        jobs.counters = records.counters;
        jobs.written = records.counters;
        let mut files = by_job(records.files);
        for record in records.jobs {
            let id = record.id;
            let files = assemble(&record, files.remove(&id).unwrap_or_default())?;
            if jobs.jobs.contains_key(&id) {
                return Err(RestoreError::Twice(id));
            }
            jobs.take_up(record, files);
        }
        if let Some((orphaned, _)) = files.pop_first() {
            return Err(RestoreError::Orphan(orphaned));
        }
        for record in records.notifications {
            jobs.counters.next_notification.0 =
                (record.id.0 + 1).max(jobs.counters.next_notification.0);
            jobs.outbox.add(now.time, record, true);
        }
        jobs.finish(now);
        Ok(jobs)
    }

    fn take_up(&mut self, record: JobRecord, files: Files) {
        let id = record.id;
        let owner = record.owner;
        let is_live = !record.state.kind().has_ended();
        self.counters.next_job.0 = (id.0 + 1).max(self.counters.next_job.0);
        self.usage.add_job(owner, id, is_live);
        if is_live {
            self.usage.add_files(owner, files.len());
            self.usage.measure(owner, 0, files.sums().length);
        }
        let mut job = Job::new(record, files);
        job.ticket = self.draw_ticket();
        if job.kind() == StateKind::TransientError {
            self.faltered.insert(id);
        }
        if job.kind().is_active() {
            job.record.state = JobState::Queued;
        }
        let indexes = job.files.indexes();
        self.jobs.insert(id, job);
        for index in indexes {
            self.take_up_file(id, index);
        }
        self.touch(id, Writing::Not);
    }

    /// Does again what may have been interrupted.
    fn take_up_file(&mut self, id: JobId, index: FileIndex) {
        let state = self.jobs.get(&id).map(|job| &job.record.state);
        let completing = matches!(state, Some(JobState::Transferred { placing: Some(_) }));
        match self.file_state(id, index) {
            Some(FileState::Placing) if completing => self.place(id, index, true),
            // Only a job that completes has such: it is there all the same.
            Some(FileState::Placing) => {
                self.change_file(id, index, |file| file.record.state = FileState::Staged);
            }
            Some(FileState::Dropped { discarded: false }) => self.discard(id, index),
            Some(
                FileState::Waiting
                | FileState::RetryLater { .. }
                | FileState::Failed { .. }
                | FileState::Staged
                | FileState::InPlace
                | FileState::Dropped { discarded: true },
            )
            | None => {}
        }
    }
}

fn by_job(
    records: Vec<(JobId, FileIndex, FileRecord)>,
) -> BTreeMap<JobId, BTreeMap<FileIndex, FileRecord>> {
    let mut jobs: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (job, index, record) in records {
        jobs.entry(job).or_default().insert(index, record);
    }
    jobs
}

fn assemble(
    job: &JobRecord,
    records: BTreeMap<FileIndex, FileRecord>,
) -> Result<Files, RestoreError> {
    let found = records.len();
    let complete = records.keys().copied().eq((0..job.files).map(FileIndex));
    if !complete {
        let (job, expected) = (job.id, job.files);
        return Err(RestoreError::FilesMissing {
            job,
            expected,
            found,
        });
    }
    let mut files = Files::default();
    for record in records.into_values() {
        files.push(File::restored(record));
    }
    Ok(files)
}
