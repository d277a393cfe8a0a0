//! What each user has, against his quota.

use std::collections::{BTreeMap, BTreeSet};

use super::{JobId, Quota, RequestError, UserId};

/// All users' jobs.
#[derive(Debug, Default)]
pub(super) struct Usage {
    users: BTreeMap<UserId, OfUser>,
}

/// `jobs` are all; the sums are of those that have not ended.
#[derive(Debug, Default)]
struct OfUser {
    jobs: BTreeSet<JobId>,
    live: usize,
    files: usize,
    bytes: u64,
}

impl Usage {
    /// Whether `user` may have so many more.
    pub(super) fn admits(
        &self,
        quota: &Quota,
        user: UserId,
        more_jobs: usize,
        more_files: usize,
    ) -> Result<(), RequestError> {
        let none = OfUser::default();
        let has = self.users.get(&user).unwrap_or(&none);
        within("jobs", has.live + more_jobs, quota.jobs)?;
        within("files", has.files + more_files, quota.files)
    }

    /// How many bytes more he may have.
    pub(super) fn bytes_left(&self, quota: &Quota, user: UserId) -> u64 {
        let has = self.users.get(&user).map_or(0, |has| has.bytes);
        quota.bytes.saturating_sub(has)
    }

    pub(super) fn add_job(&mut self, user: UserId, job: JobId, is_live: bool) {
        let has = self.users.entry(user).or_default();
        has.jobs.insert(job);
        has.live += usize::from(is_live);
    }

    pub(super) fn add_files(&mut self, user: UserId, files: usize) {
        self.users.entry(user).or_default().files += files;
    }

    /// A file's length is another one now.
    pub(super) fn measure(&mut self, user: UserId, before: u64, now: u64) {
        let has = self.users.entry(user).or_default();
        has.bytes = has.bytes.saturating_sub(before).saturating_add(now);
    }

    /// A job has ended.
    pub(super) fn release(&mut self, user: UserId, files: usize, bytes: u64) {
        let has = self.users.entry(user).or_default();
        has.live = has.live.saturating_sub(1);
        has.files = has.files.saturating_sub(files);
        has.bytes = has.bytes.saturating_sub(bytes);
    }

    pub(super) fn forget(&mut self, user: UserId, job: JobId) {
        let Some(has) = self.users.get_mut(&user) else {
            return;
        };
        has.jobs.remove(&job);
        if has.jobs.is_empty() {
            self.users.remove(&user);
        }
    }

    /// A user's jobs after `after`.
    pub(super) fn jobs_of(&self, user: UserId) -> Option<&BTreeSet<JobId>> {
        self.users.get(&user).map(|has| &has.jobs)
    }
}

pub(super) fn within(what: &'static str, has: usize, most: usize) -> Result<(), RequestError> {
    if has > most {
        let most = most as u64;
        return Err(RequestError::Quota { what, most });
    }
    Ok(())
}

#[cfg(test)]
impl Usage {
    /// A user's jobs, files and bytes that count.
    pub(super) fn of(&self, user: UserId) -> (usize, usize, u64) {
        let has = self.users.get(&user);
        has.map_or((0, 0, 0), |has| (has.live, has.files, has.bytes))
    }
}
