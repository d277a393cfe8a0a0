//! Jobs as lists and one by one, for who may see them.

use std::collections::BTreeSet;
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::config::MAX_PAGE;
use super::job::Job;
use super::{
    Caller, FileIndex, JobId, JobSummary, JobView, Jobs, Now, RequestError, Revision, StateKind,
    TargetPath, UserId,
};

/// Which jobs are listed. What is `None` does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Whose.
    pub owner: Option<UserId>,
    /// In these states.
    pub states: Option<BTreeSet<StateKind>>,
    /// Whose names hold this, in any case.
    pub name: Option<String>,
    /// That have a file which comes to lie here.
    pub path: Option<TargetPath>,
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    /// The jobs, in the order of their numbers.
    pub jobs: Vec<JobSummary>,
    /// Where the next page begins after; `None` when this is the last.
    pub next_after: Option<JobId>,
}

impl Jobs {
    /// At most `most` jobs (and [`MAX_PAGE`]) with numbers above `after` that `caller` may see.
    pub fn list(
        &self,
        now: Now,
        caller: Caller,
        filter: &Filter,
        after: Option<JobId>,
        most: usize,
    ) -> Page {
        let owner = if caller.administrates {
            filter.owner
        } else {
            Some(caller.user)
        };
        let most = most.clamp(1, MAX_PAGE);
        let mut jobs: Vec<&Job> = self
            .ids_after(owner, after)
            .filter_map(|id| self.jobs.get(&id))
            .filter(|job| filter.admits(job))
            .take(most + 1)
            .collect();
        let more = jobs.len() > most;
        jobs.truncate(most);
        let last = jobs.last().map(|job| job.record.id);
        Page {
            jobs: jobs.into_iter().map(|job| self.summary(now, job)).collect(),
            next_after: last.filter(|_| more),
        }
    }

    /// A job, with at most `most` of its files (and [`MAX_PAGE`]) from `first` on.
    ///
    /// # Errors
    ///
    /// [`RequestError::NoSuchJob`].
    pub fn view(
        &self,
        now: Now,
        caller: Caller,
        id: JobId,
        first: FileIndex,
        most: usize,
    ) -> Result<JobView, RequestError> {
        let job = self.visible(caller, id)?;
        Ok(self.view_of(now, job, first, most.min(MAX_PAGE)))
    }

    /// The state and revision of a job, for who waits for another.
    ///
    /// # Errors
    ///
    /// [`RequestError::NoSuchJob`].
    pub fn state(&self, caller: Caller, id: JobId) -> Result<(StateKind, Revision), RequestError> {
        let job = self.visible(caller, id)?;
        Ok((job.kind(), job.record.revision))
    }

    /// How many jobs there are, ended ones included.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many jobs have transfers running.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    fn ids_after(
        &self,
        owner: Option<UserId>,
        after: Option<JobId>,
    ) -> Box<dyn Iterator<Item = JobId> + '_> {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = (begin, Bound::Unbounded);
        match owner {
            None => Box::new(self.jobs.range(range).map(|(id, _)| *id)),
            Some(owner) => {
                let ids = self.usage.jobs_of(owner).into_iter();
                Box::new(ids.flat_map(move |ids| ids.range(range)).copied())
            }
        }
    }
}

impl Filter {
    fn admits(&self, job: &Job) -> bool {
        let states = self.states.as_ref();
        let in_state = states.is_none_or(|states| states.contains(&job.kind()));
        let owner = self.owner.is_none_or(|owner| owner == job.record.owner);
        let named = self.name.as_ref().is_none_or(|part| {
            let name = job.record.settings.name.to_lowercase();
            name.contains(&part.to_lowercase())
        });
        let fills = self.path.as_ref().is_none_or(|path| {
            let mut files = job.files.iter();
            files.any(|(_, file)| file.record.spec.path == *path)
        });
        in_state && owner && named && fills
    }
}
