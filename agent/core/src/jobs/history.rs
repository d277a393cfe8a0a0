//! What has happened lately, for who streams it.

use std::collections::VecDeque;

use serde::Serialize;

use super::config::EVENTS_KEPT;
use super::{EventSeq, FileIndex, JobId, JobTime, NotificationId, StateKind, Trigger, UserId};

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoggedEvent {
    /// Where it stands in the stream: higher than all before, also those before a restart.
    pub seq: EventSeq,
    /// When.
    #[serde(skip)]
    pub at: JobTime,
    /// To which job.
    pub job: JobId,
    /// Whose.
    pub owner: UserId,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// The job was made.
    Created,
    /// It has another state.
    State {
        /// The one before.
        from: StateKind,
        /// The one now.
        to: StateKind,
        /// Why.
        #[serde(skip)]
        by: Trigger,
    },
    /// Its settings, files or URLs are others.
    Changed,
    /// A file is there.
    FileDone {
        /// Which.
        file: FileIndex,
    },
    /// A file failed, and is not tried again by itself.
    FileFailed {
        /// Which.
        file: FileIndex,
    },
    /// A file has a word for its owner.
    Notice {
        /// Which.
        file: FileIndex,
    },
    /// A remote file has changed and is fetched anew.
    Modified {
        /// Which.
        file: FileIndex,
    },
    /// Somebody could not be told, and is not tried any more.
    NotificationFailed {
        /// Which notification.
        notification: NotificationId,
    },
    /// Its time as an ended job is over: nobody knows it any more.
    Forgotten,
}

/// The last [`EVENTS_KEPT`] events.
#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<LoggedEvent>,
    next: EventSeq,
}

impl History {
    /// Begins at a number that no event before a restart can have: the time of the journal in
    /// microseconds, which runs faster than events come.
    pub(super) fn new(now: JobTime) -> Self {
        let begin = u64::try_from(now.elapsed().as_micros()).unwrap_or(u64::MAX / 2);
        Self {
            events: VecDeque::new(),
            next: EventSeq(begin + 1),
        }
    }

    pub(super) fn push(&mut self, at: JobTime, job: JobId, owner: UserId, what: Happening) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(LoggedEvent {
            seq: self.next,
            at,
            job,
            owner,
            what,
        });
        self.next.0 += 1;
    }

    /// The number of the last event, or of none yet.
    pub(super) fn last(&self) -> EventSeq {
        EventSeq(self.next.0 - 1)
    }

    /// Whether none was lost after `seq`.
    pub(super) fn is_complete_after(&self, seq: EventSeq) -> bool {
        let oldest = self.events.front().map_or(self.next, |event| event.seq);
        seq.0 + 1 >= oldest.0 && seq < self.next
    }

    pub(super) fn after(&self, seq: EventSeq) -> impl Iterator<Item = &LoggedEvent> {
        let begin = self.events.partition_point(|event| event.seq <= seq);
        self.events.range(begin..)
    }
}
