//! Who is told what: notifications and the stream of events.

use rand::Rng;

use super::outbox::AfterFailure;
use super::{
    Caller, Change, Channel, EventSeq, FileIndex, Happening, JobError, JobId, Jobs, LoggedEvent,
    NotificationId, NotificationRecord, NotifyOf, Now,
};

impl Jobs {
    /// A notification was delivered.
    pub fn handle_notified(&mut self, now: Now, id: NotificationId) {
        if self.outbox.delivered(id) {
            self.changes.push(Change::ForgetNotification(id));
        }
        self.finish(now);
    }

    /// A notification could not be delivered, or nobody knows.
    pub fn handle_notify_failed(&mut self, now: Now, id: NotificationId) {
        let random = self.rng.next_u64();
        match self.outbox.failed(now.time, id, random) {
            None => {}
            Some(AfterFailure::Again(record)) => {
                self.changes.push(Change::Notification(Box::new(record)));
            }
            Some(AfterFailure::GivenUp(record)) => {
                self.changes.push(Change::ForgetNotification(id));
                let what = Happening::NotificationFailed { notification: id };
                self.history.push(now.time, record.job, record.owner, what);
            }
        }
        self.finish(now);
    }

    /// Notifications that are not delivered yet.
    pub fn undelivered(&self) -> usize {
        self.outbox.len()
    }

    /// The number of the last event: who begins to stream asks for those after it.
    pub fn last_event(&self) -> EventSeq {
        self.history.last()
    }

    /// What `caller` may see of what happened after `seq`.
    pub fn events_after(
        &self,
        caller: Caller,
        seq: EventSeq,
    ) -> impl Iterator<Item = &LoggedEvent> {
        let events = self.history.after(seq);
        events.filter(move |event| caller.may_see(event.owner))
    }

    /// Whether all that happened after `seq` is still known; if not, who streams looks at the
    /// jobs themselves.
    pub fn has_all_events_after(&self, seq: EventSeq) -> bool {
        self.history.is_complete_after(seq)
    }

    pub(super) fn log(&mut self, now: Now, id: JobId, what: Happening) {
        if let Some(job) = self.jobs.get(&id) {
            self.history.push(now.time, id, job.record.owner, what);
        }
    }

    /// Tells those who want to know, over each channel with a number of its own.
    pub(super) fn notify(
        &mut self,
        now: Now,
        id: JobId,
        of: NotifyOf,
        file: Option<FileIndex>,
        error: Option<&JobError>,
    ) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let settings = &job.record.settings.notify;
        if !settings.of.contains(&of) {
            return;
        }
        let webhook = settings.webhook.clone().map(Channel::Webhook);
        let command = (!settings.command.is_empty()).then(|| settings.command.clone());
        let path = file.and_then(|file| Some(job.files.get(file)?.record.spec.path.clone()));
        for channel in webhook.into_iter().chain(command.map(Channel::Command)) {
            let record = NotificationRecord {
                id: self.counters.next_notification,
                job: id,
                name: job.record.settings.name.clone(),
                owner: job.record.owner,
                channel,
                of,
                file,
                path: path.clone(),
                error: error.cloned(),
                happened: now.wall,
                tries: 0,
            };
            self.counters.next_notification.0 += 1;
            self.changes
                .push(Change::Notification(Box::new(record.clone())));
            self.outbox.add(now.time, record, false);
        }
    }
}
