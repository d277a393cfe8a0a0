//! Jobs: what users asked for, in which order it is done, and what becomes of it.
//!
//! Sans-IO: inputs are `handle_*` with the moment they happened; afterwards the caller drains
//! [`Jobs::poll_action`], in order, and waits for the next input or [`Jobs::next_deadline`]. docs/jobs.md has the
//! states, the table of transitions and all timers.
//!
//! Invariants:
//! - a job changes its state only as the table in `state.rs` says;
//! - a file that is staged or in place stays so, unless its owner cancels the job or the shell finds it gone;
//! - no file has two transfers, and no more transfers run than [`Parallel`] allows, those being stopped included;
//! - what must last is in a `Persist` before any other action of the same input;
//! - no job waits for its turn while one of lower rank runs, once the transfers being stopped have ended;
//! - no input costs more than the logarithm of all jobs for each job or file that it changes, and a
//!   constant for the choice of who runs.
//!
//! It opens no file and no connection, knows no wall clock but to pass it on, and believes what
//! the shell reports of an attempt that it started and of no other.

mod action;
mod check;
mod config;
mod error;
mod events;
mod file;
mod files;
mod history;
mod ids;
mod job;
mod listing;
mod notify;
mod outbox;
mod pool;
mod requests;
mod restore;
mod scheduling;
mod schema;
mod secret;
mod settling;
mod spec;
mod state;
mod target;
mod time;
mod timeouts;
mod usage;
mod view;
mod why;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::Xoshiro256PlusPlus;

pub use action::{
    Action, Change, Channel, Counters, Event, Failure, Notification, NotificationRecord, Order,
    PlaceFailure, Staging,
};
pub use check::{
    LEAST_RETRY_DELAY, LONGEST_TIMEOUT, MAX_COMMAND_BYTES, MAX_COMMAND_WORDS,
    MAX_DESCRIPTION_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, MAX_NAME_BYTES, MAX_RANGES, SpecError,
};
pub use config::{
    Config, ENDED_KEPT_LEAST, ENDED_RECORDS_KEPT, EVENTS_KEPT, LONGEST_RETRY_AFTER, MAX_PAGE,
    NOTIFY_AT_ONCE, NOTIFY_TRIES, NOTIFY_WAITS, Parallel, Quota, RESTARTS_AT_ONCE, STUCK_AFTER,
    STUCK_RESTS, TIME_SLICE,
};
pub use error::{ErrorContext, JobError, Permanence, RequestError, RestoreError, Trouble};
pub use file::{BySource, FileRecord, FileState, Live, NOTICES_KEPT, Proof, Trust};
pub use history::{Happening, LoggedEvent};
pub use ids::{Attempt, Caller, EventSeq, FileIndex, JobId, NotificationId, Revision, UserId};
pub use job::JobRecord;
pub use listing::{Filter, Page};
pub use requests::Request;
pub use restore::{Records, Setup};
pub use secret::{MAX_URL_BYTES, NotAUrl, RemoteUrl, Secret};
pub use spec::{
    ByteRange, Credentials, CredentialsChange, FileSpec, Header, JobKind, JobSpec, NotifyOf,
    NotifySettings, Priority, ProxyChoice, RetryPolicy, Settings, SettingsChange,
};
pub use state::{CancelCause, JobState, Placing, StateKind, Trigger, next};
pub use target::{NotATarget, TargetPath};
pub use time::{JobTime, Now, UnixSeconds};
pub use view::{ErrorView, FileView, HeaderView, JobSummary, JobView, SettingsView};
pub use why::{WaitingFor, Why};

use file::File;
use history::History;
use job::Job;
use outbox::Outbox;
use pool::{Pool, PoolKind};
use usage::Usage;

/// All jobs of an agent.
#[derive(Debug)]
pub struct Jobs {
    config: Config,
    jobs: BTreeMap<JobId, Job>,
    usage: Usage,
    foreground: Pool,
    background: Pool,
    /// Those with transfers running.
    active: BTreeSet<JobId>,
    /// Those in a transient error.
    faltered: BTreeSet<JobId>,
    /// When each is to be looked at.
    due: BTreeSet<(JobTime, JobId)>,
    /// Those of each user that can be forgotten.
    ended: BTreeMap<UserId, Ended>,
    network_up: bool,
    counters: Counters,
    /// As the journal has them.
    written: Counters,
    next_ticket: u64,
    next_attempt: u64,
    rng: Xoshiro256PlusPlus,
    outbox: Outbox,
    history: History,
    /// What the present input has touched.
    touched: BTreeMap<JobId, Touch>,
    /// What the journal is to hold besides what was touched.
    changes: Vec<Change>,
    /// What is to be done after that is written.
    effects: Vec<Action>,
    actions: VecDeque<Action>,
}

