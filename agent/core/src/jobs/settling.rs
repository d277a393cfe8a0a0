//! What follows for a job from where its files stand, and every change of state.

use super::job::Job;
use super::state::next;
use super::{
    Action, CancelCause, ErrorContext, FileIndex, FileState, Happening, JobError, JobId, JobState,
    Jobs, NotifyOf, Now, Placing, StateKind, Trigger, Trouble, Writing,
};

impl Jobs {
    /// Takes all steps that need nobody: a job without anything to fetch has all, falters or gives up.
    pub(super) fn settle(&mut self, now: Now, id: JobId) {
        while let Some(step) = self
            .jobs
            .get(&id)
            .and_then(|job| step(job, self.network_up))
        {
            match step {
                Step::Requeue => self.requeue(now, id),
                Step::Falter(file) => self.falter(now, id, file),
                Step::GiveUp(error) => self.give_up(now, id, error),
                Step::Fetched => self.all_fetched(now, id),
                Step::Placed => self.all_placed(now, id),
            }
        }
    }

    /// Changes a job's state, if the table has it so.
    pub(super) fn enter(&mut self, now: Now, id: JobId, by: Trigger, state: JobState) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let (from, to) = (job.kind(), state.kind());
        let is_legal = next(from, by) == Some(to);
        assert!(is_legal || !cfg!(test), "{from} --{by}--> {to}");
        if !is_legal {
            return;
        }
        job.record.state = state;
        job.record.since = now.time;
        if to.is_active() {
            self.active.insert(id);
        } else {
            job.count_active(now.time);
            job.turn = None;
            self.active.remove(&id);
        }
        if !to.is_scheduled() {
            job.resting_until = None;
        }
        if to == StateKind::TransientError {
            self.faltered.insert(id);
        } else {
            self.faltered.remove(&id);
        }
        if to.has_ended() {
            let files = job.files.len();
            let length = job.files.sums().length;
            self.usage.release(job.record.owner, files, length);
        }
        if from != to {
            self.log(now, id, Happening::State { from, to, by });
        }
        self.touch(id, writing(from, to));
    }

    /// Stops what runs, and waits for the owner.
    pub(super) fn give_up(&mut self, now: Now, id: JobId, error: JobError) {
        self.stop_all(id);
        self.notify(now, id, NotifyOf::Error, error.file, Some(&error));
        self.enter(now, id, Trigger::GaveUp, JobState::Error { error });
    }

    fn requeue(&mut self, now: Now, id: JobId) {
        let ticket = self.draw_ticket();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.ticket = ticket;
        }
        self.enter(now, id, Trigger::Requeued, JobState::Queued);
    }

    /// Waits for the next try, unless it has failed for too long.
    fn falter(&mut self, now: Now, id: JobId, file: FileIndex) {
        let error = self.retry_error(id, file);
        self.falter_with(now, id, error);
    }

    pub(super) fn falter_with(&mut self, now: Now, id: JobId, error: JobError) {
        let gives_up = self.jobs.get(&id).and_then(Job::gives_up_at);
        if gives_up.is_some_and(|at| at <= now.time) {
            let error = JobError::permanent(error.trouble, error.file);
            return self.give_up(now, id, error);
        }
        self.enter(
            now,
            id,
            Trigger::Faltered,
            JobState::TransientError { error },
        );
    }

    fn retry_error(&self, id: JobId, file: FileIndex) -> JobError {
        let job = self.jobs.get(&id);
        let file_of = job.and_then(|job| job.files.get(file));
        match file_of.map(|file| &file.record.state) {
            Some(FileState::RetryLater { trouble, at, .. }) => {
                JobError::transient(trouble.clone(), Some(file), Some(*at))
            }
            Some(_) | None => JobError::transient(no_network(), None, None),
        }
    }

    fn all_fetched(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let completes = job.record.settings.auto_complete;
        self.enter(
            now,
            id,
            Trigger::AllFetched,
            JobState::Transferred { placing: None },
        );
        if completes {
            self.complete(now, id);
        } else {
            self.notify(now, id, NotifyOf::Transferred, None, None);
        }
    }

    /// Drops what is not there yet, and has the rest put in place.
    pub(super) fn complete(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        for index in job.files.indexes() {
            self.keep_or_drop(id, index);
        }
        let placing = Some(Placing::default());
        self.enter(
            now,
            id,
            Trigger::Complete,
            JobState::Transferred { placing },
        );
    }

    fn keep_or_drop(&mut self, id: JobId, index: FileIndex) {
        let state = self.file_state(id, index);
        match state {
            Some(FileState::Staged) => {
                self.change_file(id, index, |file| file.record.state = FileState::Placing);
                self.place(id, index, false);
            }
            Some(FileState::Waiting | FileState::RetryLater { .. } | FileState::Failed { .. }) => {
                self.drop_file(id, index);
            }
            Some(FileState::Placing | FileState::InPlace | FileState::Dropped { .. }) | None => {}
        }
    }

    pub(super) fn place(&mut self, id: JobId, index: FileIndex, again: bool) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if let Some(file) = job.files.get(index) {
            self.effects.push(Action::Place {
                job: id,
                file: index,
                owner: job.record.owner,
                from: file.record.spec.path.staged(id, index),
                to: file.record.spec.path.clone(),
                again,
            });
        }
    }

    /// All files have answered: either all are in place, or the owner has to look.
    fn all_placed(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let JobState::Transferred {
            placing: Some(placing),
        } = &job.record.state
        else {
            return;
        };
        if let Some((file, trouble)) = placing.failed.clone() {
            let error = JobError::permanent(trouble, Some(file));
            return self.give_up(now, id, error);
        }
        let completes = job.record.settings.auto_complete;
        let state = JobState::Acknowledged { ended: now.wall };
        self.enter(now, id, Trigger::AllPlaced, state);
        if completes {
            self.notify(now, id, NotifyOf::Transferred, None, None);
        }
    }

    /// Ends a job: only what is in place stays.
    pub(super) fn cancel(&mut self, now: Now, id: JobId, by: Trigger, cause: CancelCause) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        for index in job.files.indexes() {
            match self.file_state(id, index) {
                Some(FileState::InPlace | FileState::Dropped { .. }) | None => {}
                Some(
                    FileState::Waiting
                    | FileState::RetryLater { .. }
                    | FileState::Failed { .. }
                    | FileState::Staged
                    | FileState::Placing,
                ) => self.drop_file(id, index),
            }
        }
        let ended = now.wall;
        self.enter(now, id, by, JobState::Cancelled { ended, cause });
    }

    /// The file is not wanted; what there is of it goes when its transfer has ended.
    fn drop_file(&mut self, id: JobId, index: FileIndex) {
        self.stop(id, index);
        let file = self.jobs.get(&id).and_then(|job| job.files.get(index));
        let length = file.and_then(|file| file.record.length);
        let runs = self.change_file(id, index, |file| {
            let runs = file.transfer.is_some();
            let discarded = !file.on_disk && !runs;
            file.record.state = FileState::Dropped { discarded };
            runs
        });
        if let (Some(job), Some(length)) = (self.jobs.get(&id), length) {
            self.usage.measure(job.record.owner, length, 0);
        }
        if runs == Some(false) {
            self.discard(id, index);
        }
    }

    /// Removes what is left of a dropped file.
    pub(super) fn discard(&mut self, id: JobId, index: FileIndex) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let Some(file) = job.files.get(index) else {
            return;
        };
        if file.record.state == (FileState::Dropped { discarded: false }) {
            self.effects.push(Action::Discard {
                job: id,
                file: index,
                owner: job.record.owner,
                staged: file.record.spec.path.staged(id, index),
            });
        }
    }

    pub(super) fn file_state(&self, id: JobId, index: FileIndex) -> Option<FileState> {
        let file = self.jobs.get(&id)?.files.get(index)?;
        Some(file.record.state.clone())
    }
}

