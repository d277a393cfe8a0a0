//! Why a job is not done yet: what it waits for, since when, until when, and what happens then.

use std::fmt;

use super::job::{Job, Turn};
use super::time::Brief;
use super::{Caller, FileState, JobError, JobId, JobState, JobTime, Jobs, Now, RequestError};

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// What.
    pub waiting_for: WaitingFor,
    /// Since when.
    pub since: JobTime,
    /// Until when at the latest, where that is known.
    pub until: Option<JobTime>,
    /// What happens then.
    pub then: &'static str,
    /// When this was asked.
    pub asked: JobTime,
}

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingFor {
    /// Suspended without files.
    Files,
    /// Suspended.
    Resume,
    /// There is none.
    Network,
    /// As many jobs run as may, of the same priority or a higher one.
    Place {
        /// How many.
        running: usize,
    },
    /// It was stuck; others go first.
    Rest,
    /// Its own transfers, stopped a moment ago, are just ending.
    Stopping,
    /// The origin has not sent anything yet.
    FirstBytes,
    /// Nothing: bytes come.
    Bytes {
        /// Files that are there.
        done: u32,
        /// Of how many.
        of: usize,
    },
    /// The next try.
    Retry(JobError),
    /// The owner has to see to this.
    Owner(JobError),
    /// All is there.
    Completion,
    /// Its files are getting their names.
    Placing {
        /// How many of them.
        left: usize,
    },
    /// Over.
    Nothing {
        /// The files are in place.
        done: bool,
    },
}

impl Jobs {
    /// Why a job is not done yet.
    ///
    /// # Errors
    ///
    /// [`RequestError::NoSuchJob`].
    pub fn why(&self, now: Now, caller: Caller, id: JobId) -> Result<Why, RequestError> {
        Ok(self.why_of(now, self.visible(caller, id)?))
    }

    pub(super) fn why_of(&self, now: Now, job: &Job) -> Why {
        let owner = |what| {
            let until = Some(job.abandoned_at(&self.config));
            (what, until, "it is cancelled")
        };
        let (waiting_for, until, then) = match &job.record.state {
            JobState::Suspended if job.files.len() == 0 => owner(WaitingFor::Files),
            JobState::Suspended => owner(WaitingFor::Resume),
            JobState::Queued => self.why_queued(job),
            JobState::Connecting => {
                let until = job.turn.as_ref().map(Turn::is_stuck_at);
                (WaitingFor::FirstBytes, until, "it lets other jobs go first")
            }
            JobState::Transferring => {
                let (done, of) = (job.files.sums().finished, job.files.len());
                (
                    WaitingFor::Bytes { done, of },
                    job.runs_out_at(),
                    "it gives up",
                )
            }
            JobState::TransientError { error } => why_faltered(job, error, self.network_up),
            JobState::Error { error } => owner(WaitingFor::Owner(error.clone())),
            JobState::Transferred { placing: None } => owner(WaitingFor::Completion),
            JobState::Transferred { placing: Some(_) } => {
                let left = job.files.placing();
                (WaitingFor::Placing { left }, None, "it is done")
            }
            JobState::Acknowledged { .. } => self.why_ended(job, true),
            JobState::Cancelled { .. } => self.why_ended(job, false),
        };
        Why {
            waiting_for,
            since: job.record.since,
            until,
            then,
            asked: now.time,
        }
    }

    fn why_queued(&self, job: &Job) -> (WaitingFor, Option<JobTime>, &'static str) {
        let pool = match job.pool() {
            super::PoolKind::Foreground => &self.foreground,
            super::PoolKind::Background => &self.background,
        };
        if !self.network_up {
            return (WaitingFor::Network, None, "it starts");
        }
        if pool.is_chosen(job.record.id) {
            return (WaitingFor::Stopping, None, "it starts");
        }
        match job.resting_until {
            Some(until) => (WaitingFor::Rest, Some(until), "it has its turn again"),
            None => {
                let running = pool.max_jobs();
                (WaitingFor::Place { running }, None, "it starts")
            }
        }
    }

    fn why_ended(&self, job: &Job, done: bool) -> (WaitingFor, Option<JobTime>, &'static str) {
        let until = job.forgotten_at(&self.config);
        (WaitingFor::Nothing { done }, until, "it is forgotten")
    }
}

fn why_faltered(
    job: &Job,
    error: &JobError,
    network_up: bool,
) -> (WaitingFor, Option<JobTime>, &'static str) {
    let retry = job.files.first_retry();
    let gives_up = job.gives_up_at();
    let waiting = match retry.and_then(|(at, index)| Some((at, job.files.get(index)?, index))) {
        // The file that is tried first may be another than the one the job faltered with.
        Some((at, file, index)) => match &file.record.state {
            FileState::RetryLater { trouble, .. } => {
                JobError::transient(trouble.clone(), Some(index), Some(at))
            }
            FileState::Waiting
            | FileState::Failed { .. }
            | FileState::Staged
            | FileState::Placing
            | FileState::InPlace
            | FileState::Dropped { .. } => error.clone(),
        },
        None => error.clone(),
    };
    match retry {
        Some((at, _)) if network_up && gives_up.is_none_or(|limit| at <= limit) => {
            (WaitingFor::Retry(waiting), Some(at), "it is tried again")
        }
        Some(_) if network_up => (WaitingFor::Retry(waiting), gives_up, "it gives up"),
        Some(_) | None => (WaitingFor::Network, gives_up, "it gives up"),
    }
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files => f.write_str("waiting for files, and to be resumed"),
            Self::Resume => f.write_str("suspended, waiting to be resumed"),
            Self::Network => f.write_str("waiting for a network"),
            Self::Place { running } => write!(
                f,
                "waiting for its turn: {running} jobs of the same or a higher priority run"
            ),
            Self::Rest => f.write_str("waiting for other jobs: nothing came in its last turn"),
            Self::Stopping => f.write_str("waiting for transfers that are being stopped"),
            Self::FirstBytes => f.write_str("waiting for the first bytes"),
            Self::Bytes { done, of } => write!(f, "transferring, {done} of {of} files are here"),
            Self::Retry(error) => write!(f, "waiting to try again after {error}"),
            Self::Owner(error) => write!(f, "waiting to be resumed after {error}"),
            Self::Completion => f.write_str("all files are here, waiting for `complete`"),
            Self::Placing { left } => write!(f, "putting {left} files in place"),
            Self::Nothing { done: true } => f.write_str("done"),
            Self::Nothing { done: false } => f.write_str("cancelled"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = Brief(self.asked.since(self.since));
        write!(f, "{}, for {waited}", self.waiting_for)?;
        match self.until.map(|until| Brief(until.since(self.asked))) {
            Some(left) => write!(f, "; in {left} at the latest {}", self.then),
            None => write!(f, "; then {}", self.then),
        }
    }
}
