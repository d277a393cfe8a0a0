//! What the shell reports.

use std::time::Duration;

use rand::Rng;

use super::config::{LONGEST_RETRY_AFTER, RESTARTS_AT_ONCE};
use super::file::File;
use super::{
    Attempt, BySource, ErrorContext, Event, Failure, FileIndex, FileState, Happening, JobId,
    JobState, JobTime, Jobs, Live, NotifyOf, Now, PlaceFailure, Placing, Staging, StateKind,
    Trigger, Trouble, Writing,
};
use crate::backoff::Backoff;

impl Jobs {
    /// Something happened to a transfer. What concerns another attempt than the present one is ignored.
    pub fn handle_event(
        &mut self,
        now: Now,
        job: JobId,
        file: FileIndex,
        attempt: Attempt,
        event: Event,
    ) {
        let transfer = self.file(job, file).and_then(|file| file.transfer);
        if transfer.is_none_or(|transfer| transfer.attempt != attempt) {
            return;
        }
        match event {
            Event::Connected { length } => self.connected(job, file, length),
            Event::Progress { bytes, sources } => self.progress(now, job, file, bytes, sources),
            Event::Live(live) => self.live(job, file, live),
            Event::Notice(notice) => self.notice(now, job, file, &notice),
            Event::Staged {
                bytes,
                sources,
                proof,
            } => {
                self.measure(job, file, bytes);
                self.end_attempt(job, file, |file| file.stage(bytes, sources, proof));
                self.staged(now, job, file);
            }
            Event::Modified => self.modified(now, job, file),
            Event::Failed(failure) => self.failed(now, job, file, failure),
            Event::Stopped => self.stopped(now, job, file),
        }
        self.finish(now);
    }

    /// A file has its name.
    pub fn handle_placed(&mut self, now: Now, job: JobId, file: FileIndex) {
        if self.file_state(job, file) == Some(FileState::Placing) {
            self.change_file(job, file, |file| file.record.state = FileState::InPlace);
        }
        self.finish(now);
    }

    /// A file could not get its name.
    pub fn handle_place_failed(
        &mut self,
        now: Now,
        job: JobId,
        file: FileIndex,
        failure: PlaceFailure,
    ) {
        if self.file_state(job, file) != Some(FileState::Placing) {
            return;
        }
        self.change_file(job, file, |file| {
            file.record.state = match failure.staged {
                Staging::Kept => FileState::Staged,
                Staging::Lost => FileState::Waiting,
            };
        });
        let record = self.jobs.get_mut(&job).map(|job| &mut job.record);
        if let Some(JobState::Transferred { placing }) = record.map(|record| &mut record.state) {
            let placing = placing.get_or_insert_with(Placing::default);
            placing.failed.get_or_insert((file, failure.trouble));
        }
        self.touch(job, Writing::Quiet);
        self.finish(now);
    }

    /// Nothing is left of a dropped file, or nothing can be done about it.
    pub fn handle_discarded(&mut self, now: Now, job: JobId, file: FileIndex) {
        if self.file_state(job, file) == (Some(FileState::Dropped { discarded: false })) {
            self.change_file(job, file, |file| {
                file.record.state = FileState::Dropped { discarded: true };
            });
        }
        self.finish(now);
    }

    fn file(&self, id: JobId, index: FileIndex) -> Option<&File> {
        self.jobs.get(&id)?.files.get(index)
    }

    /// The length is known: it counts for the owner's quota.
    fn connected(&mut self, id: JobId, index: FileIndex, length: Option<u64>) {
        let Some(length) = length else {
            return;
        };
        if self.fits(id, index, length) {
            return self.measure(id, index, length);
        }
        let trouble = Trouble::new(ErrorContext::Queue, "the owner's quota of bytes is used up");
        self.stop(id, index);
        self.change_file(id, index, |file| {
            file.record.state = FileState::Failed { trouble }
        });
    }

    /// Whether a file of this length is within its owner's quota.
    fn fits(&self, id: JobId, index: FileIndex, length: u64) -> bool {
        let Some(job) = self.jobs.get(&id).filter(|job| !job.record.exempt) else {
            return true;
        };
        let before = job.files.get(index).and_then(|file| file.record.length);
        let left = self.usage.bytes_left(&self.config.quota, job.record.owner);
        length.saturating_sub(before.unwrap_or(0)) <= left
    }

    /// Notes the length of a file that is to be fetched.
    fn measure(&mut self, id: JobId, index: FileIndex, length: u64) {
        if self.file_state(id, index) != Some(FileState::Waiting) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let before = job
            .files
            .change(index, |file| file.record.length.replace(length));
        let before = before.flatten().unwrap_or(0);
        self.usage.measure(job.record.owner, before, length);
    }