/// What a job does next by itself.
enum Step {
    Requeue,
    Falter(FileIndex),
    GiveUp(JobError),
    Fetched,
    Placed,
}

fn step(job: &Job, network_up: bool) -> Option<Step> {
    match &job.record.state {
        JobState::Queued | JobState::Connecting | JobState::Transferring => {
            without_work(job).then(|| outcome(job))
        }
        JobState::TransientError { .. } if job.files.startable() > 0 => {
            network_up.then_some(Step::Requeue)
        }
        JobState::TransientError { .. } => {
            let waits = job.files.first_retry().is_some();
            (without_work(job) && !waits).then(|| outcome(job))
        }
        JobState::Transferred { placing: Some(_) } => {
            (job.files.placing() == 0).then_some(Step::Placed)
        }
        JobState::Transferred { placing: None }
        | JobState::Suspended
        | JobState::Error { .. }
        | JobState::Acknowledged { .. }
        | JobState::Cancelled { .. } => None,
    }
}

fn without_work(job: &Job) -> bool {
    job.files.startable() + job.files.running() + job.files.stopping() == 0
}

/// Of a job of which nothing can be transferred now.
fn outcome(job: &Job) -> Step {
    if let Some((_, file)) = job.files.first_retry() {
        return Step::Falter(file);
    }
    let failed = job.files.first_failed();
    match failed.and_then(|index| Some((index, &job.files.get(index)?.record.state))) {
        Some((index, FileState::Failed { trouble })) => {
            Step::GiveUp(JobError::permanent(trouble.clone(), Some(index)))
        }
        Some(_) | None => Step::Fetched,
    }
}

/// What jobs that ran when the network went suffer from.
pub(super) fn no_network() -> Trouble {
    Trouble::new(ErrorContext::Transport, "there is no network")
}

/// What is to be written when a state changes: between turns only the time it ran, for in the
/// journal a job that runs is queued.
fn writing(from: StateKind, to: StateKind) -> Writing {
    match (from.is_scheduled(), to.is_scheduled()) {
        (true, true) if to.is_active() => Writing::Not,
        (true, true) => Writing::Quiet,
        _ => Writing::Revised,
    }
}
