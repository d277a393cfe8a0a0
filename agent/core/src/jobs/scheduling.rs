//! Carries out what the pools choose: starts and stops transfers.

use super::file::Transfer;
use super::job::{Job, Turn};
use super::pool::{Demand, PoolKind};
use super::settling::no_network;
use super::{
    Action, Attempt, FileIndex, FileState, JobError, JobId, JobState, Jobs, Now, Trigger, Writing,
};

impl Jobs {
    /// Who is chosen runs, who is not stops.
    pub(super) fn schedule(&mut self, now: Now) {
        if !self.network_up {
            return;
        }
        for kind in [PoolKind::Foreground, PoolKind::Background] {
            let chosen: Vec<JobId> = self.pool(kind).chosen().collect();
            self.preempt(kind, &chosen);
            let demands: Vec<Demand> = chosen.iter().map(|id| self.demand(*id)).collect();
            let grants = self.pool(kind).share_out(&demands);
            for (id, grant) in chosen.iter().zip(grants) {
                (0..grant.stop).for_each(|_| self.stop_last(*id));
                (0..grant.start).for_each(|_| self.start_first(kind, *id));
                self.begin_turn(now, *id);
            }
        }
        self.end_turns(now);
    }

    /// Enters a job in its pool where it belongs now.
    pub(super) fn rerank(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let wanted = job.wanted_rank();
        let before = std::mem::replace(&mut job.rank, wanted);
        if before == wanted {
            return;
        }
        if let Some((kind, rank)) = before {
            self.pool(kind).remove(&rank);
        }
        if let Some((kind, rank)) = wanted {
            self.pool(kind).insert(rank);
        }
    }

    /// The network is gone: what runs stops, and counts no attempt.
    pub(super) fn falter_active(&mut self, now: Now) {
        for id in self.active.clone() {
            self.stop_all(id);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.record.failing_since.get_or_insert(now.time);
            }
            self.falter_with(now, id, JobError::transient(no_network(), None, None));
        }
    }

    /// The network is back: what waits for another reason than a server's word is tried at once.
    pub(super) fn requeue_faltered(&mut self) {
        for id in self.faltered.clone() {
            let retries = self.jobs.get(&id).map(|job| job.files.retries());
            for index in retries.unwrap_or_default() {
                if let Some(FileState::RetryLater {
                    by_server: false, ..
                }) = self.file_state(id, index)
                {
                    self.change_file(id, index, |file| file.record.state = FileState::Waiting);
                }
            }
            self.touch(id, Writing::Not);
        }
    }

    /// Stops a running transfer; what it has is kept.
    pub(super) fn stop(&mut self, id: JobId, index: FileIndex) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if !job.files.get(index).is_some_and(|file| file.is_running()) {
            return;
        }
        let attempt = job.files.change(index, |file| {
            let transfer = file.transfer.as_mut()?;
            transfer.stopping = true;
            Some(transfer.attempt)
        });
        if let Some(attempt) = attempt.flatten() {
            let file = index;
            self.effects.push(Action::Stop {
                job: id,
                file,
                attempt,
            });
            self.touch(id, Writing::Not);
        }
    }

    pub(super) fn stop_all(&mut self, id: JobId) {
        let running = self.jobs.get(&id).map_or(0, |job| job.files.running());
        (0..running).for_each(|_| self.stop_last(id));
    }

    fn stop_last(&mut self, id: JobId) {
        let last = self.jobs.get(&id).and_then(|job| job.files.last_started());
        if let Some(index) = last {
            self.stop(id, index);
        }
    }

    fn start_first(&mut self, kind: PoolKind, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(index) = job.files.first_startable() else {
            return;
        };
        let Some(order) = job.order(index) else {
            return;
        };
        self.next_attempt += 1;
        let attempt = Attempt(self.next_attempt);
        job.files.change(index, |file| {
            file.on_disk = true;
            file.transfer = Some(Transfer {
                attempt,
                pool: kind,
                stopping: false,
                sources: super::BySource::default(),
            });
        });
        self.pool(kind).take_place();
        self.effects.push(Action::Start {
            job: id,
            file: index,
            attempt,
            order: Box::new(order),
        });
    }

    fn demand(&self, id: JobId) -> Demand {
        let files = self.jobs.get(&id).map(|job| &job.files);
        Demand {
            running: files.map_or(0, |files| files.running()),
            startable: files.map_or(0, |files| files.startable()),
        }
    }

    /// Stops what jobs run that are not chosen any more.
    fn preempt(&mut self, kind: PoolKind, chosen: &[JobId]) {
        let of_pool = |id: &&JobId| self.jobs.get(id).is_some_and(|job| job.pool() == kind);
        let active = self.active.iter().filter(of_pool);
        let beaten: Vec<JobId> = active.filter(|id| !chosen.contains(id)).copied().collect();
        for id in beaten {
            self.stop_all(id);
        }
    }

    fn begin_turn(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.turn.is_none() && job.files.running() > 0 {
            job.turn = Some(Turn::new(now.time));
            self.enter(now, id, Trigger::Started, JobState::Connecting);
        }
    }

    /// Active jobs of which nothing runs any more wait for their next turn.
    fn end_turns(&mut self, now: Now) {
        let idle = |id: &&JobId| {
            let job = self.jobs.get(id);
            job.is_some_and(|job: &Job| job.files.running() == 0)
        };
        let idle: Vec<JobId> = self.active.iter().filter(idle).copied().collect();
        for id in idle {
            self.enter(now, id, Trigger::Yielded, JobState::Queued);
        }
    }
}
