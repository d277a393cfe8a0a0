//! What happens when time has passed.

use super::config::{ENDED_KEPT_LEAST, ENDED_RECORDS_KEPT, STUCK_RESTS, TIME_SLICE};
use super::job::{Job, Turn};
use super::{
    CancelCause, Change, ErrorContext, FileState, Happening, JobError, JobId, JobState, Jobs, Now,
    StateKind, Trigger, Trouble, UserId, Writing,
};

impl Jobs {
    /// The time of [`Jobs::next_deadline`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        let mut due = Vec::new();
        while let Some((_, id)) = self.due.first().copied().filter(|(at, _)| *at <= now.time) {
            self.due.pop_first();
            if let Some(job) = self.jobs.get_mut(&id) {
                job.due = None;
                due.push((job.ticket, id));
            }
        }
        // Whose slices end together go behind their equals in the order they came.
        due.sort_unstable();
        for (_, id) in due {
            self.look_at(now, id);
        }
        self.finish(now);
    }

    fn look_at(&mut self, now: Now, id: JobId) {
        self.touch(id, Writing::Not);
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.kind().has_ended() {
            if job
                .forgotten_at(&self.config)
                .is_some_and(|at| at <= now.time)
            {
                self.forget(now, id);
            }
            return;
        }
        if job.abandoned_at(&self.config) <= now.time {
            return self.abandon(now, id);
        }
        if gives_up(job, now, self.network_up) {
            return self.time_out(now, id);
        }
        if job.runs_out_at().is_some_and(|at| at <= now.time) {
            let cause = "the job has been transferring for its longest time";
            let trouble = Trouble::new(ErrorContext::Queue, cause);
            return self.give_up(now, id, JobError::permanent(trouble, None));
        }
        self.retry_due(now, id);
        self.end_slice(now, id);
        self.rest_or_wake(now, id);
    }

    /// A user's longest ended jobs go before their time when there are too many.
    pub(super) fn forget_surplus(&mut self, now: Now, owner: UserId) {
        while let Some(ended) = self.ended.get(&owner)
            && ended.records > ENDED_RECORDS_KEPT
            && ended.jobs.len() > 1
            && let Some((_, id)) = ended.jobs.first().copied()
            && let Some(job) = self.jobs.get(&id)
            && job.record.since.after(ENDED_KEPT_LEAST) <= now.time
        {
            self.forget(now, id);
        }
    }

    fn forget(&mut self, now: Now, id: JobId) {
        self.log(now, id, Happening::Forgotten);
        if let Some(job) = self.jobs.remove(&id) {
            self.touched.remove(&id);
            if let Some(due) = job.due {
                self.due.remove(&(due, id));
            }
            if let Some(at) = job.forgotten_at(&self.config)
                && let Some(ended) = self.ended.get_mut(&job.record.owner)
                && ended.jobs.remove(&(at, id))
            {
                ended.records -= job.records();
            }
            self.usage.forget(job.record.owner, id);
            let files = job.record.files;
            self.changes.push(Change::ForgetJob { job: id, files });
        }
    }

    /// Nobody cares for the job; one that is just being completed is left to end.
    fn abandon(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.files.placing() > 0 {
            job.record.touched = now.time;
        } else {
            self.cancel(now, id, Trigger::Abandoned, CancelCause::Inactive);
        }
    }

    /// It has failed for too long: its error stays.
    fn time_out(&mut self, now: Now, id: JobId) {
        let state = self.jobs.get(&id).map(|job| &job.record.state);
        if let Some(error) = state.and_then(JobState::error) {
            let error = JobError::permanent(error.trouble.clone(), error.file);
            self.give_up(now, id, error);
        }
    }

    fn retry_due(&mut self, now: Now, id: JobId) {
        while let Some(job) = self.jobs.get(&id) {
            let retry = job.files.first_retry().filter(|(at, _)| *at <= now.time);
            let tries = job.kind().is_scheduled() || job.kind() == StateKind::TransientError;
            let Some((_, index)) = retry.filter(|_| tries) else {
                return;
            };
            self.change_file(id, index, |file| file.record.state = FileState::Waiting);
        }
    }

    /// After a time slice a job goes behind its equals.
    fn end_slice(&mut self, now: Now, id: JobId) {
        let ticket = self.next_ticket + 1;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(turn) = &mut job.turn else {
            return;
        };
        if turn.slice_ends <= now.time {
            turn.slice_ends = now.time.after(TIME_SLICE);
            job.count_active(now.time);
            job.ticket = ticket;
            self.next_ticket = ticket;
            self.touch(id, Writing::Quiet);
        }
    }

    /// A stuck job lets others go first for a while.
    fn rest_or_wake(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match (job.resting_until, &mut job.turn) {
            (Some(until), turn) if until <= now.time => {
                job.resting_until = None;
                if let Some(turn) = turn {
                    turn.last_progress = now.time;
                }
            }
            (None, Some(turn)) if Turn::is_stuck_at(turn) <= now.time => {
                job.resting_until = Some(now.time.after(STUCK_RESTS));
            }
            (Some(_) | None, _) => {}
        }
    }
}

/// Whether a job in a transient error has failed for so long that it gives up before its next try;
/// without a network there is none.
fn gives_up(job: &Job, now: Now, network_up: bool) -> bool {
    let failing = job.kind() == StateKind::TransientError;
    let Some(at) = job.gives_up_at().filter(|at| failing && *at <= now.time) else {
        return false;
    };
    let retry = job.files.first_retry().filter(|_| network_up);
    retry.is_none_or(|(retry, _)| at < retry)
}
