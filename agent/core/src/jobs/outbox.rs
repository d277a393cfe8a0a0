//! Notifications until they are delivered.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{NOTIFY_AT_ONCE, NOTIFY_TRIES, NOTIFY_WAITS};
use super::{Action, JobTime, Notification, NotificationId, NotificationRecord};
use crate::backoff::Backoff;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    records: BTreeMap<NotificationId, Entry>,
    due: BTreeSet<(JobTime, NotificationId)>,
    in_flight: BTreeSet<NotificationId>,
}

#[derive(Debug)]
struct Entry {
    record: NotificationRecord,
    /// From before a restart: nobody knows whether it was delivered.
    is_old: bool,
}

/// What becomes of a notification that could not be delivered.
#[derive(Debug)]
pub(super) enum AfterFailure {
    /// It is tried again; this is to be written.
    Again(NotificationRecord),
    /// It was tried often enough.
    GivenUp(NotificationRecord),
}

impl Outbox {
    pub(super) fn add(&mut self, now: JobTime, record: NotificationRecord, is_old: bool) {
        self.due.insert((now, record.id));
        self.records.insert(record.id, Entry { record, is_old });
    }

    /// Gives out what is due.
    pub(super) fn deliver(&mut self, now: JobTime, effects: &mut Vec<Action>) {
        while self.in_flight.len() < NOTIFY_AT_ONCE {
            let Some((_, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) else {
                return;
            };
            self.due.pop_first();
            if let Some(entry) = self.records.get(&id) {
                self.in_flight.insert(id);
                effects.push(Action::Notify(Box::new(Notification {
                    record: entry.record.clone(),
                    may_be_repeated: entry.is_old || entry.record.tries > 0,
                })));
            }
        }
    }

    /// Whether it was to be delivered.
    pub(super) fn delivered(&mut self, id: NotificationId) -> bool {
        self.in_flight.remove(&id) && self.records.remove(&id).is_some()
    }

    pub(super) fn failed(
        &mut self,
        now: JobTime,
        id: NotificationId,
        random: u64,
    ) -> Option<AfterFailure> {
        if !self.in_flight.remove(&id) {
            return None;
        }
        let entry = self.records.get_mut(&id)?;
        entry.record.tries += 1;
        if entry.record.tries >= NOTIFY_TRIES {
            let entry = self.records.remove(&id)?;
            return Some(AfterFailure::GivenUp(entry.record));
        }
        let (min, max) = NOTIFY_WAITS;
        let wait = Backoff { min, max }.delay(entry.record.tries - 1, random);
        self.due.insert((now.after(wait), id));
        Some(AfterFailure::Again(entry.record.clone()))
    }

    /// When one is to be delivered; `None` while as many as may be are being delivered.
    pub(super) fn next_due(&self) -> Option<JobTime> {
        let room = self.in_flight.len() < NOTIFY_AT_ONCE;
        self.due.first().filter(|_| room).map(|(at, _)| *at)
    }

    /// Those not yet delivered.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }
}