    fn progress(&mut self, now: Now, id: JobId, index: FileIndex, bytes: u64, sources: BySource) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let moved = job.files.change(index, |file| {
            let before = (file.record.bytes, file.sources().total());
            file.record.bytes = bytes;
            if let Some(transfer) = &mut file.transfer {
                transfer.sources = sources;
            }
            let moved = bytes > before.0 || file.sources().total() > before.1;
            if moved {
                file.record.failures = 0;
            }
            moved
        });
        if moved == Some(true) {
            self.advance(now, id);
        }
    }

    /// A job has come forward: what measures how long it has not begins anew.
    fn advance(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.record.touched = now.time;
        if let Some(turn) = &mut job.turn {
            turn.last_progress = now.time;
        }
        let kind = job.kind();
        let was_failing = job.record.failing_since.take().is_some();
        let was_resting = job.resting_until.take().is_some();
        if was_failing {
            self.touch(id, Writing::Quiet);
        }
        if was_resting {
            self.touch(id, Writing::Not);
        }
        if kind == StateKind::Connecting {
            self.enter(now, id, Trigger::FirstBytes, JobState::Transferring);
        }
    }

    fn live(&mut self, id: JobId, index: FileIndex, live: Live) {
        let files = self.jobs.get_mut(&id).map(|job| &mut job.files);
        files.and_then(|files| files.change(index, |file| file.live = live));
    }

    fn notice(&mut self, now: Now, id: JobId, index: FileIndex, notice: &str) {
        let noted = self.change_file(id, index, |file| file.note(notice));
        if noted == Some(true) {
            self.log(now, id, Happening::Notice { file: index });
        }
    }

    fn staged(&mut self, now: Now, id: JobId, index: FileIndex) {
        if self.file_state(id, index) != Some(FileState::Waiting) {
            return self.discard(id, index);
        }
        self.change_file(id, index, |file| {
            file.record.state = FileState::Staged;
            file.record.failures = 0;
        });
        self.advance(now, id);
        self.log(now, id, Happening::FileDone { file: index });
        self.notify(now, id, NotifyOf::FileDone, Some(index), None);
    }

    fn stopped(&mut self, now: Now, id: JobId, index: FileIndex) {
        let transfer = self.file(id, index).and_then(|file| file.transfer);
        if transfer.is_some_and(|transfer| transfer.stopping) {
            self.end_attempt(id, index, |_| ());
            self.discard(id, index);
        } else {
            let trouble = Trouble::new(ErrorContext::Queue, "the transfer was stopped unasked");
            let retry_after = None;
            let failure = Failure::Transient {
                trouble,
                retry_after,
            };
            self.failed(now, id, index, failure);
        }
    }

    /// While a transfer is being stopped, or without a network, a failure says nothing.
    fn failed(&mut self, now: Now, id: JobId, index: FileIndex, failure: Failure) {
        let stopping = self.end_attempt(id, index, |_| ());
        if stopping || self.file_state(id, index) != Some(FileState::Waiting) {
            return self.discard(id, index);
        }
        match failure {
            Failure::Permanent { trouble } => self.fail(now, id, index, trouble),
            Failure::Transient {
                trouble,
                retry_after,
            } => {
                let failures = self.change_file(id, index, |file| {
                    file.record.failures = file.record.failures.saturating_add(1);
                    file.record.failures
                });
                let failures = failures.unwrap_or(1);
                self.retry_later(now, id, index, trouble, failures - 1, retry_after);
            }
        }
    }

    fn fail(&mut self, now: Now, id: JobId, index: FileIndex, trouble: Trouble) {
        self.change_file(id, index, |file| {
            file.record.state = FileState::Failed { trouble }
        });
        self.log(now, id, Happening::FileFailed { file: index });
    }

    fn retry_later(
        &mut self,
        now: Now,
        id: JobId,
        index: FileIndex,
        trouble: Trouble,
        earlier: u32,
        retry_after: Option<Duration>,
    ) {
        let random = self.rng.next_u64();
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let policy = job.record.settings.retry;
        if policy.no_progress_timeout.is_zero() {
            return self.fail(now, id, index, trouble);
        }
        job.record.failing_since.get_or_insert(now.time);
        let (min, max) = (policy.min_delay, policy.max_delay);
        // The second ceiling already for the first wait: those that failed together come back spread out.
        let wait = Backoff { min, max }.delay(earlier.saturating_add(1), random);
        let asked = retry_after.map(|asked| asked.min(LONGEST_RETRY_AFTER));
        let at = later(now.time, wait, asked);
        let by_server = asked.is_some();
        self.change_file(id, index, |file| {
            file.record.state = FileState::RetryLater {
                trouble,
                at,
                by_server,
            };
        });
        self.touch(id, Writing::Quiet);
    }

    /// The remote file is another one: fetched anew at once, or, when it keeps changing, later.
    fn modified(&mut self, now: Now, id: JobId, index: FileIndex) {
        let stopping = self.end_attempt(id, index, |_| ());
        if self.file_state(id, index) != Some(FileState::Waiting) {
            return self.discard(id, index);
        }
        let before = self.file(id, index).and_then(|file| file.record.length);
        if let Some(job) = self.jobs.get(&id) {
            self.usage.measure(job.record.owner, before.unwrap_or(0), 0);
        }
        let changes = self.change_file(id, index, |file| {
            file.record.length = None;
            file.record.bytes = 0;
            file.record.sources = BySource::default();
            file.record.changes = file.record.changes.saturating_add(1);
            file.record.changes
        });
        self.log(now, id, Happening::Modified { file: index });
        self.notify(now, id, NotifyOf::Modified, Some(index), None);
        let too_often = changes.unwrap_or(0).checked_sub(RESTARTS_AT_ONCE + 1);
        if let Some(earlier) = too_often.filter(|_| !stopping) {
            let trouble = Trouble::new(ErrorContext::RemoteFile, "the file keeps changing");
            self.retry_later(now, id, index, trouble, earlier, None);
        }
    }

    /// The attempt is over and its place free; whether it was being stopped.
    fn end_attempt(&mut self, id: JobId, index: FileIndex, last: impl FnOnce(&mut File)) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        let ended = job.files.change(index, |file| {
            last(file);
            file.end_transfer()
        });
        self.touch(id, Writing::Not);
        let Some(transfer) = ended.flatten() else {
            return false;
        };
        self.pool(transfer.pool).leave_place();
        transfer.stopping
    }
}

/// After `wait`, and not before the server wants it.
fn later(now: JobTime, wait: Duration, asked: Option<Duration>) -> JobTime {
    now.after(asked.map_or(wait, |asked| asked.max(wait)))
}