/// Jobs of one user that can be forgotten.
#[derive(Debug, Default)]
struct Ended {
    /// By when they are.
    jobs: BTreeSet<(JobTime, JobId)>,
    /// How many records they have together.
    records: usize,
}

/// What of a job has to be written.
#[derive(Debug, Default)]
struct Touch {
    record: Writing,
    files: BTreeSet<FileIndex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Writing {
    /// Nothing that lasts has changed.
    #[default]
    Not,
    /// Counts that nobody sets.
    Quiet,
    /// What a client may set or see: another revision.
    Revised,
}

impl Jobs {
    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle_timeout` is to be called, and what is waited for until then.
    pub fn next_deadline(&self) -> Option<(JobTime, &'static str)> {
        let job = self.due.first().map(|(at, job)| {
            let job = self.jobs.get(job);
            let due = job.and_then(|job| job.next_due(&self.config));
            (*at, due.map_or("a job", |(_, reason)| reason))
        });
        let notification = self.outbox.next_due().map(|at| (at, "a notification"));
        [job, notification].into_iter().flatten().min()
    }

    /// Whether there is a network to transfer over. While there is none, jobs wait and burn no
    /// retries; when it is back, those that it made falter are requeued.
    pub fn handle_network(&mut self, now: Now, up: bool) {
        if self.network_up == up {
            return;
        }
        self.network_up = up;
        if up {
            self.requeue_faltered();
            self.schedule(now);
        } else {
            self.falter_active(now);
        }
        self.finish(now);
    }

    /// Ends an input: settles what it touched, chooses who runs, and gives out what is to be done.
    fn finish(&mut self, now: Now) {
        let touched: Vec<JobId> = self.touched.keys().copied().collect();
        for id in &touched {
            self.settle(now, *id);
            self.rerank(*id);
        }
        if !touched.is_empty() {
            self.schedule(now);
        }
        self.flush(now);
    }

    fn flush(&mut self, now: Now) {
        let mut owners = BTreeSet::new();
        for (id, touch) in std::mem::take(&mut self.touched) {
            self.retime(id);
            self.write(id, touch);
            owners.extend(self.jobs.get(&id).map(|job| job.record.owner));
        }
        for owner in owners {
            self.forget_surplus(now, owner);
        }
        if self.counters != self.written {
            self.changes.push(Change::Counters(self.counters));
            self.written = self.counters;
        }
        self.outbox.deliver(now.time, &mut self.effects);
        let changes = std::mem::take(&mut self.changes);
        if !changes.is_empty() {
            self.actions.push_back(Action::Persist(changes));
        }
        self.actions.extend(self.effects.drain(..));
    }

    /// Adds what has changed of a job to what is to be written.
    fn write(&mut self, id: JobId, touch: Touch) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if touch.record == Writing::Revised {
            job.record.revision.0 += 1;
        }
        if touch.record != Writing::Not {
            self.changes.push(Change::Job(Box::new(job.lasting())));
        }
        for index in touch.files {
            if let Some(file) = job.files.get(index) {
                let record = Box::new(file.record.clone());
                self.changes.push(Change::File(id, index, record));
            }
        }
    }

    /// Enters when a job is to be looked at next.
    fn retime(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let due = job.next_due(&self.config).map(|(at, _)| at);
        if job.due != due {
            if let Some(before) = job.due {
                self.due.remove(&(before, id));
            }
            if let Some(at) = due {
                self.due.insert((at, id));
            }
            job.due = due;
        }
        if let Some(at) = job.forgotten_at(&self.config) {
            let ended = self.ended.entry(job.record.owner).or_default();
            if ended.jobs.insert((at, id)) {
                ended.records += job.records();
            }
        }
    }

    /// The job is looked at again at the end of this input.
    fn touch(&mut self, id: JobId, writing: Writing) {
        let touch = self.touched.entry(id).or_default();
        touch.record = touch.record.max(writing);
    }

    /// Somebody changed the job: it is written, with another revision.
    fn revise(&mut self, now: Now, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.record.touched = now.time;
        }
        self.touch(id, Writing::Revised);
    }

    /// Changes what lasts of a file.
    fn change_file<R>(
        &mut self,
        id: JobId,
        index: FileIndex,
        change: impl FnOnce(&mut File) -> R,
    ) -> Option<R> {
        let result = self.jobs.get_mut(&id)?.files.change(index, change)?;
        self.touched.entry(id).or_default().files.insert(index);
        Some(result)
    }

    fn pool(&mut self, kind: PoolKind) -> &mut Pool {
        match kind {
            PoolKind::Foreground => &mut self.foreground,
            PoolKind::Background => &mut self.background,
        }
    }

    fn draw_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }
}

#[cfg(test)]
mod tests;
